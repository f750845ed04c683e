"""The folder of one run: its files' names; refused where it would overwrite; locked."""

import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import filelock

from jaxlab.errors import UsageError
from jaxlab.runs.record import is_of_the_lab, read_record
from pretrained import disk

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
CURVES, CONFUSION, SPLIT = "curves.png", "confusion.png", "split.json"
RESULTS, OVERFIT = "results.json", "overfit.png"
CHECKPOINTS, LOCK = "checkpoints", ".lock"
# The first two make a folder a run's: they go last.
_FILES = (CONFIG, RESULTS, METRICS, MODEL, CURVES, CONFUSION, SPLIT, OVERFIT)


def resolve_folder(out: str | None, overwrite: bool, resume: bool = False) -> Path:
    """Return the folder to use; by default `runs/` and the time. Creates nothing.

    Raises UsageError when `out` is a file, cannot be written, or holds something and
    neither `overwrite` nor `resume` is asked for.
    """
    if out == "":
        raise UsageError("--out: is empty; pass the name of a folder")
    if out is None:
        # The process's number keeps runs apart that start in the same second.
        now = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        folder = Path("runs") / f"{now}-{os.getpid()}"
    else:
        folder = Path(out)
    with _refusals_named(folder):
        above = folder
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            raise UsageError(f"--out: {above} is no folder; pass the name of a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if above == folder and any(map(_is_content, folder.iterdir())):
            if not overwrite and not resume:
                raise UsageError(
                    f"--out: {folder} is not empty; pass another folder, or --overwrite"
                )
            is_run = read_record(folder / CONFIG) is not None
            is_lab = not resume and is_of_the_lab(folder / RESULTS)
            if not is_run and not is_lab:
                what = "resume" if resume else "overwrite"
                raise UsageError(
                    f"--out: {folder} holds no run to {what}; pass another folder"
                )
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and keep other processes out of it; a dead one does not.

    Raises UsageError when another process has it, or the file system refuses.
    """
    with _refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UsageError(
                f"--out: {folder} is another process's at the moment; wait for its "
                "end, or pass another folder"
            ) from error
    try:
        yield
    finally:
        if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing has begun
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()


def remove_run(folder: Path) -> None:
    """Remove an earlier run's files and checkpoints from the folder, nothing else.

    Raises UsageError when the file system refuses.
    """
    with _refusals_named(folder):
        disk.remove(folder / CHECKPOINTS)
        remove_partial_files(folder)
        for name in reversed(_FILES):
            (folder / name).unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what a process that died was writing; UsageError when that is refused."""
    with _refusals_named(folder):
        for name in _FILES:
            for partial in folder.glob(f"{name}*{disk.PARTIAL}"):
                disk.remove(partial)


def _is_content(path: Path) -> bool:
    """Return whether it is anything but what a process leaves that never began."""
    unfinished = path.name.startswith(f"{CONFIG}.") and path.suffix == disk.PARTIAL
    return path.name != LOCK and not unfinished


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out: {folder} cannot be written to: {error.strerror or error}; "
            "pass another folder"
        ) from error
