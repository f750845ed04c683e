"""Read and write torch's .pth files as NumPy arrays, without executing their pickles.

Both formats of torch are read: the zip archive, and the older sequence of five pickles
followed by the data. Sizes are compared with the size of the file before memory is
allocated.

It is one file because both formats share their checks of records and tensors.
"""

import contextlib
import os
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from pretrained.disk import (
    NotRegular,
    atomic_write_weights,
    mistaken_for,
    open_regular,
)
from pretrained.errors import WeightsError, one_line
from pretrained.misfit import inner_state_dict
from pretrained.sources import SOURCES
from pretrained.unpickle import (
    GET_AGAIN,
    MAX_BYTES,
    SAVE_AGAIN,
    Machine,
    OrderedDict,
    Refusal,
    Storage,
    Tensor,
)

_CHUNK = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_torch_file(path: str | os.PathLike | BinaryIO) -> dict[str, np.ndarray]:
    """Read a state_dict that torch.save wrote, without torch and without pickle.

    `path` is the path of a file, or a seekable binary file, which stays open. The
    result maps the names, in the file's order, to C-contiguous little-endian arrays of
    float16, bfloat16 (of the package ml_dtypes), float32, float64 or int64, which equal
    what torch reads bit for bit. Tensors that share a storage in torch share memory
    here. Reading needs the memory of the tensors and a few megabytes.

    Raises WeightsError, with one line that names the file, for every other file: one
    that is not a .pth file, is damaged, or contains anything but tensors.
    """
    with open_weights(path) as (file, name):
        try:
            return _read(file, name)
        except Refusal as refusal:
            raise WeightsError(f"{name}: {refusal}") from None


@contextlib.contextmanager
def open_weights(
    path: str | os.PathLike | BinaryIO,
) -> Iterator[tuple[BinaryIO, str]]:
    """Open a regular file once, so that the same file is hashed and read.

    Yields the file and its name; a file that is already open is yielded as it is.
    Raises WeightsError for a folder, a pipe, or an OSError while opening or reading.
    """
    name = str(getattr(path, "name", path) if hasattr(path, "read") else path)
    try:
        if hasattr(path, "read") and not isinstance(path, (str, os.PathLike)):
            yield path, name
            return
        try:
            opened = open_regular(path)
        except ValueError as error:  # a NUL or an unencodable character in the path
            raise WeightsError(f"{name!a}: not a path: {error}; pass another") from None
        with opened as file:
            yield file, name
    except NotRegular:
        raise WeightsError(f"{name}: not a regular file; pass a weights file") from None
    except IsADirectoryError:
        raise WeightsError(
            f"{name}: is a directory; pass a weights file in it"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot be read: {error.strerror or error}; check the path and "
            "its permissions"
        ) from error


def _read(file: BinaryIO, name: str) -> dict[str, np.ndarray]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(1024)
    if head.startswith(b"PK\3\4"):
        state_dict = _read_zip(file, size)
    elif head.startswith(b"\x80\x02"):
        state_dict = _read_legacy(file, size)
    else:
        raise Refusal(_what_it_is(head, size, os.path.basename(name)))
    return {name: tensor.array() for name, tensor in state_dict.items()}


def _what_it_is(head: bytes, size: int, name: str) -> str:
    """Describe a file that is not in one of torch's formats, and name the remedy."""
    for source in (each for found in SOURCES.values() for each in found.values()):
        if name in source.superseded:
            return f"is an outdated file; get {source.file_name} from {source.url}"
    if (mistaken := mistaken_for(head, GET_AGAIN)) is not None:
        return mistaken
    if head[257:262] == b"ustar":
        return "is a tar archive, torch's format before 2018; load it in torch and " + (
            SAVE_AGAIN
        )
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < size:
        return "is a safetensors file; read it with safetensors.numpy.load_file"
    if head[:1] == b"\x80":
        return f"has pickle protocol {head[1:2].hex()}, not 2; {SAVE_AGAIN}"
    if head.startswith(b"PK"):
        return f"is an empty or split zip archive; {GET_AGAIN}"
    return f"was not written by torch.save, or is damaged; {GET_AGAIN}"


# The zip format has PREFIX/data.pkl, PREFIX/data/KEY for each storage, and a few notes.


