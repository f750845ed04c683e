"""Test that what nobody foresaw, and an interruption, is one line for each stage."""

import functools
import os
import shlex
import signal

import jax
import pytest

from jaxlab import __main__, finetune, overfit, predict, runtime, verify
from jaxlab.data import load
from jaxlab.runs import writer
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.runs.writer import RunWriter
from jaxlab.training import fit, inputs
from pretrained import console
from tests.runs.conftest import command, on_call

FROZEN = ["--freeze", "features", "--epochs", 1]


class PanicException(BaseException):
    """As Rust's, which is no Exception."""


def raising(error):
    def act():
        raise error

    return act


# Each stage: where the error is raised (owner, function, number of the call), and
# whether the run has files by then, beside which the details are written.
STAGES = {
    "loading the data": (load, "load", 1, False),
    "computing features": (inputs, "feature_loader", 1, True),
    "compiling the training step": (fit, "train_epoch", 1, True),
    "training": (fit, "_update_bar", 2, True),
    "evaluating": (fit, "evaluate_split", 1, True),
    "saving a checkpoint": (CheckpointManager, "_write", 1, True),
    "writing the model": (writer, "write_safetensors", 1, True),
}
ERRORS = [
    (KeyError("x"), "KeyError: 'x'"),
    (RecursionError("too deep"), "RecursionError: too deep"),
    (jax.errors.JaxRuntimeError("INTERNAL: a\nb"), "JaxRuntimeError: INTERNAL: a b"),
    (PanicException("`unwrap()`"), "PanicException: `unwrap()`"),
    (RuntimeError(), "RuntimeError"),
    (ValueError("y" * 300), f"ValueError: {'y' * 200}…"),
    (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),
]
RANDOM = (
    "warning: --freeze features with --weights none: the frozen layers are randomly "
    "initialised and not trained; pass --freeze none to train them\n"
)
FAULT = "; this is a fault of the program; run again with --debug to see where"


@pytest.mark.parametrize("number", range(len(STAGES)))
def test_what_nobody_foresaw_is_one_line_that_names_the_stage(
    number, narrowed, monkeypatch, tmp_path, capsys
):
    stage, (owner, name, nth, has_files) = list(STAGES.items())[number]
    error, text = ERRORS[number]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        on_call(patch, owner, name, nth, raising(error))
        assert command(monkeypatch, out, *FROZEN) == 1
    log = out / console.ERROR_LOG
    details = f"; details in {log}" if has_files else ""
    line = capsys.readouterr().err.removeprefix(RANDOM)
    assert line == f"error: while {stage}: {text}{FAULT}{details}\n"
    assert out.exists() == has_files
    if has_files:
        said = log.read_text("utf-8")
        assert said.startswith("Traceback") and type(error).__name__ in said
        # What an earlier process could not do is no part of the finished run.
        assert command(monkeypatch, out, "--resume", *FROZEN) == 0
        assert not log.exists()


COMMANDS = {
    "finetune": (finetune.main, []),
    "overfit": (overfit.main, []),
    "predict": (predict.main, ["--weights", "imagenet", "picture.png"]),
    "verify": (verify.main, []),
    "jaxlab": (__main__.main, ["finetune"]),
}


def no_jax(*_, **__):
    raise KeyError("x")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_stage_and_shows_the_traceback_on_request(
    name, run_here, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "set_up", no_jax)
    main, arguments = COMMANDS[name]
    done = run_here(main, *arguments)
    line = "error: while starting JAX: KeyError: 'x'; this is a fault of the program"
    assert done.returncode == 1
    assert done.stderr == f"{line}; run again with --debug to see where\n"
    done = run_here(main, *arguments, "--debug")
    assert done.stderr.startswith("Traceback") and "in no_jax" in done.stderr
    assert done.stderr.endswith(f"\n{line}\n")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_no_fault_of_the_program(run_here, monkeypatch):
    monkeypatch.setattr(runtime, "set_up", raising(MemoryError()))
    done = run_here(overfit.main)
    assert done.returncode == 1 and done.stderr == (
        "error: while starting JAX: MemoryError; there is too little memory; end other "
        "programs, or use fewer images\n"
    )


# Where the signal arrives, the stage, and what the line says of it.
STOPS = {
    "the data": (load, "load", 1, "loading the data", "nothing new was saved; run the"),
    "the features": (
        inputs,
        "feature_loader",
        1,
        "computing features",
        "no step was saved yet; to start again, pass --resume --out",
    ),
    "a step": (fit, "_update_bar", 2, "training", "stopped after step"),
    "a test": (fit, "evaluate_split", 1, "evaluating", "stopped after step"),
    "the export": (
        writer,
        "write_safetensors",
        1,
        "writing the model",
        "stopped after step 7; to continue, pass --resume --out",
    ),
    "a picture": (
        RunWriter,
        "_draw",
        1,
        "drawing curves.png",
        "the run is finished except for its pictures; to draw them, pass --resume",
    ),
}


@pytest.mark.parametrize("place", STOPS)
def test_an_interruption_says_what_is_saved_and_how_to_go_on(
    place, stopped, monkeypatch, capsys
):
    owner, name, nth, stage, saved = STOPS[place]
    code, out = stopped(owner, name, nth, flags=FROZEN)
    said = capsys.readouterr().err.removeprefix(RANDOM)
    assert code == 143 and said.count("\n") == 1
    assert said.startswith(f"interrupted while {stage}: {saved}")
    flags = shlex.split(said.partition(" pass ")[2])
    if not flags:  # the command is run again
        flags = ["--out", str(out)]
    assert str(out) in flags
    assert command(monkeypatch, out, *FROZEN, *flags) == 0
    assert (out / "confusion.png").exists()


@pytest.mark.slow
def test_an_interruption_in_python_is_logged(narrowed, monkeypatch, tmp_path, capsys):
    out = tmp_path / "run"
    stop = functools.partial(os.kill, os.getpid(), signal.SIGINT)
    on_call(monkeypatch, fit, "_update_bar", 2, stop)
    with pytest.raises(KeyboardInterrupt):
        finetune.fine_tune(weights="none", image_size=63, train_size=20, out=out)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"interrupted while training: stopped after step 2; to continue, pass "
        f'jaxlab.fine_tune(resume="last", out="{out}")'
    )
