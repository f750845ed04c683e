"""What a person looks at: the table of layers, the curves, the confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def layer_table(params: Any, trainable: Any, origins: Mapping[str, str]) -> str:
    """Return one line a layer: name, kernel shape, parameters, state, where from.

    `trainable` is a tree of bool like `params`; `origins` says of each layer where its
    weights come from.
    """
    lines = [f"{'layer':<8}{'kernel':<18}{'parameters':>12}  {'state':<11}weights"]
    totals = {True: 0, False: 0}
    for layer, leaves in params.items():
        count = sum(np.size(value) for value in leaves.values())
        # A layer's leaves may differ; it is called frozen only when all of them are.
        trained = any(trainable[layer].values())
        for leaf, value in leaves.items():
            totals[trainable[layer][leaf]] += np.size(value)
        shape = "×".join(map(str, leaves["kernel"].shape))
        state = "trainable" if trained else "frozen"
        lines.append(f"{layer:<8}{shape:<18}{count:>12,}  {state:<11}{origins[layer]}")
    lines.append(
        f"{'total':<26}{sum(totals.values()):>12,}  "
        f"{totals[True]:,} trainable, {totals[False]:,} frozen"
    )
    return "\n".join(lines)


def write_curves(path: Path, history: Sequence[Mapping[str, float]], title: str):
    """Draw loss and accuracy by epoch, training and test, as a PNG."""
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title)
    for axes, quantity, unit, scale in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("nats", "%"),
        (1, 100),
        strict=True,
    ):
        for split, style in (("train", "o--"), ("test", "o-")):
            values = [scale * entry[f"{split}_{quantity}"] for entry in history]
            label = "training (dropout on)" if split == "train" else "test"
            axes.plot(epochs, values, style, label=label)
        final = scale * history[-1][f"test_{quantity}"]
        axes.annotate(
            f"{final:.1f} %" if unit == "%" else f"{final:.3f}",
            (epochs[-1], final),
            textcoords="offset points",
            xytext=(0, 9 if quantity == "loss" else -15),
            ha="right",
        )
        axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def write_confusion(
    path: Path,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    title: str,
):
    """Draw the matrix of true by predicted classes with counts, as a PNG.

    labels and predictions are int[n]. The mistakes set the colour scale: the diagonal,
    far larger, would leave them all white.
    """
    count = len(class_names)
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (labels, predictions), 1)
    right = np.eye(count, dtype=bool)

    side = 2.5 + 0.45 * count
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    worst = max(1, matrix[~right].max(initial=0))
    mistakes = np.ma.masked_where(right, matrix)
    axes.imshow(
        mistakes,
        cmap=colormaps["Reds"].with_extremes(bad="honeydew"),
        vmin=0,
        vmax=1.5 * worst,
    )
    for row, column in np.ndindex(count, count):
        if matrix[row, column]:
            axes.text(
                column,
                row,
                matrix[row, column],
                ha="center",
                va="center",
                weight="bold" if row == column else "normal",
                color="tab:green" if row == column else "black",
            )
    wrong = matrix[~right].sum()
    axes.set_title(f"{title}\n{wrong} of {matrix.sum():,} wrong")
    axes.set(xlabel="predicted class", ylabel="true class (images)")
    axes.set_xticks(range(count), class_names)
    rows = matrix.sum(axis=1)
    axes.set_yticks(
        range(count), [f"{n} ({k})" for n, k in zip(class_names, rows, strict=True)]
    )
    figure.savefig(path, dpi=150)
