"""What every source of images returns."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from jaxlab.errors import UsageError


@dataclass(frozen=True)
class Split:
    """images uint8[n, h, w, c] with c 1 or 3; labels int32[n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def first(self, count: int | None, flag: str) -> "Split":
        """Return the first `count` examples (all for None); `flag` names it in errors.

        Raises UsageError when there are fewer.
        """
        if count is None:
            return self
        if count > len(self):
            raise UsageError(
                f"{flag}: asks for {count:,} images, the dataset has {len(self):,}; "
                f"pass at most {len(self)}"
            )
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, in the order their first N are taken from."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

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
        """Return the SHA-256 of all pixels and labels in order, as hex."""
        digest = hashlib.sha256()
        for split in self.splits.values():
            for array in (split.images, split.labels):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


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
