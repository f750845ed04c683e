"""The figures of a finished run: its curves and its confusion matrix."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.config import Resolved
from jaxlab.figures.confusion import draw_confusion
from jaxlab.figures.curves import draw_curves
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
    tested = accuracy_text(rows[-1]["test_accuracy"], len(data.test))
    draws = {
        run_folder.CURVES: lambda: draw_curves(
            rows,
            f"{config.model} on {data.name}, {weights} weights, seed {config.seed}",
        ),
        run_folder.CONFUSION: lambda: draw_confusion(
            data.test.labels,
            predictions,
            data.class_names,
            f"{data.name}: test {tested}",
        ),
    }
    for name in names:
        writer.draw(name, draws[name])
