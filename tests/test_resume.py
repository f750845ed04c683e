"""Runs that are stopped, killed or out of disk, and go on as if nothing had been."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import filelock
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import pretrained
from jaxlab import (
    cli,
    finetune,
    fit,
    inputs,
    report,
    resume,
    run_folder,
    runtime,
    signals,
    store,
    train,
)
from jaxlab.checkpoint import Checkpoints
from jaxlab.config import Config
from jaxlab.finetune import main
from pretrained.tables import alexnet as table_of
from tests.stress import chaos
from tests.stress.chaos import results
from tests.stress.narrow import FLAGS, NARROW

# As jaxlab.runtime has it, but pytest has filters of its own: full disks leave programs
# half-written, and are the same process's here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Error .*persistent compilation cache entry"
)
STEPS = 7  # an epoch
EPOCHS = 3
CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module", autouse=True)
def interruptible():
    """What a shell runs in the background ignores SIGINT, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def narrowed(narrowed, monkeypatch):
    """The narrow command, looking in at every step."""
    monkeypatch.setattr(train, "SECONDS_AWAY", 0)


def command(monkeypatch, out, *flags):
    """Run the command as a process would; return its exit code."""
    arguments = ["finetune", *FLAGS, "--out", str(out), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", arguments)
    return cli.run(main)


def on_call(patch, owner, name, nth, act):
    """Act when a function is called for the nth time; return how to ask how often."""
    function, calls = getattr(owner, name), 0

    def calling(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            act()
        return function(*args, **kwargs)

    patch.setattr(owner, name, calling)
    return lambda: calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one piece."""
    out = tmp_path_factory.mktemp("whole") / "run"
    found = chaos.finish(out)
    kept = Checkpoints(out / "checkpoints", 2, print).steps()
    assert kept == [3 * STEPS, 2 * STEPS, STEPS]  # two, and the best
    assert len(found["metrics"]) == EPOCHS
    return results(out)


@pytest.fixture
def stopped(monkeypatch, narrowed, tmp_path):
    """A function that runs until another is called for the nth time, and a signal."""

    def run(owner, name, nth=1, number=signal.SIGTERM, out=None, flags=()):
        out = out or tmp_path / "a run"  # its name is to be quoted
        with monkeypatch.context() as patch:
            stop = functools.partial(os.kill, os.getpid(), number)
            calls = on_call(patch, owner, name, nth, stop)
            code = command(monkeypatch, out, *flags)
        assert calls() >= nth
        return code, out

    return run


# The middle of an epoch, the first step and the end of an epoch; all under stress.
MARKS = {STEPS + 3: (), 1: pytest.mark.slow, STEPS: pytest.mark.slow}
STOPS = [
    pytest.param(step, marks=MARKS.get(step, pytest.mark.stress))
    for step in range(1, STEPS * EPOCHS)
]


@pytest.mark.parametrize("step", STOPS)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(
    step, whole, stopped, monkeypatch, capsys
):
    code, out = stopped(fit, "_show", step, number=list(CODE)[step % 2])
    said = capsys.readouterr()
    assert code == list(CODE.values())[step % 2] and said.err == "interrupted\n"
    saved = Checkpoints(out / "checkpoints", 2, print).steps()
    assert saved[0] == step and f"saved step {step}\n" in said.out
    assert said.out.splitlines()[-1] == (
        f"stopped after step {step}; to go on: --resume --out '{out}'"
    )
    assert not (out / "model.safetensors").exists()
    assert command(monkeypatch, out, "--resume") == 0
    assert f"resumed from step {step}\n" in capsys.readouterr().out
    assert results(out) == whole


@pytest.mark.slow
def test_a_run_with_another_seed_ends_with_other_bits(
    whole, narrowed, monkeypatch, tmp_path
):
    """The control of the comparison above."""
    assert command(monkeypatch, tmp_path / "run", "--seed", 1) == 0
    other = results(tmp_path / "run")
    assert all(other[part] != whole[part] for part in whole)


# Where a signal may find a run: a function that it calls there, and which call.
PHASES = {
    "compiling the step": (train, "make_train_step", 1),
    "a test": (fit, "_test", 2),
    "a save": (Checkpoints, "save", 2),
    "a save's writing": (Checkpoints, "_write", 2),
    "the export": (report, "write_curves", 1),
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


# What a full disk may interrupt: a function that writes, and which call of it.
WRITING = {
    "config.json": (run_folder, "write_json", 1),
    "the features": (inputs, "feature_loader", 1),
    "metrics.jsonl": (run_folder, "write_metrics", 2),
    "a step": (Checkpoints, "_write", 3),
    "the best weights": (fit, "write_safetensors", 1),
    "the weights": (finetune, "write_safetensors", 1),
    "the curves": (report, "write_curves", 1),
    "the confusion matrix": (report, "write_confusion", 1),
}


FROZEN = ["--freeze", "features", "--lr", 0.003]


@pytest.fixture(scope="module")
def whole_frozen(tmp_path_factory):
    """A run in one piece with FROZEN."""
    out = tmp_path_factory.mktemp("whole") / "run"
    chaos.finish(out, *map(str, FROZEN))
    return results(out)


@pytest.mark.slow
@pytest.mark.parametrize("phase", WRITING)
def test_a_disk_that_fills_up_in_any_phase_loses_nothing(
    phase, whole_frozen, small_disk, narrowed, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    flags, out = FROZEN, tmp_path / "run"
    owner, name, nth = WRITING[phase]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        calls = on_call(patch, owner, name, nth, lambda: small_disk(0))
        try:
            code = command(monkeypatch, out, *flags)
        finally:
            small_disk(resource.RLIM_INFINITY)
    assert calls() >= nth
    said = capsys.readouterr().err.splitlines()
    assert code in (3, 5) and said[-1].startswith("error: ")
    assert "free space" in said[-1]
    assert all(line.startswith("warning: ") for line in said[:-1])
    left = [p for p in tmp_path.rglob("*") if p.suffix in (".partial", ".deleted")]
    assert not left
    assert command(monkeypatch, out, "--resume", *flags) == 0
    assert results(out) == whole_frozen


@pytest.fixture
def slow_last_save(monkeypatch):
    """A function: the last step is written when it is waited for, after an action."""
    waited_for, begun = threading.Event(), []

    def slow(act):
        write, wait = Checkpoints._write, Checkpoints.wait

        def writing(self, name, *args):
            if name == str(EPOCHS * STEPS):
                assert waited_for.wait(60)
                time.sleep(0.2)  # by now the main thread waits for this one
                act()
                time.sleep(0.5)
                begun.append(name)
            return write(self, name, *args)

        def waiting(self):
            pending = self._pending is not None
            # Each of three saves waits for the one before, and the end for the last.
            if pending and self.last == (EPOCHS - 1) * STEPS:
                waited_for.set()
            wait(self)

        monkeypatch.setattr(Checkpoints, "_write", writing)
        monkeypatch.setattr(Checkpoints, "wait", waiting)
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
    assert Checkpoints(out / "checkpoints", 2, print).steps()[0] == EPOCHS * STEPS


@pytest.mark.slow
def test_the_model_is_written_when_all_else_is(
    slow_last_save, narrowed, monkeypatch, tmp_path
):
    out, seen = tmp_path / "run", []

    def look():
        steps = Checkpoints(out / "checkpoints", 2, print).steps()
        seen.append((steps[0], sorted(path.name for path in out.glob("*.png"))))

    slow_last_save(lambda: None)
    on_call(monkeypatch, finetune, "write_safetensors", 1, look)
    assert command(monkeypatch, out) == 0
    assert seen == [(EPOCHS * STEPS, ["confusion.png", "curves.png"])]


@pytest.mark.slow
def test_a_stopped_run_that_cannot_be_saved_says_why(
    small_disk, narrowed, monkeypatch, tmp_path, capsys
):
    def stop_and_fill():
        os.kill(os.getpid(), signal.SIGTERM)
        small_disk(0)

    with monkeypatch.context() as patch:
        on_call(patch, fit, "_show", 10, stop_and_fill)
        code = command(monkeypatch, tmp_path / "run")
    small_disk(resource.RLIM_INFINITY)
    said = capsys.readouterr().err.splitlines()
    assert code == 5
    # The step it stopped at, or the one that was being saved.
    assert "could not be saved: File too large; check the free space" in said[-1]


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
    assert "no step was saved yet: the run begins anew" in capsys.readouterr().out


TWICE = """
import os, signal, sys
from tests.stress import narrow
from jaxlab import fit
show, calls = fit._show, 0
def twice(*args):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), signal.{0})
        print("noted", flush=True)
        os.kill(os.getpid(), signal.{1})
    return show(*args)
