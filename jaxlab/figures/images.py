"""A grid of images with their labels and predictions, and that of a run's mistakes."""

from collections.abc import Sequence

import numpy as np

from jaxlab.figures.figure import Figure, own_style, shown
from jaxlab.figures.fonts import wrapped

COLUMNS = 8
MAX_SHOWN = 64  # more would be too small to see
MOST_MISTAKES = 24
# Of a wrong prediction's title, which is bold, too: orange, as in the confusion matrix,
# and dark enough to be read on white.
WRONG_COLOR = "#a63603"

_SIZE, _TITLE = 9.0, 11.0  # font sizes in points
_LINE = 1.35 / 72  # inches of a line of text, for a size of one point
_GAP = 0.12  # inches between images
_SIDE = 1.4  # inches of an image


@own_style()
def draw_images(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    wrong: Sequence[bool] | None = None,
) -> Figure:
    """Draw uint8[n, h, w, 1 or 3] in rows of 8, the first 64 of them.

    `titles` stand above the images, in orange and bold where `wrong` is True.
    """
    count = min(len(images), MAX_SHOWN)
    texts = [""] * count if titles is None else titles[:count]
    return _grid(images[:count], [shown(t) for t in texts], wrong, COLUMNS, _SIDE)


@own_style()
def draw_mistakes(
    images: np.ndarray,
    predicted: Sequence[str],
    probabilities: Sequence[float],
    true: Sequence[str],
    title: str,
) -> Figure:
    """Draw a run's wrong predictions uint8[n, h, w, 1 or 3], of which there is one.

    Above each stand the predicted class with its probability in [0, 1], and the true
    class; `predicted` and `true` are names.
    """
    titles = [
        f"predicted {shown(name)}, {100 * probability:.1f}\u00a0%\ntrue {shown(label)}"
        for name, probability, label in zip(predicted, probabilities, true, strict=True)
    ]
    return _grid(images, titles, [False] * len(titles), 6, 1.8, title)


@own_style()
def draw_sentence(sentence: str, title: str) -> Figure:
    """Draw a title and a sentence, where there is nothing else to show."""
    lines = wrapped(sentence, _TITLE, 6.6)
    head = [part for line in title.split("\n") for part in wrapped(line, _TITLE, 6.6)]
    high = _LINE * _TITLE * (len(lines) + len(head) + 2) + 2 * _GAP
    figure = Figure(figsize=(7, high), dpi=150)
    text = "\n".join([*head, "", *lines])
    figure.text(0.5, 0.5, text, ha="center", va="center", size=_TITLE)
    return figure


def _grid(
    images: np.ndarray,
    titles: Sequence[str],
    wrong: Sequence[bool] | None,
    columns: int,
    side: float,
    title: str = "",
) -> Figure:
    """Draw images in rows below their titles, which are broken into lines that fit.

    `side` is the width of an image in inches, and of its title.
    """
    bold = [bool(wrong is not None and wrong[i]) for i in range(len(images))]
    lines = [
        _lines(text, side, "bold" if is_bold else "normal")
        for text, is_bold in zip(titles, bold, strict=True)
    ]
    needed = _GAP + min(columns, len(images)) * (side + _GAP)
    wide = max(needed, 5) if title else needed
    left = (wide - needed) / 2 + _GAP
    head = _lines(title, wide - 2 * _GAP, size=_TITLE)
    rows = [
        range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)
    ]
    shapes = [max(images[i].shape[0] / images[i].shape[1] for i in row) for row in rows]
    texts = [_LINE * _SIZE * max(len(lines[i]) for i in row) for row in rows]
    top = _GAP + (_LINE * _TITLE * len(head) + _GAP if head else 0)
    high = top + sum(side * s + t + _GAP for s, t in zip(shapes, texts, strict=True))

    figure = Figure(figsize=(wide, high), dpi=150)
    if head:
        y = 1 - _GAP / high
        figure.text(0.5, y, "\n".join(head), ha="center", va="top", size=_TITLE)
    for row, shape, text in zip(rows, shapes, texts, strict=True):
        top += text
        for column, i in enumerate(row):
            x, tall = left + column * (side + _GAP), side * shape
            axes = figure.add_axes(
                (x / wide, 1 - (top + tall) / high, side / wide, tall / high)
            )
            axes.set_axis_off()
            image = images[i][:, :, 0] if images[i].shape[-1] == 1 else images[i]
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(
                "\n".join(lines[i]),
                size=_SIZE,
                pad=3,
                color=WRONG_COLOR if bold[i] else "black",
                weight="bold" if bold[i] else "normal",
            )
        top += side * shape + _GAP
    return figure


def _lines(
    text: str, most: float, weight: str = "normal", size: float = _SIZE
) -> list[str]:
    return [
        part for line in text.split("\n") for part in wrapped(line, size, most, weight)
    ]
