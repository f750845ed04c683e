"""Test that arrays on disk are reused, limited in size, checked, and shared safely.

It is one file because every way to damage or share a store starts from the same one.
"""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from jaxlab.errors import CorruptionError
from jaxlab.training import feature_store
from jaxlab.training.feature_store import ARRAY, ENTRY, ArrayStore, StoreFullError
from tests.pretrained.test_disk import refusing

ROW = np.arange(250, dtype=np.float32)  # 1,000 bytes


def never():
    raise AssertionError("waited")


def put(place, key, rows=1, value=0.0):
    with place.lock(key, never), place.write(key, 1000 * rows, {"of": key}) as append:
        for _ in range(rows):
            append(ROW + value)


def get(place, key, rows=1, mapped=False):
    return place.read(key, (rows, 250), np.float32, mapped=mapped)


@pytest.fixture
def place(tmp_path):
    return ArrayStore(tmp_path / "store", 10_000)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_written_is_read(place, mapped):
    assert get(place, "a") is None
    put(place, "a", rows=3)
    array = get(place, "a", rows=3, mapped=mapped)
    np.testing.assert_array_equal(array, np.stack([ROW] * 3))
    assert isinstance(array, np.memmap) == mapped
    assert json.loads((place.folder / "a" / ENTRY).read_text())["of"] == "a"
    assert (place.folder.stat().st_mode & 0o777) == 0o700


