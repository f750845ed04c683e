"""Test the over-fitting lab end to end: seeds, curves, files, verdicts, messages."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxlab import MLP
from jaxlab.figures import variants
from jaxlab.overfit import Config, epoch_orders, main, variant_program
from jaxlab.training.variants import VARIANTS
from jaxlab.verdict import RULE

SMALL = ["--seeds", "2", "--epochs", "3", "--train-size", "50", "--test-size", "40"]


def command(*flags, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "jaxlab.overfit", *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_baseline_memorises_200_digits_and_leaves_a_gap(tmp_path, capsys):
    results = main(
        ["--variants", "baseline", "--seeds", "2", "--out", str(tmp_path / "run")]
    )
    curves = results["variants"]["baseline"]["curves"]
    train = np.array(curves["train_accuracy"])
    test = np.array(curves["test_accuracy"])
    assert (train[:, -1] == 1).all()
    assert (train[:, -1] - test[:, -1] > 0.1).all()
    assert train[0, 0] < 0.7  # not memorised after one epoch
    (row,) = [x for x in capsys.readouterr().out.splitlines() if x[:8] == "baseline"]
    assert row.split()[1:4] == ["100.0", "±", "0.0"]
    assert row.endswith("over-fits")


# The tests share these settings, so that each program is compiled only once.
SHORT = Config(epochs=4, batch_size=5, lr=1e-3, lr_step=2)


def small_splits():
    random = np.random.default_rng(0)
    return {
        name: (
            jnp.asarray(random.random((count, 28, 28, 1)), jnp.float32),
            jnp.asarray(random.integers(0, 10, count), jnp.int32),
        )
        for name, count in {"train": 23, "test": 12}.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "dropout",
        pytest.param("baseline", marks=pytest.mark.stress),
        pytest.param("batchnorm+step-decay", marks=pytest.mark.stress),
    ],
)
def test_each_seed_equals_its_run_alone(name, slow_is_compiled_quickly):
    program = jax.jit(variant_program(VARIANTS[name], SHORT, 10))
    splits = small_splits()
    orders = epoch_orders(dataclasses.replace(SHORT, seeds=3), 23)
    together, _ = program(jnp.arange(3), orders, splits)
    for seed in range(3):
        alone, _ = program(jnp.array([seed]), orders[[seed]], splits)
        for key, values in alone.items():
            # The two programs round differently, which 20 steps of Adam amplify.
            np.testing.assert_allclose(together[key][seed], values[0], rtol=1e-4)
    losses = np.asarray(together["train_loss"])
    assert len(np.unique(losses[:, -1])) == 3
    assert losses.shape == (3, 4)


@pytest.mark.slow
def test_a_cure_changes_training_and_nothing_else_does(slow_is_compiled_quickly):
    splits = small_splits()
    orders = epoch_orders(dataclasses.replace(SHORT, seeds=1), 23)

    def losses_of(variant):
        program = jax.jit(variant_program(variant, SHORT, 10))
        curves, _ = program(jnp.arange(1), orders, splits)
        return tuple(np.asarray(curves["train_loss"]).ravel().tolist())

    losses = {name: losses_of(variant) for name, variant in VARIANTS.items()}
    assert len(set(losses.values())) == len(VARIANTS)
    # Step decay has no effect before the first decay.
    assert losses["baseline"][0] == losses["step-decay"][0]


def test_the_curves_are_means_over_each_split():
    """Each value is a mean over its split; the rate 1e-30 keeps the initial weights."""
    config, splits = dataclasses.replace(SHORT, epochs=1, lr=1e-30), small_splits()
    program = variant_program(VARIANTS["baseline"], config, 10)
    orders = epoch_orders(dataclasses.replace(config, seeds=1), 23)
    curves, _ = jax.jit(program)(jnp.arange(1), orders, splits)
    init_key, _ = jax.random.split(jax.random.key(0))

    @jax.jit
    def logits_of(splits):
        variables = MLP().init(init_key, splits["train"][0], train=False)
        return {
            name: MLP().apply(variables, images, train=False)
            for name, (images, _) in splits.items()
        }

    for name, logits in logits_of(splits).items():
        logits, labels = np.asarray(logits), np.asarray(splits[name][1])
        right = logits[np.arange(len(labels)), labels]
        losses = np.log(np.exp(logits).sum(-1)) - right
        np.testing.assert_allclose(curves[f"{name}_loss"], losses.mean(), rtol=1e-5)
        accuracy = (logits.argmax(-1) == labels).mean()
        np.testing.assert_allclose(curves[f"{name}_accuracy"], accuracy, rtol=1e-6)


@pytest.mark.slow
def test_files_hold_every_seeds_curves_and_a_picture(tmp_path):
    folder = tmp_path / "run"
    process = command(*SMALL, "--variants", "l1,batchnorm", "--out", folder)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.splitlines()[-1] == f"run={folder}"
    assert RULE in process.stdout
    results = json.loads((folder / "results.json").read_text())
    assert list(results["variants"]) == ["l1", "batchnorm"]
    for result in results["variants"].values():
        assert result["verdict"] in ("over-fits", "under-fits", "balanced")
        for key in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert np.array(result["curves"][key]).shape == (2, 3)
    assert results["settings"]["epochs"] == 3
    with Image.open(folder / "overfit.png") as picture:
        assert min(picture.size) > 400
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "models",
        "overfit.png",
        ".lock",
    }


# The narrowest and shortest run: its programs are small, and it trains for a moment.
NARROW = ["--hidden", "8,8", "--train-size", "20", "--test-size", "30"]
NARROW += ["--epochs", "2", "--seeds", "1"]


def test_a_row_of_one_seed_has_no_deviation_and_the_rule_is_said(tmp_path, capsys):
    out = tmp_path / "run"
    names = "dropout + l2, l2+dropout,batchnorm"
    results = main([*NARROW, "--variants", names, "--out", str(out)])
    assert list(results["variants"]) == ["dropout+l2", "batchnorm"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "mnist5k: 20 training, 30 test images, MLP 784-8-8-10, 2 variants, 1 seed, "
        "2 epochs, on cpu"
    )
    assert lines[1].split()[:5] == ["variant", "train", "acc", "%", "test"]
    # Not on a terminal, a line for each variant says what is waited for.
    assert lines[2] == "compiling the training of dropout+l2, 1 seed …"
    assert lines[4] == "compiling the training of batchnorm, 1 seed …"
    for line, name in ((lines[3], "dropout+l2"), (lines[5], "batchnorm")):
        assert line.split()[0] == name and "±" not in line
        assert line.endswith(results["variants"][name]["verdict"])
        lowest = results["variants"][name]["lowest_test_loss"]
        test_loss = np.mean(results["variants"][name]["curves"]["test_loss"], 0)
        assert lowest["mean"] == pytest.approx(test_loss.min())
        assert lowest["epoch"] == test_loss.argmin() + 1
        assert f"{lowest['mean']:.3f} ({lowest['epoch']})" in line
    assert lines[6:8] == ["", RULE]
    assert lines[-2] == (
        f"models: the network of the first seed of each variant, in {out / 'models'}"
    )
    assert lines[-1] == f"run={out}"


@pytest.mark.slow
def test_a_network_that_is_too_small_under_fits(tmp_path):
    flags = ["--hidden", "4,4", "--seeds", "2", "--test-size", "100"]
    results = main([*flags, "--variants", "baseline", "--out", str(tmp_path / "run")])
    assert results["variants"]["baseline"]["verdict"] == "under-fits"


@pytest.mark.slow
def test_a_test_loss_that_rises_is_told_with_its_start(tmp_path, capsys):
    flags = ["--lr", "1e-3", "--seeds", "2", "--epochs", "60", "--test-size", "200"]
    results = main([*flags, "--variants", "baseline", "--out", str(tmp_path / "run")])
    lowest = results["variants"]["baseline"]["lowest_test_loss"]
    assert lowest["has_risen"] and 3 < lowest["epoch"] < 20
    start = f"{lowest['mean']:.3f} at epoch {lowest['epoch']}"
    line = f"baseline: the test loss rose from {start} to "
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "drpout"], "unknown variant 'drpout'; did you mean dropout?"),
        (["--variants", "l2+drpout"], "unknown cure 'drpout' in 'l2+drpout'; did you"),
        (["--hidden", "4,x"], "--hidden: expected one to 4 whole numbers of at least"),
        (["--hidden", "4,0"], "1, got '4,0'; pass them separated by commas, such as"),
        (["--hidden", "4,4,4,4,4"], "--hidden: expected one to 4 whole numbers"),
        (
            ["--hidden", "4"],
            "--hidden: '4' is one hidden layer, and dropout and batchnorm act between "
            "two; pass two widths, or --variants baseline,l2,l1,step-decay",
        ),
        (
            ["--seeds", "0"],
            "--seeds: 0 is out of range; pass a number that is at least 1",
        ),
        (["--train-size", "5000"], "--train-size: 5,000 images requested"),
        (["--dropout-rate", "1"], "--dropout-rate: 1 is out of range"),
        (["--dropout-rate", "-0.1"], "--dropout-rate: -0.1 is out of range"),
        (["--batch-size", "1"], "--batch-size: 1 leaves a batch of one image"),
        (["--batch-size", "199"], "--batch-size: 199 leaves a batch of one image"),
        (["--train-size", "1"], "leaves a batch of one image"),
        (["--l1", "nan"], "--l1: nan is not finite"),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_a_wrong_flag_is_one_line_and_writes_nothing(
    flags, message, run_here, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    process = run_here(main, *flags)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert message in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_batch_of_one_is_fine_without_batch_norm(tmp_path):
    job = [*SMALL, "--batch-size", "7", "--variants", "dropout"]
    main([*job, "--out", str(tmp_path / "run")])


def test_a_picture_that_fails_is_a_warning(run_here, monkeypatch, tmp_path):
    monkeypatch.setattr(variants, "draw_variants", raising_value_error)
    out = tmp_path / "run"
    done = run_here(main, *NARROW, "--variants", "baseline", "--out", out)
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: {out / 'overfit.png'}: not drawn: ValueError: odd; the run is "
        "finished without it; to draw it, run again with --overwrite\n"
    )
    assert done.stdout.splitlines()[-1] == f"run={out}"
    assert (out / "results.json").exists()


def raising_value_error(*_):
    raise ValueError("odd")
