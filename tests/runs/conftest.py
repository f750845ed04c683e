"""Fixtures and helpers for narrow runs that are stopped or killed."""

import functools
import os
import signal
import sys

import pytest

from jaxlab.cli import terminal
from jaxlab.finetune import main
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.training import epoch
from tests.stress import chaos
from tests.stress.chaos import results
from tests.stress.narrow import FLAGS

STEPS = 7  # per epoch


EPOCHS = 3


@pytest.fixture
def narrowed(narrowed, monkeypatch):
    """Make the command narrow and let it check for signals after every step."""
    monkeypatch.setattr(epoch, "MAX_DISPATCH_SECONDS", 0)


def command(monkeypatch, out, *flags):
    """Run the command in this process, as from a terminal; return its exit code."""
    arguments = ["finetune", *FLAGS, "--out", str(out), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", arguments)
    return terminal.run(main)


def on_call(patch, owner, name, nth, act):
    """Call `act` before a function's nth call; return a getter of the call count."""
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
    """Return the results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    found = chaos.finish(out)
    kept = CheckpointManager(out / "checkpoints", 2, print).steps()
    assert kept == [EPOCHS * STEPS]
    assert len(found["metrics"]) == EPOCHS
    return results(out)


@pytest.fixture
def stopped(monkeypatch, narrowed, tmp_path):
    """Return a function that runs the command and stops it with a signal.

    The signal is sent before the nth call of the function `name` of `owner`.
    """

    def run(owner, name, nth=1, number=signal.SIGTERM, out=None, flags=()):
        out = out or tmp_path / "a run"  # a name that must be quoted
        with monkeypatch.context() as patch:
            stop = functools.partial(os.kill, os.getpid(), number)
            calls = on_call(patch, owner, name, nth, stop)
            code = command(monkeypatch, out, *flags)
        assert calls() >= nth
        return code, out

    return run
