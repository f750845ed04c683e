"""The dataset that every image source returns."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxlab.data.pictures import Pictures
from jaxlab.data.selection import checked_size, split_examples
from pretrained.errors import counted

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


@dataclass(frozen=True, repr=False)
class Dataset:
    """A training and a test split, and perhaps a validation split between them.

    Test images choose nothing: with a `validation` split, the best epoch is chosen by
    it and tested once. `first` takes examples of the other splits in order. If
    `resized` is True, the images have the network's input size already, or are resized
    when they are decoded. For a folder, `files` contains the path of each example's
    file, by split. `note` says where the splits come from, if that is not obvious, and
    how a part of a split was chosen.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    resized: bool = False
    files: dict[str, list[str]] | None = None
    validation: Split | None = None
    note: str = ""

    @classmethod
    def of_source(
        cls,
        name: str,
        source: Mapping[str, Split],
        class_names: Sequence[str],
        *,
        resized: bool = False,
        notes: Iterable[str] = (),
        **how: Any,
    ) -> "Dataset":
        """Return the dataset that `split_examples(..., **how)` chooses from a source.

        `source` are its splits; the `notes` are those about them.
        """
        labels = {split: part.labels for split, part in source.items()}
        chosen = split_examples(labels, **how)
        splits = {
            split: source[each.source].take(each.indices)
            for split, each in chosen.items()
        }
        return cls(
            name,
            splits["train"],
            splits["test"],
            tuple(class_names),
            resized,
            validation=splits.get("validation"),
            note=joined([*notes, *(each.note for each in chosen.values())]),
        )

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


def joined(notes: Iterable[str]) -> str:
    """Return notes as one, without those that are empty."""
    return "; ".join(filter(None, notes))


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
