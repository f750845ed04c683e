"""The dataset that every image source returns, and the selection of its examples."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxlab.data.pictures import Pictures
from jaxlab.errors import UsageError
from pretrained.errors import counted

SPLIT_SEED = 0  # seed of the split and the selection, independent of a run's seed
VALIDATION_SEED = 1  # the same for the validation split
# A function of a total, a label and a unit that returns a context manager. Its
# progress bar has a method `update(count)`.
ProgressBar = Callable[[int, str, str], AbstractContextManager[Any]]


@contextlib.contextmanager
def no_progress(total: int, label: str, unit: str) -> Iterator[Any]:
    """Create a progress bar that displays nothing."""
    yield SimpleNamespace(update=lambda count: None)


@dataclass(frozen=True, repr=False)
class Split:
    """The images and labels of a split.

    `images` is uint8[n, h, w, c] with c = 1 or 3, or the files that are still to be
    decoded. `labels` is int32[n].
    """

    images: np.ndarray | Pictures
    labels: np.ndarray

    def __repr__(self) -> str:
        """Return one line: the number of examples and the images' form."""
        return f"Split({counted(len(self), 'image')}, {_form(self.images)})"

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def images_sha256(self) -> str:
        """Return the SHA-256 of the pixels (or files) in order, in hexadecimal."""
        digest = hashlib.sha256()
        _add_images(digest, self.images)
        return digest.hexdigest()

    def first(self, count: int | None, flag: str) -> "Split":
        """Return the first `count` examples, or all of them if it is None.

        Raises UsageError, which names `flag`, if there are fewer.
        """
        return self.take(np.arange(checked_size(count, len(self), flag)))

    def take(self, indices: np.ndarray) -> "Split":
        """Return the examples at these indices, int[k], in this order."""
        if isinstance(self.images, Pictures):
            return Split(self.images.take(indices), self.labels[indices])
        return Split(self.images[indices], self.labels[indices])


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


@dataclass(frozen=True, repr=False)
class Dataset:
    """A training and a test split, and perhaps a validation split between them.

    Test images choose nothing: with a `validation` split, the best epoch is chosen by
    it and tested once. `first` takes examples of the other splits in order. If
    `resized` is True, the images have the network's input size already, or are resized
    when they are decoded. For a folder, `files` contains the path of each example's
    file, by split.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    resized: bool = False
    files: dict[str, list[str]] | None = None
    validation: Split | None = None

    def __repr__(self) -> str:
        """Return one line: the name, the sizes, the images' form and the classes."""
        form = _form(self.train.images)
        sizes, classes = self.sizes_text(), counted(len(self.class_names), "class")
        return f"Dataset({self.name}: {sizes}, {form}, {classes})"

    def sizes_text(self) -> str:
        """Return the number of images in each split, as a run's first line says it."""
        sizes = [f"{len(self.train):,} training", counted(len(self.test), "test image")]
        if self.validation is not None:
            sizes.insert(1, f"{len(self.validation):,} validation")
        return ", ".join(sizes)

    @property
    def splits(self) -> dict[str, Split]:
        """Return the splits by name: "train", perhaps "validation", and "test"."""
        if self.validation is None:
            return {"train": self.train, "test": self.test}
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def first(self, train_size: int | None, test_size: int | None) -> "Dataset":
        """Return the first training and test images, and all validation images.

        Raises UsageError if a split has fewer.
        """
        return replace(
            self,
            train=self.train.first(train_size, "--train-size"),
            test=self.test.first(test_size, "--test-size"),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all pixels (or files) and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            _add_images(digest, split.images)
            _add_array(digest, split.labels)
        return digest.hexdigest()


def _form(images: np.ndarray | Pictures) -> str:
    if isinstance(images, Pictures):
        return "pictures"
    return f"{images.dtype}[{', '.join(map(str, images.shape[1:]))}]"


def _add_images(digest: Any, images: np.ndarray | Pictures) -> None:
    if isinstance(images, Pictures):
        digest.update(" ".join(images.digests).encode())
    else:
        _add_array(digest, images)


def _add_array(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)


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


def split_examples(
    labels: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    test_fraction: float,
    validation_fraction: float = 0.0,
    train_size: int | None = None,
    test_size: int | None = None,
) -> dict[str, tuple[str, np.ndarray]]:
    """Return the name of the source's split and the indices, int64[k], of each split.

    `labels` are those of the splits of a source, int[n], in `content_order`: "train",
    and perhaps "validation" and "test". A test split that is missing is held out of
    "train", `test_fraction` of each class; then `validation_fraction` of the rest is
    held out, if it is not 0. `groups`, int[n], are those of "train" that must stay on
    one side of both. Then the sizes choose from what is left.

    Raises UsageError if a split has fewer examples than its size, or if there is a
    validation split already.
    """
    rest = np.arange(len(labels["train"]))
    splits = {name: (name, np.arange(len(labels[name]))) for name in labels}
    if "test" not in labels:
        held_out = stratified_split(labels["train"], test_fraction, groups=groups)
        splits["test"] = "train", rest[held_out]
        rest = rest[~held_out]
    if validation_fraction:
        if "validation" in labels:
            raise UsageError(
                f"--validation-fraction: {validation_fraction:g}, but the data have a "
                f"validation split of {counted(len(labels['validation']), 'image')} "
                "already; leave it out"
            )
        held_out = stratified_split(
            labels["train"][rest],
            validation_fraction,
            VALIDATION_SEED,
            None if groups is None else groups[rest],
        )
        splits["validation"] = "train", rest[held_out]
        rest = rest[~held_out]
    splits["train"] = "train", rest
    for name, size in (("train", train_size), ("test", test_size)):
        source, indices = splits[name]
        chosen = balanced_choice(labels[source][indices], size, f"--{name}-size")
        splits[name] = source, indices[chosen]
    order = ("train", "validation", "test")
    return {name: splits[name] for name in order if name in splits}
