"""Test that all of a folder's pictures are found, and what is not read is said."""

import contextlib
import json
import os
import shutil
import socket

import pytest

from jaxlab.data import image_folder, layout
from jaxlab.data.files import find_files, is_run
from jaxlab.data.pictures import BadPicture, read
from jaxlab.errors import InputError
from tests.conftest import ROOT
from tests.data.conftest import load, picture, refuse


def message_of(root):
    with pytest.raises(InputError) as caught:
        load(root)
    return str(caught.value)


def test_folders_that_cannot_be_read_are_part_of_the_one_error(pets, monkeypatch):
    for i, name in enumerate(("cat/more", "dog/a/b", "eel")):
        (pets / name).mkdir(parents=True)
        picture(100 + i).save(pets / name / "0.png")
    (pets / "dog" / "empty.png").write_bytes(b"")
    refuse(monkeypatch, pets / "cat" / "more", pets / "dog" / "a" / "b", pets / "eel")
    message = message_of(pets)
    assert "unreadable folder (3): cat/more, dog/a/b, eel; " in message
    assert "empty file (1): dog/empty.png; " in message


@pytest.fixture
def somebody():
    """Return a context in which this process has no more rights than other users.

    Root may read everything, so permissions would not be checked.
    """

    @contextlib.contextmanager
    def other_user():
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)

    return other_user


def test_permissions_that_the_system_checks_are_reported(pets, somebody):
    load(pets)  # imports everything
    (pets / "cat" / "more").mkdir()
    picture(100).save(pets / "cat" / "more" / "x.png")
    for path in (pets / "cat" / "more", pets / "dog" / "0.png"):
        path.chmod(0)
    for folder in [path for path in pets.parents if path.stat().st_uid == os.getuid()]:
        if len(folder.parts) > 2:  # not /tmp
            folder.chmod(0o755)
    try:
        with somebody():
            message = message_of(pets)
    finally:
        (pets / "cat" / "more").chmod(0o755)
    assert "unreadable folder (1): cat/more" in message
    assert "unreadable file (1): dog/0.png" in message


@pytest.mark.parametrize("name", ["", "train", "val"])
def test_a_data_set_that_cannot_be_read_is_named(pets, tmp_path, monkeypatch, name):
    root = tmp_path / "split"
    for part in ("train", "val"):
        shutil.copytree(pets, root / part)
    refuse(monkeypatch, root / name)
    message = message_of(root)
    assert message.startswith(f"{root / name}: cannot be read: Permission denied; ")


def test_a_file_that_vanishes_after_it_was_listed_is_named(pets, monkeypatch):
    def vanishing(folder, **kwargs):
        found = find_files(folder, **kwargs)
        if folder == pets / "cat":
            (pets / "cat" / "0.png").unlink()
        return found

    monkeypatch.setattr(image_folder, "find_files", vanishing)
    assert "unreadable file (1): cat/0.png" in message_of(pets)


def test_a_folder_that_vanishes_after_it_was_listed_is_named(pets, monkeypatch):
    def vanishing(folder):
        found = class_folders(folder)
        shutil.rmtree(pets / "cat", ignore_errors=True)
        return found

    class_folders = layout.class_folders
    monkeypatch.setattr(image_folder, "class_folders", vanishing)
    assert "unreadable folder (1): cat" in message_of(pets)


def test_links_to_nothing_and_what_is_no_file_are_named(pets, monkeypatch):
    cat = pets / "cat"
    (cat / "elsewhere").symlink_to("/nowhere/at/all")
    (cat / "itself.png").symlink_to("itself.png")
    os.mkfifo(cat / "pipe.png")
    monkeypatch.chdir(cat)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    (cat / "zero.png").symlink_to("/dev/zero")
    message = message_of(pets)
    assert "broken link (2): cat/elsewhere, cat/itself.png; " in message
    assert "non-regular file (3): cat/pipe.png, cat/socket.png, cat/zero.png" in message
    with pytest.raises(BadPicture, match="^non-regular file$"):
        read(cat / "socket.png")


