"""The figures of a finished run: its curves and its confusion matrix.

matplotlib is imported where a figure is drawn, so that a broken installation or
configuration of it costs the figure only.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.config import Resolved
from jaxlab.metrics import accuracy_text
from jaxlab.runs import folder as run_folder
from jaxlab.runs.writer import RunWriter

NAMES = (run_folder.CURVES, run_folder.CONFUSION)


def draw(
    writer: RunWriter,
    config: Resolved,
    data: Any,
    rows: Sequence[Mapping[str, float]],
    predictions: Any,
    names: Sequence[str] = NAMES,
) -> None:
    """Draw the named figures from the run's rows and its predictions, int[tested]."""
    weights = os.path.basename(config.weights)
    name = os.path.basename(os.path.abspath(data.name)) if data.files else data.name

    def curves() -> Any:
        from jaxlab.figures.curves import draw_curves
        from jaxlab.figures.figure import shown

        title = (
            f"{config.model} on {shown(name)}, {shown(weights)} weights, seed "
            f"{config.seed}"
        )
        return draw_curves(rows, title)

    def confusion() -> Any:
        from jaxlab.figures.confusion import draw_confusion
        from jaxlab.figures.figure import shown

        tested = accuracy_text(rows[-1]["test_accuracy"], len(data.test))
        title = f"{shown(name)}\ntest {tested}"
        return draw_confusion(data.test.labels, predictions, data.class_names, title)

    draws = {run_folder.CURVES: curves, run_folder.CONFUSION: confusion}
    for file in names:
        writer.draw(file, draws[file])


def draw_lab(writer: RunWriter, results: Mapping[str, Any], title: str) -> None:
    """Draw the figure of the lab from the "variants" of its results."""

    def variants() -> Any:
        from jaxlab.figures.curves import draw_variants

        return draw_variants(results, title)

    remedy = "to draw it, run again with --overwrite"
    writer.draw(run_folder.OVERFIT, variants, remedy)
