"""What a command is doing, so that one line can say where it failed or was stopped.

A stage begins where its code begins, and a command's outermost frame reads it. A stage
that an error has left is still the current one there.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

_FIRST = "reading the flags"
_NOTHING = "nothing new was saved; run the command again"

_stage: ContextVar[str] = ContextVar("stage", default=_FIRST)
_saved: ContextVar[Callable[[], str]] = ContextVar("saved", default=lambda: _NOTHING)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


def start() -> None:
    """Forget what an earlier command of this process has said."""
    _stage.set(_FIRST)
    _saved.set(lambda: _NOTHING)
    _folder.set(None)


def begin(name: str) -> None:
    """Begin a stage, named as in "interrupted while training"."""
    _stage.set(name)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Begin a stage that is a part of another, which goes on after the block.

    After an error it does not: the error's stage is that of the innermost block.
    """
    before = _stage.get()
    _stage.set(name)
    yield
    _stage.set(before)


def current() -> str:
    """Return the name of the stage."""
    return _stage.get()


def describe_saved(describe: Callable[[], str]) -> None:
    """From now on, `describe()` says what an interruption leaves and how to go on."""
    _saved.set(describe)


def saved() -> str:
    """Return what an interruption leaves and how to go on."""
    return _saved.get()()


def work_in(folder: Path) -> None:
    """From now on, the details of an unforeseen error are written into this folder."""
    _folder.set(folder)


def folder() -> Path | None:
    """Return the folder for details; None if there is none."""
    return _folder.get()