def test_other_types_and_shapes_are_read_as_written(place):
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    with place.lock("b", never), place.write("b", 12, {}) as append:
        append(array[:, ::-1])
    found = place.read("b", (2, 3), ml_dtypes.bfloat16, mapped=False)
    np.testing.assert_array_equal(found, array[:, ::-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "bit": lambda entry: flip_a_bit(entry / ARRAY),
    "cut": lambda entry: os.truncate(entry / ARRAY, 999),
    "longer": lambda entry: os.truncate(entry / ARRAY, 1001),
    "no array": lambda entry: (entry / ARRAY).unlink(),
    "no hash": lambda entry: (entry / ENTRY).unlink(),
    "hash cut": lambda entry: os.truncate(entry / ENTRY, 20),
    "no object": lambda entry: (entry / ENTRY).write_text("[]"),
    "hash of another": lambda entry: (entry / ENTRY).write_text('{"sha256": "00"}'),
    "no text": lambda entry: (entry / ENTRY).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_can_be_written_over(place, name, mapped):
    put(place, "a")
    DAMAGE[name](place.folder / "a")
    with pytest.raises(CorruptionError, match=str(place.folder / "a")):
        get(place, "a", mapped=mapped)
    put(place, "a", value=1)
    np.testing.assert_array_equal(get(place, "a")[0], ROW + 1)


def test_what_was_used_longest_ago_makes_room(place):
    for age, key in enumerate("abcd"):
        put(place, key, rows=2)
        os.utime(place.folder / key, (1000 + age, 1000 + age))
    get(place, "a", rows=2)  # now the most recently used
    put(ArrayStore(place.folder, place.max_bytes), "e", rows=4)
    kept = {path.name for path in place.folder.iterdir() if path.is_dir()}
    size = sum(path.stat().st_size for path in place.folder.rglob(ARRAY))
    assert kept == {"a", "d", "e"} and size <= place.max_bytes


def test_what_is_larger_than_the_whole_is_refused_and_removes_nothing(place):
    put(place, "a")
    with pytest.raises(StoreFullError, match="do not fit into the space that is left"):
        put(place, "b", rows=11)
    assert get(place, "a") is not None


def test_a_full_disk_is_refused_before_anything_is_written(place, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 20))
    with pytest.raises(StoreFullError, match="on the disk, which has 0.001 GB free"):
        put(place, "a")
    assert not any(path.is_dir() for path in place.folder.iterdir())


def test_what_breaks_off_leaves_nothing(place):
    with (
        pytest.raises(KeyboardInterrupt),
        place.lock("a", never),
        place.write("a", 1000, {}) as append,
    ):
        append(ROW)
        raise KeyboardInterrupt
    assert get(place, "a") is None
    assert not any(path.is_dir() for path in place.folder.iterdir())


HOLD = """
import sys, time
from pathlib import Path
from jaxlab.training.feature_store import ArrayStore
place = ArrayStore(Path(sys.argv[1]), 10_000)
with place.lock("a", lambda: None):
    if sys.argv[2] == "write":
        with place.write("a", 1000, {}) as append:
            append(memoryview(bytes(500)))
            print("holds", flush=True)
            sys.stdin.read()
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(place):
    """Return a function that starts a process that holds the lock of key "a"."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, place.folder, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_what_another_process_uses_is_not_removed(place, holder):
    put(place, "a", rows=6)
    holder("read")
    with pytest.raises(StoreFullError):
        put(place, "b", rows=8)
    assert get(place, "a", rows=6) is not None


def test_what_the_run_itself_uses_is_not_removed(place):
    put(place, "a", rows=2)
    put(place, "b", rows=6)
    again = ArrayStore(place.folder, place.max_bytes)  # the next run
    get(again, "b", rows=6)
    with pytest.raises(StoreFullError, match="the space that is left"):
        put(again, "c", rows=5)  # even without a it would not fit
    assert get(place, "a", rows=2) is not None
    put(again, "c", rows=3)
    assert get(again, "b", rows=6) is not None and get(place, "a", rows=2) is None


def test_a_disk_that_is_full_of_older_entries_makes_room(place, monkeypatch):
    put(place, "a", rows=6)
    usage = namedtuple("usage", "free")

    def disk_usage(path):
        taken = sum(file.stat().st_size for file in path.rglob(ARRAY))
        return usage(feature_store._FREE_BYTES + 7000 - taken)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    again = ArrayStore(place.folder, place.max_bytes)
    put(again, "b", rows=3)
    assert get(again, "a", rows=6) is None and get(again, "b", rows=3) is not None


def test_what_the_run_needs_of_the_disk_is_left_to_it(place, monkeypatch):
    usage = namedtuple("usage", "free")(feature_store._FREE_BYTES + 7000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    careful = ArrayStore(place.folder, place.max_bytes, leave=5000)
    with pytest.raises(
        StoreFullError, match="GB free, of which 0.54 GB are reserved for the run"
    ):
        put(careful, "a", rows=3)
    put(careful, "a", rows=2)
    put(place, "b", rows=3)  # the control


def test_a_process_waits_for_another_and_says_so(place, holder):
    process = holder("read")
    said = []

    def on_wait():
        said.append("waited")
        process.stdin.close()

    with place.lock("a", on_wait):
        assert said == ["waited"]


def test_what_a_killed_process_left_is_removed(place, holder):
    process = holder("write")
    partial = place.folder / "a.partial"
    assert partial.exists()
    put(place, "b")
    assert partial.exists(), "a process was still writing it"
    process.kill()
    process.wait()
    put(place, "c")
    assert not partial.exists()


def test_a_row_at_a_time_is_hashed_as_the_whole(place, monkeypatch):
    monkeypatch.setattr(feature_store, "_HASHED_AT_ONCE", 7)
    put(place, "a", rows=2)
    assert get(place, "a", rows=2) is not None


def test_a_store_without_locks_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    with pytest.raises(OSError, match="has no locks"):
        with ArrayStore(tmp_path, 100).lock("key", lambda: None):
            pass


def test_an_entry_whose_use_cannot_be_noted_is_read(tmp_path, monkeypatch):
    store = ArrayStore(tmp_path, 1 << 20)
    array = np.arange(3, dtype=np.float32)
    with store.write("key", array.nbytes, {}) as append:
        append(array)
    monkeypatch.setattr(os, "utime", refusing(errno.EROFS))
    found = store.read("key", (3,), np.float32, mapped=False)
    np.testing.assert_array_equal(found, array)
