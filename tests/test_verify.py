"""Test that the certificate passes equal weights and fails different ones."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from safetensors.numpy import load_file, save_file

from jaxlab import verify
from jaxlab.errors import InputError, JaxlabError, UsageError
from pretrained import convert
from pretrained.layout import nested
from tests.conftest import torch_alexnet, with_imagenet_convolutions
from tests.stress.narrow import NARROW

LAYERS = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8", "logits"]


SMALLEST = ((63, 63),)


@pytest.fixture
def narrowed(narrowed, monkeypatch):
    """Make commands and torchvision use networks of the same narrow widths."""
    alexnet = functools.partial(torch_alexnet, **NARROW)
    monkeypatch.setattr(torchvision.models, "alexnet", alexnet)
    monkeypatch.setattr(verify, "SIZES", SMALLEST)


@pytest.fixture
def original(tmp_path):
    """Return a .pth file of the narrow network, written by torch."""
    path = tmp_path / "alexnet.pth"
    torch.save(torch_alexnet(1000, **NARROW).state_dict(), path)
    return path


@pytest.fixture
def converted(original, narrowed):
    """Return the file to which our command converted `original`, with Flax's names."""
    path = original.with_name("alexnet.safetensors")
    assert convert.main([str(original), str(path)]) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [SMALLEST, pytest.param(verify.SIZES, marks=pytest.mark.stress)]
)
def test_a_file_with_the_real_convolutions_passes(sizes, tmp_path, monkeypatch, capsys):
    original = tmp_path / "alexnet.pth"
    torch.save(with_imagenet_convolutions(torch_alexnet(1000)).state_dict(), original)
    monkeypatch.setattr(verify, "SIZES", sizes)
    verify.main([str(original), "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    certificate = json.loads(said.out)
    assert certificate["verdict"] == "equal"
    rows = certificate["comparisons"]
    assert [row["layer"] for row in rows] == LAYERS * 2 * len(sizes)
    assert all(row["passed"] for row in rows)
    assert {row["precision"] for row in rows} == {"float32", "float64"}
    assert len({row["size"] for row in rows}) == len(sizes)
    for row in rows:
        assert (
            row["relative_error"]
            <= {"float32": 1e-5, "float64": 1e-12}[row["precision"]]
        )
    assert certificate["versions"]["torch"] == torch.__version__
    assert certificate["weights"] == str(original)
    assert certificate["published"] is None
    assert certificate["proves"].endswith("not who trained it")


def permute_fc7(params):
    params["fc7/kernel"] = params["fc7/kernel"][:, ::-1].copy()


def unpermute_fc6(params):
    rows, hidden = params["fc6/kernel"].shape
    kernel = params["fc6/kernel"].reshape(6, 6, -1, hidden)
    params["fc6/kernel"] = kernel.transpose(2, 0, 1, 3).reshape(rows, hidden).copy()


def zero_a_bias(params):
    params["conv4/bias"] = np.zeros_like(params["conv4/bias"])


def round_to_float16(params):
    for name, value in params.items():
        params[name] = value.astype(np.float16).astype(np.float32)


def transpose_fc7(params):
    params["fc7/kernel"] = params["fc7/kernel"].T.copy()


def swap_biases_of_equal_shape(params):
    conv4, conv5 = params["conv4/bias"], params["conv5/bias"]
    params |= {"conv4/bias": conv5, "conv5/bias": conv4}


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        (permute_fc7, "fc7"),
        (transpose_fc7, "fc7"),
        (swap_biases_of_equal_shape, "conv4"),
        (unpermute_fc6, "fc6"),
        (zero_a_bias, "conv4"),
        (round_to_float16, "conv1"),
    ],
)
def test_a_wrong_conversion_fails_at_its_layer(damage, first, original, converted):
    params = load_file(converted)
    damage(params)
    rows = verify.compare(
        "alexnet", {"params": nested(params)}, torch.load(original, weights_only=True)
    )
    missed = [row.layer for row in rows if not row.passed]
    assert missed[0] == first and "logits" in missed
    # The layers before the damaged one are still equal.
    assert all(row.passed for row in rows if row.layer < min(first, "conv5"))


def test_a_wrong_file_fails_with_exit_code_1(original, converted, tmp_path, capsys):
    params = load_file(converted)
    zero_a_bias(params)
    path = tmp_path / "wrong.safetensors"
    save_file(params, path)
    with pytest.raises(JaxlabError) as raised:
        verify.main([str(path), "--against", str(original)])
    assert raised.value.exit_code == 1
    assert "comparisons fail, conv4 first" in str(raised.value)
    out = capsys.readouterr().out
    assert " conv4 " in out and "NOT EQUAL" in out
    assert "verdict:           not equal" in out


def test_the_right_conversion_passes_against_its_original(original, converted, capsys):
    verify.main([str(converted), "--against", str(original)])
    out = capsys.readouterr().out
    assert "NOT EQUAL" not in out and "verdict:           equal" in out
    assert f"against:           {original}" in out


def test_not_a_number_fails():
    ours = np.array([[1.0, np.nan]])
    row = verify._row("float32", "1×1", "fc8", ours, np.ones((1, 2)))
    assert not row.passed
    # NaN on both sides is not equality either.
    assert not verify._row("float32", "1×1", "fc8", ours * 0, ours * 0).passed


@pytest.mark.parametrize(("precision", "bar"), [("float32", 1e-5), ("float64", 1e-12)])
def test_each_precision_has_its_own_bar(precision, bar):
    theirs = np.ones((1, 100))
    for factor, passed in ((0.5, True), (2.0, False)):
        row = verify._row(precision, "1×1", "fc8", theirs * (1 + factor * bar), theirs)
        assert row.passed is passed


def test_another_class_fails_however_close():
    theirs = np.array([[1.0, 1.0 + 1e-9]])
    ours = theirs[:, ::-1]
    assert verify._row("float32", "1×1", "fc8", ours, theirs).passed
    assert not verify._row("float32", "1×1", "logits", ours, theirs).passed


def test_what_cannot_be_compared_is_told(original, converted, tmp_path):
    with pytest.raises(UsageError, match="pass its original with against FILE"):
        verify.main([str(converted)])
    with pytest.raises(UsageError, match="against: imagenet-conv is not a file"):
        verify.main(["--against", str(original)])
    other = tmp_path / "other.pth"
    torch.save(torch_alexnet(3, **NARROW).state_dict(), other)
    with pytest.raises(InputError, match="has 3 classes, .* has 1000"):
        verify.main([str(converted), "--against", str(other)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: contains no model.safetensors"):
        verify.main([str(tmp_path / "empty")])


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_without_torch_the_error_says_how_to_install_it(package, tmp_path):
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from jaxlab import verify\nfrom jaxlab.cli import terminal\n"
        "sys.argv = ['verify']\n"
        "sys.exit(terminal.run(verify.main))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert process.returncode == 3
    assert process.stderr == (
        f"error: {package}: not installed, but verify needs it for the comparison; "
        "run pip install 'torch==2.13.0' 'torchvision==0.28.0'\n"
    )


@pytest.mark.slow
def test_nothing_else_in_jaxlab_imports_torch():
    code = (
        "import sys, pkgutil, importlib, jaxlab, pretrained\n"
        "for package in (jaxlab, pretrained):\n"
        "    prefix = package.__name__ + '.'\n"
        "    for module in pkgutil.walk_packages(package.__path__, prefix):\n"
        "        importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out == "False\n"
