"""Test that the pictures of a group are on one side of each split."""

import re

import numpy as np
import pytest

import jaxlab
from jaxlab.config import Config
from jaxlab.data.selection import split_examples, stratified_split
from jaxlab.errors import UsageError
from tests.data.conftest import load, picture


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("spread", [False, True])
def test_groups_stay_together_and_each_class_is_near_its_fraction(fraction, spread):
    """Groups hold pictures of one class, or of several if they are `spread`."""
    random = np.random.RandomState(0)
    labels = np.repeat(np.arange(4), (400, 200, 100, 40))
    groups = random.randint(0, 60, len(labels)) + (0 if spread else 1000 * labels)
    held_out = stratified_split(labels, fraction, groups=groups)
    assert set(groups[held_out]).isdisjoint(groups[~held_out])
    for label in range(4):
        share = held_out[labels == label].mean()
        assert abs(share - fraction) < 0.07 and 0 < share < 1
    again = stratified_split(labels, fraction, groups=groups)
    np.testing.assert_array_equal(held_out, again)
    # The numbers of the groups decide nothing, but a seed does.
    renamed = stratified_split(labels, fraction, groups=-groups)
    np.testing.assert_array_equal(held_out, renamed)
    other = stratified_split(labels, fraction, 1, groups)
    assert (other != held_out).any()


def test_without_groups_the_split_is_the_one_it_always_was():
    labels = np.array([0] * 6 + [1] * 4)
    held_out = stratified_split(labels, 0.25)
    assert np.flatnonzero(held_out).tolist() == [2, 5, 9]


def test_two_groups_of_a_class_are_on_two_sides_however_large_they_are():
    labels = np.array([0] * 100 + [1] * 4)
    groups = np.array([0] * 60 + [1] * 40 + [2, 2, 3, 3])
    held_out = stratified_split(labels, 0.2, groups=groups)
    assert held_out[labels == 0].sum() == 40 and held_out[labels == 1].sum() == 2
    one_group = stratified_split(np.zeros(5, int), 0.2, groups=np.zeros(5, int))
    assert not one_group.any()


def test_the_validation_split_keeps_groups_together_too():
    labels = np.repeat([0, 1], 60)
    groups = np.arange(120) // 6
    splits = split_examples(
        {"train": labels},
        groups=groups,
        test_fraction=0.2,
        validation_fraction=0.25,
    )
    sides = [set(groups[indices]) for _, indices, _ in splits.values()]
    assert len(sides) == 3 and sum(map(len, sides)) == len(set.union(*sides)) == 20


@pytest.fixture
def bursts(tmp_path):
    """Return a folder with two classes of five bursts of three pictures each."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for burst in range(5):
            for i in range(3):
                path = root / name / f"scene{10 * label + burst}_{i}.png"
                picture(100 * label + 10 * burst + i).save(path)
    return root


@pytest.mark.parametrize("pattern", [r"scene\d+", r"(scene\d+)_\d", r"/(.*)_"])
def test_scenes_of_a_folder_stay_together(bursts, pattern):
    def scenes(files):
        return {re.search(r"scene\d+", file)[0] for file in files}

    data, said = load(bursts, group=pattern, test_fraction=0.2, validation_fraction=0.3)
    assert [len(split) for split in data.splits.values()] == [18, 6, 6]
    sides = [scenes(files) for files in data.files.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    assert said == [f"{bursts}: 30 pictures in 10 groups"]
    plain = [scenes(files) for files in load(bursts)[0].files.values()]
    assert plain[0] & plain[1]  # as it is without groups
    by_name = jaxlab.load_data(bursts, group=pattern, image_size=63, log=False)
    assert len(by_name.test) == 6


def test_pictures_that_do_not_match_are_on_their_own_and_said(bursts):
    picture(999).save(bursts / "cat" / "other.png")
    _, said = load(bursts, group=r"scene\d+")
    assert said == [
        f"{bursts}: 31 pictures in 11 groups",
        r"warning: --group scene\d+ does not match 1 picture, each of which is on its "
        "own: cat/other.png",
    ]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("patient", "group: 'patient' matches none of the paths in "),
        (r"\w+/", "puts all 15 pictures of the class cat into one group, 'cat/'"),
    ],
)
def test_a_pattern_that_separates_nothing_is_refused(bursts, pattern, message):
    with pytest.raises(UsageError) as caught:
        load(bursts, group=pattern)
    assert message in str(caught.value)


def test_where_no_folder_is_split_a_pattern_is_refused(bursts, tmp_path):
    with pytest.raises(UsageError, match=r"^group: '\(' is not a regular expression: "):
        Config(group="(")
    for source in ("mnist5k", "mnist"):
        with pytest.raises(UsageError, match=f"^group: {source} is not a folder"):
            jaxlab.load_data(source, group="a")
    arrays = np.zeros((4, 8, 8), np.uint8), np.array([0, 0, 1, 1])
    with pytest.raises(UsageError, match="^group: cannot be combined with arrays"):
        jaxlab.load_data(arrays, group="a")
    split = tmp_path / "split"
    split.mkdir()
    bursts.rename(split / "train")
    for name in ("cat", "dog"):
        (split / "val" / name).mkdir(parents=True)
        picture().save(split / "val" / name / "0.png")
    with pytest.raises(UsageError, match="^group: .* is split into folders already"):
        load(split, group="a")
