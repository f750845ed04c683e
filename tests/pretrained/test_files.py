"""Test that .pth and safetensors weights are read or refused, and are converted.

It is one file because most of these tests share the narrow .pth file of `original`, and
because reading and conversion check each other.
"""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pretrained import WeightsError, convert, files, read_torch_file, to_flax
from pretrained.sources import SOURCES
from tests.conftest import ROOT, torch_alexnet
from tests.stress.narrow import NARROW

NARROW_CONVERT = """
import sys
from tests.stress.narrow import narrow
narrow()
from pretrained import convert
sys.exit(convert.main(sys.argv[1:]))
"""
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)
"""
# Run the converter for narrow networks in a new process.
CONVERT = [sys.executable, "-c", NARROW_CONVERT]


def convert_command(*arguments, command=(sys.executable, "-m", "pretrained.convert")):
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def original(narrowed, tmp_path_factory):
    """Save a narrow AlexNet with torch and return the path of its .pth file."""
    path = tmp_path_factory.mktemp("weights") / "alexnet 7.pth"
    torch.save(torch_alexnet(7, **NARROW).state_dict(), path)
    return path


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].tobytes() == value.tobytes(), name
        assert ours[name].shape == value.shape, name


@pytest.mark.slow
def test_the_way_to_flax_and_back_keeps_every_bit(tmp_path):
    path, tensors = tmp_path / "alexnet.pth", torch_alexnet(7).state_dict()
    torch.save(tensors, path)
    state_dict = {name: value.numpy() for name, value in tensors.items()}
    names = ("flax.safetensors", "back.safetensors", "back.pth")
    flax, back, pth = (tmp_path / name for name in names)
    process = convert_command(path, flax)
    assert (process.returncode, process.stderr) == (0, "")
    assert "16 tensors, 57,032,519 parameters with Flax's names" in process.stdout
    expected = to_flax(state_dict)
    assert_same(
        load_file(flax),
        {f"{a}/{b}": v for a, leaves in expected.items() for b, v in leaves.items()},
    )
    assert convert.main([str(flax), str(back), "--reverse"]) == 0
    assert_same(load_file(back), state_dict)
    assert convert.main([str(flax), str(pth), "--reverse"]) == 0
    theirs = torch.load(pth, weights_only=True)
    assert_same({name: value.numpy() for name, value in theirs.items()}, state_dict)
    assert_same(read_torch_file(pth), state_dict)
    # A safetensors file with torchvision's names is converted as well.
    again = tmp_path / "again.safetensors"
    assert convert.main([str(back), str(again)]) == 0
    assert_same(load_file(again), load_file(flax))
    assert flax.stat().st_mode & 0o044


def test_a_converted_file_says_what_it_was_made_from(original, tmp_path, monkeypatch):
    path = original
    sha256 = files.read_weights(path).sha256
    for published in (False, True):
        if published:
            row = SOURCES["alexnet"]["imagenet"]._replace(sha256=sha256)
            monkeypatch.setitem(SOURCES["alexnet"], "imagenet", row)
        out = tmp_path / f"{published}.safetensors"
        assert convert.main([str(path), str(out)]) == 0
        with safe_open(out, "np") as file:
            facts = json.loads(file.metadata()["provenance"])
        assert facts["file"] == "alexnet 7.pth"
        assert facts["sha256"] == sha256
        assert facts["verified"] == published
        assert facts["url"] == (
            SOURCES["alexnet"]["imagenet"].url if published else None
        )


def test_two_conversions_are_byte_identical(original, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        assert convert.main([str(original), str(tmp_path / name)]) == 0
    a, b = ((tmp_path / name).read_bytes() for name in os.listdir(tmp_path))
    assert a == b


def test_what_convert_cannot_do_is_one_line_and_leaves_out_alone(original, tmp_path):
    path = original
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    out = tmp_path / "out.safetensors"
    (tmp_path / "page.pth").write_text("<html>")
    cases = [
        ([path], 2, "arguments are required: OUT; see --help"),
        (
            [path, tmp_path / "out.pth"],
            2,
            "end the name in .safetensors, or add --reverse",
        ),
        ([path, tmp_path / "out.npz", "--reverse"], 2, ".safetensors or .pth"),
        ([path, there], 2, "already exists; pass another name, or pass --overwrite"),
        (
            [path, tmp_path / "no" / "a.safetensors"],
            2,
            "not a directory; create it first",
        ),
        ([path, out, "--revers"], 2, "unexpected argument; did you mean --reverse?"),
        ([tmp_path / "absent.pth", out], 3, "No such file or directory"),
        ([tmp_path / "page.pth", out, "--debug"], 3, "is an HTML page"),
    ]
    for arguments, code, message in cases:
        process = convert_command(*arguments)
        assert process.returncode == code, message
        assert message in process.stderr
        assert process.stderr.splitlines()[-1].startswith("error: ")
        shown = "Traceback" in process.stderr
        assert shown == ("--debug" in arguments)
        assert shown or process.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["page.pth", "there.safetensors"]
    assert there.read_text() == "mine"
    assert convert.main([str(path), str(there), "--overwrite"]) == 0
    assert len(load_file(there)) == 16


def test_published_weights_that_cannot_be_had_are_code_4(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    process = convert_command("imagenet", tmp_path / "o.safetensors", "--offline")
    assert process.returncode == 4
    assert "not in the cache, and it cannot be downloaded offline" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_write_that_fails_leaves_the_earlier_file(original, tmp_path):
    for name, *flags in (("a.safetensors",), ("b.pth", "--reverse")):
        out = tmp_path / name
        out.write_text("earlier")
        command = [*CONVERT[:2], SMALL_DISK + NARROW_CONVERT]
        process = convert_command(original, out, "--overwrite", *flags, command=command)
        assert process.returncode == 3, process.stderr
        assert "cannot be written" in process.stderr and "free space" in process.stderr
        assert process.stderr.count("\n") == 1
        assert out.read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.pth"]


def tensors_of_two():
    return torch_alexnet(2, **NARROW).state_dict()


def one_infinite(x):
    return torch.cat([x[:-1], torch.tensor([-torch.inf])])


def small_change(name, change):
    state_dict = tensors_of_two()
    state_dict[name] = change(state_dict[name])
    return state_dict


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small_change("features.0.bias", lambda x: x * torch.nan),
            "conv1/bias holds NaN or infinity",
        ),
        (
            lambda: small_change("classifier.6.bias", one_infinite),
            "fc8/bias holds NaN or infinity",
        ),
        (
            lambda: {k: v.double() for k, v in tensors_of_two().items()},
            "conv1/kernel is float64, expected float32; save model.float()",
        ),
        (
            lambda: {k: v.bfloat16() for k, v in tensors_of_two().items()},
            "features.0.weight is bfloat16, expected float32",
        ),
        (
            lambda: small_change("features.3.bias", lambda x: x[:-1].clone()),
            "features.3.bias has shape [11], expected [12]",
        ),
        (
            lambda: {f"module.{k}": v for k, v in tensors_of_two().items()},
            "keys contain 'module.', as DataParallel saves them; pass {k.replace(",
        ),
        (  # torch's example for ImageNet wraps AlexNet's features only
            lambda: {
                k.replace("features.", "features.module."): v
                for k, v in tensors_of_two().items()
            },
            "keys contain 'module.', as DataParallel saves them; pass {k.replace(",
        ),
        (
            lambda: {
                f"_orig_mod.{k}".replace("features.", "features.module."): v
                for k, v in tensors_of_two().items()
            },
            "pass {k.replace('module.', '').replace('_orig_mod.', ''): v for k, v in",
        ),
        (
            lambda: {f"backbone.{k}": v for k, v in tensors_of_two().items()},
            "every key starts with 'backbone.'; pass {k.removeprefix('backbone.'): v",
        ),
        (
            lambda: {f"model.net.{k}": v for k, v in tensors_of_two().items()},
            "every key starts with 'model.net.'; pass {k.removeprefix('model.net.'): v",
        ),
        (
            lambda: {f"module.model.{k}": v for k, v in tensors_of_two().items()},
            "pass {k.replace('module.', '').removeprefix('model.'): v for k, v in",
        ),
        (
            lambda: {"net": tensors_of_two(), "epoch": 3},
            "is a training checkpoint; save only its ['net'] with torch.save(",
        ),
        (
            lambda: {"optimizer": {"state": {}}, "model_ema": tensors_of_two()},
            "is a training checkpoint; save only its ['model_ema'] with torch.save(",
        ),
        (  # the weights are no mapping of a checkpoint here
            lambda: {"optimizer_state_dict": {}, "lr_scheduler": {}},
            "'optimizer_state_dict' is a dict, not a tensor",
        ),
        (lambda: {}, "features.0.weight is missing; features.0.bias is missing"),
        (
            lambda: torch.nn.BatchNorm1d(3).state_dict(),
            "running_mean is unexpected",
        ),
    ],
)
def test_a_file_of_something_else_is_named_with_all_its_problems(
    make, message, narrowed, tmp_path
):
    path = tmp_path / "other.pth"
    torch.save(make(), path)
    with pytest.raises(WeightsError) as raised:
        files.read_weights(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)


def test_flax_names_that_do_not_fit_are_named(original, tmp_path):
    path = tmp_path / "flax.safetensors"
    assert convert.main([str(original), str(path)]) == 0
    tensors = load_file(path)
    del tensors["fc7/bias"]
    tensors["fc6/kernel"] = tensors["fc6/kernel"].T.copy()
    save_file(tensors, path)
    with pytest.raises(WeightsError) as raised:
        files.read_weights(path)
    assert "fc7/bias is missing" in str(raised.value)
    assert "fc6/kernel has shape [32, 432], expected [432, 32]" in str(raised.value)


def test_a_safetensors_file_that_is_damaged_or_of_odd_types_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    for content, message in (
        (len(header).to_bytes(8, "little") + header + b"\0\0", "tensors of type BF16"),
        (len(header).to_bytes(8, "little") + header, "is a damaged safetensors file"),
        (bytes(8) + b"{" + bytes(99), "is a damaged safetensors file"),
        (one_empty("[0,4611686018427387904]"), "is a damaged safetensors file"),
        (one_empty("[0,9223372036854775808]"), "is a damaged safetensors file"),
        (one_empty(str([1] * 65), 4), "is a damaged safetensors file"),
        (
            one_empty("[0]", name=r"a\u001b[2J\n/b"),
            r"has a tensor with the invalid name 'a\x1b[2J\n/b'",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as raised:
            files.read_weights(path)
        assert message in str(raised.value)
        assert str(raised.value).isprintable()


def one_empty(shape, size=0, name="a"):
    """Return a safetensors file of one tensor: its header, then `size` zero bytes."""
    header = (
        f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{size}]}}}}'
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def test_a_second_conversion_keeps_the_first_one_s_origin(original, tmp_path):
    path = original
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert convert.main([str(path), str(first)]) == 0
    assert convert.main([str(first), str(second), "--reverse"]) == 0
    with safe_open(second, "np") as file:
        facts = json.loads(file.metadata()["provenance"])
    assert facts["file"] == "first.safetensors"
    assert facts["made_from"]["sha256"] == files.read_weights(path).sha256


@pytest.mark.slow
def test_odd_terminals_do_not_break_convert(original, tmp_path):
    line = f"{shlex.join(CONVERT)} '{original}' {tmp_path}/a"
    for i, (command, code) in enumerate(
        ((f"PYTHONIOENCODING=ascii {line}", 0), (line, 141), (line, 3))
    ):
        redirect = ("", " | true", " > /dev/full")[i]
        process = subprocess.run(
            ["bash", "-c", f"{command}{i}.safetensors{redirect}; exit ${{PIPESTATUS}}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert process.returncode == code, process.stderr
        assert "Traceback" not in process.stderr
        assert (tmp_path / f"a{i}.safetensors").exists()


def test_a_published_file_is_known_by_its_hash(original, monkeypatch):
    path = original
    weights = files.read_weights(path)
    assert weights.source is None and weights.names == "torch"
    row = SOURCES["alexnet"]["imagenet"]._replace(sha256=weights.sha256)
    monkeypatch.setitem(SOURCES["alexnet"], "imagenet", row)
    assert files.read_weights(path).source is row
    assert np.size(weights.params["fc8"]["bias"]) == 7


@pytest.mark.parametrize(
    "metadata",
    [None, {"provenance": "my own network"}, {"jaxlab": "hello"}, {"format": "pt"}],
)
def test_another_program_s_metadata_are_no_damage(metadata, narrowed, tmp_path):
    path, tensors = tmp_path / "a.safetensors", tensors_of_two()
    save_file({name: t.numpy() for name, t in tensors.items()}, path, metadata)
    content = path.read_bytes()
    if metadata is None:  # which some writers store as null
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        header = b'{"__metadata__":null,' + header.strip()[1:]
        content = (
            len(header).to_bytes(8, "little")
            + header
            + content[8:][int.from_bytes(content[:8], "little") :]
        )
        path.write_bytes(content)
    weights = files.read_weights(path)
    assert weights.provenance is None and weights.names == "torch"
