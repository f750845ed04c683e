"""A Dataset of the user's own arrays, checked before anything is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.data.dataset import Dataset, Split
from jaxlab.data.selection import BALANCED, TEST_FRACTION
from jaxlab.errors import UsageError
from pretrained.errors import counted


def load_arrays(
    images: Any,
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    test: tuple[Any, Any] | None = None,
    test_fraction: float = TEST_FRACTION,
    validation_fraction: float = 0.0,
    train_size: int | None = None,
    test_size: int | None = None,
    order: str = BALANCED,
) -> Dataset:
    """Return images uint8[n, h, w], [n, h, w, 1] or [n, h, w, 3] with labels int[n].

    Labels count from 0; `class_names` has a name for each, by default its number. The
    test split is `test`, images and labels of the same form, or else `test_fraction` of
    each class, always the same examples; then `validation_fraction` of each class is
    held out in the same way. With `order` "file" the last examples are held out, and
    the sizes choose the first. Raises UsageError for arrays of another shape, dtype or
    length, and for labels without a name.
    """
    images, labels = _checked("train", images, labels)
    train, held_out = Split(images, labels), None
    if test is not None:
        test_images, test_labels = _checked("test", *test)
        if test_images.shape[1:] != images.shape[1:]:
            raise UsageError(
                f"test images: expected the shape of the training images, "
                f"{list(images.shape[1:])}, got {list(test_images.shape[1:])}"
            )
        held_out = Split(test_images, test_labels)
    last = max(split.labels.max() for split in (train, held_out) if split is not None)
    if class_names is None:
        if not (train.labels == 0).any():
            raise UsageError(
                "train labels: none is 0, so a class without examples would be first; "
                "number the classes from 0, or pass class_names"
            )
        class_names = tuple(str(i) for i in range(last + 1))
    elif isinstance(class_names, str) or last >= len(class_names):
        raise UsageError(
            f"class_names: {class_names!r} names too few classes for labels up to "
            f"{last}; pass a name for each class"
        )
    sources = (
        {"train": train} if held_out is None else {"train": train, "test": held_out}
    )
    data = Dataset.of_source(
        "arrays",
        sources,
        tuple(map(str, class_names)),
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        train_size=train_size,
        test_size=test_size,
        order=order,
    )
    for name, split in data.splits.items():
        if not len(split):
            raise UsageError(
                f"labels: no class has enough examples, so none is left for the {name} "
                "split; add examples"
            )
    return data


def _checked(name: str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8[n, h, w, c] and labels int32[n]; raise UsageError."""
    images, labels = np.asarray(images), np.asarray(labels)
    channels = images.shape[3:] or (1,)
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3)):
        raise UsageError(
            f"{name} images: got one image, {_describe(images)}; pass an array of "
            "images, whose first axis counts them"
        )
    if images.dtype != np.uint8 or images.ndim < 3 or channels not in ((1,), (3,)):
        raise UsageError(
            f"{name} images: expected uint8[n, h, w], [n, h, w, 1] or [n, h, w, 3], "
            f"got {_describe(images)}; scale values of [0, 1] by 255 and round them"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{name} labels: expected whole numbers, int[n], got {_describe(labels)}; "
            "number the classes from 0, and pass their names as class_names"
        )
    if len(images) != len(labels) or not len(labels):
        raise UsageError(
            f"{name} data: {counted(len(images), 'image')} and "
            f"{counted(len(labels), 'label')}; pass one label for each image"
        )
    if labels.min() < 0:
        raise UsageError(
            f"{name} labels: {labels.min()} is out of range; number the classes from 0"
        )
    return images.reshape(*images.shape[:3], *channels), labels.astype(np.int32)


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
