"""The figure of `jaxlab.overfit`: loss and accuracy by epoch of every variant."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from jaxlab.figures.curves import MEASURED, TRAINING, set_epochs
from jaxlab.figures.figure import Figure, own_style
from jaxlab.figures.fonts import wrapped
from jaxlab.figures.text import final_mean

_CURVES = {"train": TRAINING, "test": MEASURED}
_QUANTITIES = {"loss": (1, "loss (nats)"), "accuracy": (100, "accuracy (%)")}
_TITLE_SIZE = 11  # in points
_MOST_COLUMNS = 4
_MOST_MARKERS = 10  # epochs; the markers of more would hide the lines
_LETTERS = 28  # of a variant's name in one line above a panel


@own_style()
def draw_variants(results: Mapping[str, Any], title: str) -> Figure:
    """Draw each variant's loss and, below it, its accuracy by epoch.

    The lines are means over seeds; of several, a band shows the standard deviation. All
    panels of a quantity have one scale. `results` are the "variants" of results.json.
    """
    blocks = -(-len(results) // _MOST_COLUMNS)
    columns = -(-len(results) // blocks)
    size = max(5.6, 0.6 + 2.8 * columns), 1.0 + 4.4 * blocks
    figure = Figure(figsize=size, layout="constrained")
    lines = [wrapped(line, _TITLE_SIZE, size[0] - 0.3) for line in title.splitlines()]
    figure.suptitle("\n".join(sum(lines, [])), size=_TITLE_SIZE)
    panels = figure.subplots(2 * blocks, columns, sharex=True, squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for i, (name, result) in enumerate(results.items()):
        block, column = divmod(i, columns)
        for j, quantity in enumerate(_QUANTITIES):
            axes = panels[2 * block + j, column]
            axes.set_visible(True)
            if i:
                axes.sharey(panels[j, 0])
            _draw_quantity(axes, result, quantity)
            axes.tick_params(labelleft=column == 0, labelbottom=j == 1)
            if column == 0:
                axes.set_ylabel(_QUANTITIES[quantity][1])
        panels[2 * block, column].set_title(_heading(name, result), size=9)
        panels[2 * block + 1, column].set_xlabel("epoch")
    handles, _ = figure.axes[0].get_legend_handles_labels()
    if figure.axes[0].collections:
        handles.append(Patch(color="0.8", label="± standard deviation"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4 if columns > 1 else 2,
        frameon=False,
    )
    return figure


def _draw_quantity(axes: Axes, result: Mapping[str, Any], quantity: str) -> None:
    scale, _ = _QUANTITIES[quantity]
    for split, style in _CURVES.items():
        values = scale * np.array(result["curves"][f"{split}_{quantity}"])
        seeds, count = values.shape
        epochs, mean = np.arange(1, count + 1), values.mean(0)
        marker = style["marker"] if count <= _MOST_MARKERS else ""
        label = {"train": "training", "test": "test"}[split]
        axes.plot(
            epochs, mean, **{**style, "marker": marker}, markersize=4, label=label
        )
        if seeds > 1:
            low, high = mean - values.std(0), mean + values.std(0)
            color = style["color"]
            axes.fill_between(epochs, low, high, color=color, alpha=0.25, linewidth=0)
    if quantity == "loss":
        lowest = result["lowest_test_loss"]
        axes.plot(
            [lowest["epoch"]],
            [lowest["mean"]],
            "v",
            color="black",
            markersize=6,
            label="lowest test loss",
        )
    set_epochs(axes, epochs.tolist())


def _heading(name: str, result: Mapping[str, Any]) -> str:
    """Return a variant's name, in lines that fit above its panel, and its verdict."""
    lines = [""]
    for i, word in enumerate(name.split("+")):
        part = f"+{word}" if i else word
        if lines[-1] and len(lines[-1] + part) > _LETTERS:
            lines.append("")
        lines[-1] += part
    gap = final_mean(result, "train_accuracy") - final_mean(result, "test_accuracy")
    return "\n".join([*lines, f"{result['verdict']}, gap {100 * gap:.1f} points"])
