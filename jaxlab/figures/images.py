"""A grid of images with their labels and predictions."""

from collections.abc import Sequence

import numpy as np

from jaxlab.figures.figure import Figure, own_style, shown

COLUMNS = 8
MAX_SHOWN = 64  # more would be too small to see


@own_style()
def draw_images(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    wrong: Sequence[bool] | None = None,
) -> Figure:
    """Draw uint8[n, h, w, 1 or 3] in rows of 8, the first 64 of them.

    `titles` stand above the images, in red and bold where `wrong` is True.
    """
    count = min(len(images), MAX_SHOWN)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for i, axes in zip(range(count), panels.flat, strict=False):
        image = images[i]
        image = image[:, :, 0] if image.shape[-1] == 1 else image
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if titles is not None:
            is_wrong = wrong is not None and wrong[i]
            axes.set_title(
                shown(titles[i]),
                size=9,
                color="tab:red" if is_wrong else "black",
                weight="bold" if is_wrong else "normal",
            )
    return figure
