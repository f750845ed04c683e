"""The choice of the examples to train on, to validate and to test with.

It is always the same: the balanced one depends on the images alone, not on how they are
stored, and none on a run's seed.
"""

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxlab.errors import UsageError
from pretrained.errors import counted

TEST_FRACTION = 0.2  # of the examples of each class, if there is no test split
SPLIT_SEED = 0  # seed of the split and the selection, independent of a run's seed
VALIDATION_SEED = 1  # the same for the validation split
# The values of `--order`: a class-balanced choice, or the first in the source's order.
BALANCED, FILE = "balanced", "file"


def checked_size(asked: int | None, available: int, flag: str) -> int:
    """Return how many examples to take: `asked`, or all of them if it is None.

    Raises UsageError, which names `flag`, if fewer are available.
    """
    if asked is None:
        return available
    if asked > available:
        raise UsageError(
            f"{flag}: {counted(asked, 'image')} requested, but the split has "
            f"{available:,}; pass at most {available}"
        )
    return asked


def check_fractions(
    splits: Container[str], test_fraction: float, validation_fraction: float
) -> None:
    """Raise UsageError if a fraction is asked for of a split that the data have.

    `splits` are the names of their splits. A fraction that equals its default is not
    asked for.
    """
    asked = {
        "test": (test_fraction, TEST_FRACTION),
        "validation": (validation_fraction, 0),
    }
    for split, (fraction, default) in asked.items():
        if split in splits and fraction != default:
            raise UsageError(
                f"--{split}-fraction: {fraction:g}, but the data have a {split} split "
                "already; leave it out"
            )


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a seeded, class-balanced order, int64[n], of the examples' indices.

    It consists of rounds, each with one example of every class that has any left, in
    random order. The first k·classes entries contain k examples of each class, as long
    as every class has that many.
    """
    # RandomState's stream is fixed; default_rng's may change with NumPy's version.
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    round_of = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        round_of[members] = np.arange(len(members))
    # A stable sort keeps the shuffled order within each round.
    return shuffled[np.argsort(round_of[shuffled], kind="stable")]


def content_order(digests: Iterable[bytes]) -> np.ndarray:
    """Return the indices, int64[n], that sort the images by their `pixel_digest`s.

    The split and the selection start from this order, so that they do not depend on
    how a dataset is stored: in TFDS shards or as files of any name. Identical images
    keep the order in which they are given.
    """
    digests = list(digests)
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def balanced_choice(labels: np.ndarray, asked: int | None, flag: str) -> np.ndarray:
    """Return the sorted indices, int64[k], of `asked` examples (all for None).

    A seeded, class-balanced order selects them. They are sorted, so that the examples
    keep their order, and the same selection gives the same dataset however it is
    stored. Raises UsageError, which names `flag`, if there are fewer examples.
    """
    size = checked_size(asked, len(labels), flag)
    return np.sort(balanced_order(labels, SPLIT_SEED)[:size])


def stratified_split(
    labels: np.ndarray,
    fraction: float,
    seed: int = SPLIT_SEED,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return bool[n], True for the examples to hold out: `fraction` of each class.

    The number is rounded, but a class of two or more examples has at least one on
    either side. A class of one example is not held out.

    With `groups`, int[n], the examples of a group stay on one side. The number is then
    as near to `fraction` as one pass over the groups in random order gets, and a class
    of two or more groups has one on either side where the other classes in them allow
    it.
    """
    if groups is not None:
        return _grouped_split(labels, fraction, seed, groups)
    held_out = np.zeros(len(labels), bool)
    random = np.random.RandomState(seed)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        most = len(members) - 1
        count = min(max(round(fraction * len(members)), 1), most)
        held_out[members[:count]] = True
    return held_out


def _grouped_split(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray
) -> np.ndarray:
    # Groups are numbered as they occur, so that their names decide nothing.
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first)
    members = np.split(
        np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1]
    )
    contents = [np.unique(labels[m], return_counts=True) for m in members]
    totals = np.bincount(labels)
    held = np.zeros(len(totals), np.int64)
    chosen = np.zeros(len(members), bool)

    def leaves_some(group: int) -> bool:
        classes, counts = contents[group]
        return bool((held[classes] + counts < totals[classes]).all())

    def choose(group: int) -> None:
        classes, counts = contents[group]
        held[classes] += counts
        chosen[group] = True

    random = np.random.RandomState(seed)
    shuffled = random.permutation(order)
    for group in shuffled:
        classes, counts = contents[group]
        missing = fraction - held[classes] / totals[classes]
        share = counts / totals[classes]
        is_nearer = ((missing - share) ** 2).sum() < (missing**2).sum()
        if is_nearer and leaves_some(group):
            choose(group)
    for label in np.flatnonzero((held == 0) & (totals > 0)):
        usable = [g for g in shuffled if label in contents[g][0] and leaves_some(g)]
        if usable:
            choose(min(usable, key=lambda group: len(members[group])))
    return chosen[group_of]


