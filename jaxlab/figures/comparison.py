"""The figure of `jaxlab.compare`: test accuracy by epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator, ScalarFormatter

from jaxlab.figures.curves import TITLE_SIZE
from jaxlab.figures.figure import Figure, own_style
from jaxlab.figures.fonts import wrapped
from jaxlab.figures.text import at_best, percent

# From Okabe and Ito's palette, for every kind of colour vision. The networks also
# differ in their lines and markers, and in grey.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "linestyle": ":", "marker": "s"},
    {"color": "#0072B2", "linestyle": "--", "marker": "o"},
    {"color": "black", "linestyle": "-", "marker": "D"},
)


@own_style()
def draw_comparison(networks: Mapping[str, Any], title: str) -> Figure:
    """Draw the test accuracy of every run by epoch, with its best epoch marked.

    The epochs have a logarithmic scale, since the networks need very different numbers
    of them. `networks` are those of results.json.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle("\n".join(wrapped(title, TITLE_SIZE, 8.6)), size=TITLE_SIZE)
    axes = figure.subplots()
    for (name, found), style in zip(networks.items(), _STYLES, strict=False):
        accuracy = percent(at_best(found, "test_accuracy"))
        for i, run in enumerate(found["runs"]):
            values = [100 * row["test_accuracy"] for row in run["rows"]]
            epochs = np.arange(1, len(values) + 1)
            label = f"{name}: {accuracy} %" if not i else None
            axes.plot(
                epochs,
                values,
                **style,
                label=label,
                linewidth=1.2,
                markevery=[run["best_epoch"] - 1],
                markersize=7,
            )
    axes.set(xlabel="epoch (logarithmic)", ylabel="test accuracy (%)", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n <= axes.get_xlim()[1]]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    figure.legend(
        title="test accuracy at the best epoch of each run, which is marked",
        loc="outside lower center",
        ncols=len(networks),
        frameon=False,
    )
    return figure
