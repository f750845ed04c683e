"""Test that copies and near-copies of pictures are found, and other pictures are not.

`python -m tests.stress duplicates` measures the same on whole data sets.
"""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxlab.data import duplicates
from jaxlab.data.digits import mnist5k
from jaxlab.data.duplicates import identical, in_two_classes, look, nearly_identical
from tests.data.conftest import load, picture
from tests.stress.duplicates import CHANGES, photograph


def found_among(pictures, copies):
    """Return the pairs found, as (index of the copy, index of the picture)."""
    looks = [look(image) for image in (*pictures, *copies)]
    count = len(pictures)
    pairs = nearly_identical(looks, range(count), range(count, len(looks)))
    return {(i - count, j) for i, j in pairs.items()}


def test_each_kind_of_copy_is_found_and_no_other_picture_is():
    originals = [photograph(i) for i in range(12)]
    assert found_among(originals[:6], originals[6:]) == set()
    for name, change in CHANGES.items():
        copies = [change(image) for image in originals]
        found = found_among(originals, copies)
        assert all(i == j for i, j in found), name
        assert len(found) >= 11, name


def test_other_digits_are_not_taken_for_copies():
    """Digits are small, so that many of them are nearly the same few pixels."""
    data = mnist5k()
    digits, others = (
        [Image.fromarray(image[:, :, 0]) for image in split.images]
        for split in (data.train, data.test)
    )
    assert len(found_among(digits, others)) <= 5
    shifted = [Image.fromarray(np.roll(np.asarray(image), 1, 1)) for image in digits]
    assert found_among(digits[:50], shifted[:50]) == set()
    assert found_among(digits[:50], digits[:50]) == {(i, i) for i in range(50)}


def test_small_pictures_must_agree_in_more_than_large_ones(monkeypatch):
    """Without its own bound, other digits would be reported by the hundred."""
    data = mnist5k()
    digits = [Image.fromarray(image[:, :, 0]) for image in data.train.images[:1000]]
    monkeypatch.setattr(duplicates, "SMALL", 0)
    monkeypatch.setattr(duplicates, "CORRELATION", 0.9)
    assert len(found_among(digits[:500], digits[500:])) > 20


def test_blocks_of_any_size_find_the_same_pairs(monkeypatch):
    originals = [photograph(i, (120, 90)) for i in range(9)]
    copies = [ImageEnhance.Brightness(image).enhance(0.9) for image in originals]
    whole = found_among(originals, copies)
    assert whole == {(i, i) for i in range(9)}
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    assert found_among(originals, copies) == whole


def test_pictures_without_contrast_are_no_copies_of_each_other():
    random = np.random.default_rng(0)
    flat = [
        Image.fromarray(random.integers(100, 102, (90, 120), np.uint8))
        for _ in range(8)
    ]
    assert found_among(flat[:4], flat[4:]) == set()


def test_identical_pixels_are_paired_by_class_and_by_split():
    contents = [b"a", b"b", b"a", b"c", b"b"]
    assert in_two_classes(contents, np.array([0, 1, 1, 0, 1])) == {2: 0}
    assert identical(contents, [0, 1], [2, 3, 4]) == {2: 0, 4: 1}
    assert nearly_identical([], [], []) == {}


def test_a_copy_in_another_format_and_class_is_named(pets):
    same = Image.open(pets / "cat" / "0.png")
    same.save(pets / "dog" / "copy.bmp")
    _, said = load(pets)
    line = said[0]
    assert line == (
        "warning: one label is wrong for 1 picture identical to one of another class: "
        "dog/copy.bmp and cat/0.png"
    ) or line.endswith(": cat/0.png and dog/copy.bmp")


@pytest.fixture
def split(tmp_path):
    """Return a data set with its own three splits, of photographs."""
    root = tmp_path / "split"
    for i, part in enumerate(("train", "val", "test")):
        for j, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for k in range(3):
                image = photograph(100 * i + 10 * j + k, (120, 90))
                image.save(root / part / name / f"{k}.png")
    return root


def test_splits_that_share_nothing_are_not_warned_of(split):
    assert load(split)[1] == []


def test_copies_across_the_splits_are_warned_of_with_their_pairs(split):
    shutil.copy(split / "train/cat/0.png", split / "val/cat/0.png")
    image = Image.open(split / "train/dog/1.png")
    image.resize((90, 68)).save(split / "test/dog/small.jpg", quality=75)
    Image.open(split / "val/dog/2.png").save(split / "test/dog/2.tif")
    _, said = load(split)
    assert said == [
        "warning: the validation accuracy is inflated by 1 validation picture "
        "identical to training pictures: val/cat/0.png and train/cat/0.png",
        "warning: the test accuracy is inflated by 1 test picture identical to "
        "training or validation pictures: test/dog/2.tif and val/dog/2.png",
        "warning: the test accuracy may be inflated by 1 test picture nearly identical "
        "to training or validation pictures, such as other copies or the next of a "
        "series: test/dog/small.jpg and train/dog/1.png",
    ]


def test_too_many_pictures_to_compare_are_said(pets, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 40)
    _, said = load(pets)
    assert said == [
        "warning: 12 and 4 pictures are too many to look for test pictures that are "
        "nearly identical to others"
    ]


def test_looks_do_not_depend_on_the_format(pets):
    buffer = io.BytesIO()
    image = picture(3, (200, 100))
    image.save(buffer, "TIFF")
    again = Image.open(io.BytesIO(buffer.getvalue()))
    np.testing.assert_array_equal(look(image).thumbnail, look(again).thumbnail)
    assert look(image).thumbnail.dtype == np.uint8 and not look(image).is_small
