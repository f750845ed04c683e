"""The figure of a run's loss and accuracy by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxlab.figures.figure import Figure, own_style
from jaxlab.figures.fonts import wrapped
from jaxlab.metrics import best_epoch

# From Okabe and Ito's palette, for every kind of colour vision. The curves also differ
# in their lines and markers, and in grey.
TRAINING: dict[str, Any] = {"color": "#0072B2", "linestyle": "--", "marker": "o"}
MEASURED: dict[str, Any] = {"color": "#D55E00", "linestyle": "-", "marker": "s"}
TESTED: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "*"}
_MOST_MARKERS = 30  # epochs; the markers of more would hide the lines
TITLE_SIZE = 12  # in points


def training_label(dropout: bool) -> str:
    """Return the label of a curve that was measured while the network was trained."""
    return f"training ({'dropout on' if dropout else 'during the epoch'})"


@own_style()
def draw_curves(
    rows: Sequence[Mapping[str, float]], title: str, training: str = "training"
) -> Figure:
    """Draw training and test loss and accuracy by epoch; `rows` are metrics.jsonl's.

    With a validation split its values are drawn instead of the test split's, the best
    epoch is marked, and its test values are one point, if they are there already.
    `training` is the label of the training curve.
    """
    best = best_epoch(rows)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle("\n".join(wrapped(title, TITLE_SIZE, 8.6)), size=TITLE_SIZE)
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        scale = 100 if quantity == "accuracy" else 1
        _draw_quantity(axes, rows, quantity, scale, best, training)
        axes.set(
            xlabel="epoch", ylabel="accuracy (%)" if scale == 100 else "loss (nats)"
        )
        set_epochs(axes, [row["epoch"] for row in rows])
        _widen(axes, scale)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_quantity(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    quantity: str,
    scale: int,
    best: int | None,
    training: str,
) -> None:
    """Draw the curves of the loss or of the accuracy, and the value of the network."""
    epochs = [row["epoch"] for row in rows]
    measured = "test" if best is None else "validation"
    curves = (("train", training, TRAINING), (measured, measured, MEASURED))
    for split, label, style in curves:
        values = [scale * row[f"{split}_{quantity}"] for row in rows]
        axes.plot(epochs, values, **_marked(style, len(rows)), label=label)
    kept = rows[-1] if best is None else next(r for r in rows if r["epoch"] == best)
    value, style = kept[f"{measured}_{quantity}"], MEASURED
    if best is not None:
        axes.axvline(best, color="0.4", linestyle=":", label=f"best epoch, {best}")
        if f"test_{quantity}" in rows[-1]:
            value, style = rows[-1][f"test_{quantity}"], TESTED
            axes.plot(
                [best], [scale * value], **TESTED, markersize=11, label="test, once"
            )
    axes.annotate(
        f"{100 * value:.1f} %" if quantity == "accuracy" else f"{value:.3f}",
        (1, scale * value),
        xycoords=axes.get_yaxis_transform(),  # right of the axes, at that height
        textcoords="offset points",
        xytext=(4, 0),
        va="center",
        color=style["color"],
    )


def _marked(style: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Return a curve's style, without markers where they would hide the line."""
    marker = style["marker"] if epochs <= _MOST_MARKERS else ""
    return {**style, "marker": marker, "markersize": 5}


def set_epochs(axes: Axes, epochs: Sequence[float]) -> None:
    """Show whole epochs on the horizontal axis, with some space beside them."""
    space = max(0.3, 0.02 * (epochs[-1] - epochs[0]))
    axes.set_xlim(epochs[0] - space, epochs[-1] + space)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _widen(axes: Axes, scale: int) -> None:
    """Keep the vertical axis within what is possible, and wider than what is noise."""
    low, high = axes.get_ylim()
    if (short := 0.02 * scale - (high - low)) > 0:
        low, high = low - short / 2, high + short / 2
    if scale == 100:
        high = min(high, 101)
    axes.set_ylim(max(low, -0.01 * scale), high)
    axes.ticklabel_format(axis="y", useOffset=False)
