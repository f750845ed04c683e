"""Test that test images choose nothing: the best epoch, patience, and the one test."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlab.runs import writer
from jaxlab.training import fit
from jaxlab.training.epoch import evaluate_split
from tests.runs.conftest import STEPS, command
from tests.stress.chaos import results
from tests.stress.narrow import narrow

LOSSES = [3.0, 1.0, 2.0, 1.0, 2.0, 4.0]  # of validation; the later 1.0 is the best
BEST, EPOCHS, VALIDATED, TESTED = 4, 6, 40, 20
JOB = ["--validation-fraction", 0.01, "--lr-step", 9, "--epochs", EPOCHS]


@pytest.fixture(scope="module", autouse=True)
def measured():
    """Give the epochs the losses above; return the size of each split that is used.

    The network learns as always: where its loss would be lowest is left to chance.
    """
    sizes = []

    def scripted(eval_step, state, load, *, count, batch_size):
        sizes.append(count)
        score, predictions = evaluate_split(
            eval_step, state, load, count=count, batch_size=batch_size
        )
        if count == VALIDATED:
            score = score._replace(loss=LOSSES[int(state.step) // STEPS - 1])
        return score, predictions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "evaluate_split", scripted)
        yield sizes


@pytest.fixture(scope="module")
def whole(measured, tmp_path_factory):
    """Return the folder of an uninterrupted run and the splits that it measured."""
    folder = tmp_path_factory.mktemp("validation") / "run"
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch.setitem)
        measured.clear()
        assert command(patch, folder, *JOB) == 0
    return folder, list(measured)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_test_split_is_measured_once_and_stands_in_the_last_row(whole):
    folder, measured = whole
    assert measured == [VALIDATED] * EPOCHS + [TESTED]
    rows = rows_of(folder)
    assert [row["validation_loss"] for row in rows] == LOSSES
    assert [row["epoch"] for row in rows if "test_loss" in row] == [EPOCHS]


def test_the_model_is_that_of_the_epoch_with_the_lowest_validation_loss(
    whole, narrowed, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    assert command(monkeypatch, out, *JOB[:-1], BEST) == 0
    model, shorter = (load_file(f / "model.safetensors") for f in (whole[0], out))
    assert model.keys() == shorter.keys()
    for name in model:
        np.testing.assert_array_equal(model[name], shorter[name])
    tested = [rows_of(folder)[-1]["test_loss"] for folder in (whole[0], out)]
    assert tested[0] == tested[1]
    # Negative control: the last epoch has another network.
    steps = whole[0] / "checkpoints" / str(EPOCHS * STEPS)
    saved = load_file(steps / "state.safetensors")
    head = model["classifier.6.weight"].T
    np.testing.assert_array_equal(saved["best.params.fc8.kernel"], head)
    assert not np.array_equal(saved["params.fc8.kernel"], head)
    # The run goes on from its last epoch, not from its best one.
    shorter = command(monkeypatch, out, *JOB[:-1], BEST + 1, "--overwrite")
    assert shorter == 0
    assert command(monkeypatch, out, "--resume", "--epochs", EPOCHS) == 0
    assert results(out) == results(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, nth",
    [
        (fit, "_update_bar", 10),
        (fit, "_test_the_best", 1),
        (writer, "write_safetensors", 1),
    ],
)
def test_a_run_that_is_stopped_resumes_with_its_best_epoch(
    whole, stopped, monkeypatch, owner, name, nth
):
    code, out = stopped(owner, name, nth, flags=JOB)
    assert code == 143
    assert command(monkeypatch, out, "--resume", "--epochs", EPOCHS) == 0
    assert results(out) == results(whole[0])


def test_patience_ends_the_training_and_says_so(
    whole, narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    assert command(monkeypatch, out, *JOB, "--patience", 1) == 0
    assert [row["validation_loss"] for row in rows_of(out)] == LOSSES[:3]
    said = capsys.readouterr().out
    assert (
        "stopped after epoch 3: the validation loss was lowest in epoch 2 and has not "
        "improved for 1 epoch\n"
    ) in said
    assert "best epoch 2 of 3, by validation loss  test loss " in said
    # It is finished, until it is given more patience.
    resume = ["--resume", "--epochs", EPOCHS]
    assert command(monkeypatch, out, *resume) == 0
    said = capsys.readouterr().out
    assert "the run is finished; pass a larger --patience to continue" in said
    assert command(monkeypatch, out, *resume, "--patience", 6) == 0
    assert results(out) == results(whole[0])


def test_patience_needs_a_validation_split(narrowed, monkeypatch, tmp_path, capsys):
    assert command(monkeypatch, tmp_path / "run", "--patience", 1) == 2
    assert "--patience: mnist5k has no validation split" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
