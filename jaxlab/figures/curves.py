"""Figures of loss and accuracy by epoch, for a run and for `jaxlab.overfit`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from jaxlab.figures.figure import Figure, own_style
from jaxlab.figures.text import accuracy_gap
from jaxlab.metrics import best_epoch


@own_style()
def draw_curves(
    rows: Sequence[Mapping[str, float]],
    title: str,
    training_label: str = "training (dropout on)",
) -> Figure:
    """Draw training and test loss and accuracy by epoch; `rows` are metrics.jsonl's.

    With a validation split its values are drawn instead of the test split's, and the
    test values of the best epoch are one point.
    """
    epochs = [row["epoch"] for row in rows]
    best = best_epoch(rows)
    measured = "test" if best is None else "validation"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title)
    for axes, quantity, unit, scale in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("nats", "%"),
        (1, 100),
        strict=True,
    ):
        for split, style in (("train", "o--"), (measured, "o-")):
            values = [scale * row[f"{split}_{quantity}"] for row in rows]
            label = training_label if split == "train" else split
            axes.plot(epochs, values, style, label=label)
        final = scale * rows[-1][f"test_{quantity}"]
        if best is not None:
            label = f"test, of the best epoch, {best}"
            axes.plot([best], [final], "*", markersize=12, label=label)
        axes.annotate(
            f"{final:.1f} %" if unit == "%" else f"{final:.3f}",
            (1, final),
            xycoords=axes.get_yaxis_transform(),  # right of the axes, at that height
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            color="tab:orange" if best is None else "tab:green",
        )
        axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axes.set_xlim(epochs[0] - 0.2, epochs[-1] + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


@own_style()
def draw_variants(results: Mapping[str, Any], title: str) -> Figure:
    """Draw each variant's accuracy by epoch, as the mean and the range over seeds.

    `results` are the "variants" of results.json.
    """
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.8 + 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    for axes, (name, result) in zip(panels.flat, results.items(), strict=False):
        for split, label in (("train", "training"), ("test", "test")):
            accuracy = 100 * np.array(result["curves"][f"{split}_accuracy"])
            epochs = np.arange(1, accuracy.shape[1] + 1)
            axes.plot(epochs, accuracy.mean(0), label=label)
            axes.fill_between(epochs, accuracy.min(0), accuracy.max(0), alpha=0.25)
        gap = accuracy_gap(result)
        axes.set_title(f"{name}\n{result['verdict']}, gap {gap:.1f} points", size=9)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels.flat[0].legend(loc="lower right")
    return figure
