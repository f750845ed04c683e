"""The figures of a run: its curves, its confusion matrix and its mistakes.

matplotlib is imported where a figure is drawn, so that a broken installation or
configuration of it costs the figure only.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.config import Resolved
from jaxlab.metrics import accuracy_text
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.runs import folder as run_folder
from jaxlab.runs.writer import RunWriter

if TYPE_CHECKING:
    from jaxlab.figures.figure import Figure


def draw(
    writer: RunWriter,
    config: Resolved,
    data: Any,
    preprocess: Any,
    rows: Sequence[Mapping[str, float]],
    predictions: Any,
    names: Sequence[str] = run_folder.PICTURES,
) -> None:
    """Draw the named figures from the run's rows and its test `Predictions`."""
    draws = {
        run_folder.CURVES: functools.partial(curves, config, data, rows),
        run_folder.CONFUSION: functools.partial(_confusion, data, rows, predictions),
        run_folder.MISTAKES: functools.partial(
            _mistakes, data, preprocess, rows, predictions
        ),
    }
    for file in names:
        writer.draw(file, draws[file])


def curves(
    config: Resolved, data: Any, rows: Sequence[Mapping[str, float]]
) -> "Figure":
    """Return the figure of the epochs so far."""
    from jaxlab.figures.curves import draw_curves, training_label
    from jaxlab.figures.figure import shown

    title = (
        f"{config.model} on {_name(data)}, {shown(os.path.basename(config.weights))} "
        f"weights, seed {config.seed}"
    )
    label = training_label(ARCHITECTURES[config.model].has_dropout)
    return draw_curves(rows, title, label)


def _confusion(
    data: Any, rows: Sequence[Mapping[str, float]], predictions: Any
) -> "Figure":
    from jaxlab.figures.confusion import draw_confusion

    labels, classes = data.test.labels, predictions.classes
    return draw_confusion(labels, classes, data.class_names, _title(data, rows))


def _mistakes(
    data: Any, preprocess: Any, rows: Sequence[Mapping[str, float]], predictions: Any
) -> "Figure":
    """Return the wrong predictions of the test split, the most confident ones first."""
    from jaxlab.figures.images import MOST_MISTAKES, draw_mistakes, draw_sentence
    from pretrained.errors import counted

    labels, tested = data.test.labels, counted(len(data.test), "test image")
    wrong = np.flatnonzero(predictions.classes != labels)
    title = _title(data, rows)
    if not len(wrong):
        return draw_sentence(f"No mistake was made on {tested}.", title)
    confident = np.argsort(-predictions.probabilities[wrong], kind="stable")
    chosen = wrong[confident[:MOST_MISTAKES]]
    shown = f"{len(chosen)} of " if len(chosen) < len(wrong) else ""
    what = f"{shown}{counted(len(wrong), 'mistake')} on {tested}"
    if len(wrong) > 1:
        what += ", the most confident first"
    return draw_mistakes(
        _seen(data, preprocess, chosen),
        [data.class_names[i] for i in predictions.classes[chosen]],
        predictions.probabilities[chosen].tolist(),
        [data.class_names[i] for i in labels[chosen]],
        f"{title}\n{what}",
    )


def _seen(data: Any, preprocess: Any, indices: np.ndarray) -> np.ndarray:
    """Return test images as the network saw them, without the normalisation.

    They are uint8[k, image_size, image_size, 3].
    """
    from jaxlab.data.loaders import Streamed
    from jaxlab.data.pictures import Pictures

    split = data.test.take(indices)
    if isinstance(split.images, Pictures):
        load = Streamed(split.images, split.labels, preprocess, 0)
        (batch,) = load(np.arange(len(split)), len(split))
        return np.asarray(batch.inputs)
    if data.resized:
        return split.images
    return preprocess.pixels(preprocess(split.images))


def _title(data: Any, rows: Sequence[Mapping[str, float]]) -> str:
    tested = accuracy_text(rows[-1]["test_accuracy"], len(data.test))
    return f"{_name(data)}\ntest {tested}"


def _name(data: Any) -> str:
    from jaxlab.figures.figure import shown

    is_folder = bool(data.files)
    return shown(
        os.path.basename(os.path.abspath(data.name)) if is_folder else data.name
    )


_AGAIN = "to draw it, run again with --overwrite"  # the lab and the comparison


def draw_lab(writer: RunWriter, results: Mapping[str, Any], title: str) -> None:
    """Draw the figure of the lab from the "variants" of its results."""

    def variants() -> Any:
        from jaxlab.figures.variants import draw_variants

        return draw_variants(results, title)

    writer.draw(run_folder.OVERFIT, variants, _AGAIN)


def draw_comparison(writer: RunWriter, networks: Mapping[str, Any], title: str) -> None:
    """Draw the figure of a comparison from the "networks" of its results."""

    def comparison() -> Any:
        from jaxlab.figures import comparison

        return comparison.draw_comparison(networks, title)

    writer.draw(run_folder.COMPARE, comparison, _AGAIN)
