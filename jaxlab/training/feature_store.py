"""Arrays kept on disk between runs: bounded in size, checked when they are read.

An entry is a folder, named by its key: the array's bytes, and beside them their
SHA-256 with what the caller wants to be known about them.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from jaxlab.errors import CorruptionError
from pretrained.disk import PARTIAL, atomic_folder, write_text

ARRAY, ENTRY = "array.bin", "entry.json"
_HASHED_AT_ONCE = 1 << 20  # bytes
_FREE_BYTES = 1 << 29  # left on the disk besides what a run asks for


class StoreFullError(Exception):
    """An array that the store cannot take; says why."""


class ArrayStore:
    """Arrays by key, in `folder`, of at most `max_bytes` together.

    What was used last stays longest. Several processes may share a folder: who works
    on a key holds its `lock`.
    """

    def __init__(self, folder: Path, max_bytes: int, leave: int = 0):
        """Touch nothing before the first use; `leave` bytes of the disk stay free."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._leave = leave + _FREE_BYTES
        self._used: set[str] = set()  # never removed by the run that needs them

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold a key; waits, after `on_wait()`, for another process that holds it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock(key)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(
        self, key: str, shape: tuple[int, ...], dtype: Any, *, mapped: bool
    ) -> np.ndarray | None:
        """Return the array, None when it is not there; raises CorruptionError.

        A `mapped` array stays on disk and is read where it is used.
        """
        self._used.add(key)
        entry = self.folder / key
        if not entry.exists():
            return None
        dtype = np.dtype(dtype)
        try:
            expected = json.loads((entry / ENTRY).read_text())["sha256"]
            size = (entry / ARRAY).stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{entry}: {error}") from error
        expected_size = dtype.itemsize * np.prod(shape, dtype=np.int64)
        if size != expected_size:
            raise CorruptionError(
                f"{entry}: has {size:,} bytes instead of {expected_size:,}"
            )
        if mapped:
            array = np.memmap(entry / ARRAY, dtype, "r", shape=shape)
        else:
            array = np.fromfile(entry / ARRAY, dtype).reshape(shape)
        digest = hashlib.sha256()
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, size, _HASHED_AT_ONCE):
            digest.update(flat[start : start + _HASHED_AT_ONCE])
        if digest.hexdigest() != expected:
            raise CorruptionError(f"{entry}: its SHA-256 is another")
        os.utime(entry)
        return array

    @contextlib.contextmanager
    def write(
        self, key: str, size: int, about: Mapping[str, Any]
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Make an entry of `size` bytes, of the arrays given to the yielded function.

        An older entry of the key is replaced, and others make room, but for those that
        this store has read or written. What breaks off leaves nothing. Raises
        StoreFullError before anything is written.
        """
        self._used.add(key)
        self._make_space(key, size)
        digest = hashlib.sha256()
        with atomic_folder(self.folder / key) as partial:
            with open(partial / ARRAY, "wb") as file:

                def append(array: np.ndarray) -> None:
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    digest.update(data)
                    file.write(data)

                yield append
            entry = {"sha256": digest.hexdigest(), **about}
            write_text(partial / ENTRY, json.dumps(entry, indent=2) + "\n")

    def _make_space(self, key: str, size: int) -> None:
        for old in (self.folder / key, self.folder / f"{key}{PARTIAL}"):
            shutil.rmtree(old, ignore_errors=True)
        for abandoned in self.folder.glob(f"*{PARTIAL}"):
            self._remove(abandoned.stem, abandoned)
        entries = [
            (*_used_and_size(path), path)
            for path in self.folder.iterdir()
            if path.is_dir()
        ]
        allowed = self.max_bytes - sum(entry_size for _, entry_size, _ in entries)
        free = shutil.disk_usage(self.folder).free - self._leave
        removable = [
            (used, entry_size, path)
            for used, entry_size, path in sorted(entries)
            if path.name not in self._used and not path.suffix
        ]
        gain = sum(entry_size for _, entry_size, _ in removable)
        # What would not be enough is not even begun.
        while size > min(allowed, free) and size <= min(allowed, free) + gain:
            _, entry_size, path = removable.pop(0)
            gain -= entry_size
            if self._remove(path.name, path):
                allowed, free = allowed + entry_size, free + entry_size
        if size > allowed:
            raise StoreFullError(
                f"{size / 1e9:.2g} GB do not go into what is left of "
                f"{self.max_bytes / 1e9:.2g} GB"
            )
        if size > free:
            raise StoreFullError(
                f"{size / 1e9:.2g} GB do not go onto the disk, which has "
                f"{(free + self._leave) / 1e9:.2g} GB free; the run needs "
                f"{self._leave / 1e9:.2g} GB of it"
            )

    def _remove(self, key: str, path: Path) -> bool:
        """Remove a folder of a key, unless another process works on it."""
        try:
            with self._lock(key).acquire(blocking=False):
                shutil.rmtree(path)
        except (filelock.Timeout, OSError):
            return False
        return True

    def _lock(self, key: str) -> filelock.FileLock:
        return filelock.FileLock(self.folder / f"{key}.lock")


def _used_and_size(entry: Path) -> tuple[float, int]:
    """Return when an entry was last used, and its bytes; zeros when it just went."""
    try:
        size = sum(path.stat().st_size for path in entry.iterdir())
        return entry.stat().st_mtime, size
    except FileNotFoundError:
        return 0.0, 0
