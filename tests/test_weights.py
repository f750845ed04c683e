"""Where a run starts: files and published weights, whole or with a fresh head."""

import hashlib
import json
import threading

import jax
import numpy as np
import pytest
import torch
from conftest import NO_CHECKPOINTS, torch_alexnet
from safetensors.numpy import load_file
from test_alexnet import with_imagenet_convolutions
from test_download import Server
from test_finetune import assert_one_line, command

from jaxlab import AlexNet, verify
from jaxlab.finetune import main
from jaxlab.weights import initial_params
from pretrained import DownloadError, to_flax
from pretrained.sources import SOURCES

JOB = ["--train-size", "40", "--test-size", "50", "--image-size", "63"]
JOB += ["--epochs", "1", *NO_CHECKPOINTS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file as torchvision's: 1,000 classes, real convolutions, written by torch."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(with_imagenet_convolutions(torch_alexnet(1000)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    """A run from that file, with everything but the new head frozen: stdout, folder."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    process = command(*JOB, "--weights", whole, "--freeze", "backbone", "--out", folder)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout, folder


def params_of(path):
    state_dict = torch.load(path, weights_only=True)
    return to_flax(state_dict)


def assert_equal(ours, theirs, layers):
    for layer in layers:
        for leaf in ("kernel", "bias"):
            np.testing.assert_array_equal(ours[layer][leaf], theirs[layer][leaf])


BACKBONE = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7"]


def test_a_torchvision_file_is_fine_tuned_with_a_new_head(run, whole):
    out, folder = run
    saved = to_flax(load_file(folder / "model.safetensors"))
    assert_equal(saved, params_of(whole), BACKBONE)  # frozen: as they came
    assert saved["fc8"]["bias"].shape == (10,)
    record = json.loads((folder / "config.json").read_text())["weights"]
    assert record["source"] == str(whole) and record["verified"] is False
    assert record["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert record["layers"] == {**dict.fromkeys(BACKBONE, "file"), "fc8": "fresh"}
    assert record["classes"] == 1000
    assert "fc8 is fresh: the weights' own has 1,000 classes" in out
    assert "fc7     4096×4096           16,781,312  frozen     file" in out
    assert "fc8     4096×10                 40,970  trainable  fresh" in out


def test_the_run_s_folder_is_certified(run, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SIZES", ((63, 63),))
    verify.main([str(run[1]), "--json"])
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["verdict"] == "equal" and certificate["classes"] == 10
    assert certificate["weights"] == str(run[1] / "model.safetensors")


def test_a_run_continues_from_another_run_s_model(run, tmp_path, capsys):
    model = run[1] / "model.safetensors"
    # At a rate this small the weights stay, so the result must be the first run's.
    flags = ["--weights", str(model), "--freeze", "backbone", "--lr", "1e-30"]
    again = main([*JOB, *flags, "--l2", "0", "--out", str(tmp_path / "second")])
    assert f"test_accuracy={again.test_accuracy:.4f} " in run[0]
    saved = to_flax(load_file(tmp_path / "second" / "model.safetensors"))
    assert_equal(saved, to_flax(load_file(model)), [*BACKBONE, "fc8"])
    out = capsys.readouterr().out
    assert f"weights: {model}, SHA-256 " in out
    assert "(unverified: no published file)" in out
    assert "fc8 is fresh" not in out
    assert "fc8     4096×10                 40,970  trainable  file" in out


def test_fresh_layers_are_the_same_beside_whatever_is_loaded():
    key = jax.random.key(3)
    fresh, record = initial_params(AlexNet(10), key, "none")
    assert set(record["layers"].values()) == {"fresh"} and list(fresh)[0] == "conv1"
    partly, _ = initial_params(AlexNet(10), key, "imagenet-conv")
    assert_equal(partly, fresh, ["fc6", "fc7", "fc8"])
    assert not np.array_equal(partly["conv1"]["kernel"], fresh["conv1"]["kernel"])
    assert list(partly) == list(fresh)


def test_imagenet_is_downloaded_once_checked_and_known(whole, tmp_path, monkeypatch):
    content = whole.read_bytes()
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path))
    server = Server()
    server.behaviours = [lambda handler: handler.answer(body=content)]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    published = SOURCES["imagenet"]._replace(
        url=server.url,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(SOURCES, "imagenet", published)
    key = jax.random.key(0)
    with pytest.raises(DownloadError, match="offline it cannot be fetched"):
        initial_params(AlexNet(10), key, "imagenet", offline=True)
    for offline in (False, True):
        params, record = initial_params(AlexNet(10), key, "imagenet", offline=offline)
        assert_equal(params, params_of(whole), BACKBONE)
        assert 0 < np.abs(params["fc8"]["kernel"]).max() <= 1 / 64  # torch's 1/√4096
        assert record["verified"] is True and record["source"] == server.url
        assert record["layers"] == {
            **dict.fromkeys(BACKBONE, "ImageNet"),
            "fc8": "fresh",
        }
    assert len(server.ranges) == 1
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_that_cannot_be_had_are_one_line_and_write_nothing(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "run"
    for weights, code, message in (
        (tmp_path / "page.pth", 3, "page.pth: is an HTML page"),
        (tmp_path / "folder", 3, "folder: is a folder; pass a weights file"),
        ("imagenet", 4, "run once with a network, or put https://download.pytorch.org"),
    ):
        process = command(
            *("--weights", weights, "--offline", "--out", out),
            JAXLAB_HOME=str(tmp_path / "home"),
        )
        assert_one_line(process, code, message)
        assert not out.exists()
