"""A store of arrays on disk, with a limited size and checksums verified on reading.

An entry is a folder that is named after its key. It contains a file with the array's
bytes, and a JSON file with their SHA-256 and the metadata that the caller passed.
"""

import contextlib
import errno
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
from pretrained.disk import PARTIAL, acquire, atomic_folder, write_text

ARRAY, ENTRY = "array.bin", "entry.json"
_HASHED_AT_ONCE = 1 << 20  # bytes
_FREE_BYTES = 1 << 29  # remain free on the disk in addition to `leave`


class StoreFullError(Exception):
    """Raised if there is no space for an array; the message contains the reason."""


class ArrayStore:
    """Arrays by key, stored in `folder`, with a total size of at most `max_bytes`.

    The least recently used entries are removed first. Several processes may share a
    folder: a process holds the `lock` of a key while it reads or writes its entry.
    """

    def __init__(self, folder: Path, max_bytes: int, leave: int = 0):
        """Access no files yet; at least `leave` bytes of the disk remain free."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._leave = leave + _FREE_BYTES
        self._used: set[str] = set()  # keys whose entries this run does not remove

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a key; call `on_wait` before waiting for another process."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock(key)
        try:
            is_held = acquire(lock, blocking=False)
        except filelock.Timeout:
            on_wait()
            is_held = acquire(lock, blocking=True)
        if not is_held:
            raise OSError(errno.ENOLCK, "its file system has no locks")
        try:
            yield
        finally:
            lock.release()

    def read(
        self, key: str, shape: tuple[int, ...], dtype: Any, *, mapped: bool
    ) -> np.ndarray | None:
        """Return the array of a key, or None if there is no entry.

        If `mapped`, the array is memory-mapped: it is read from disk when it is used.
        Raises CorruptionError if the entry is damaged or its size is wrong.
        """
        self._used.add(key)
        entry = self.folder / key
        if not entry.exists():
            return None
        dtype = np.dtype(dtype)
        try:
            expected = json.loads((entry / ENTRY).read_text("utf-8"))["sha256"]
            size = (entry / ARRAY).stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{entry}: {error}") from error
        expected_size = dtype.itemsize * np.prod(shape, dtype=np.int64)
        if size != expected_size:
            raise CorruptionError(
                f"{entry}: contains {size:,} bytes, expected {expected_size:,}"
            )
        array: np.ndarray
        if mapped:
            array = np.memmap(entry / ARRAY, dtype, "r", shape=shape)
        else:
            array = np.fromfile(entry / ARRAY, dtype).reshape(shape)
        digest = hashlib.sha256()
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, size, _HASHED_AT_ONCE):
            digest.update(flat[start : start + _HASHED_AT_ONCE].data)
        if digest.hexdigest() != expected:
            raise CorruptionError(f"{entry}: SHA-256 checksum mismatch")
        with contextlib.suppress(OSError):  # it is read, though its use is not noted
            os.utime(entry)
        return array

    @contextlib.contextmanager
    def write(
        self, key: str, size: int, about: Mapping[str, Any]
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Write an entry of `size` bytes: the arrays passed to the yielded function.

        An older entry of the key is replaced. Others are removed to make room, except
        those that this store has read or written. `about` is the metadata, as JSON. If
        writing is interrupted, no partial entry remains. Raises StoreFullError before
        anything is written.
        """
        self._used.add(key)
        self._make_space(key, size)
        digest = hashlib.sha256()
        with atomic_folder(self.folder / key) as partial:
            with open(partial / ARRAY, "wb") as file:

                def append(array: np.ndarray) -> None:
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
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
        # Remove nothing if removing all of them would still not make enough room.
        while size > min(allowed, free) and size <= min(allowed, free) + gain:
            _, entry_size, path = removable.pop(0)
            gain -= entry_size
            if self._remove(path.name, path):
                allowed, free = allowed + entry_size, free + entry_size
        if size > allowed:
            raise StoreFullError(
                f"{size / 1e9:.2g} GB do not fit into the space that is left of the "
                f"limit of {self.max_bytes / 1e9:.2g} GB"
            )
        if size > free:
            raise StoreFullError(
                f"{size / 1e9:.2g} GB do not fit on the disk, which has "
                f"{(free + self._leave) / 1e9:.2g} GB free, of which "
                f"{self._leave / 1e9:.2g} GB are reserved for the run"
            )

    def _remove(self, key: str, path: Path) -> bool:
        """Remove a folder unless its key is locked; return whether it was removed."""
        try:
            with self._lock(key).acquire(blocking=False):
                shutil.rmtree(path)
        except (filelock.Timeout, OSError):
            return False
        return True

    def _lock(self, key: str) -> filelock.FileLock:
        return filelock.FileLock(self.folder / f"{key}.lock")


def _used_and_size(entry: Path) -> tuple[float, int]:
    """Return the time of an entry's last use and its bytes; zeros if it was removed."""
    try:
        size = sum(path.stat().st_size for path in entry.iterdir())
        return entry.stat().st_mtime, size
    except FileNotFoundError:
        return 0.0, 0
