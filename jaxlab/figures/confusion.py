"""The confusion matrix of a classifier, and its figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from jaxlab.figures.figure import Figure, own_style, shown

MOST_NAMED = 80  # most classes for which the figure shows names and counts


@own_style()
def draw_confusion(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Draw the confusion matrix of true (rows) by predicted classes (columns).

    `labels` and `predictions` are int[n]. For more than MOST_NAMED classes the figure
    has colours only: names and counts would not fit, and a figure large enough for them
    would not fit into memory. The colour scale is set by the mistakes, because with the
    far larger counts of the diagonal they would all be white.
    """
    count, class_names = len(class_names), list(map(shown, class_names))
    matrix = confusion_matrix(labels, predictions, count)
    right = np.eye(count, dtype=bool)

    named = count <= MOST_NAMED
    longest = max(map(len, class_names), default=0)
    # Names beyond four letters are beside the axes, at 45° below them.
    side = 2.5 + 0.45 * count + 0.1 * max(0, longest - 10) if named else 12
    side = max(side, 4.2)  # the title needs it
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    worst = max(1, matrix[~right].max(initial=0))
    mistakes = np.ma.masked_where(right, matrix)
    axes.imshow(
        mistakes,
        cmap=colormaps["Reds"].with_extremes(bad="honeydew"),
        vmin=0,
        vmax=1.5 * worst,
        interpolation="nearest",  # cells of a few pixels keep their colour
    )
    wrong = matrix[~right].sum()
    axes.set_title(f"{title}\n{wrong} of {matrix.sum():,} wrong", size=10)
    axes.set(xlabel="predicted class", ylabel="true class")
    if named:
        _name_cells(axes, matrix, class_names)
    return figure


def _name_cells(axes: Axes, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    for row, column in np.argwhere(matrix):
        axes.text(
            column,
            row,
            matrix[row, column],
            ha="center",
            va="center",
            weight="bold" if row == column else "normal",
            color="tab:green" if row == column else "black",
        )
    axes.set_xticks(range(len(matrix)), class_names)
    if max(map(len, class_names)) > 4:  # horizontal names would overlap
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    rows = matrix.sum(axis=1)
    names = [f"{n} ({k})" for n, k in zip(class_names, rows, strict=True)]
    axes.set_ylabel("true class (images)")
    axes.set_yticks(range(len(matrix)), names)


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, classes: int
) -> np.ndarray:
    """Count images by true class (row) and predicted class (column): int[k, k]."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
