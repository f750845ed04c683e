"""The confusion matrix of a classifier, and its figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import PercentFormatter

from jaxlab.figures.figure import Figure, own_style, shown
from jaxlab.figures.fonts import longest_word, width, wrapped

# Blue and orange are told apart with every kind of colour vision, and in grey both get
# darker with the share. The palest part of a map is left out, so that a single mistake
# differs from none, which is white.
RIGHT, WRONG = colormaps["Blues"], colormaps["Oranges"]
_PALEST, _DARKEST = 0.12, 0.85
NO_IMAGES = 0.93  # the grey of the row of a class without a test image
MOST_NAMED = 200  # with more classes, not every one has its name beside the matrix

_TITLE, _LABEL = 11.0, 10.0  # font sizes in points
_GAP = 0.1  # inches between the parts of the figure
_LINE = 1.4 / 72  # inches of a line of text, for a size of one point


@own_style()
def draw_confusion(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Draw the confusion matrix of true (rows) by predicted classes (columns).

    `labels` and `predictions` are int[n]. The colour of a cell is its share of the
    images of its row: shades of blue for the right predictions on the diagonal, shades
    of orange for mistakes. A cell contains its count where that fits. The figure grows
    with the classes and their names, which are all there up to MOST_NAMED classes.
    """
    names = [shown(name) for name in class_names]
    matrix = confusion_matrix(labels, predictions, len(names))
    wrong = matrix.sum() - matrix.trace()
    summary = f"{wrong:,} of {matrix.sum():,} wrong"
    step = -(-len(names) // MOST_NAMED)
    if step > 1:
        summary += f"; the names are those of every {_ordinal(step)} class"

    cell = _cell(len(names))
    size = min(_LABEL, 0.85 * 72 * cell * step)
    counts = matrix.sum(axis=1)
    rows = [f"{n} ({k:,})" for n, k in zip(names, counts, strict=True)][::step]
    columns, is_upright = _columns(names[::step], size, cell * step)
    side = cell * len(names)
    left = max(width(row, size) for row in rows) + _LINE * _LABEL + 3 * _GAP
    below = _LINE * _LABEL + 3 * _GAP
    if is_upright:
        below += max(width(column, size) for column in columns)
    else:
        below += _LINE * size * max(column.count("\n") + 1 for column in columns)
    right = 1.5  # for the scale
    wide = max(left + side + right, 5)
    lines = [
        part
        for line in (*title.split("\n"), summary)
        for part in wrapped(line, _TITLE, wide - 4 * _GAP)
    ]
    above = _LINE * _TITLE * len(lines) + 2 * _GAP
    high = below + side + above

    figure = Figure(figsize=(wide, high), dpi=150)
    axes = figure.add_axes((left / wide, below / high, side / wide, side / high))
    axes.imshow(cell_colors(matrix), interpolation="nearest")
    figure.text(
        0.5, 1 - _GAP / high, "\n".join(lines), ha="center", va="top", size=_TITLE
    )
    axes.set_xlabel("predicted class", size=_LABEL)
    axes.set_ylabel("true class (images)", size=_LABEL)
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, columns, size=size, rotation=90 if is_upright else 0)
    axes.set_yticks(ticks, rows, size=size)
    axes.tick_params(length=2, pad=2)
    _draw_grid(axes, len(names), cell)
    _write_counts(axes, matrix, cell)
    _draw_scale(figure, axes, left + side + 2 * _GAP)
    return figure


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, classes: int
) -> np.ndarray:
    """Count images by true class (row) and predicted class (column): int[k, k]."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def cell_colors(matrix: np.ndarray) -> np.ndarray:
    """Return the colour of each cell of a confusion matrix: float[k, k, 3] in [0, 1].

    It depends on the cell's share of its row alone. A cell without an image is white,
    also on the diagonal, and a row without an image is grey.
    """
    images = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(images, 1)
    is_right = np.eye(len(matrix), dtype=bool)[..., None]
    colors = np.where(is_right, _shade(RIGHT, share), _shade(WRONG, share))
    colors[matrix == 0] = 1
    colors[images[:, 0] == 0] = NO_IMAGES
    return colors


def _shade(colormap, share: np.ndarray) -> np.ndarray:
    return colormap(_PALEST + (_DARKEST - _PALEST) * share)[..., :3]


def text_color(background: np.ndarray) -> str:
    """Return black or white, whichever is easier to read on a colour, float[3]."""
    red, green, blue = np.where(
        background <= 0.04045, background / 12.92, ((background + 0.055) / 1.055) ** 2.4
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # of sRGB, by WCAG
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def _cell(classes: int) -> float:
    """Return the side of a cell in inches."""
    if classes <= 40:  # cells in which three digits can be read
        return min(1.2, max(0.3, 5.5 / classes))
    # From 40 to 200 classes, cells shrink to the height of a small letter, and the
    # matrix grows to 22 inches. Beyond that it would not fit into memory.
    return 0.3 * (40 / classes) ** 0.62 if classes <= 200 else 22 / classes


def _columns(names: Sequence[str], size: float, most: float) -> tuple[list[str], bool]:
    """Return the names below the columns, and whether they must stand upright.

    They are horizontal, in up to three lines, if each fits below its own column.
    """
    most -= 0.06  # between two names
    if max(longest_word(name, size) for name in names) > most:
        return list(names), True
    lines = [wrapped(name, size, most) for name in names]
    if max(map(len, lines)) > 3:
        return list(names), True
    return ["\n".join(each) for each in lines], False


def _draw_grid(axes: Axes, classes: int, cell: float) -> None:
    """Separate the cells by thin lines, along which an eye finds row and column."""
    if cell < 0.1:
        return
    edges = np.arange(1, classes) - 0.5
    style: dict[str, Any] = dict(colors="0.85", linewidths=0.5)
    ends = (-0.5, classes - 0.5)
    axes.add_collection(
        LineCollection([[(x, y) for y in ends] for x in edges], **style)
    )
    axes.add_collection(
        LineCollection([[(x, y) for x in ends] for y in edges], **style)
    )


def _write_counts(axes: Axes, matrix: np.ndarray, cell: float) -> None:
    """Write the counts but 0, and the zeros of the diagonal, too, where they fit."""
    size = min(10, 0.62 * 72 * cell)
    if size < 4.8:  # too small to read
        return
    colors, digit = cell_colors(matrix), width("0", size, "bold")
    has_images = matrix.sum(axis=1) > 0
    for row, column in np.argwhere((matrix > 0) | np.diag(has_images)):
        text = f"{matrix[row, column]}"
        if len(text) * digit > 0.95 * cell:
            continue
        axes.text(
            column,
            row,
            text,
            size=size,
            ha="center",
            va="center_baseline",
            weight="bold" if row == column else "normal",
            color=text_color(colors[row, column]),
        )


def _draw_scale(figure: Figure, axes: Axes, left: float) -> None:
    """Draw what the colours mean, right of the axes; `left` is in inches."""
    wide, high = figure.get_size_inches()
    box = axes.get_position()
    tall = min(box.height, 2.2 / high)
    for i, (colormap, label) in enumerate(((RIGHT, "right"), (WRONG, "wrong"))):
        x = left + 0.2 * i
        bar = figure.add_axes((x / wide, box.y1 - tall, 0.18 / wide, tall))
        shares = np.linspace(0, 1, 101)[:, None]
        bar.imshow(
            _shade(colormap, shares), origin="lower", aspect="auto", extent=(0, 1, 0, 1)
        )
        bar.set_xticks([0.5], [label], size=8, rotation=90)
        bar.tick_params(length=0, pad=2)
        bar.yaxis.set_ticks_position("right")
        bar.set_yticks([0, 0.5, 1] if i else [])
    bar.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    bar.tick_params(axis="y", labelsize=8, length=2)
    bar.yaxis.set_label_position("right")
    bar.set_ylabel("share of the row", size=8)


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"
