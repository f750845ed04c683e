"""Test that the .pth reader reads torch's files bit for bit and refuses all others.

It is one file because these tests share the functions below that build valid, damaged
and hostile .pth files.
"""

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrained import WeightsError, read_torch_file
from pretrained.torchfile import write_torch_file
from tests.conftest import ROOT, torch_alexnet

FORMATS = ["zip", "legacy"]
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
]


def saved(value, form="zip", **kwargs):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=form == "zip", **kwargs)
    return buffer.getvalue()


def read(content):
    return read_torch_file(io.BytesIO(content))


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_read_as_torch_does(content):
    theirs = torch.load(io.BytesIO(content), weights_only=True)
    ours = read(content)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape), name
        assert str(ours[name].dtype) == str(tensor.dtype).removeprefix("torch."), name
        assert ours[name].flags.c_contiguous
        assert ours[name].tobytes() == bits(tensor), name
    return ours


# Files that torch writes.


@st.composite
def state_dicts(draw):
    """Draw tensors that start at offsets in storages; several may share a storage."""
    storages = []
    for dtype in draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3)):
        raw = draw(st.binary(min_size=0, max_size=96))
        raw = raw[: len(raw) // 8 * 8]
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0)
        storages.append(flat.to(dtype))
    tensors = {}
    for index in range(draw(st.integers(0, 5))):
        storage = draw(st.sampled_from(storages))
        start = draw(st.integers(0, len(storage)))
        part = storage[start : draw(st.integers(start, len(storage)))]
        shape = draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1), (len(part), 1)]))
        part = part.reshape(shape) if len(part) else part
        if draw(st.booleans()) and part.dtype.is_floating_point:
            part = torch.nn.Parameter(part, requires_grad=draw(st.booleans()))
        tensors[draw(st.text("ab.é0", max_size=4)) + str(index)] = part
    return tensors


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(state_dicts(), st.sampled_from(FORMATS))
def test_any_tensors_are_read_bit_for_bit(tensors, form):
    assert_read_as_torch_does(saved(tensors, form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_keeps_its_special_values(form, dtype):
    values = torch.tensor([0.0, -0.0, 1.5, -3e4, 6e-8])
    if dtype.is_floating_point:
        values = torch.cat([values, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    values = {"a": values.to(dtype), "scalar": torch.tensor(7).to(dtype)}
    values["empty"] = torch.empty(0, 3, dtype=dtype)
    assert_read_as_torch_does(saved(values, form))


@pytest.mark.parametrize("form", FORMATS)
def test_a_module_s_state_dict_is_read(form):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
    )
    model.to(memory_format=torch.channels_last)  # a 1×1 kernel stays contiguous
    model(torch.ones(2, 3, 5, 4))
    ours = assert_read_as_torch_does(saved(model.state_dict(), form))
    assert ours["1.num_batches_tracked"] == 1
    assert ours["1.num_batches_tracked"].dtype == np.int64
    assert_read_as_torch_does(saved(dict(model.named_parameters()), form))


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_that_share_a_storage_share_memory(form):
    base = torch.arange(12.0)
    ours = assert_read_as_torch_does(saved({"a": base[:8], "b": base[4:]}, form))
    assert np.shares_memory(ours["a"], ours["b"])


def test_a_file_written_under_another_name_has_another_prefix(tmp_path):
    path = tmp_path / "my weights é.pth"
    torch.save({"a": torch.ones(3)}, path)
    np.testing.assert_array_equal(read_torch_file(path)["a"], np.ones(3))
    np.testing.assert_array_equal(read_torch_file(str(path))["a"], np.ones(3))


def test_checksums_that_torch_left_out_are_not_compared():
    torch.serialization.set_crc32_options(False)
    try:
        content = saved({"a": torch.arange(5.0), "b": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {member.CRC for member in archive.infolist()} == {0}
    assert_read_as_torch_does(content)
    # Negative control: with checksums, a changed value is noticed.
    content = saved({"a": torch.arange(5.0)})
    changed = content.replace(struct.pack("<f", 3.0), struct.pack("<f", 7.0))
    assert changed != content
    with pytest.raises(WeightsError, match="is damaged: Bad CRC-32"):
        read(changed)


def test_what_we_write_is_what_torch_reads(tmp_path):
    arrays = {
        "features.0.weight": np.random.default_rng(0).random((3, 2, 1), np.float32),
        "b": np.array([np.nan, -0.0], np.float32),
        "scalar": np.float32(3).reshape(()),
        "empty": np.empty((0, 4), np.float32),
    }
    for name in ("one.pth", "two.pth"):
        write_torch_file(tmp_path / name, arrays)
    content = (tmp_path / "one.pth").read_bytes()
    assert content == (tmp_path / "two.pth").read_bytes()
    ours = assert_read_as_torch_does(content)
    assert {k: v.tobytes() for k, v in ours.items()} == {
        k: v.tobytes() for k, v in arrays.items()
    }
    mapped = torch.load(tmp_path / "one.pth", weights_only=True, mmap=True)
    assert mapped["features.0.weight"].data_ptr() % 64 == 0
    assert sorted(os.listdir(tmp_path)) == ["one.pth", "two.pth"]


def test_only_contiguous_float32_is_written(tmp_path):
    for array in (np.ones(3), np.ones((2, 3), np.float32).T):
        with pytest.raises(ValueError, match="C-contiguous float32"):
            write_torch_file(tmp_path / "a.pth", {"a": array})
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", FORMATS)
def test_reading_needs_the_file_s_size_and_a_little(tmp_path, form):
    path = tmp_path / "alexnet.pth"
    path.write_bytes(saved(torch_alexnet(1000).state_dict(), form))
    code = (
        "import re, sys\n"
        "from pretrained import read_torch_file\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) * 1024\n"
        "before = peak()\n"
        "read_torch_file(sys.argv[1])\n"
        "print(peak() - before)\n"
    )
    out = subprocess.check_output([sys.executable, "-c", code, path], text=True)
    assert path.stat().st_size / 2 < int(out) <= path.stat().st_size + 64e6


def test_no_module_of_pretrained_s_reader_knows_pickle_or_torch():
    code = (
        "import sys; from pretrained import read_torch_file\n"
        "print({'pickle', '_pickle', 'torch', 'jax'} & set(sys.modules))"
    )
    # NumPy itself imports pickle, so it is hidden before the reader is imported.
    hide = "import sys, numpy; [sys.modules.pop(m) for m in ('pickle', '_pickle')]\n"
    out = subprocess.check_output([sys.executable, "-c", hide + code], text=True)
    assert out == "set()\n"


# Files that torch does not write: first pickle programs, put into either format.

BEGIN = b"\x80\x02"
STATE = BEGIN + b"ccollections\nOrderedDict\n)R("


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def tensor(
    storage=b"ctorch\nFloatStorage\n",
    key=b"0",
    numel=None,
    offset=None,
    shape=None,
    stride=None,
    rebuild=b"ctorch._utils\n_rebuild_tensor_v2\n",
    reference=b"",
):
    """Return the program of a tensor of four float32, with the given parts replaced."""
    numel = number(4) if numel is None else numel
    offset = number(0) if offset is None else offset
    shape = b"(" + (number(4) if shape is None else shape) + b"t"
    stride = b"(" + (number(1) if stride is None else stride) + b"t"
    reference = reference or (
        b"(" + text(b"storage") + storage + text(key) + text(b"cpu") + numel + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        rebuild + b"(" + reference + offset + shape + stride + b"\x89" + hooks + b"tR"
    )


def program(value=None, before=b"", after=b"u."):
    return STATE + before + text(b"a") + (tensor() if value is None else value) + after


DATA = struct.pack("<4f", 1, 2, 3, 4)


def zipped(pickled, records=None, prefix="archive", **notes):
    """Return a zip .pth file that holds a program; its checksums are always valid."""
    members = {"data.pkl": pickled, "byteorder": b"little"}
    members |= {f"data/{k}": v for k, v in (records or {"0": DATA}).items()}
    members |= {"version": b"3\n", **notes}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{prefix}/{name}", content)
    return buffer.getvalue()


def legacy(pickled, keys=("0",), data=None, magic=0x1950A86A20F9469CFC6C, little=True):
    parts = [magic, 1001, {"little_endian": little, "type_sizes": {"int": 4}}]
    start = b"".join(pickle.dumps(part, 2) for part in parts)
    data = struct.pack("<q", 4) + DATA if data is None else data
    return start + pickled + pickle.dumps(list(keys), 2) + data


def canary(path):
    """Return programs that would run a command in an unrestricted unpickler."""
    command = f"touch {path}".encode()
    call = b"(" + text(command) + b"tR"
    return {
        "GLOBAL": b"cposix\nsystem\n" + call,
        "GLOBAL os": b"cos\nsystem\n" + call,
        "GLOBAL builtins": b"cbuiltins\neval\n(" + text(b"1+1") + b"tR",
        "GLOBAL a dotted path": b"ctorch._utils\nsys.modules\n" + call,
        "GLOBAL below an allowed name": b"ccollections\nOrderedDict.fromkeys\n" + call,
        "GLOBAL of an allowed module": b"ctorch\nload\n" + call,
        "INST": b"(" + text(command) + b"iposix\nsystem\n",
        "OBJ": b"(cposix\nsystem\n" + text(command) + b"o",
        "STACK_GLOBAL": text(b"posix") + text(b"system") + b"\x93" + call,
        "NEWOBJ": b"cposix\nsystem\n(" + text(command) + b"t\x81",
        "NEWOBJ_EX": b"cposix\nsystem\n(" + text(command) + b"t}\x92",
        "EXT1": b"\x82\x01" + call,
        "PERSID": b"Pcommand\n",
        "BUILD": b"ccollections\nOrderedDict\n)R}(" + text(b"__class__") + b"Nub",
        "BUILD of a tensor": tensor() + b"}(" + text(b"shape") + b"Nub",
        "REDUCE of a string": text(b"os.system") + call,
        "REDUCE of a tensor": tensor() + call,
        "REDUCE of a storage type": b"ctorch\nFloatStorage\n" + call,
    }


BROKEN = "a pickle that is invalid"
SHARED = b"]q\x01(h\x01h\x01e"
BOMB = b"]q\x00" + b"".join(
    b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
    for i in range(60)
)
PROGRAMS = {
    "protocol 0": (pickle.dumps({"a": 1}, 0), "protocol is not 2"),
    "protocol 4": (pickle.dumps({"a": 1}, 4), "protocol is not 2"),
    "a second PROTO": (program(b"\x80\x02" + tensor()), "operation 0x80"),
    "empty": (b"", ""),
    "no STOP": (program(after=b"u"), ""),
    "no state_dict": (BEGIN + b"]" + b".", "holds a list, not a state_dict"),
    "a bare tensor": (BEGIN + tensor() + b".", "holds a single tensor"),
    "a number as value": (program(b"K\x01"), "'a' is a number, not a tensor"),
    "None as value": (program(b"N"), "'a' is None, not a tensor"),
    "a nested dict": (program(b"}"), "'a' is a dict, not a tensor"),
    "a checkpoint": (
        STATE + text(b"state_dict") + b"}" + b"u.",
        "is a training checkpoint; save only its ['state_dict'] with",
    ),
    "a float": (program(b"G" + bytes(8)), "floating-point numbers, as training check"),
    "a late checkpoint": (
        STATE + text(b"epoch") + b"K\x03" + text(b"model") + b"}u.",
        "is a training checkpoint; save only its ['model'] with",
    ),
    "a dangling GET": (program(b"h\x07"), BROKEN),
    "memo index 2**31": (
        program(tensor() + b"r" + struct.pack("<I", 1 << 31)),
        "a memo of over 50,000 entries",
    ),
    "memo index 2**32-1": (program(tensor() + b"r\xff\xff\xff\xff"), "a memo of over"),
    "a PUT of nothing": (BEGIN + b"q\x00.", BROKEN),
    "string length 2**31": (
        program(b"X" + struct.pack("<I", 1 << 31) + b"a"),
        "ends early",
    ),
    "a string that is no UTF-8": (program(text(b"\xff\xfe")), BROKEN),
    "a huge LONG1": (program(b"\x8a\xff" + bytes(255)), BROKEN),
    "a LONG4": (program(b"\x8b\x01\0\0\0\x01"), "operation 0x8b"),
    "200,000 deep lists": (BEGIN + b"]" * 200_000 + b".", "over 100,000 operations"),
    "99,000 deep lists": (
        BEGIN + b"]" * 49_000 + b"a" * 48_999 + b".",
        "holds a list",
    ),
    "deep tuples as a key": (
        BEGIN + b"})" + b"\x85" * 90_000 + b"Ns.",
        "a key that is not a short printable string",
    ),
    "a list of itself": (BEGIN + SHARED + b".", "holds a list"),
    "a dict of itself": (BEGIN + b"}q\0(" + text(b"a") + b"h\0u.", "'a' is a dict"),
    "a bomb of shared lists": (BEGIN + BOMB + b".", BROKEN),
    "a bomb as value": (STATE + text(b"a") + BOMB + b"u.", "not a short printable"),
    "a mark too few": (BEGIN + b"}u.", BROKEN),
    "a mark too many": (BEGIN + b"(}.", BROKEN),
    "two values": (BEGIN + b"}}.", BROKEN),
    "nothing on the stack": (BEGIN + b".", BROKEN),
    "an odd number of items": (program(after=b"Nu."), BROKEN),
    "SETITEM on a list": (BEGIN + b"]K\x01K\x02s.", BROKEN),
    "SETITEMS on a string": (BEGIN + text(b"x") + b"(NNu.", BROKEN),
    "APPEND to a dict": (BEGIN + b"}Na.", BROKEN),
    "a number as key": (BEGIN + b"}K\x01" + tensor() + b"s.", "not a short printable"),
    "a key with an escape": (
        STATE + text(b"\x1b[2J") + tensor() + b"u.",
        "not a short printable string",
    ),
    "a key of 2,000 letters": (
        STATE + text(b"k" * 2000) + tensor() + b"u.",
        "not a short printable string",
    ),
    "an OrderedDict with arguments": (
        BEGIN + b"ccollections\nOrderedDict\n(Nt" + b"R.",
        BROKEN,
    ),
    "a tensor of three arguments": (
        program(b"ctorch._utils\n_rebuild_tensor_v2\n(NNNtR"),
        BROKEN,
    ),
    "a tensor of no storage": (program(tensor(reference=b"N")), BROKEN),
    "a parameter of no tensor": (
        program(b"ctorch._utils\n_rebuild_parameter\n(N\x88}tR"),
        BROKEN,
    ),
    "an unknown storage": (
        program(tensor(storage=b"ctorch\nByteStorage\n")),
        "holds a tensor of torch's 'ByteStorage', but only float16",
    ),
    "another tag": (
        program(
            tensor(
                reference=b"("
                + text(b"module")
                + b"ctorch\nFloatStorage\n"
                + text(b"0")
                + text(b"cpu")
                + number(4)
                + b"tQ"
            )
        ),
        BROKEN,
    ),
    "a number for requires_grad": (
        program(tensor().replace(b"\x89", b"K\x01")),
        BROKEN,
    ),
    "hooks": (
        program(tensor()[:-2] + b"(" + text(b"hook") + b"Nu" + b"tR"),
        BROKEN,
    ),
    "a BUILD of a plain dict": (
        program(b"}}" + text(b"_metadata") + b"}sb"),
        BROKEN,
    ),
    "a function as storage": (
        program(tensor(storage=b"ccollections\nOrderedDict\n")),
        BROKEN,
    ),
    "a module reference": (
        program(tensor(reference=b"(" + text(b"module") + b"NNNNtQ")),
        BROKEN,
    ),
    "another sparse tensor": (
        program(tensor(rebuild=b"ctorch._utils\n_rebuild_sparse_tensor\n")),
        "torch._utils._rebuild_sparse_tensor",
    ),
    "numel below the record": (program(tensor(numel=number(2), shape=number(2))), ""),
    "numel above the record": (program(tensor(numel=number(2**40))), ""),
    "numel 2**126": (program(tensor(numel=number(2**126))), ""),
    "a negative numel": (program(tensor(numel=number(-4))), BROKEN),
    "a bool as numel": (program(tensor(numel=b"\x88")), BROKEN),
    "offset out of range": (
        program(tensor(offset=number(1))),
        "4 values at offset 1 in",
    ),
    "a negative offset": (program(tensor(offset=number(-1))), BROKEN),
    "a bool as offset": (program(tensor(offset=b"\x89")), BROKEN),
    "a shape too large": (
        program(tensor(shape=number(5))),
        "5 values at offset 0 in a stor",
    ),
    "a negative dimension": (program(tensor(shape=number(-4))), BROKEN),
    "two negative dimensions": (
        program(tensor(shape=number(-2) * 2, stride=number(1) * 2)),
        BROKEN,
    ),
    "a bool as dimension": (
        program(tensor(shape=b"\x88", numel=number(4))),
        BROKEN,
    ),
    "nothing times 2**62": (
        program(tensor(shape=number(0) + number(2**62), stride=number(1) * 2)),
        BROKEN,
    ),
    "nine dimensions": (
        program(tensor(shape=number(1) * 9, stride=number(1) * 9)),
        BROKEN,
    ),
    "stride 0": (
        program(tensor(shape=number(2**31), stride=number(0), numel=number(1))),
        "2,147,483,648 values",
    ),
    "stride 0 within": (program(tensor(stride=number(0))), "transposed or expanded"),
    "stride 2": (
        program(tensor(shape=number(2), stride=number(2))),
        "transposed or expanded tensor; save contiguous tensors",
    ),
    "a negative stride": (program(tensor(stride=number(-1))), BROKEN),
    "fewer strides than dimensions": (program(tensor(stride=b"")), BROKEN),
    "one storage of two lengths": (
        program(after=text(b"b") + tensor(numel=number(5)) + b"u."),
        BROKEN,
    ),
    "one storage of two types": (
        program(after=text(b"b") + tensor(storage=b"ctorch\nLongStorage\n") + b"u."),
        BROKEN,
    ),
    "a BUILD with a surprise": (
        program(after=b"u}(" + text(b"__dict__") + b"}" + b"ub."),
        BROKEN,
    ),
}


def refused(content, message):
    """Check that reading some bytes raises a one-line WeightsError; return the line."""
    with pytest.raises(WeightsError) as raised:
        read_torch_file(Sparse(content) if "memory" in message else io.BytesIO(content))
    assert type(raised.value) is WeightsError
    line = str(raised.value)
    assert message in line
    assert line.isprintable() and len(line) < 600, line
    return line


def numel_fits(pickled, form):
    # A legacy file also has lengths in its data; other tests below change those.
    return zipped(pickled) if form == "zip" else legacy(pickled)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_refused(name, form):
    pickled, message = PROGRAMS[name]
    if form == "legacy":  # its references have one more field
        pickled = pickled.replace(b"tQ", b"NtQ")
    refused(numel_fits(pickled, form), message)


@pytest.mark.parametrize("form", FORMATS)
def test_the_programs_are_refused_for_what_was_changed_in_them(form):
    pickled = program() if form == "zip" else program().replace(b"tQ", b"NtQ")
    ours = read(numel_fits(pickled, form))
    np.testing.assert_array_equal(ours["a"], [1, 2, 3, 4])
    if form == "zip":
        assert_read_as_torch_does(zipped(pickled))


@pytest.mark.parametrize("form", FORMATS)
def test_no_program_calls_anything(form, tmp_path):
    path = tmp_path / "canary"
    for name, value in canary(path).items():
        pickled = program(value)
        refused(numel_fits(pickled, form), "")
        assert not path.exists(), name
    # As a control, Python's own pickle executes one of these programs.
    pickle.loads(BEGIN + canary(path)["GLOBAL"] + b".")
    assert path.exists()


def test_no_operation_but_the_thirty_is_known():
    from pretrained.unpickle import _OPERATIONS

    known = {code.decode("latin-1") for code in _OPERATIONS} | {"\x80", "."}
    assert len(known) == 30
    dangerous = {
        *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "PERSID"),
        *("EXT1", "EXT2", "EXT4", "MEMOIZE", "FRAME", "BYTEARRAY8", "POP", "DUP"),
    }
    by_name = {op.name: op.code for op in pickletools.opcodes}
    assert not known & {by_name[name] for name in dangerous}
    assert known < set(by_name.values())


# Damaged and foreign archives and files.


def entry_of(content, name):
    """Return the offset of a member's entry in the archive's central directory."""
    at = content.rindex(name.encode())
    return content.rindex(b"PK\1\2", 0, at)


def patched(content, at, layout, *values):
    out = bytearray(content)
    struct.pack_into(layout, out, at, *values)
    return bytes(out)


GOOD = zipped(program())


def compressed():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program())
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


def torch_script():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/code/__torch__.py", b"class Net: ...")
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def twice():
    buffer = io.BytesIO(GOOD)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


def offset_junk():
    buffer = io.BytesIO(b"PK\3\4junk")
    buffer.seek(0, 2)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", program())
        archive.writestr("archive/data/0", DATA)
    return buffer.getvalue()


def many_members():
    return zipped(program(), {str(i): b"" for i in range(20_000)})


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    return buffer.getvalue()


def data_at(content):
    return content.index(DATA)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:7be5\nsize 244408911\n"
LEGACY = legacy(program().replace(b"tQ", b"NtQ"))
ARCHIVES = {
    "empty": (b"", "is empty"),
    "100 bytes": (bytes(100), "was not written by torch.save"),
    "an HTML page": (b"\n<!DOCTYPE html><html>404</html>", "is an HTML page"),
    "a Git-LFS pointer": (LFS, "is a Git-LFS pointer, not the file itself; run git"),
    "a tar archive": (tar(), "is a tar archive, torch's format before"),
    "TorchScript": (torch_script(), "is a TorchScript archive"),
    "a safetensors file": (
        struct.pack("<Q", 2) + b"{}" + bytes(9),
        "is a safetensors file",
    ),
    "a bare pickle": (pickle.dumps({"a": 1}, 2), "is a bare pickle"),
    "a pickle of protocol 0": (pickle.dumps({"a": 1}, 0), "not written by torch.save"),
    "a pickle of protocol 4": (pickle.dumps({"a": 1}, 4), "has pickle protocol 04"),
    "truncated by 20 bytes": (GOOD[:-20], "is truncated"),
    "only its start": (GOOD[:200], "is truncated"),
    "only a signature": (b"PK\3\4", "is truncated"),
    "an empty archive": (b"PK\5\6" + bytes(18), "empty or split zip"),
    "junk behind": (GOOD + b"junk", "bytes were added"),
    "22 bytes of junk behind": (GOOD + bytes(22), "bytes were added"),
    "a comment": (GOOD[:-2] + b"\4\0junk", "bytes were added"),
    "an archive behind": (GOOD + GOOD, "bytes were added"),
    "junk before": (b"PK\3\4junk" + GOOD, "bytes were added"),
    "another zip archive": (
        zipped(program(), prefix="a/b"),
        "a zip archive not written by torch.save",
    ),
    "two pickles": (
        zipped(program(), **{"more/data.pkl": program()}),
        "a zip archive not written",
    ),
    "junk before, with offsets that fit": (offset_junk, "bytes before the archive"),
    "a directory of a megabyte": (many_members, "has a directory of 1,"),
    "a pickle of a megabyte": (
        zipped(program(before=b"N" * (1 << 20))),
        "has a data.pkl over 1,048,576 bytes",
    ),
    "a name with a NUL": (
        GOOD.replace(b"archive/version", b"archive/byteor\0"),
        "holds the unexpected member",
    ),
    "patched data": (
        patched(GOOD, entry_of(GOOD, "data/0") + 8, "<H", 0x20),
        "data/0 is encrypted or patched",
    ),
    "a size that differs": (
        patched(GOOD, entry_of(GOOD, "data/0") + 20, "<L", 15),
        "data/0 has impossible sizes",
    ),
    "a note with a wrong checksum": (
        GOOD.replace(b"3\n", b"9\n"),
        "Bad CRC-32 for file",
    ),
    "a name of 60,000 letters": (
        zipped(program(), {"0": DATA[:-1]}, prefix="p" * 60_000),
        "has 15 bytes",
    ),
    "bytes behind the pickle": (
        zipped(program() + b"N."),
        "bytes after the end of its pickle",
    ),
    "a missing record": (zipped(program(), {"1": DATA}), "lacks the record 'data/0'"),
    "a record too many": (
        zipped(program(), {"0": DATA, "1": b""}),
        "lacks the record 'data/1', or has no tensor for it",
    ),
    "a short record": (zipped(program(), {"0": DATA[:15]}), "has 15 bytes, but its st"),
    "a long record": (
        zipped(program(), {"0": DATA + b"!"}),
        "has 17 bytes, but its st",
    ),
    "a compressed archive": (compressed(), "is compressed"),
    "a duplicate member": (twice, "holds the unexpected member 'archive/data/0'"),
    "a member above": (
        zipped(program(), **{"../../etc/passwd": b""}),
        "unexpected member 'archive/../../etc/passwd'",
    ),
    "a strange member": (zipped(program(), **{"x.py": b""}), "unexpected member"),
    "a key that is no number": (
        zipped(program(), {"0": DATA, "x": b""}),
        "unexpected member",
    ),
    "a key in other digits": (
        zipped(program(), {"0": DATA, "٣": b""}),
        "unexpected member",
    ),
    "big-endian": (zipped(program(), byteorder=b"big"), "is not little-endian"),
    "a flipped bit in the data": (
        patched(GOOD, data_at(GOOD), "<B", 1),
        "damaged: Bad CRC-32 for file 'archive/data/0'",
    ),
    "a flipped bit in the pickle": (
        GOOD.replace(b"FloatStorage", b"FloatStoragf"),
        "damaged: Bad CRC-32 for file 'archive/data.pkl'",
    ),
    "encrypted": (
        patched(GOOD, entry_of(GOOD, "data/0") + 8, "<H", 1),
        "data/0 is encrypted",
    ),
    "a name that differs inside": (
        patched(GOOD, entry_of(GOOD, "data/0") + 46 + 13, "<B", ord("1")),
        "lacks the record 'data/0'",
    ),
    "a local name that differs": (
        GOOD.replace(b"archive/data/0", b"archive/data/1", 1),
        "is damaged: File name in directory",
    ),
    "an offset out of the file": (
        patched(GOOD, entry_of(GOOD, "data/0") + 42, "<L", 0xFFFFFFF0),
        "impossible sizes",
    ),
    "an offset into another member": (
        patched(GOOD, entry_of(GOOD, "data/0") + 42, "<L", 3),
        "is damaged",
    ),
    "a size out of the file": (
        patched(GOOD, entry_of(GOOD, "data/0") + 20, "<LL", 2**31, 2**31),
        "declares more data than the file has",
    ),
    "a directory without end": (
        patched(GOOD, len(GOOD) - 10, "<L", 0xFFFFFFF0),
        "bytes were added",
    ),
    "a future version": (
        patched(GOOD, entry_of(GOOD, "data/0") + 6, "<H", 99),
        "is damaged: zip file version",
    ),
    "legacy: another magic": (legacy(program(), magic=5), "is a bare pickle"),
    "legacy: big-endian": (legacy(program(), little=False), "is not little-endian"),
    "legacy: another version": (
        LEGACY.replace(b"M\xe9\x03.", b"M\xea\x03.", 1),
        "is in an unknown version of torch's format",
    ),
    "legacy: more than there is memory": (
        lambda: huge_legacy(),
        "bytes of memory for one storage; use a machine with more memory",
    ),
    "legacy: truncated": (LEGACY[:-1], "storage '0' has an unexpected length"),
    "legacy: junk behind": (LEGACY + b"!", "has 1 bytes after its end"),
    "legacy: a pickle behind": (LEGACY + b"\x80\x02N.", "has 4 bytes after its end"),
    "legacy: no key": (
        legacy(program().replace(b"tQ", b"NtQ"), keys=()),
        "lists other storages",
    ),
    "legacy: a key twice": (
        legacy(program().replace(b"tQ", b"NtQ"), keys=("0", "0")),
        "lists other storages",
    ),
    "legacy: another key": (
        legacy(program().replace(b"tQ", b"NtQ"), keys=("1",)),
        "lists other storages",
    ),
    "legacy: another length": (
        legacy(program().replace(b"tQ", b"NtQ"), data=struct.pack("<q", 5) + bytes(20)),
        "storage '0' has an unexpected length",
    ),
    "legacy: a negative length": (
        legacy(program().replace(b"tQ", b"NtQ"), data=struct.pack("<q", -4) + DATA),
        "storage '0' has an unexpected length",
    ),
    "legacy: a view": (
        legacy(program().replace(b"tQ", text(b"v") + b"tQ")),
        BROKEN,
    ),
    "zip references in a legacy file": (legacy(program()), BROKEN),
    "a legacy program in a zip": (zipped(program().replace(b"tQ", b"NtQ")), BROKEN),
}


class Sparse(io.BytesIO):
    """A file that reports a size of over one petabyte; most of it is never read."""

    def seek(self, offset, whence=0):
        end = super().seek(offset, whence)
        return end + (1 << 50) if whence == 2 else end


def huge_legacy():
    numel = 1 << 47
    pickled = program(tensor(numel=number(numel), shape=number(numel)))
    return legacy(pickled.replace(b"tQ", b"NtQ"), data=struct.pack("<q", numel))


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_broken_or_foreign_file_is_named_for_what_it_is(name):
    content, message = ARCHIVES[name]
    refused(content() if callable(content) else content, message)


def test_the_legacy_file_is_read_when_nothing_is_wrong():
    np.testing.assert_array_equal(read(LEGACY)["a"], [1, 2, 3, 4])


class Net(torch.nn.Module):
    """A module that is saved as an object instead of by its state dict."""


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_module_is_told_to_save_its_state_dict(form):
    line = refused(saved(Net(), form), "test_torchfile.Net")
    assert line.endswith("save it with torch.save(model.state_dict(), FILE)")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.ones(2, 3).T}, "transposed or expanded tensor"),
        ({"a": torch.ones(1).expand(4)}, "4 values at offset 0 in a storage of 1"),
        ({"a": torch.ones(3, dtype=torch.uint8)}, "a tensor of torch's 'ByteStorage'"),
        ({"a": torch.ones(3, dtype=torch.bool)}, "a tensor of torch's 'BoolStorage'"),
        ({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, "a training checkpoint"),
        ({"epoch": 3, "state_dict": {"a": torch.ones(3)}}, "a training checkpoint"),
        ({"epoch": 3, "lr": 0.1}, "as training checkpoints do"),
        ({1: torch.ones(3)}, "has a key that is not a short printable string"),
        ([torch.ones(3)], "holds a list, not a state_dict"),
        (torch.ones(3), "holds a single tensor"),
    ],
)
def test_other_things_that_torch_saves_are_told_apart(value, message, form):
    refused(saved(value, form), message)


