"""What every source of images returns."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxlab.data.pictures import Pictures
from jaxlab.errors import UsageError

SPLIT_SEED = 0  # of what is held out and chosen, whatever a run's own seed
# Makes a bar from a total, a label and a unit, with an `update(count)`.
ProgressBar = Callable[[int, str, str], AbstractContextManager[Any]]


@contextlib.contextmanager
def no_progress(total: int, label: str, unit: str) -> Iterator[Any]:
    """Make a bar that nobody sees."""
    yield SimpleNamespace(update=lambda count: None)


@dataclass(frozen=True)
class Split:
    """images uint8[n, h, w, c], c 1 or 3, or files to decode; labels int32[n]."""

    images: np.ndarray | Pictures
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def images_sha256(self) -> str:
        """Return the SHA-256 of the pixels (or files) in order, as hex."""
        digest = hashlib.sha256()
        _add_images(digest, self.images)
        return digest.hexdigest()

    def first(self, count: int | None, flag: str) -> "Split":
        """Return the first `count` examples (all for None); `flag` names it in errors.

        Raises UsageError when there are fewer.
        """
        return self.take(np.arange(checked_size(count, len(self), flag)))

    def take(self, indices: np.ndarray) -> "Split":
        """Return the examples at these indices, int[k], in this order."""
        if isinstance(self.images, Pictures):
            return Split(self.images.take(indices), self.labels[indices])
        return Split(self.images[indices], self.labels[indices])


def checked_size(asked: int | None, available: int, flag: str) -> int:
    """Return how many examples to take: `asked`, all for None.

    Raises UsageError, which names `flag`, when there are fewer.
    """
    if asked is None:
        return available
    if asked > available:
        raise UsageError(
            f"{flag}: asks for {asked:,} images, the dataset has {available:,}; "
            f"pass at most {available}"
        )
    return asked


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, in the order their first N are taken from.

    `resized` images have the network's size already. `files` names the file of each
    example, by split, where there are files.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    resized: bool = False
    files: dict[str, list[str]] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """Return both splits by name: "train" and "test"."""
        return {"train": self.train, "test": self.test}

    def first(self, train_size: int | None, test_size: int | None) -> "Dataset":
        """Return the first images of each split; raises UsageError for too many."""
        return replace(
            self,
            train=self.train.first(train_size, "--train-size"),
            test=self.test.first(test_size, "--test-size"),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all pixels (or files) and labels in order, as hex."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            _add_images(digest, split.images)
            _add_array(digest, split.labels)
        return digest.hexdigest()


def _add_images(digest: Any, images: np.ndarray | Pictures) -> None:
    if isinstance(images, Pictures):
        digest.update(" ".join(images.digests).encode())
    else:
        _add_array(digest, images)


def _add_array(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a seeded order, int64[n], in rounds: one of each class, in random order.

    The first k·classes entries hold k of each class, as long as the classes last.
    """
    # RandomState's stream is frozen for good; default_rng's may change with NumPy.
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    round_of = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        round_of[members] = np.arange(len(members))
    # Stable: within a round, the shuffled order stands.
    return shuffled[np.argsort(round_of[shuffled], kind="stable")]


def content_order(digests: Iterable[bytes]) -> np.ndarray:
    """Return an order, int64[n], that depends on the images' `pixel_digest`s alone.

    Split and selection start from it, so that they are the same however a data set is
    stored: in TFDS' shards or as files of any name.
    """
    digests = list(digests)
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def balanced_choice(labels: np.ndarray, asked: int | None, flag: str) -> np.ndarray:
    """Return the indices, int64[k] and sorted, of `asked` examples (all for None).

    A seeded, class-balanced order says which; they stay in the order they stand in, so
    that the same choice is the same data set wherever it is stored. Raises UsageError,
    which names `flag`, when there are fewer.
    """
    size = checked_size(asked, len(labels), flag)
    return np.sort(balanced_order(labels, SPLIT_SEED)[:size])


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int = SPLIT_SEED
) -> np.ndarray:
    """Return bool[n]: which examples to hold out, a `fraction` of each class, rounded.

    A class of two or more keeps one on either side.
    """
    held_out = np.zeros(len(labels), bool)
    random = np.random.RandomState(seed)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        most = len(members) - 1
        count = min(max(round(fraction * len(members)), 1), most)
        held_out[members[:count]] = True
    return held_out
