"""Test which folders a run accepts, what it leaves there, and its lock."""

import errno
import fcntl
import os

import pytest

from jaxlab.errors import InputError, UsageError
from jaxlab.runs import folder as run_folder
from tests.pretrained.test_disk import UNSUPPORTED, refusing


def failing(folder, log=print):
    with run_folder.locked(folder, log):
        raise InputError("data: why; what to do")


def test_a_folder_that_was_there_is_never_removed_and_a_new_one_is(tmp_path):
    own, new = tmp_path / "own", tmp_path / "new"
    own.mkdir()
    for folder in (own, new):
        with pytest.raises(InputError):
            failing(folder)
    assert own.is_dir() and not any(own.iterdir())
    assert not new.exists()


@pytest.mark.parametrize("name", ["unlink", "rmdir", "iterdir"])
def test_a_folder_that_cannot_be_removed_hides_no_error(name, tmp_path, monkeypatch):
    # For example a folder into which another file system is mounted.
    monkeypatch.setattr(type(tmp_path), name, refusing(errno.EBUSY))
    with pytest.raises(InputError, match="data: why"):
        failing(tmp_path / "new")


def test_a_new_file_system_is_an_empty_folder(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "error.log").touch()  # of a run that could not begin
    assert run_folder.resolve_folder(str(tmp_path), False) == tmp_path
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is not empty"):
        run_folder.resolve_folder(str(tmp_path), False)


@pytest.mark.parametrize("code", [*UNSUPPORTED, errno.ENOLCK])
def test_a_file_system_without_locks_is_used_with_a_warning(
    code, tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    lines = []
    with run_folder.locked(tmp_path, lines.append):
        pass
    expected = [] if code == errno.ENOSYS else [str(tmp_path)]  # filelock has another
    assert [line.split(": ")[1] for line in lines] == expected
    assert not os.listdir(tmp_path)