fit._show = twice
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
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 2, print)
    assert all(saved.restore(step).step == step for step in saved.steps())


@pytest.mark.slow
def test_a_signal_that_python_drops_stops_the_run_all_the_same(
    whole, narrowed, monkeypatch, tmp_path, capsys
):
    class Dying:
        def __del__(self):  # Python drops what is raised here
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda _: None)
        on_call(patch, fit, "_test", 1, Dying)
        assert command(patch, out) == 143
    assert Checkpoints(out / "checkpoints", 2, print).steps() == [STEPS]
    assert command(monkeypatch, out, "--resume") == 0
    assert results(out) == whole


UNREAD = """
import os, sys
from tests.stress import narrow
from jaxlab import fit
tell = fit._tell
def unread(job, entry):
    if entry["epoch"] == 2:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    tell(job, entry)
fit._tell = unread
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
    assert Checkpoints(out / "checkpoints", 2, print).steps()[0] == 2 * STEPS


def test_a_signal_that_is_ignored_stays_so_after_another():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(signals.Stopped), signals.handled():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_is_put_off_to_the_end_of_the_outer_block():
    reached = []
    with pytest.raises(signals.Stopped), signals.handled(), signals.put_off():
        with signals.put_off() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
        reached.append("the end of the outer block")
    assert reached


def test_a_signal_stops_one_block_and_lets_those_after_it_finish():
    with signals.handled():
        with pytest.raises(signals.Stopped), signals.put_off():
            os.kill(os.getpid(), signal.SIGTERM)
        with signals.put_off():
            pass


def test_signals_are_the_callers_again_afterwards():
    before = [signal.getsignal(number) for number in CODE]
    with pytest.raises(signals.Stopped), signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in CODE] == before


def test_without_checkpoints_a_stopped_run_says_that_nothing_is_saved(stopped, capsys):
    code, out = stopped(fit, "_show", 2, flags=["--checkpoint-every", 0])
    assert code == 143 and not (out / "checkpoints").exists()
    assert "nothing is saved, as --checkpoint-every 0 asks for" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_every_second_epoch_and_the_last_are_saved(narrowed, monkeypatch, tmp_path):
    flags = ["--checkpoint-every", 2, "--keep", 5]
    assert command(monkeypatch, tmp_path / "run", *flags) == 0
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 5, print).steps()
    assert saved == [3 * STEPS, 2 * STEPS]


@pytest.mark.slow
def test_more_epochs_go_on_as_a_longer_run_would_have(
    whole, narrowed, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    assert command(monkeypatch, out, "--epochs", 2) == 0
    assert command(monkeypatch, out, "--resume", "--epochs", EPOCHS) == 0
    assert results(out) == whole


@pytest.mark.slow
def test_more_epochs_that_are_stopped_at_the_end_leave_no_finished_run(
    whole, stopped, narrowed, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    assert command(monkeypatch, out, "--epochs", 2) == 0
    flags = ["--resume", "--epochs", EPOCHS]
    assert stopped(report, "write_curves", out=out, flags=flags) == (143, out)
    assert command(monkeypatch, out, "--resume") == 0
    assert results(out) == whole


@pytest.mark.slow
def test_a_run_resumes_with_its_own_settings(narrowed, stopped, monkeypatch):
    flags = ["--seed", 5, "--lr", 0.01, "--l2", 0, "--freeze", "features"]
    flags += ["--keep", 5, "--no-feature-cache"]
    _, out = stopped(fit, "_show", 10, flags=flags)
    monkeypatch.setattr(sys, "argv", ["finetune", "--resume", "--out", str(out)])
    assert cli.run(main) == 0
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["seed"], settings["lr"], settings["l2"]) == (5, 0.01, 0)
    assert settings["freeze"] == "features" and settings["train_size"] == 70
    assert settings["keep"] == 5 and not settings["feature_cache"]
    steps = Checkpoints(out / "checkpoints", 5, print).steps()
    assert steps == [3 * STEPS, 2 * STEPS, 10, STEPS]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was killed after its second epoch was saved."""
    out = tmp_path_factory.mktemp("half") / "run"
    chaos.kill(out, "before the folder:3", 0)
    return out


