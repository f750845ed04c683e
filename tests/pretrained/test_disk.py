"""Test that files and folders are written completely or not at all."""

import errno
import fcntl
import os
import stat

import filelock
import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrained import disk


@pytest.fixture
def moments(monkeypatch):
    """Record each call of `disk.moment` and the names in the folder at that time."""
    seen = []

    def moment(name, path):
        seen.append((name, path.name, sorted(os.listdir(path.parent))))

    monkeypatch.setattr(disk, "moment", moment)
    return seen


def test_a_file_has_its_name_when_it_is_whole(tmp_path, moments):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with disk.atomic_write(path) as partial:
        disk.write_text(partial, "new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
    names = [name for name, *_ in moments]
    assert names == ["begin", "written", "whole", "named"]
    beside = moments[2][2]  # before the final rename
    assert len(beside) == 2 and beside[1].endswith(disk.PARTIAL)


def test_what_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), disk.atomic_write(path) as partial:
        disk.write_text(partial, "new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, small_disk):
    path = tmp_path / "a.safetensors"
    small_disk(100)
    with pytest.raises(OSError, match="File too large") as raised:
        with disk.atomic_write(path) as partial:
            disk.write_tensors(partial, {"a": np.zeros(1000, np.float32)})
    assert raised.value.filename == str(path) and os.listdir(tmp_path) == []


def test_a_folder_has_its_name_when_it_is_whole(tmp_path, moments):
    path = tmp_path / "7"
    (tmp_path / "7.partial").mkdir()  # left by a dead process
    (tmp_path / "7.partial" / "rest").touch()
    for text in ("old", "new"):
        with disk.atomic_folder(path) as partial:
            disk.write_text(partial / "a", text)
            assert os.listdir(partial) == ["a"]
        assert (path / "a").read_text() == text and os.listdir(tmp_path) == ["7"]
    assert [name for name, *_ in moments] == [
        *("begin", "written", "whole", "named"),
        *("begin", "written", "whole", "delete", "deleted", "named"),
    ]
    # The old folder is renamed before its first file is deleted.
    assert moments[-3][2] == ["7.deleted", "7.partial"]
    with pytest.raises(ZeroDivisionError), disk.atomic_folder(path):
        raise ZeroDivisionError
    assert (path / "a").read_text() == "new" and os.listdir(tmp_path) == ["7"]


def test_tensors_are_for_whom_other_files_are(tmp_path):
    (tmp_path / "plain").touch()
    disk.write_tensors(tmp_path / "a", {"a": np.arange(3.0), "b": np.int32(4)[None]})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
    np.testing.assert_array_equal(load_file(tmp_path / "a")["a"], [0, 1, 2])


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with disk.open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(disk.NotRegular):
        disk.open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        disk.open_regular(tmp_path)


def refusing(code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


UNSUPPORTED = [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS]


@pytest.mark.parametrize("code", UNSUPPORTED)
def test_a_file_system_without_permissions_is_written_to(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", refusing(code))
    path = tmp_path / "a.safetensors"
    with disk.atomic_write(path) as partial:
        disk.write_tensors(partial, {"a": np.zeros(3, np.float32)})
    assert load_file(path)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_fault_of_the_disk_is_never_passed_over(code, tmp_path, monkeypatch):
    with pytest.raises(OSError), disk.cosmetic():
        refusing(code)()


@pytest.mark.parametrize("code", UNSUPPORTED)
def test_a_rename_that_is_refused_is_an_error(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refusing(code))
    monkeypatch.setattr(type(tmp_path), "replace", refusing(code))
    with pytest.raises(OSError), disk.atomic_write(tmp_path / "a.txt") as partial:
        disk.write_text(partial, "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [*UNSUPPORTED, errno.ENOLCK])
def test_without_locks_it_is_said_whether_one_is_held(code, tmp_path, monkeypatch):
    lock = filelock.FileLock(tmp_path / "lock")
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    # Where flock does not exist, filelock uses the existence of the file.
    assert disk.acquire(lock, blocking=False) is (code == errno.ENOSYS)
    lock.release()


def test_a_lock_that_another_holds_is_waited_for(tmp_path):
    other = filelock.FileLock(tmp_path / "lock")
    with other, pytest.raises(filelock.Timeout):
        disk.acquire(filelock.FileLock(tmp_path / "lock"), blocking=False)


def test_without_a_home_folder_no_folder_of_that_name_is_made(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for home in ("~nobody-here/a", ""):
        monkeypatch.setenv("JAXLAB_HOME", home)
        with pytest.raises(OSError, match="home folder is unknown"):
            disk.cache_folder()
