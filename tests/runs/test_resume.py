"""Test which runs --resume continues, refuses and repairs, and with which settings.

It is one file because most of these tests resume copies of one run that was killed.
"""

import json
import os
import shutil
import sys

import filelock
import jax
import pytest

from jaxlab import runtime
from jaxlab.cli import terminal
from jaxlab.finetune import main
from jaxlab.runs import writer
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.training import epoch, fit
from tests.runs.conftest import EPOCHS, STEPS, command
from tests.stress import chaos
from tests.stress.chaos import results

# jaxlab.runtime ignores this warning too, but pytest replaces its filters. Tests with a
# full disk leave incomplete programs in the compilation cache, which all tests share.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Error .*persistent compilation cache entry"
)


@pytest.mark.slow
def test_every_second_epoch_and_the_last_are_saved(
    narrowed, monkeypatch, tmp_path, capsys
):
    flags = ["--checkpoint-every", 2, "--keep", 5]
    assert command(monkeypatch, tmp_path / "run", *flags) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "saved" in line]
    assert said == [f"saved step {2 * STEPS}", f"saved step {3 * STEPS}"]
    saved = CheckpointManager(tmp_path / "run" / "checkpoints", 5, print).steps()
    assert saved == [3 * STEPS]


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
    assert stopped(writer, "write_safetensors", out=out, flags=flags) == (143, out)
    assert command(monkeypatch, out, "--resume") == 0
    assert results(out) == whole


@pytest.mark.slow
def test_a_run_resumes_with_its_own_settings(narrowed, stopped, monkeypatch):
    flags = ["--seed", 5, "--lr", 0.01, "--l2", 0, "--freeze", "features"]
    flags += ["--keep", 5, "--no-feature-cache"]
    _, out = stopped(fit, "_update_bar", 10, flags=flags)
    monkeypatch.setattr(sys, "argv", ["finetune", "--resume", "--out", str(out)])
    assert terminal.run(main) == 0
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["seed"], settings["lr"], settings["l2"]) == (5, 0.01, 0)
    assert settings["freeze"] == "features" and settings["train_size"] == 70
    assert settings["keep"] == 5 and not settings["feature_cache"]
    steps = CheckpointManager(out / "checkpoints", 5, print).steps()
    assert steps == [3 * STEPS]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Return the folder of a run that was killed after saving its second epoch."""
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
        "--resume: the run in {out} has different settings: --lr was 0.0001, is now "
        "0.5, --seed was 0, is now 3; pass the run's settings, or start another run",
    ),
    "fewer images": (["--train-size", "60"], 2, "--train-size was 70, is now 60"),
    "a step that is not there": (["--resume", "8"], 5, "has no step 8; pass one"),
    "no step": (
        ["--resume", "first"],
        2,
        "--resume: 'first' is not a step; pass the number",
    ),
    "overwrite": (["--overwrite"], 2, "--resume: cannot be combined with --overwrite"),
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
    access = os.access  # replaced, because root can write to any folder

    def read_only(path, mode):
        return access(path, mode) and not (path == folder and mode & os.W_OK)

    monkeypatch.setattr(os, "access", read_only)
    assert command(monkeypatch, copied, "--resume") == 5
    assert capsys.readouterr().err == (
        f"error: {folder}: cannot be written to; make it writable, or resume a copy of "
        "the run\n"
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
    assert [place["step"] for place in config["resumptions"]] == [2 * STEPS, 3 * STEPS]
    config["versions"]["jax"] = jax.__version__
    (copied / "config.json").write_text(json.dumps(config))
    back = said(5, first)
    assert (
        f"({other}) → cpu ({first}) since the run was resumed at step 14: its" in back
    )


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
    file = newest / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert command(monkeypatch, copied, "--resume") == 0
    said = capsys.readouterr()
    assert f"warning: step 14: {file}: SHA-256 is " in said.err
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
    stopped(fit, "_update_bar", 2 * STEPS + 3, out=out, flags=["--keep", 3])
    steps = CheckpointManager(out / "checkpoints", 3, print).steps
    assert steps() == [2 * STEPS + 3, 2 * STEPS, STEPS]
    code, _ = stopped(fit, "_update_bar", 3, out=out, flags=["--resume", STEPS])
    assert code == 143 and steps() == [STEPS + 3, STEPS]
    capsys.readouterr()
    assert command(monkeypatch, out, "--resume") == 0
    assert f"resumed from step {STEPS + 3}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_fewer_epochs_than_were_begun_are_refused(stopped, monkeypatch, capsys):
    _, out = stopped(fit, "_update_bar", STEPS + 3)
    capsys.readouterr()
    assert command(monkeypatch, out, "--resume", "--epochs", 1) == 2
    assert capsys.readouterr().err == (
        f"error: --epochs: step {STEPS + 3} belongs to epoch 2; pass 2 or more, or "
        "pass an earlier step to --resume\n"
    )
    assert not (out / "model.safetensors").exists()
    assert command(monkeypatch, out, "--resume", "--epochs", 2) == 0


def test_a_finished_run_says_so_and_is_left_alone(
    copied, narrowed, monkeypatch, capsys
):
    assert command(monkeypatch, copied, "--resume") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert command(monkeypatch, copied, "--resume") == 0
    assert capsys.readouterr().out.splitlines() == [
        "the run is finished; pass a larger --epochs to continue",
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
            f"error: {copied}: the run is finished, but has no checkpoint to resume "
            "from; pass another --out, or --overwrite instead of --resume\n"
        )
    else:
        assert said.out.splitlines()[0] == "the run is finished"


def test_a_run_of_the_lab_is_not_resumed(narrowed, monkeypatch, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"versions": {"jaxlab": "0.1.0"}}')
    assert command(monkeypatch, tmp_path, "--resume") == 2
    assert "contains no run to resume" in capsys.readouterr().err
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
        f"error: {tmp_path}/no run: contains no run, so there is no step 3; pass "
        "another --out, or pass --resume without a step to start a run\n"
    )
    assert not (tmp_path / "no run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    assert command(monkeypatch, tmp_path / "other", "--resume") == 2
    assert "contains no run to resume" in capsys.readouterr().err


def test_without_a_folder_resume_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune", "--resume"])
    assert terminal.run(main) == 2
    assert capsys.readouterr().err == (
        "error: --resume: no run is given; pass its folder as --out\n"
    )


@pytest.mark.slow
def test_one_folder_is_one_runs(copied, narrowed, monkeypatch, capsys):
    with filelock.FileLock(copied / ".lock"):
        assert command(monkeypatch, copied, "--resume") == 2
    message = f"error: --out: {copied} is in use by another process; "
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    # A dead process, such as the one that was killed, does not keep the lock.
    assert command(monkeypatch, copied, "--resume") == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_before_the_next_checkpoint(
    narrowed, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "run"
    flags = ["--lr-step", 1, "--optimizer", "adam"]
    real_steps = epoch._steps

    def steps(train_step, state, data, indices, weights, key, start, stop):
        if int(state.step) == STEPS + 3:
            state = state.replace(
                params=jax.tree.map(lambda leaf: leaf * float("nan"), state.params)
            )
        return real_steps(train_step, state, data, indices, weights, key, start, stop)

    monkeypatch.setattr(epoch, "_steps", steps)
    assert command(monkeypatch, out, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: training: the loss is nan after step {STEPS + 4}, in epoch 2 at "
        f"learning rate 1e-05; lower --lr; the latest checkpoint is step {STEPS}"
    )
    assert CheckpointManager(out / "checkpoints", 2, print).steps() == [STEPS]