def _read_zip(file: BinaryIO, size: int) -> dict[str, Tensor]:
    _check_end_of_zip(file, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # newer versions only warn of invalid fields
            archive = zipfile.ZipFile(file)
        with archive:
            records = _members(archive, size)
            notes = {name: archive.read(records[name]) for name in _NOTES & {*records}}
            if notes.get("byteorder", b"little") != b"little":
                raise Refusal(f"is not little-endian; {SAVE_AGAIN}")
            machine = Machine(notes["data.pkl"], storage_fields=5)
            state_dict = _checked(machine.run())
            machine.expect_end()
            stored = {key for key in records if key.startswith("data/")}
            expected = {f"data/{key}": value for key, value in machine.storages.items()}
            if stored != expected.keys():
                unusual = min(stored ^ expected.keys())
                raise Refusal(
                    f"lacks the record {unusual!a}, or has no tensor for it; "
                    f"{GET_AGAIN}"
                )
            for key, storage in expected.items():
                if records[key].file_size != storage.nbytes:
                    raise Refusal(
                        f"{key} has {records[key].file_size:,} bytes, but its storage "
                        f"needs {storage.nbytes:,}; {GET_AGAIN}"
                    )
            for key, storage in expected.items():
                with archive.open(records[key]) as member:
                    _fill(storage, member)
            return state_dict
    # zipfile raises these for an archive that contradicts itself.
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UserWarning) as error:
        raise Refusal(
            f"is damaged: {one_line(str(error))[:120]}; {GET_AGAIN}"
        ) from None
    except UnicodeDecodeError:
        raise Refusal(
            f"is damaged: the name of a member cannot be decoded; {GET_AGAIN}"
        ) from None


def _check_end_of_zip(file: BinaryIO, size: int) -> None:
    """Refuse bytes outside the archive, and a directory too large to hold in memory."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    zip64, locator, end = tail[:56], tail[56:76], tail[76:]
    signature, *_, length, offset, comment = struct.unpack("<4s4H2LH", end)
    after = 22
    if signature == b"PK\5\6" and locator[:4] == b"PK\6\7":
        signature, *_, length, offset = struct.unpack("<4sQ2H2L4Q", zip64)
        after, comment = 98, comment or signature != b"PK\6\6"
    elif signature != b"PK\5\6":
        comment = True
    if comment or offset + length + after != size:
        raise Refusal(f"is truncated, or bytes were added to it; {GET_AGAIN}")
    if length > MAX_BYTES:
        raise Refusal(
            f"has a directory of {length:,} bytes, which is too large; {SAVE_AGAIN}"
        )


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Check all members, and return them by their names without the common prefix."""
    names = [member.filename for member in archive.infolist()]
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise Refusal(f"is a TorchScript archive; {SAVE_AGAIN}")
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise Refusal(f"is a zip archive not written by torch.save; {SAVE_AGAIN}")
    prefix = pickles[0].removesuffix("data.pkl")
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removeprefix(prefix)
        folder, _, key = name.rpartition("/")
        known = name in _NOTES or (
            folder == "data" and key.isascii() and key.isdigit() and len(key) <= 20
        )
        if not (member.orig_filename == prefix + name and known) or name in members:
            raise Refusal(
                f"holds the unexpected member {member.filename[:80]!a}; {SAVE_AGAIN}"
            )
        if member.compress_type != zipfile.ZIP_STORED:
            raise Refusal(f"{name} is compressed, unlike torch's files; {SAVE_AGAIN}")
        if member.flag_bits & ~0x0808:  # sizes after the data, and names in UTF-8
            raise Refusal(f"{name} is encrypted or patched; {SAVE_AGAIN}")
        if member.file_size != member.compress_size or member.header_offset >= size:
            raise Refusal(f"{name} has impossible sizes; {GET_AGAIN}")
        members[name] = member
    if min(member.header_offset for member in members.values()) != 0:
        raise Refusal(f"has bytes before the archive; {GET_AGAIN}")
    if sum(member.file_size for member in members.values()) > size:
        raise Refusal(f"declares more data than the file has; {GET_AGAIN}")
    if not any(member.CRC for member in members.values()):
        # torch.serialization.set_crc32_options(False) leaves all of them 0. zipfile
        # compares no checksum that a member lacks.
        for member in members.values():
            del member.CRC
    for name in _NOTES & {*members}:
        if members[name].file_size > MAX_BYTES:
            raise Refusal(f"has a {name} over {MAX_BYTES:,} bytes; {SAVE_AGAIN}")
    return members


_NOTES = {
    "data.pkl",
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}


# The older format has five pickles, then the length and the bytes of each storage.


