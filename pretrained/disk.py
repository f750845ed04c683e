"""The cache folder, and functions that open files safely and write them atomically.

Every file that must never be found half-written is written by this module. Tests
therefore inject faults here, by replacing `moment`.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import platformdirs
from safetensors import SafetensorError
from safetensors.numpy import save_file

from pretrained.errors import WeightsError

PARTIAL, DELETED = ".partial", ".deleted"
# Read only once: reading the umask sets it, also for threads that are creating files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def moment(name: str, path: Path) -> None:
    """Do nothing; tests replace this function to interrupt a write at this moment.

    `name` is "begin" before anything of `path` exists, "written" after a file's bytes
    are written, "whole" before the result is renamed to `path`, "named" after that,
    "delete" before the first file of a folder is deleted, and "deleted" after the last.
    """


# A file system that does not have a feature refuses it with one of these: FAT, CIFS, a
# mounted bucket.
_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK}


@contextlib.contextmanager
def cosmetic() -> Iterator[None]:
    """Do without what the file system does not have, such as permissions.

    Use it for what concerns no byte of a file. Any other error is raised.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def acquire(lock: filelock.BaseFileLock, *, blocking: bool) -> bool:
    """Acquire a lock; return False, without it, if the file system has no locks.

    Raises filelock.Timeout if another process holds it and `blocking` is False.
    """
    with cosmetic(), warnings.catch_warnings():
        # Without flock, filelock warns and uses the existence of the file.
        warnings.filterwarnings("ignore", "flock not supported")
        lock.acquire(blocking=blocking)
    return lock.is_locked


def cache_folder() -> Path:
    """Return the folder for downloads: JAXLAB_HOME, or else the user's cache folder.

    Raises OSError if the user has no home folder, as in some containers.
    """
    home = os.environ.get("JAXLAB_HOME")
    try:
        if home:
            return Path(home).expanduser()
        return platformdirs.user_cache_path("jaxlab")
    except RuntimeError as error:
        why = "the home folder is unknown"
        raise FileNotFoundError(errno.ENOENT, why, home or "~/.cache") from error


def on_one_disk(*paths: Path) -> bool:
    """Return whether all paths are on one file system; they need not exist yet."""
    existing = [
        next(parent for parent in (path, *path.parents) if parent.exists())
        for path in map(Path.absolute, paths)
    ]
    return len({path.stat().st_dev for path in existing}) == 1


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading, without waiting for the writer of a pipe.

    Raises OSError if it cannot be opened: NotRegular for a pipe or a device, and
    IsADirectoryError for a folder. Raises ValueError for an invalid path.
    """
    file = open(path, "rb", opener=_open_without_waiting)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise NotRegular(errno.EINVAL, "not a regular file", str(path))


def mistaken_for(head: bytes, get_again: str) -> str | None:
    """Return what a file is instead of the one expected, by its first bytes.

    The remedy follows, which is `get_again` for most; None if nothing is recognised.
    """
    if not head:
        return f"is empty; {get_again}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"is an HTML page, perhaps from a failed download; {get_again}"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, not the file itself; run git lfs pull"
    return None


class NotRegular(OSError):
    """Raised for a pipe or a device where a regular file is needed."""


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write; it then replaces `path`, or on error is removed.

    If the process dies before that, a folder remains next to `path`, whose name is that
    of `path` followed by random characters and `.partial`. Raises OSError, which names
    `path`, if the file cannot be written.
    """
    path = Path(path)
    moment("begin", path)
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent,
            prefix=f"{path.name}.",
            suffix=PARTIAL,
            ignore_cleanup_errors=True,  # the file has its name by then
        ) as folder:
            partial = Path(folder, path.name)
            yield partial
            moment("whole", path)
            partial.replace(path)
    except OSError as error:  # a failed write names the temporary file, or none
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    moment("named", path)


@contextlib.contextmanager
def atomic_write_weights(path: str | os.PathLike) -> Iterator[Path]:
    """Write like `atomic_write`, but raise WeightsError, which names a remedy."""
    try:
        with atomic_write(path) as partial:
            yield partial
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be written: {error.strerror}; check the folder and the "
            "free space"
        ) from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; it then replaces `path`, or on error is removed.

    Its temporary name is that of `path` followed by `.partial`. What an earlier process
    left there is removed, so concurrent processes need a lock. Raises OSError.
    """
    partial = path.with_name(path.name + PARTIAL)
    moment("begin", path)
    remove(partial)
    try:
        partial.mkdir()
        yield partial
        moment("whole", path)
        if path.exists():
            remove_folder(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after an error of any kind
    moment("named", path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, not atomically; use it inside one of the functions above."""
    path.write_text(text, "utf-8")
    moment("written", path)


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write C-contiguous arrays to a safetensors file, without a copy; not atomically.

    The same arrays give the same bytes, unless `metadata` has several entries, which
    are written in no fixed order. Raises OSError.
    """
    try:
        strings = None if metadata is None else dict(metadata)
        save_file(dict(tensors), path, metadata=strings)
    except SafetensorError as error:
        # The operating system's error is only in the text, such as "… (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    with cosmetic():
        path.chmod(0o666 & ~_UMASK)  # safetensors lets only the owner read the file
    moment("written", path)


def remove_folder(path: Path) -> None:
    """Remove a folder; it is renamed before its first file is deleted."""
    to_delete = path.with_name(path.name + DELETED)
    path.rename(to_delete)
    moment("delete", to_delete)
    remove(to_delete)
    moment("deleted", to_delete)


def remove(path: Path) -> None:
    """Remove a file, a symbolic link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
