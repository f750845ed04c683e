"""The folder of a run: its file names, the checks before it is used, and its lock."""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import filelock

from jaxlab.data.files import is_of_jaxlab, listed
from jaxlab.errors import InputError, UsageError
from jaxlab.runs.record import read_record
from pretrained import disk, stages
from pretrained.console import ERROR_LOG
from pretrained.files import RUN_MODEL

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", RUN_MODEL
CURVES, CONFUSION, MISTAKES = "curves.png", "confusion.png", "mistakes.png"
PICTURES = (CURVES, CONFUSION, MISTAKES)  # of a finished run
SPLIT = "split.json"
RESULTS, OVERFIT, COMPARE = "results.json", "overfit.png", "compare.png"
CHECKPOINTS, LOCK = "checkpoints", ".lock"
MODELS, WEIGHTS = "models", ".safetensors"  # a run of the lab has several models
# The first two identify a run's folder, so they are deleted last.
_FILES = (
    *(CONFIG, RESULTS, METRICS, MODEL),
    *PICTURES,
    *(SPLIT, OVERFIT, COMPARE, ERROR_LOG),
)


_COUNT = itertools.count()  # of the folders that this process has named


def resolve_folder(out: str | None, overwrite: bool, resume: bool = False) -> Path:
    """Return the folder to use, by default `runs/TIME-PID`; it is not created.

    Raises UsageError if `out` is a file or cannot be written to. If it is not empty,
    `overwrite` or `resume` must be True and it must contain a run; an existing run of
    the lab can only be overwritten.
    """
    if out == "":
        raise UsageError("--out: is empty; pass the name of a folder")
    if out is None:
        # Runs that start in the same second differ in the process ID, or in a count.
        now = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        number = next(_COUNT)
        folder = Path("runs") / f"{now}-{os.getpid()}{f'-{number}' if number else ''}"
    else:
        folder = Path(out)
    with _refusals_named(folder):
        above = folder
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            raise UsageError(
                f"--out: {above} is not a folder; pass the name of a folder"
            )
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if above == folder and any(map(_is_content, folder.iterdir())):
            if not overwrite and not resume:
                raise UsageError(
                    f"--out: {folder} is not empty; pass another folder, or pass "
                    "--overwrite to replace the run in it"
                )
            is_run = read_record(folder / CONFIG) is not None
            is_lab = not resume and is_of_jaxlab(folder / RESULTS)
            if not is_run and not is_lab:
                what = "resume" if resume else "overwrite"
                raise UsageError(
                    f"--out: {folder} contains no run to {what}; pass another folder"
                )
    return folder


@contextlib.contextmanager
def locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Create the folder and lock it against other processes, until the block ends.

    The lock of a process that dies is released. If nothing was written, a folder that
    was created here is removed at the end. A warning is logged if the file system has
    no locks. Raises UsageError if another process uses the folder, or if it cannot be
    created.
    """
    with _refusals_named(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            if not disk.acquire(lock, blocking=False):
                log(
                    f"warning: {folder}: its file system has no locks; make sure that "
                    "no other process uses the folder"
                )
        except filelock.Timeout as error:
            raise UsageError(
                f"--out: {folder} is in use by another process; wait until it ends, "
                "or pass another folder"
            ) from error
    stages.work_in(folder)
    try:
        yield
    finally:
        # An error here would hide the one that ended the block.
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {LOCK}:  # nothing written
                (folder / LOCK).unlink(missing_ok=True)
                if is_new:
                    folder.rmdir()
        lock.release()


def is_run(folder: Path) -> bool:
    """Return whether a folder contains a run, also one of the lab."""
    return (folder / CONFIG).exists() or is_of_jaxlab(folder / RESULTS)


def model_file(folder: Path) -> Path:
    """Return the file with the model of a finished run.

    Raises InputError if there is none, or if it is a run of the lab with several.
    """
    if (folder / MODEL).exists():
        return folder / MODEL
    models = sorted((folder / MODELS).glob(f"*{WEIGHTS}"))
    if not models or not is_run(folder):
        raise InputError(
            f"{folder}: contains no {MODEL}; pass the folder of a finished run"
        )
    if len(models) > 1:
        names = listed(path.name for path in models)
        raise InputError(
            f"{folder}: contains {len(models)} models; pass one of the files in "
            f"{folder / MODELS}: {names}"
        )
    return models[0]


def remove_run(folder: Path) -> None:
    """Remove an earlier run's files and checkpoints from the folder, but nothing else.

    Raises UsageError if a file cannot be removed.
    """
    with _refusals_named(folder):
        disk.remove(folder / CHECKPOINTS)
        remove_partial_files(folder)
        for model in (folder / MODELS).glob(f"*{WEIGHTS}"):
            model.unlink()
        with contextlib.suppress(OSError):  # there is none, or it has other files
            (folder / MODELS).rmdir()
        for name in reversed(_FILES):
            (folder / name).unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove partial files that a killed process left; raise UsageError on failure."""
    with _refusals_named(folder):
        for name in _FILES:
            for partial in folder.glob(f"{name}*{disk.PARTIAL}"):
                disk.remove(partial)
        for partial in (folder / MODELS).glob(f"*{WEIGHTS}*{disk.PARTIAL}"):
            disk.remove(partial)


def _is_content(path: Path) -> bool:
    """Return whether `path` is more than what a run leaves that could not begin.

    That is its lock, details of its error and a partly written config.json. A new file
    system has a folder `lost+found`.
    """
    unfinished = path.name.startswith(f"{CONFIG}.") and path.suffix == disk.PARTIAL
    return path.name not in (LOCK, ERROR_LOG, "lost+found") and not unfinished


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out: {folder} cannot be written to: {error.strerror or error}; "
            "pass another folder"
        ) from error
