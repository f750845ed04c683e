"""What a person looks at: the table of layers, the curves, the confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxlab import run_folder

MOST_NAMED = 80  # classes in a confusion matrix with names and counts


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


def write_curves(
    path: Path, history: Sequence[Mapping[str, float]], title: str
) -> None:
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
            (1, final),
            xycoords=axes.get_yaxis_transform(),  # right of the frame, at that height
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            color="tab:orange",
        )
        axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axes.set_xlim(epochs[0] - 0.2, epochs[-1] + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def write_confusion(
    path: Path,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draw the matrix of true by predicted classes with counts, as a PNG.

    labels and predictions are int[n]. Beyond MOST_NAMED classes colours are all there
    is: names and counts have no place, nor a picture that has one the memory. The
    mistakes set the colour scale: the diagonal, far larger, would leave them all white.
    """
    count = len(class_names)
    matrix = confusion_matrix(labels, predictions, count)
    right = np.eye(count, dtype=bool)

    named = count <= MOST_NAMED
    side = 2.5 + 0.45 * count if named else 12
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    worst = max(1, matrix[~right].max(initial=0))
    mistakes = np.ma.masked_where(right, matrix)
    axes.imshow(
        mistakes,
        cmap=colormaps["Reds"].with_extremes(bad="honeydew"),
        vmin=0,
        vmax=1.5 * worst,
        interpolation="nearest",  # a cell of a few pixels keeps its colour
    )
    wrong = matrix[~right].sum()
    axes.set_title(f"{title}\n{wrong} of {matrix.sum():,} wrong")
    axes.set(xlabel="predicted class", ylabel="true class")
    if named:
        _name_cells(axes, matrix, class_names)
    _save(figure, path)


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
    if max(map(len, class_names)) > 4:  # side by side they would run into each other
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


VARIANT_HEADER = (
    f"{'variant':<22}{'train acc %':>13}{'test acc %':>13}{'gap':>6}"
    f"{'train loss':>16}{'test loss':>16}{'100 % at':>10}{'s':>7}  verdict"
)


def variant_line(name: str, result: Mapping[str, Any]) -> str:
    """Return a variant's row of the table: mean ± standard deviation over seeds."""
    curves = {key: np.array(values) for key, values in result["curves"].items()}

    def final(key, scale, digits):
        values = scale * curves[key][:, -1]
        return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"

    perfect = curves["train_accuracy"] == 1
    # The first epoch with every training image right, if each seed has one.
    reached = perfect.argmax(axis=1)[perfect.any(axis=1)] + 1
    at = f"{reached.mean():.0f}" if len(reached) == len(perfect) else "-"
    return (
        f"{name:<22}{final('train_accuracy', 100, 1):>13}"
        f"{final('test_accuracy', 100, 1):>13}{accuracy_gap(result):>6.1f}"
        f"{final('train_loss', 1, 3):>16}{final('test_loss', 1, 3):>16}"
        f"{at:>10}{result['seconds']:>7.1f}  {result['verdict']}"
    )


def write_overfit(path: Path, results: Mapping[str, Any], title: str) -> None:
    """Draw each variant's accuracy by epoch, mean and range over seeds, as a PNG."""
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
    _save(figure, path)


def accuracy_gap(result: Mapping[str, Any]) -> float:
    """Return mean training less mean test accuracy after the last epoch, in points."""
    train, test = (
        np.array(result["curves"][f"{split}_accuracy"])[:, -1].mean()
        for split in ("train", "test")
    )
    return 100 * float(train - test)


def _save(figure: Figure, path: Path) -> None:
    with run_folder.replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
