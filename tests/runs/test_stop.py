"""Test that a run stopped by a signal resumes to an uninterrupted run's results."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxlab.runs import writer
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.training import fit, inputs, job
from tests.runs.conftest import EPOCHS, STEPS, command, on_call
from tests.stress.chaos import results

CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}


# The middle of an epoch is always tested, the first step and the end of an epoch with
# the slow tests, and all other steps with --stress only.
MARKS = {STEPS + 3: (), 1: pytest.mark.slow, STEPS: pytest.mark.slow}


STOPS = [
    pytest.param(step, marks=MARKS.get(step, pytest.mark.stress))
    for step in range(1, STEPS * EPOCHS)
]


@pytest.mark.parametrize("step", STOPS)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(
    step, whole, stopped, monkeypatch, capsys
):
    code, out = stopped(fit, "_update_bar", step, number=list(CODE)[step % 2])
    said = capsys.readouterr()
    assert code == list(CODE.values())[step % 2]
    assert said.err == (
        f"interrupted while training: stopped after step {step}; to continue, pass "
        f"--resume --out '{out}'\n"
    )
    saved = CheckpointManager(out / "checkpoints", 2, print).steps()
    assert saved[0] == step and f"saved step {step}\n" in said.out
    assert not (out / "model.safetensors").exists()
    # The last step of an epoch is taken before the epoch is measured.
    assert (out / "curves.png").exists() == (step > STEPS)
    assert command(monkeypatch, out, "--resume") == 0
    assert f"resumed from step {step}\n" in capsys.readouterr().out
    assert results(out) == whole


@pytest.mark.slow
def test_a_run_with_another_seed_ends_with_other_bits(
    whole, narrowed, monkeypatch, tmp_path
):
    """As a control for the comparison above, all results differ with another seed."""
    assert command(monkeypatch, tmp_path / "run", "--seed", 1) == 0
    other = results(tmp_path / "run")
    assert all(other[part] != whole[part] for part in whole)


# Phases in which the signal arrives: owner, function, and number of the call.
PHASES = {
    "compiling the step": (job, "train_step_of", 1),
    "a test": (fit, "_evaluate", 2),
    "a save": (CheckpointManager, "save", 2),
    "a save's writing": (CheckpointManager, "_write", 2),
    "the export": (writer, "write_safetensors", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.stress)],
)
def test_a_signal_in_any_phase_ends_the_run_and_loses_nothing(
    phase, number, whole, stopped, monkeypatch
):
    code, out = stopped(*PHASES[phase], number=number)
    assert code == CODE[number]
    assert command(monkeypatch, out, "--resume") == 0
    assert results(out) == whole


@pytest.fixture
def slow_last_save(monkeypatch):
    """Return a function that delays the last save until the run waits for it.

    The function takes an action, which is called before the save is written.
    """
    waited_for, begun = threading.Event(), []

    def slow(act):
        write, wait = CheckpointManager._write, CheckpointManager.wait

        def writing(self, name, *args):
            if name == str(EPOCHS * STEPS):
                assert waited_for.wait(60)
                time.sleep(0.2)  # by now the main thread waits for this save
                act()
                time.sleep(0.5)
                begun.append(name)
            return write(self, name, *args)

        def waiting(self):
            pending = self._pending is not None
            # Each save waits for the previous one, and the end of the run for the last.
            if pending and self.last == (EPOCHS - 1) * STEPS:
                waited_for.set()
            wait(self)

        monkeypatch.setattr(CheckpointManager, "_write", writing)
        monkeypatch.setattr(CheckpointManager, "wait", waiting)
        return begun

    return slow


@pytest.mark.slow
def test_a_signal_while_the_last_save_is_waited_for_lets_it_finish(
    slow_last_save, narrowed, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    begun = slow_last_save(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert command(monkeypatch, out) == 143 and begun
    assert not list((out / "checkpoints").glob("*.partial"))
    assert CheckpointManager(out / "checkpoints", 2, print).steps()[0] == EPOCHS * STEPS


@pytest.mark.slow
def test_the_model_is_written_when_the_last_step_is_and_before_pictures(
    slow_last_save, narrowed, monkeypatch, tmp_path
):
    out, seen = tmp_path / "run", []

    def look():
        steps = CheckpointManager(out / "checkpoints", 2, print).steps()
        seen.append((steps, sorted(path.name for path in out.glob("*.png"))))

    slow_last_save(lambda: None)
    on_call(monkeypatch, writer, "write_safetensors", 1, look)
    assert command(monkeypatch, out) == 0
    assert seen == [([EPOCHS * STEPS], [])]
    assert len(list(out.glob("*.png"))) == 3


@pytest.mark.slow
def test_a_signal_while_features_are_computed_leaves_nothing_of_them(
    stopped, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    flags = ["--freeze", "features"]
    code, out = stopped(inputs, "feature_loader", flags=flags)
    assert code == 143
    assert not list((tmp_path / "home" / "features").glob("*/"))
    capsys.readouterr()
    assert command(monkeypatch, out, "--resume", *flags) == 0
    assert "no checkpoint was saved yet: the run starts from the beginning" in (
        capsys.readouterr().out
    )


TWICE = """
import os, signal, sys
from tests.stress import narrow
from jaxlab.training import fit
show, calls = fit._update_bar, 0
def twice(*args):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), signal.{0})
        print("noted", flush=True)
        os.kill(os.getpid(), signal.{1})
    return show(*args)
fit._update_bar = twice
sys.exit(narrow.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")])
def test_a_second_signal_ends_the_process_at_once(numbers, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", TWICE.format(*numbers), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert process.stdout.splitlines()[-1] == "noted"
    assert process.returncode == -signal.SIGTERM
    saved = CheckpointManager(tmp_path / "run" / "checkpoints", 2, print)
    assert all(saved.restore(step).step == step for step in saved.steps())


@pytest.mark.slow
def test_a_signal_that_python_drops_stops_the_run_all_the_same(
    whole, narrowed, monkeypatch, tmp_path, capsys
):
    class Dying:
        def __del__(self):  # Python ignores exceptions raised here
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        on_call(patch, fit, "_evaluate", 1, Dying)
        assert command(patch, out) == 143
    assert CheckpointManager(out / "checkpoints", 2, print).steps() == [STEPS]
    assert command(monkeypatch, out, "--resume") == 0
    assert results(out) == whole


UNREAD = """
import os, sys
from tests.stress import narrow
from jaxlab.training import fit
tell = fit._log_epoch
def unread(job, entry):
    if entry["epoch"] == 2:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    tell(job, entry)
fit._log_epoch = unread
sys.exit(narrow.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_epoch_that_nobody_reads_is_saved(tmp_path):
    out = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-c", UNREAD, "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 141 and process.stderr == ""
    assert CheckpointManager(out / "checkpoints", 2, print).steps()[0] == 2 * STEPS


def test_without_checkpoints_a_stopped_run_says_that_nothing_is_saved(stopped, capsys):
    code, out = stopped(fit, "_update_bar", 2, flags=["--checkpoint-every", 0])
    assert code == 143 and not (out / "checkpoints").exists()
    assert "nothing was saved, because of --checkpoint-every 0" in (
        capsys.readouterr().err
    )
