"""The narrow command as runs that are stopped, killed, or out of disk."""

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

STEPS = 7  # an epoch


EPOCHS = 3


@pytest.fixture(scope="package", autouse=True)
def interruptible():
    """What a shell runs in the background ignores SIGINT, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def narrowed(narrowed, monkeypatch):
    """The narrow command, looking in at every step."""
    monkeypatch.setattr(epoch, "MAX_DISPATCH_SECONDS", 0)


def command(monkeypatch, out, *flags):
    """Run the command as a process would; return its exit code."""
    arguments = ["finetune", *FLAGS, "--out", str(out), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", arguments)
    return terminal.run(main)


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
    kept = CheckpointManager(out / "checkpoints", 2, print).steps()
    assert kept == [EPOCHS * STEPS]
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