def _read_legacy(file: BinaryIO, size: int) -> dict[str, Tensor]:
    file.seek(0)
    machine = Machine(file.read(MAX_BYTES), storage_fields=6)
    magic = machine.run()
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise Refusal(f"is a bare pickle, not torch's format; {SAVE_AGAIN}")
    version = machine.run()
    if type(version) is not int or version != _LEGACY_PROTOCOL:
        raise Refusal(f"is in an unknown version of torch's format; {SAVE_AGAIN}")
    system = machine.run()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refusal(f"is not little-endian; {SAVE_AGAIN}")
    state_dict = _checked(machine.run())
    keys = machine.run()
    storages = machine.storages
    if (
        type(keys) is not list
        or len(keys) != len(storages)
        or not all(type(key) is str for key in keys)
        or set(keys) != storages.keys()
    ):
        raise Refusal(f"lists other storages than its tensors use; {GET_AGAIN}")
    file.seek(machine.position)
    remaining = size - machine.position
    for key in keys:
        storage, header = storages[key], file.read(8)
        remaining -= 8 + storage.nbytes
        if remaining < 0 or header != struct.pack("<q", storage.numel):
            raise Refusal(f"storage {key!a} has an unexpected length; {GET_AGAIN}")
        _fill(storage, file)
    if remaining != 0:
        raise Refusal(f"has {remaining:,} bytes after its end; {GET_AGAIN}")
    return state_dict


def _fill(storage: Storage, file: Any) -> None:
    """Read a storage of checked size, in chunks to avoid a second copy in memory."""
    try:
        storage.array = np.empty(storage.numel, storage.dtype)
    except MemoryError:
        raise Refusal(
            f"needs {storage.nbytes:,} bytes of memory for one storage; use a machine "
            "with more memory"
        ) from None
    target = storage.array.view(np.uint8)
    filled = 0
    while filled < len(target):
        chunk = file.read(min(_CHUNK, len(target) - filled))
        if not chunk:
            raise Refusal(f"ends in the middle of its data; {GET_AGAIN}")
        target[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)


def _checked(value: Any) -> dict[str, Tensor]:
    """Return `value` if it is a state_dict. Only one level is checked, because a few
    bytes of pickle can expand to more objects than can ever be visited."""
    if type(value) not in (dict, OrderedDict):
        raise Refusal(f"holds {_kind(value)}, not a state_dict; {SAVE_AGAIN}")
    if any(type(tensor) is not Tensor for tensor in value.values()):
        if name := inner_state_dict(value):
            raise Refusal(
                f"is a training checkpoint; save only its [{name!a}] with "
                "torch.save(checkpoint[...], FILE)"
            )
    for name, tensor in value.items():
        if type(tensor) is not Tensor:
            raise Refusal(f"{name!a} is {_kind(tensor)}, not a tensor; {SAVE_AGAIN}")
    return value


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {
        **{Tensor: "a single tensor", OrderedDict: "a dict", dict: "a dict"},
        **{list: "a list", tuple: "a tuple", str: "a string", type(None): "None"},
        **{int: "a number", bool: "a boolean"},
    }
    return kinds.get(type(value), "a part of a tensor")


_STORAGES = {
    np.dtype(np.float32): b"ctorch\nFloatStorage\n",
    np.dtype(np.int64): b"ctorch\nLongStorage\n",
}


def write_torch_file(
    path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]
) -> None:
    """Write C-contiguous float32 and int64 arrays as torch.save writes a state_dict.

    `torch.load(path, weights_only=True)` reads it; the same arrays give the same bytes.
    An existing file is replaced once the new one is complete. Raises WeightsError if
    it cannot be written, and ValueError for any other array.
    """
    program = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for key, (name, array) in enumerate(state_dict.items()):
        if array.dtype not in _STORAGES or not array.flags.c_contiguous:
            raise ValueError(f"{name}: expected a C-contiguous float32 or int64 array")
        program += _string(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        program += b"(" + _string("storage") + _STORAGES[array.dtype]
        program += _string(str(key)) + _string("cpu") + _integer(array.size) + b"tQ"
        strides = (stride // array.itemsize for stride in array.strides)
        program += _integer(0) + _integers(array.shape) + _integers(strides)
        program += b"\x89ccollections\nOrderedDict\n)RtR"
    program += b"u."
    prefix = "archive/"
    with (
        atomic_write_weights(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
    ):
        archive.writestr(zipfile.ZipInfo(prefix + "data.pkl"), bytes(program))
        archive.writestr(zipfile.ZipInfo(prefix + "byteorder"), b"little")
        for key, array in enumerate(state_dict.values()):
            member = zipfile.ZipInfo(f"{prefix}data/{key}")
            # torch can map files into memory and aligns data to 64 bytes. An extra
            # field of zeros, which readers skip, is the padding.
            big = array.nbytes >= 1 << 31  # its header has 20 more bytes, for zip64
            data = archive.start_dir + 34 + len(member.filename) + 20 * big
            member.extra = b"FB" + struct.pack("<H", -data % 64) + bytes(-data % 64)
            with archive.open(member, "w", force_zip64=big) as data_file:
                data_file.write(array.reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo(prefix + "version"), b"3\n")


def _string(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _integers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
