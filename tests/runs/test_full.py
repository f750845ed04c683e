"""Test that runs without enough disk space or memory report it and lose nothing."""

import os
import resource
import shlex
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from jaxlab import runtime
from jaxlab.runs import writer
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.runs.writer import RunWriter
from jaxlab.training import feature_store, fit, inputs
from tests.runs.conftest import command, on_call
from tests.stress import chaos
from tests.stress.chaos import results

# jaxlab.runtime ignores this warning too, but pytest replaces its filters. Tests with a
# full disk leave incomplete programs in the compilation cache, which all tests share.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Error .*persistent compilation cache entry"
)


# Writes that the full disk interrupts: owner, function, and number of the call.
WRITING = {
    "config.json": (RunWriter, "write_json", 1),
    "the features": (inputs, "feature_loader", 1),
    "metrics.jsonl": (RunWriter, "write_rows", 2),
    "a step": (CheckpointManager, "_write", 3),
    "the weights": (writer, "write_safetensors", 1),
}


FROZEN = ["--freeze", "features", "--lr", 0.003]


@pytest.fixture(scope="module")
def whole_frozen(tmp_path_factory):
    """Return the results of an uninterrupted run with the flags FROZEN."""
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


def no_picture(*_):
    raise RuntimeError("Failed to process\nstring with tex")


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", ["a full disk", "a fault of the library's"])
def test_a_picture_that_fails_is_a_warning_and_resume_draws_it(
    number, fault, small_disk, narrowed, monkeypatch, tmp_path, capsys
):
    name, other = ("curves.png", "confusion.png")[:: 1 if number == 1 else -1]
    out, flags = tmp_path / "run", ["--epochs", 1]
    draw, calls = RunWriter.draw, 0

    def failing(self, name, figure, *rest):
        nonlocal calls
        calls += 1
        if calls == number and fault == "a full disk":
            small_disk(0)
        draw(self, name, no_picture if calls == number and "lib" in fault else figure)
        small_disk(resource.RLIM_INFINITY)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "draw", failing)
        assert command(patch, out, *flags) == 0
    said = capsys.readouterr()
    reason = "OSError: File too large"
    if fault != "a full disk":
        reason = "RuntimeError: Failed to process string with tex"
    assert said.err == (
        f"warning: {out / name}: not drawn: {reason}; the run is finished without it; "
        f"to draw it, pass --resume --out {shlex.quote(str(out))}\n"
    )
    last = said.out.splitlines()[-1]
    assert last.startswith("test_accuracy=")
    assert not (out / name).exists() and (out / other).exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert command(monkeypatch, out, "--resume", *flags) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines()[-1] == last
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert after.keys() - before.keys() == {out / name}
    del before[out / ".lock"]
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_a_broken_matplotlib_costs_the_pictures_only(
    narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if "jaxlab.figures" in name]:
            if name != "jaxlab.figures.text":
                patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "matplotlib", None)  # its import fails
        assert command(patch, out, "--epochs", 1) == 0
    said = capsys.readouterr()
    names = ["curves.png", "confusion.png", "mistakes.png"]
    assert [line.split(": ")[1] for line in said.err.splitlines()] == [
        str(out / name) for name in names
    ]
    assert "not drawn: ModuleNotFoundError" in said.err
    assert said.out.splitlines()[-1].startswith("test_accuracy=")
    assert (out / "model.safetensors").exists() and not (out / names[0]).exists()


def test_letters_that_no_font_has_are_named_once_in_a_picture(tmp_path):
    class Drawn:
        missing = "犬猫"

        def savefig(self, path, **_):
            path.write_bytes(b"a picture")

    lines = []
    RunWriter(tmp_path, None, lines.append).draw("a.png", Drawn)
    assert lines == [
        f"warning: {tmp_path / 'a.png'}: no installed font has 犬猫; install one that "
        "has, such as Noto, and delete the picture; to draw it, pass --resume --out "
        f"{tmp_path}"
    ]
    assert (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_a_stopped_run_that_cannot_be_saved_says_why(
    small_disk, narrowed, monkeypatch, tmp_path, capsys
):
    def stop_and_fill():
        os.kill(os.getpid(), signal.SIGTERM)
        small_disk(0)

    with monkeypatch.context() as patch:
        on_call(patch, fit, "_update_bar", 10, stop_and_fill)
        code = command(monkeypatch, tmp_path / "run")
    small_disk(resource.RLIM_INFINITY)
    said = capsys.readouterr().err.splitlines()
    assert code == 5
    # The message names the step it stopped at, or the one that was being saved.
    assert "could not be saved: File too large; check the free space" in said[-1]


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
        f"error: memory: {runtime.device_name()} does not have enough memory for "
        "batches of 10 images of 63×63; lower --batch-size or --image-size\n"
    )


def test_a_disk_without_room_is_refused_before_the_run(
    narrowed, monkeypatch, tmp_path, capsys
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert command(monkeypatch, tmp_path / "run") == 3
    assert (
        "checkpoints and model need 0.0 GB, but 0.0 GB are free; free some space, "
        "pass another"
    ) in capsys.readouterr().err


@pytest.mark.slow
def test_features_leave_the_disk_to_the_checkpoints(
    narrowed, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    features = 70 * 432 * 4  # bytes of the training images' features
    real = shutil.disk_usage(tmp_path)
    for spare, kept in ((0, False), (1_000_000, True)):
        usage = real._replace(free=feature_store._FREE_BYTES + features + spare)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        out = tmp_path / str(spare)
        assert command(monkeypatch, out, "--freeze", "features", "--epochs", 1) == 0
        assert ("features are not kept" not in capsys.readouterr().err) is kept