def last_part(count: int, fraction: float) -> np.ndarray:
    """Return bool[n], True for the last `fraction` of the examples, to hold out.

    The number is rounded, but of two or more examples at least one is on either side.
    """
    held_out = np.zeros(count, bool)
    held_out[count - min(max(round(fraction * count), 1), count - 1) :] = True
    return held_out


class Chosen(NamedTuple):
    """The examples of a split, and how they were chosen."""

    source: str  # the split of the source that they come from
    indices: np.ndarray  # int64[k], in that split
    note: str = ""  # how a size chose them; "" if all were taken


def split_examples(
    labels: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    test_fraction: float,
    validation_fraction: float = 0.0,
    train_size: int | None = None,
    test_size: int | None = None,
    order: str = BALANCED,
) -> dict[str, Chosen]:
    """Return the examples of each split: "train", perhaps "validation", and "test".

    `labels` are those of the splits of a source, int[n], of the same names. With
    `order` "balanced" they are in `content_order`: a test split that is missing is held
    out of "train", `test_fraction` of each class; then `validation_fraction` of the
    rest is held out, if it is not 0. `groups`, int[n], are those of "train" that must
    stay on one side of both. Then the sizes choose from what is left by
    `balanced_choice`.

    With `order` "file" they are in the order of the source: the last `test_fraction` of
    "train" are held out, then the last `validation_fraction` of the rest, and the sizes
    choose the first of what is left. There are no groups.

    Raises UsageError if a split has fewer examples than its size, or if a fraction is
    asked for of a split that exists already.
    """
    check_fractions(labels, test_fraction, validation_fraction)

    def held_out_of(rest: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        if order == FILE:
            return last_part(len(rest), fraction)
        together = None if groups is None else groups[rest]
        return stratified_split(labels["train"][rest], fraction, seed, together)

    rest = np.arange(len(labels["train"]))
    splits = {name: Chosen(name, np.arange(len(labels[name]))) for name in labels}
    for name, fraction, seed in (
        ("test", test_fraction, SPLIT_SEED),
        ("validation", validation_fraction, VALIDATION_SEED),
    ):
        if name not in labels and fraction:
            held_out = held_out_of(rest, fraction, seed)
            note = f"{name} images: the last of the training images"
            splits[name] = Chosen(
                "train", rest[held_out], note if order == FILE else ""
            )
            rest = rest[~held_out]
    splits["train"] = Chosen("train", rest)
    for name, size in (("train", train_size), ("test", test_size)):
        source, indices, note = splits[name]
        available = labels[source][indices]
        if order == FILE:
            picked = np.arange(checked_size(size, len(indices), f"--{name}-size"))
        else:
            picked = balanced_choice(available, size, f"--{name}-size")
        note = choice_note(name, available, available[picked], order) or note
        splits[name] = Chosen(source, indices[picked], note)
    names = ("train", "validation", "test")
    return {name: splits[name] for name in names if name in splits}


def choice_note(
    split: str, available: np.ndarray, chosen: np.ndarray, order: str
) -> str:
    """Return what a choice of examples is, from their labels; "" if it is all of them.

    It names the smallest and the largest number of examples of a class.

    >>> choice_note("train", np.arange(100) % 10, np.arange(20) % 10, "balanced")
    'training images: a class-balanced choice of 20 of 100, 2 of each class'
    >>> choice_note("test", np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 1]), "file")
    "test images: the first 4 of 5 in the source's order, 1 to 3 of each class"
    """
    if len(chosen) == len(available):
        return ""
    counts = np.bincount(chosen, minlength=available.max() + 1)[np.unique(available)]
    least, most = counts.min(), counts.max()
    of_each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    name = {"train": "training"}.get(split, split)
    sizes = f"{len(chosen):,} of {len(available):,}"
    if order == FILE:
        what = f"the first {sizes} in the source's order"
    else:
        what = f"a class-balanced choice of {sizes}"
    return f"{name} images: {what}, {of_each} of each class"
