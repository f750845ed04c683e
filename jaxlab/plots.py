"""The public plots: matplotlib figures of a training, its mistakes and its images."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError
from jaxlab.figures.confusion import draw_confusion
from jaxlab.figures.curves import draw_curves, training_label
from jaxlab.figures.figure import Figure
from jaxlab.figures.images import draw_images
from jaxlab.runs.record import Rows
from pretrained.errors import counted, one_line


def plot_curves(history: Any, title: str = "") -> Figure:
    """Return a matplotlib figure of loss and accuracy by epoch, for both splits.

    `history` is what `fit` or `fine_tune` returned, or its rows. With a validation
    split its values are drawn, the best epoch is marked, and its test values are one
    point. The curve of a run's training split is labelled "dropout on", or "during the
    epoch" if the network has no dropout; this is not known of rows that were read from
    a file. The test value of the network that is kept is written beside the curve. A
    notebook shows the figure; `.savefig("name.png")` on it writes a file.

    >>> row = {"epoch": 1, "train_loss": 0.7, "test_loss": 0.9}
    >>> row |= {"train_accuracy": 0.8, "test_accuracy": 0.7}
    >>> plot_curves([row]).axes[0].get_xlabel()
    'epoch'
    """
    rows = getattr(history, "history", getattr(history, "rows", history))
    if not _are_rows(rows):
        raise UsageError(
            "history: expected what fit or fine_tune returns, or a list of its rows, "
            f"got {type(history).__name__}"
        )
    # fine_tune measures its training curve during the epoch, and fit after it.
    label = training_label(rows.dropout) if isinstance(rows, Rows) else "training"
    return draw_curves(rows, title, label)


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

    `labels` and `predictions` are int[n], indices into `class_names`. The colour of a
    cell is its share of the row, blue for right predictions and orange for mistakes.

    >>> plot_confusion([0, 1, 1], [0, 1, 0], ["cat", "dog"]).axes[0].get_xlabel()
    'predicted class'
    """
    labels = _indices("labels", labels, class_names)
    predictions = _indices("predictions", predictions, class_names)
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
    `predictions` are int[n]. A wrong prediction is orange and bold: "4, not 9" is a 9
    that was predicted as a 4. `class_names` replace the numbers of the classes.

    Raises UsageError for arrays of another shape, dtype or length, and for a class
    without a name.

    >>> data = np.zeros((3, 28, 28, 1), np.uint8)
    >>> figure = plot_images(data, labels=[0, 1, 2], predictions=[0, 1, 1])
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['0', '1', '1, not 2']
    """
    shown = _pixels(images, preprocess)
    classes = {}
    for name, given in (("labels", labels), ("predictions", predictions)):
        if given is not None:
            classes[name] = _indices(name, given, class_names)
            if len(classes[name]) != len(shown):
                raise UsageError(
                    f"{name}: {len(classes[name]):,} for "
                    f"{counted(len(shown), 'image')}; pass one for each"
                )
    titles, wrong = _titles(class_names, **classes)
    return draw_images(shown, titles, wrong)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise UsageError(
            f"{name}: is not an array: {one_line(str(error))}; pass parts of one shape"
        ) from error


def _indices(name: str, classes: Any, class_names: Sequence[str] | None) -> np.ndarray:
    """Return classes as int[n]; raise UsageError if they are no indices of names."""
    array = _array(name, classes)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            f"{name}: expected indices of classes, int[n], got "
            f"{array.dtype}{list(array.shape)}; pass one whole number for each image"
        )
    if class_names is not None and array.size:
        if not 0 <= array.min() <= array.max() < len(class_names):
            raise UsageError(
                f"{name}: {array.min()} to {array.max()} do not fit "
                f"{len(class_names)} class names; pass a name for each class"
            )
    return array


def _pixels(images: Any, preprocess: Preprocess | None) -> np.ndarray:
    """Return images as uint8[n, h, w, 1 or 3], without the normalisation."""
    images = _array("images", images)
    if images.ndim > 2 and not len(images):
        raise UsageError("images: there are none to show; pass at least one")
    channels = images.shape[3:] or (1,)
    is_one = images.ndim == 3 and images.shape[2] in (1, 3)
    is_batch = images.ndim in (3, 4) and not is_one
    if not is_batch or channels not in ((1,), (3,)):
        raise UsageError(
            "images: expected [n, h, w], [n, h, w, 1] or [n, h, w, 3], got "
            f"{list(images.shape)}; for one image, pass images[None]"
        )
    images = images.reshape(*images.shape[:3], *channels)
    if images.dtype == np.uint8:
        return images
    if not jnp.issubdtype(images.dtype, jnp.floating):  # JAX knows bfloat16, too
        raise UsageError(
            f"images: expected uint8, or floats of [0, 1] or normalised, got "
            f"{images.dtype}; convert them"
        )
    if preprocess is not None:
        return preprocess.pixels(images)
    pixels = 255 * images.astype(np.float32)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _titles(
    class_names: Sequence[str] | None,
    labels: np.ndarray | None = None,
    predictions: np.ndarray | None = None,
) -> tuple[list[str] | None, list[bool] | None]:
    """Return the title of each image, and whether its prediction is wrong, if known."""

    def named(i: int) -> str:
        return str(i if class_names is None else class_names[i])

    if labels is None or predictions is None:
        known = labels if predictions is None else predictions
        return (None if known is None else [named(i) for i in known]), None
    wrong = [bool(each) for each in predictions != labels]
    titles = [
        f"{named(predicted)}, not {named(label)}" if is_wrong else named(label)
        for predicted, label, is_wrong in zip(predictions, labels, wrong, strict=True)
    ]
    return titles, wrong
