"""The disk: the cache folder, opening safely, and writing whole or not at all.

All that must not be found half-written goes through here, so this is also where a test
puts a fault: it replaces `moment`.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs
from safetensors import SafetensorError
from safetensors.numpy import save_file

from pretrained.errors import WeightsError

PARTIAL, DELETED = ".partial", ".deleted"
# Asked for once: to ask is to set it, for all threads that create files meanwhile.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def moment(name: str, path: Path) -> None:
    """Do nothing, where a process may die amid a write; tests do something.

    `name` is "begin" before anything of `path` is there, "written" when a file's bytes
    are, "whole" before the path gets its name, "named" after that, "delete" before the
    first file of a folder goes, and "deleted" after the last.
    """


def cache_folder() -> Path:
    """Return where downloads are kept: JAXLAB_HOME, else the user's cache folder."""
    home = os.environ.get("JAXLAB_HOME")
    return Path(home).expanduser() if home else platformdirs.user_cache_path("jaxlab")


def on_one_disk(*paths: Path) -> bool:
    """Return whether files lie on one disk, or will, where they are not there yet."""
    existing = [
        next(parent for parent in (path, *path.parents) if parent.exists())
        for path in map(Path.absolute, paths)
    ]
    return len({path.stat().st_dev for path in existing}) == 1


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading; a pipe without a writer is not waited for.

    Raises OSError for what cannot be opened: NotRegular for a pipe or a device,
    IsADirectoryError for a folder; ValueError for a path that no file system has.
    """
    file = open(path, "rb", opener=_open_without_waiting)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise NotRegular(errno.EINVAL, "not a regular file", str(path))


class NotRegular(OSError):
    """A pipe, a device or a socket, where a file is needed."""


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield where to write a file; it takes the place of `path`, or is removed.

    A process that dies meanwhile leaves a folder beside the file, of its name, some
    letters and `.partial`. Raises OSError, which names `path`, when the file system
    refuses.
    """
    path = Path(path)
    moment("begin", path)
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f"{path.name}.", suffix=PARTIAL
        ) as folder:
            partial = Path(folder, path.name)
            yield partial
            moment("whole", path)
            partial.replace(path)
    except OSError as error:  # of writing names the other file, or none
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    moment("named", path)


@contextlib.contextmanager
def atomic_write_weights(path: str | os.PathLike) -> Iterator[Path]:
    """`atomic_write`, but that it raises WeightsError, with the remedy."""
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
    """Yield a new folder to fill; it takes the place of `path`, or is removed.

    Its name meanwhile is that of `path` with `.partial` behind it, and what an earlier
    process left there is removed: two processes at a time need a lock. Raises OSError.
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
        shutil.rmtree(partial, ignore_errors=True)  # whatever broke off the writing
    moment("named", path)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, not atomically: within one of the above."""
    path.write_text(text, "utf-8")
    moment("written", path)


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, not atomically; arrays are C-contiguous, not copied.

    The same arrays give the same bytes, unless `metadata` holds several entries, which
    are written in no fixed order. Raises OSError.
    """
    try:
        save_file(dict(tensors), path, metadata=metadata and dict(metadata))
    except SafetensorError as error:
        # What the system said comes as text, such as "… (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(0o666 & ~_UMASK)  # not for its owner only
    moment("written", path)


def remove_folder(path: Path) -> None:
    """Remove a folder, which has its name no more before the first file goes."""
    to_delete = path.with_name(path.name + DELETED)
    path.rename(to_delete)
    moment("delete", to_delete)
    remove(to_delete)
    moment("deleted", to_delete)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