def test_another_pickle_protocol_is_named():
    value = {"a": torch.ones(3)}
    refused(saved(value, pickle_protocol=4), "whose protocol is not 2; save it with")
    refused(saved(value, "legacy", pickle_protocol=4), "has pickle protocol 04, not 2")


def test_the_retired_file_points_to_the_new_one(tmp_path):
    path = tmp_path / "alexnet-owt-4df8aa71.pth"
    path.write_bytes(tar())
    with pytest.raises(WeightsError, match="get alexnet-owt-7be5be79.pth from https"):
        read_torch_file(path)


def test_only_regular_files_are_opened(tmp_path):
    pipe, link, locked = (tmp_path / name for name in ("pipe", "link", "locked"))
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nowhere")
    locked.write_bytes(GOOD)
    locked.chmod(0)
    cases = {
        pipe: "not a regular file",
        link: "No such file or directory; check the path",
        tmp_path: "is a directory",
        tmp_path / "absent.pth": "No such file or directory; check the path",
        "/dev/zero": "not a regular file",
    }
    if os.geteuid() != 0:  # root ignores permissions
        cases[locked] = "Permission denied"
    for path, message in cases.items():
        with pytest.raises(WeightsError) as raised:
            read_torch_file(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert message in str(raised.value)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    class Shrinking(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 300:
                self.truncate(300)
            return super().read(size)

    big = legacy(
        program(tensor(numel=number(1000), shape=number(1000))).replace(b"tQ", b"NtQ"),
        data=struct.pack("<q", 1000) + bytes(4000),
    )
    assert read(big)["a"].shape == (1000,)
    with pytest.raises(WeightsError, match="ends|an unexpected length"):
        read_torch_file(Shrinking(big))


def fuzz(*flags):
    process = subprocess.run(
        [sys.executable, "-m", "tests.stress", "fuzz", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return process.returncode, json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_thousand_mutants_are_read_or_refused():
    code, found = fuzz("--mutants", "10000")
    assert found["read"] + found["refused"] == found["mutants"] == 10_000
    assert found["read"] > 500 and found["refused"] > 5_000  # enough reach the parser
    for violation in ("executions", "canaries", "crashes", "hangs", "other_exceptions"):
        assert found[violation] == 0, violation
    assert found["slowest_seconds"] < 5 and found["memory_mb"] <= 64
    assert code == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_mutants_do_execute_where_pickle_reads_them():
    code, found = fuzz("--mutants", "500", "--reader", "pickle")
    assert found["canaries"] > 3
    assert code == 1


@pytest.mark.parametrize(
    "name",
    [
        "densenet201",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnet_v2_l", "efficientnet_b7", "vit_h_14")
        ),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_torchvision_s_longest_state_dicts_are_within_the_limits(name, form):
    with torch.device("meta"):  # names only
        state_dict = torchvision.models.get_model(name).state_dict()
    small = {key: torch.zeros(1) for key in state_dict}
    assert list(read(saved(small, form))) == list(state_dict)


def test_what_is_no_path_is_refused():
    for path in ("a\0b", "\ud800"):
        with pytest.raises(WeightsError, match="not a path|cannot be read"):
            read_torch_file(path)


def test_writing_leaves_a_neighbour_alone(tmp_path):
    neighbour = tmp_path / "a.pth.partial"
    neighbour.write_text("mine")
    write_torch_file(tmp_path / "a.pth", {"a": np.ones(3, np.float32)})
    assert neighbour.read_text() == "mine"
    assert (tmp_path / "a.pth").stat().st_mode & 0o044
    assert len(os.listdir(tmp_path)) == 2