LITTER = (
    "@eaDir/0.png/SYNOPHOTO_THUMB_SM.jpg #recycle/a.jpg .thumbnails/1.jpg "
    ".@__thumb/s1000.jpg .ipynb_checkpoints/a-checkpoint.png @Recently-Snapshot/a.jpg "
    "$RECYCLE.BIN/S-1-5/$R1.jpg lost+found/#123.jpg .Trash-1000/files/a.jpg "
    "__MACOSX/cat/.hidden.jpg .picasaoriginals/a.jpg @tmp/a.jpg .trashed-1-a.jpg "
    "System_Volume_Information/a.jpg"
).split()
NOTES = "Thumbs.db desktop.ini .DS_Store __MACOSX/cat/._a.jpg .AppleDouble/._a.jpg"


@pytest.mark.parametrize("place", ["", "cat", "cat/more", "val", "val/cat"])
def test_what_systems_and_programs_leave_is_no_picture_and_no_class(
    pets, tmp_path, place
):
    if place.startswith("val"):
        for part in ("train", "val"):
            shutil.copytree(pets, tmp_path / "split" / part)
        pets = tmp_path / "split"
    before = load(pets)[0]
    for name in (*LITTER, *NOTES.split()):
        path = pets / place / name.replace("_V", " V").replace("_I", " I")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(7).save(path, "JPEG")
    data, said = load(pets)
    assert data.fingerprint() == before.fingerprint()
    assert data.class_names == ("cat", "dog")
    count = f"{pets}: left out {len(LITTER)} pictures among hidden files and "
    (line,) = (line for line in said if count in line)
    assert line.startswith("warning: ") and line.endswith(", …")


def test_litter_without_pictures_is_not_worth_a_line(pets):
    for name in NOTES.split():
        path = pets / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"note")
    assert load(pets)[1] == []


def test_names_that_only_resemble_a_system_s_are_classes_and_pictures(pets):
    for name in ("eadir", "recycle", "snapshot", "thumbnails", "lost"):
        (pets / name).mkdir()
        for i in range(2):
            picture(len(name) + i).save(pets / name / f"@{i}.png")
    data, _ = load(pets)
    assert {"eadir", "recycle", "snapshot", "lost"} < set(data.class_names)


def run_in(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"versions": {"jaxlab": "1"}}))
    picture().save(folder / "curves.png")
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "place, named",
    [
        ("run1", "run1"),
        ("runs/a", "runs"),
        ("cat/run", "cat/run"),
        ("cat/r/a", "cat/r"),
    ],
)
def test_runs_inside_the_data_are_left_out_with_a_line(pets, place, named):
    before = load(pets)[0]
    run_in(pets / place)
    data, said = load(pets)
    assert data.fingerprint() == before.fingerprint()
    assert said == [f"warning: {pets}: left out 1 folder with runs of jaxlab: {named}"]


def test_runs_beside_split_folders_are_no_classes(pets, tmp_path):
    root = tmp_path / "split"
    for part in ("train", "val"):
        shutil.copytree(pets, root / part)
    run_in(root / "runs" / "a")
    run_in(root / "runs" / "b")
    assert load(root)[0].class_names == ("cat", "dog")


def test_another_program_s_config_json_makes_no_run(pets):
    (pets / "cat" / "a").mkdir()
    for text in ("{}", "[", '{"versions": {"torch": "2"}}'):
        (pets / "cat" / "a" / "config.json").write_text(text)
        assert not is_run(pets / "cat" / "a")
    assert not is_run(pets) and not is_run(ROOT / "tests")
    os.unlink(pets / "cat" / "a" / "config.json")
    os.mkfifo(pets / "cat" / "a" / "config.json")  # is not waited for
    assert not is_run(pets / "cat" / "a")


def test_one_name_in_two_normal_forms_is_one_class(pets, tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = tmp_path / "split"
    for part, name in (("train", composed), ("val", decomposed)):
        shutil.copytree(pets / "cat", root / part / name)
        shutil.copytree(pets / "dog", root / part / "dog")
    data, _ = load(root)
    assert data.class_names == (composed, "dog")
    assert (data.test.labels == 0).sum() == 8
    shutil.copytree(pets / "cat", root / "train" / decomposed)
    assert "class names that look the same (1): caf" in message_of(root)
