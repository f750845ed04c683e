"""The public plots: matplotlib figures of a training, its mistakes and its images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError
from jaxlab.figures.confusion import draw_confusion
from jaxlab.figures.curves import draw_curves
from jaxlab.figures.figure import Figure
from jaxlab.figures.images import draw_images


def plot_curves(history: Any, title: str = "") -> Figure:
    """Return a matplotlib figure of loss and accuracy by epoch, for both splits.

    `history` is what `fit` or `fine_tune` returned, or its rows. With a validation
    split its values are drawn, and the test values of the best epoch are one point. The
    last test value is written beside the curve. A notebook shows the figure;
    `.savefig("name.png")` on it writes a file.

    >>> row = {"epoch": 1, "train_loss": 0.7, "test_loss": 0.9}
    >>> row |= {"train_accuracy": 0.8, "test_accuracy": 0.7}
    >>> plot_curves([row]).axes[0].get_xlabel()
    'epoch'
    """
    # The training curve of fine_tune is measured during the epoch, with dropout on.
    is_run = hasattr(history, "history")
    rows = history.history if is_run else getattr(history, "rows", history)
    if not _are_rows(rows):
        raise UsageError(
            "history: expected what fit or fine_tune returns, or a list of its rows, "
            f"got {type(history).__name__}"
        )
    return draw_curves(rows, title, "training (dropout on)" if is_run else "training")


def _are_rows(rows: Any) -> bool:
    """Return whether these are rows of metrics, of a run or of `fit`."""
    if not (isinstance(rows, Sequence) and rows):
        return False
    if not all(isinstance(row, Mapping) for row in rows):
        return False
    measured = "validation" if "validation_loss" in rows[0] else "test"
    needed = {f"{s}_{q}" for s in ("train", measured) for q in ("loss", "accuracy")}
    last = {"test_loss", "test_accuracy"}
    return (
        all({"epoch"} | needed <= row.keys() for row in rows)
        and last <= rows[-1].keys()
    )


def plot_confusion(
    labels: Any, predictions: Any, class_names: Sequence[str], title: str = ""
) -> Figure:
    """Return a matplotlib figure of how often each class was taken for each other one.

    `labels` and `predictions` are int[n], indices into `class_names`.

    >>> plot_confusion([0, 1, 1], [0, 1, 0], ["cat", "dog"]).axes[0].get_xlabel()
    'predicted class'
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    for name, array in (("labels", labels), ("predictions", predictions)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise UsageError(
                f"{name}: expected indices of classes, int[n], got "
                f"{array.dtype}{list(array.shape)}"
            )
        if array.size and not 0 <= array.min() <= array.max() < len(class_names):
            raise UsageError(
                f"{name}: {array.min()} to {array.max()} do not fit "
                f"{len(class_names)} class names; pass a name for each class"
            )
    if len(labels) != len(predictions):
        raise UsageError(
            f"predictions: {len(predictions):,} for {len(labels):,} labels; pass one "
            "for each"
        )
    return draw_confusion(labels, predictions, class_names, title)


def plot_images(
    images: Any,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    predictions: Any = None,
    preprocess: Preprocess | None = None,
) -> Figure:
    """Return a figure of up to 64 images, with their labels and predictions.

    `images` are uint8 or float[n, h, w(, c)]; floats are scaled from [0, 1], or, with
    the `preprocess` that made them, their normalisation is undone. `labels` and
    `predictions` are int[n]. A wrong prediction is red: "4, not 9" is a 9 that was
    predicted as a 4. `class_names` replace the numbers of the classes.

    >>> data = np.zeros((3, 28, 28, 1), np.uint8)
    >>> figure = plot_images(data, labels=[0, 1, 2], predictions=[0, 1, 1])
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['0', '1', '1, not 2']
    """
    images = np.asarray(images)
    channels = images.shape[3:] or (1,)
    is_one = images.ndim == 3 and images.shape[2] in (1, 3)
    if (
        images.ndim not in (3, 4)
        or is_one
        or not len(images)
        or channels not in ((1,), (3,))
    ):
        raise UsageError(
            "images: expected [n, h, w], [n, h, w, 1] or [n, h, w, 3], got "
            f"{list(images.shape)}; for one image, pass images[None]"
        )
    images = images.reshape(*images.shape[:3], *channels)
    if images.dtype != np.uint8:
        if preprocess is not None:
            std, mean = np.array([preprocess.std, preprocess.mean], np.float32)
            images = images * std + mean
        images = np.clip(np.round(255 * images), 0, 255).astype(np.uint8)

    for name, classes in (("labels", labels), ("predictions", predictions)):
        if classes is not None and np.ndim(classes) != 1:
            raise UsageError(f"{name}: expected int[n], one for each image")

    def named(classes: Any) -> list[str]:
        return [str(class_names[i] if class_names is not None else i) for i in classes]

    titles = wrong = None
    if labels is not None:
        titles = named(labels)
    if predictions is not None:
        titles = named(predictions)
        if labels is not None:
            pairs = zip(predictions, labels, strict=True)
            wrong = [int(predicted) != int(label) for predicted, label in pairs]
            truths = named(labels)
            titles = [
                f"{titles[i]}, not {truths[i]}" if wrong[i] else titles[i]
                for i in range(len(titles))
            ]
    if titles is not None and len(titles) != len(images):
        raise UsageError(
            f"labels: {len(titles):,} for {len(images):,} images; pass one for each"
        )
    return draw_images(images, titles, wrong)