@pytest.fixture
def copied(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


REFUSED = {
    "other settings": (
        ["--lr", "0.5", "--seed", "3"],
        2,
        "--resume: the run in {out} has other settings: --lr 0.0001 there, 0.5 here, "
        "--seed 0 there, 3 here; resume with its own, or start another run",
    ),
    "fewer images": (["--train-size", "60"], 2, "--train-size 70 there, 60 here"),
    "a step that is not there": (["--resume", "8"], 5, "has no step 8; pass one"),
    "no step": (["--resume", "first"], 2, "--resume: 'first' is no step; pass a"),
    "overwrite": (["--overwrite"], 2, "--resume: not together with --overwrite"),
    "no epochs": (["--epochs", "0"], 2, "--epochs: 0 is out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_in_one_line(
    name, copied, narrowed, monkeypatch, capsys
):
    flags, code, message = REFUSED[name]
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert command(monkeypatch, copied, "--resume", *flags) == code
    said = capsys.readouterr().err.splitlines()
    assert message.format(out=copied) in said[-1] and said[-1].startswith("error: ")
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert {p for p in after if p.name != ".lock"} == {
        p for p in before if p.name != ".lock"
    }
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_other_images_and_other_classes_are_refused(
    copied, narrowed, monkeypatch, capsys
):
    config = json.loads((copied / "config.json").read_text())
    changed = {
        "the images of mnist5k": {"dataset": {**config["dataset"], "sha256": "0"}},
        "the classes are 0, 1": {"class_names": ["cat", "dog"]},
    }
    for message, change in changed.items():
        (copied / "config.json").write_text(json.dumps({**config, **change}))
        assert command(monkeypatch, copied, "--resume") == 5
        assert message in capsys.readouterr().err


def test_checkpoints_that_cannot_be_written_to_are_refused_at_the_start(
    copied, narrowed, monkeypatch, capsys
):
    folder = copied / "checkpoints"
    access = os.access  # root may write anywhere, and the tests may be root's

    def read_only(path, mode):
        return access(path, mode) and not (path == folder and mode & os.W_OK)

    monkeypatch.setattr(os, "access", read_only)
    assert command(monkeypatch, copied, "--resume") == 5
    assert capsys.readouterr().err == (
        f"error: {folder}: cannot be written to; make it writable, or go on with a "
        "copy of the run\n"
    )


@pytest.mark.slow
def test_other_versions_and_another_processor_are_said_each_time(
    copied, narrowed, monkeypatch, capsys
):
    config = json.loads((copied / "config.json").read_text())
    config["versions"]["jax"] = "0.0.1"
    (copied / "config.json").write_text(json.dumps(config))
    first = runtime.processor()
    other = "another with AVX-1024"
    change = f"warning: jax 0.0.1 → {jax.__version__}, device cpu ({first}) → cpu"

    def said(epochs, processor):
        monkeypatch.setattr(runtime, "processor", lambda: processor)
        assert command(monkeypatch, copied, "--resume", "--epochs", epochs) == 0
        return capsys.readouterr().err

    for epochs in (3, 4):
        assert f"{change} ({other}) since the run began: its" in said(epochs, other)
    config = json.loads((copied / "config.json").read_text())
    assert [place["step"] for place in config["resumed"]] == [2 * STEPS, 3 * STEPS]
    config["versions"]["jax"] = jax.__version__
    (copied / "config.json").write_text(json.dumps(config))
    back = said(5, first)
    assert f"({other}) → cpu ({first}) since the run went on at step 14: its" in back


@pytest.mark.slow
def test_in_the_same_place_nothing_is_said(copied, narrowed, monkeypatch, capsys):
    for epochs in (3, 4):
        assert command(monkeypatch, copied, "--resume", "--epochs", epochs) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_damaged_step_is_passed_over_and_the_end_is_the_same(
    copied, whole, narrowed, monkeypatch, capsys
):
    newest = max((copied / "checkpoints").glob("1*"))
    (array,) = newest.glob("arrays/params.fc7.kernel/0*")
    data = bytearray(array.read_bytes())
    data[5] ^= 1
    array.write_bytes(data)
    assert command(monkeypatch, copied, "--resume") == 0
    said = capsys.readouterr()
    assert f"warning: step 14: {array}: its SHA-256 is " in said.err
    assert "resumed from step 7" in said.out
    assert results(copied) == whole


@pytest.mark.slow
def test_an_earlier_step_can_be_asked_for(copied, whole, narrowed, monkeypatch, capsys):
    assert command(monkeypatch, copied, "--resume", 7) == 0
    assert "resumed from step 7" in capsys.readouterr().out
    assert results(copied) == whole


@pytest.mark.slow
def test_steps_behind_the_one_that_was_asked_for_go_when_the_next_is_saved(
    stopped, narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    assert command(monkeypatch, out, "--keep", 3) == 0
    steps = Checkpoints(out / "checkpoints", 3, print).steps
    assert steps() == [3 * STEPS, 2 * STEPS, STEPS]
    code, _ = stopped(fit, "_show", 3, out=out, flags=["--resume", STEPS])
    assert code == 143 and steps() == [STEPS + 3, STEPS]
    capsys.readouterr()
    assert command(monkeypatch, out, "--resume") == 0
    assert f"resumed from step {STEPS + 3}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_fewer_epochs_than_were_begun_are_refused(stopped, monkeypatch, capsys):
    _, out = stopped(fit, "_show", STEPS + 3)
    capsys.readouterr()
    assert command(monkeypatch, out, "--resume", "--epochs", 1) == 2
    assert capsys.readouterr().err == (
        f"error: --epochs: step {STEPS + 3} is of epoch 2; pass 2 or more, or an "
        "earlier step to --resume\n"
    )
    assert not (out / "model.safetensors").exists()
    assert command(monkeypatch, out, "--resume", "--epochs", 2) == 0


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_best_epoch(
    narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    flags = ["--epochs", 4, "--lr", 0.003]
    real, accuracies = fit._test, iter([0.5, 0.9, 0.7, 0.9, 0.95])

    def test(job, state):
        tested, predictions = real(job, state)
        return tested._replace(accuracy=next(accuracies)), predictions

    monkeypatch.setattr(fit, "_test", test)
    assert command(monkeypatch, out, *flags) == 0
    folder = out / "checkpoints"
    path = folder / "best-epoch-2.safetensors"
    assert f"best: epoch 2, test accuracy 0.9000: {path}\n" in capsys.readouterr().out
    assert Checkpoints(folder, 2, print).steps() == [28, 21, 14]
    best = Checkpoints(folder, 2, print).read(14).arrays
    params = pretrained.to_flax(load_file(path), table_of(**NARROW))
    for layer, leaves in params.items():
        for leaf, array in leaves.items():
            assert array.tobytes() == best[f"params.{layer}.{leaf}"].tobytes()
    assert path.read_bytes() != (out / "model.safetensors").read_bytes()  # the control
    # The last epoch's are the model's own.
    assert command(monkeypatch, out, *flags[2:], "--resume", "--epochs", 5) == 0
    assert not list(folder.glob("best-*"))
    assert Checkpoints(folder, 2, print).steps() == [35, 28]


@pytest.mark.slow
def test_a_best_step_that_is_damaged_is_said(copied, narrowed, monkeypatch, capsys):
    path = copied / "checkpoints" / "7" / "manifest.json"
    os.truncate(path, 100)
    assert command(monkeypatch, copied, "--resume") == 0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}: is damaged (")
    assert said.endswith("); the best weights are not written\n")


def test_a_finished_run_says_so_and_is_left_alone(
    copied, narrowed, monkeypatch, capsys
):
    assert command(monkeypatch, copied, "--resume") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert command(monkeypatch, copied, "--resume") == 0
    assert capsys.readouterr().out.splitlines() == [
        "the run is finished; with more --epochs it can go on",
        last,
    ]
    assert before == {path: path.stat().st_mtime_ns for path in copied.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--epochs", "4"]])
def test_a_finished_run_without_steps_is_not_begun_anew(
    more, copied, narrowed, monkeypatch, capsys
):
    assert command(monkeypatch, copied, "--resume") == 0
    shutil.rmtree(copied / "checkpoints")
    before = {path.name for path in copied.iterdir()}
    capsys.readouterr()
    assert command(monkeypatch, copied, "--resume", *more) == (5 if more else 0)
    said = capsys.readouterr()
    assert before == {path.name for path in copied.iterdir()}
    if more:
        assert said.err == (
            f"error: {copied}: the run is finished, and no step is left to go on from; "
            "pass another --out, or --overwrite instead of --resume\n"
        )
    else:
        assert said.out.splitlines()[0] == "the run is finished"


def test_a_run_of_the_lab_is_not_resumed(narrowed, monkeypatch, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"versions": {"jaxlab": "0.1.0"}}')
    assert command(monkeypatch, tmp_path, "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


DAMAGE = {
    "no metrics": ("metrics.jsonl", lambda text: text[: len(text) // 2], 0),
    "other metrics": ("metrics.jsonl", lambda text: "[]\n1\n2\n", 0),
    "no settings": ("config.json", lambda text: text.replace('"settings"', '"s"'), 2),
    "no weights": ("config.json", lambda text: text.replace('"weights"', '"w"'), 2),
    "half a config.json": ("config.json", lambda text: text[: len(text) // 2], 2),
    "a setting of no kind": (
        "config.json",
        lambda text: text.replace('"lr": 0.0001', '"lr": "fast"'),
        2,
    ),
    "a setting that cannot be": (
        "config.json",
        lambda text: text.replace('"keep": 2', '"keep": -2'),
        2,
    ),
    "a list of settings": (
        "config.json",
        lambda text: text.replace('"seed": 0', '"seed": [0]'),
        2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_of_a_run_are_one_line_or_written_anew(
    name, copied, whole, narrowed, monkeypatch, capsys
):
    file, damage, code = DAMAGE[name]
    assert command(monkeypatch, copied, "--resume") == 0
    text = (copied / file).read_text()
    (copied / file).write_text(damage(text))
    assert (copied / file).read_text() != text
    capsys.readouterr()
    assert command(monkeypatch, copied, "--resume") == code
    said = capsys.readouterr().err
    if code:
        assert said.startswith("error: --") and len(said.splitlines()) == 1
        assert str(copied) in said
    else:
        assert results(copied) == whole


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed(copied, narrowed, monkeypatch):
    (copied / "model.safetensors.abcd.partial").mkdir()
    (copied / "model.safetensors.abcd.partial" / "model.safetensors").touch()
    (copied / "curves.png.partial").touch()
    (copied / "mine.partial").touch()
    assert command(monkeypatch, copied, "--resume") == 0
    assert [path.name for path in copied.glob("*.partial")] == ["mine.partial"]


@pytest.mark.slow
def test_where_nothing_has_begun_resume_begins(
    whole, narrowed, monkeypatch, tmp_path, capsys
):
    assert command(monkeypatch, tmp_path / "run", "--resume") == 0
    assert results(tmp_path / "run") == whole
    assert command(monkeypatch, tmp_path / "no run", "--resume", 3) == 5
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/no run: no run has begun there, so it has no step 3; pass "
        "another --out, or --resume without a step, which begins\n"
    )
    assert not (tmp_path / "no run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    assert command(monkeypatch, tmp_path / "other", "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err


def test_without_a_folder_resume_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", "--resume"])
    assert cli.run(main) == 2
    assert capsys.readouterr().err == (
        "error: --resume: which run? pass its folder as --out\n"
    )


@pytest.mark.slow
def test_one_folder_is_one_runs(copied, narrowed, monkeypatch, capsys):
    with filelock.FileLock(copied / ".lock"):
        assert command(monkeypatch, copied, "--resume") == 2
    message = f"error: --out: {copied} is another process's at the moment; "
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    # A dead process, such as the one that was killed here, keeps nothing.
    assert command(monkeypatch, copied, "--resume") == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_before_the_next_checkpoint(
    narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    flags = ["--lr-step", 1, "--optimizer", "adam"]
    real_steps = train._steps

    def steps(train_step, state, data, indices, weights, key, start, stop):
        if int(state.step) == STEPS + 3:
            state = state.replace(
                params=jax.tree.map(lambda leaf: leaf * float("nan"), state.params)
            )
        return real_steps(train_step, state, data, indices, weights, key, start, stop)

    monkeypatch.setattr(train, "_steps", steps)
    assert command(monkeypatch, out, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: training: the loss is nan after step {STEPS + 4}, in epoch 2 at "
        f"learning rate 1e-05; lower --lr; the last step saved is {STEPS}"
    )
    assert Checkpoints(out / "checkpoints", 2, print).steps() == [STEPS]


def no_memory_of_xla(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."
    )


def no_memory_of_numpy(*args, **kwargs):
    np.empty(1 << 60, np.uint8)


@pytest.mark.parametrize("full", [no_memory_of_xla, no_memory_of_numpy])
def test_too_little_memory_is_one_line(full, narrowed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fit, "train_epoch", full)
    assert command(monkeypatch, tmp_path / "run") == 1
    assert capsys.readouterr().err == (
        f"error: memory: {runtime.device_name()} has too little for batches of 10 "
        "images of 63×63; lower --batch-size or --image-size\n"
    )


def test_a_disk_without_room_is_refused_before_the_run(
    narrowed, monkeypatch, tmp_path, capsys
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert command(monkeypatch, tmp_path / "run") == 3
    assert "checkpoints need 0.0 GB, 0.0 GB are free; free some, pass another" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_features_leave_the_disk_to_the_checkpoints(
    narrowed, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    features = 70 * 432 * 4  # bytes of the training images'
    real = shutil.disk_usage(tmp_path)
    for spare, kept in ((0, False), (1_000_000, True)):
        usage = real._replace(free=store._FREE_BYTES + features + spare)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        out = tmp_path / str(spare)
        assert command(monkeypatch, out, "--freeze", "features", "--epochs", 1) == 0
        assert ("features are not kept" not in capsys.readouterr().err) is kept


def test_flags_that_may_differ_are_flags():
    names = Config.__dataclass_fields__.keys()
    assert resume.MAY_DIFFER <= names and resume.OF_DATA <= names
