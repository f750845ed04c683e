"""Test initial weights from files and published weights, with or without a new head."""

import contextlib
import hashlib
import io
import json
import threading
import unicodedata
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxlab import AlexNet
from jaxlab.finetune import main
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.training.initial_weights import describe, initial_variables
from pretrained import DownloadError, to_flax
from pretrained.sources import SOURCES
from pretrained.tables import alexnet
from tests.conftest import NO_CHECKPOINTS, SLIM, assert_one_line
from tests.pretrained.server import Server
from tests.stress.narrow import NARROW, narrow

MODEL, TABLE = AlexNet(10, **NARROW), alexnet(**NARROW)
ALEXNET = ARCHITECTURES["alexnet"]
JOB = ["--train-size", "40", "--test-size", "50", "--image-size", "63"]
JOB += ["--epochs", "1", *NO_CHECKPOINTS]


@pytest.fixture(scope="module")
def whole(narrow_weights):
    """Return a file with 1,000 classes, like torchvision's, written by torch."""
    return Path(narrow_weights)


@pytest.fixture(scope="module")
def trained(whole, tmp_path_factory):
    """Train a new head on that file's frozen layers; return stdout and the folder."""
    folder, out = tmp_path_factory.mktemp("runs") / "first", io.StringIO()
    flags = ["--weights", str(whole), "--freeze", "backbone", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        narrow(patch.setitem)
        main([*JOB, *flags])
    return out.getvalue(), folder


@pytest.fixture
def run(narrowed, trained):
    return trained


def params_of(path):
    state_dict = torch.load(path, weights_only=True)
    return converted(state_dict)


def converted(state_dict):
    return to_flax(state_dict, TABLE)


def assert_equal(ours, theirs, layers):
    for layer in layers:
        for leaf in ("kernel", "bias"):
            np.testing.assert_array_equal(ours[layer][leaf], theirs[layer][leaf])


BACKBONE = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7"]


@pytest.mark.slow
def test_a_torchvision_file_is_fine_tuned_with_a_new_head(run, whole):
    out, folder = run
    saved = converted(load_file(folder / "model.safetensors"))
    assert_equal(saved, params_of(whole), BACKBONE)  # frozen, so unchanged
    assert saved["fc8"]["bias"].shape == (10,)
    record = json.loads((folder / "config.json").read_text())["weights"]
    assert record["source"] == str(whole) and record["verified"] is False
    assert record["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert record["layers"] == {**dict.fromkeys(BACKBONE, "file"), "fc8": "fresh"}
    assert record["classes"] == 1000
    assert "fc8 is fresh: the weights have a head for 1,000 classes" in out
    assert "fc7     32×32                    1,056  frozen     file" in out
    assert "fc8     32×10                      330  trainable  fresh" in out


def test_a_run_continues_from_another_run_s_model(run, tmp_path, capsys):
    model = run[1] / "model.safetensors"
    # This learning rate changes no weight, so the accuracy must be the first run's.
    flags = ["--weights", str(run[1]), "--freeze", "backbone", "--lr", "1e-30"]
    again = main([*JOB, *flags, "--l2", "0", "--out", str(tmp_path / "second")])
    assert f"test_accuracy={again.test_accuracy:.4f} " in run[0]
    saved = converted(load_file(tmp_path / "second" / "model.safetensors"))
    assert_equal(saved, converted(load_file(model)), [*BACKBONE, "fc8"])
    out = capsys.readouterr().out
    assert f"weights: {run[1]}, SHA-256 " in out
    assert "(unverified: not a published file)" in out
    assert "fc8 is fresh" not in out
    assert "fc8     32×10                      330  trainable  file" in out


def initial_params(*arguments, **keywords):
    """Return the initial params and their record."""
    variables, record = initial_variables(*arguments, **keywords)
    return variables["params"], record


def head_of(path, names):
    """Return the head for these class names, the record, and what is said of it."""
    params, record = initial_params(
        ALEXNET, MODEL, jax.random.key(0), str(path), class_names=names
    )
    return params["fc8"], record, describe(record).splitlines()[1:]


def test_a_head_is_kept_only_for_the_classes_that_it_was_trained_for(run, tmp_path):
    path = run[1] / "model.safetensors"
    trained = converted(load_file(path))["fc8"]
    fresh = initial_params(ALEXNET, MODEL, jax.random.key(0), "none")[0]["fc8"]
    digits = "0123456789"
    head, record, said = head_of(path, list(digits))
    assert_equal({"fc8": head}, {"fc8": trained}, ["fc8"])
    assert said == [] and record["layers"]["fc8"] == "file"
    head, record, said = head_of(path, list(digits[3:] + digits[:3]))
    for leaf in ("kernel", "bias"):
        expected = np.roll(trained[leaf], -3, axis=-1)
        np.testing.assert_array_equal(head[leaf], expected)
    assert said == ["fc8 is reordered: the weights have its classes in another order"]
    head, record, said = head_of(path, list("abcdefghij"))
    assert_equal({"fc8": head}, {"fc8": fresh}, ["fc8"])
    assert said == [
        "fc8 is fresh: the weights have a head for other classes: 0, 1, 2, …"
    ]
    assert record["layers"]["fc8"] == "fresh"
    # Nine of ten names are no reason to trust the head.
    head, record, said = head_of(path, ["ten", *digits[1:]])
    assert_equal({"fc8": head}, {"fc8": fresh}, ["fc8"])
    head, _, said = head_of(path, None)  # the names are unknown
    assert_equal({"fc8": head}, {"fc8": trained}, ["fc8"])


def test_names_in_another_normal_form_are_the_same_names(run, tmp_path):
    path = run[1] / "model.safetensors"
    tensors = load_file(path)
    names = [f"caf\u00e9 {i}" for i in range(10)]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    about = json.dumps({"class_names": decomposed})
    save_file(tensors, tmp_path / "a.safetensors", metadata={"jaxlab": about})
    head, _, said = head_of(tmp_path / "a.safetensors", names)
    assert_equal({"fc8": head}, {"fc8": converted(tensors)["fc8"]}, ["fc8"])
    assert said == []


def test_metadata_of_another_program_say_nothing_about_classes(run, tmp_path):
    tensors = load_file(run[1] / "model.safetensors")
    others = '{"class_names": ["a", "b"]}'
    for about in (
        "{",
        "[]",
        "{}",
        '{"class_names": 3}',
        '{"class_names": [1]}',
        others,
    ):
        save_file(tensors, tmp_path / "a.safetensors", metadata={"jaxlab": about})
        head, _, said = head_of(tmp_path / "a.safetensors", list("abcdefghij"))
        assert_equal({"fc8": head}, {"fc8": converted(tensors)["fc8"]}, ["fc8"])


def assert_fresh_layers_are_the_same(model, weights, loaded):
    key = jax.random.key(3)
    fresh, record = initial_params(ALEXNET, model, key, "none")
    assert set(record["layers"].values()) == {"fresh"} and list(fresh)[0] == "conv1"
    partly, record = initial_params(ALEXNET, model, key, weights)
    assert [layer for layer in fresh if record["layers"][layer] != "fresh"] == loaded
    assert_equal(partly, fresh, [layer for layer in fresh if layer not in loaded])
    assert not np.array_equal(partly["conv1"]["kernel"], fresh["conv1"]["kernel"])
    assert list(partly) == list(fresh)


def test_fresh_layers_are_the_same_beside_a_file(narrowed, whole):
    assert_fresh_layers_are_the_same(MODEL, str(whole), BACKBONE)


@pytest.mark.slow
def test_fresh_layers_are_the_same_beside_the_embedded_convolutions():
    model = AlexNet(10, **SLIM)
    assert_fresh_layers_are_the_same(model, "imagenet-conv", BACKBONE[:5])


def test_imagenet_is_downloaded_once_checked_and_known(
    narrowed, whole, tmp_path, monkeypatch
):
    content = whole.read_bytes()
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path))
    server = Server()
    server.behaviours = [lambda handler: handler.answer(body=content)]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    published = SOURCES["alexnet"]["imagenet"]._replace(
        url=server.url,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(SOURCES["alexnet"], "imagenet", published)
    key = jax.random.key(0)
    with pytest.raises(DownloadError, match="it cannot be downloaded offline"):
        initial_params(ALEXNET, MODEL, key, "imagenet", offline=True)
    for offline in (False, True):
        params, record = initial_params(
            ALEXNET, MODEL, key, "imagenet", offline=offline
        )
        assert_equal(params, params_of(whole), BACKBONE)
        bound = NARROW["hidden"] ** -0.5  # torch's 1/√fan_in
        assert 0 < np.abs(params["fc8"]["kernel"]).max() <= bound
        assert record["verified"] is True and record["source"] == server.url
        assert record["layers"] == {
            **dict.fromkeys(BACKBONE, "ImageNet"),
            "fc8": "fresh",
        }
    assert len(server.ranges) == 1
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_that_cannot_be_had_are_one_line_and_write_nothing(
    run_here, monkeypatch, tmp_path
):
    (tmp_path / "page.pth").write_text("<html>")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    out = tmp_path / "run"
    for weights, code, message in (
        (tmp_path / "page.pth", 3, "page.pth: is an HTML page"),
        (tmp_path / "folder", 3, "folder: is a directory; pass a weights file"),
        (
            "imagenet",
            4,
            "run once with a network, or save https://download.pytorch.org",
        ),
    ):
        process = run_here(main, "--weights", weights, "--offline", "--out", out)
        assert_one_line(process, code, message)
        assert not out.exists()
