"""Test that data and weights are recognised by their content, wherever they are."""

import json
import shutil

import pytest

from jaxlab.errors import CheckpointError, UsageError
from jaxlab.finetune import fine_tune
from tests.data.conftest import picture, write_pets

JOB = {"image_size": 63, "batch_size": 12, "freeze": "none", "log": False}


@pytest.fixture
def pets(tmp_path):
    return write_pets(tmp_path / "my pets")


@pytest.fixture
def begun(narrowed, narrow_weights, pets, tmp_path):
    """Train for one epoch from weights beside the data; return what resumes it."""
    weights = shutil.copy(narrow_weights, tmp_path / "narrow.pth")
    out = tmp_path / "run"
    fine_tune(pets, weights=weights, out=out, epochs=1, **JOB)
    return {"out": out, "resume": "last", "epochs": 2, "log": False}


def test_moved_linked_and_renamed_data_and_weights_are_the_same(
    begun,
    pets,
    tmp_path,
    monkeypatch,
):
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    pets.rename(moved)
    (moved / "cat" / "0.png").rename(moved / "cat" / "renamed.png")
    (tmp_path / "narrow.pth").rename(moved.parent / "other.pth")
    (tmp_path / "link").symlink_to(moved)
    given = {**begun, "weights": moved.parent / "other.pth"}
    assert len(fine_tune(tmp_path / "link", **given).history) == 2
    # The run is finished now, which is said only if the data are the run's.
    monkeypatch.chdir(moved.parent)
    given["weights"] = "../elsewhere/other.pth"
    assert len(fine_tune("../elsewhere/photos", **given).history) == 2
    assert len(fine_tune(moved, **{**begun, "epochs": 3}).history) == 3
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["dataset"] == str(moved)


def test_other_data_and_weights_are_refused_wherever_they_are(
    begun,
    pets,
    tmp_path,
):
    other = shutil.copytree(pets, tmp_path / "other")
    picture(99).save(other / "cat" / "0.png")
    for epochs in (1, 2):  # finished, and to be continued
        given = {**begun, "epochs": epochs}
        with pytest.raises(CheckpointError, match="images of .*other differ from"):
            fine_tune(other, **given)
        (tmp_path / "wrong.pth").write_bytes(b"other weights")
        for path in ("wrong.pth", "absent.pth"):
            with pytest.raises(
                UsageError, match=f"weights was .*narrow.pth, is.*{path}"
            ):
                fine_tune(**given, weights=tmp_path / path)
    renamed = shutil.copytree(pets, tmp_path / "classes")
    (renamed / "cat").rename(renamed / "ant")
    with pytest.raises(CheckpointError, match="the classes are ant, dog, but the run"):
        fine_tune(renamed, **begun)
