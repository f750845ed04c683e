"""Text tables: a network's layers, the variants of the lab, compared networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def layer_table(
    params: Any,
    trainable: Any,
    origins: Mapping[str, str],
    layers: Sequence[str] | None = None,
) -> str:
    """Return a table with one line per layer, and a last line with the totals.

    The columns are the name, the shape of the kernel, the number of parameters, whether
    they are trained, and the origin of the weights. `trainable` is a tree of bool like
    `params`; `origins` maps each child of the params to the origin of its weights. The
    `layers` are paths such as "layer1/0/conv1", in the order of the lines; by default
    they are the children, in the order of `origins`. One that consists of several
    layers has their number instead of a shape.
    """
    paths = [tuple(name.split("/")) for name in layers or origins]
    width = max(8, *(len("/".join(path)) + 2 for path in paths))
    lines = [
        f"{'layer':<{width}}{'kernel':<18}{'parameters':>12}  {'state':<11}weights"
    ]
    totals = {True: 0, False: 0}
    for path in paths:
        tree, is_trained = _at(params, path), _leaves(_at(trainable, path))
        counts = list(map(np.size, _leaves(tree)))
        for count, trained in zip(counts, is_trained, strict=True):
            totals[trained] += count
        # Leaves of a layer may differ; it counts as frozen only if all of them are.
        state = "trainable" if any(is_trained) else "frozen"
        lines.append(
            f"{'/'.join(path):<{width}}{_shape(tree):<18}{sum(counts):>12,}  "
            f"{state:<11}{origins[path[0]]}"
        )
    lines.append(
        f"{'total':<{width + 18}}{sum(totals.values()):>12,}  "
        f"{totals[True]:,} trainable, {totals[False]:,} frozen"
    )
    return "\n".join(lines)


def _shape(tree: Any) -> str:
    """Return the shape of a layer's kernel, or the number of layers in a child."""
    if any(isinstance(below, Mapping) for below in tree.values()):
        return f"{_count(tree)} layers"
    return "×".join(map(str, tree["kernel"].shape)) if "kernel" in tree else ""


def _count(tree: Any) -> int:
    """Return the number of dicts of arrays in a tree of dicts."""
    below = [_count(value) for value in tree.values() if isinstance(value, Mapping)]
    return sum(below) if below else 1


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree of dicts, in the order of the sorted names."""
    if not isinstance(tree, Mapping):
        return [tree]
    return [leaf for name in sorted(tree) for leaf in _leaves(tree[name])]


# The columns of the lab's table behind the name, and their widths.
_COLUMNS = {
    "train acc %": 13,
    "test acc %": 13,
    "gap": 6,
    "train loss": 15,
    "test loss": 15,
    "lowest (ep.)": 14,
    "100 % at": 10,
    "s": 6,
}


def variant_header(width: int) -> str:
    """Return the header of the lab's table, with `width` letters for the names."""
    names = "".join(f"{name:>{size}}" for name, size in _COLUMNS.items())
    return f"{'variant':<{width}}{names}  verdict"


def variant_line(name: str, result: Mapping[str, Any], width: int) -> str:
    """Return a variant's row of the table: mean ± standard deviation over seeds.

    One seed has no deviation. `result` is an entry of "variants" in results.json.
    """
    curves = {key: np.array(values) for key, values in result["curves"].items()}

    def final(key, scale, digits):
        values = scale * curves[key][:, -1]
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{deviation}"

    gap = final_mean(result, "train_accuracy") - final_mean(result, "test_accuracy")
    perfect = curves["train_accuracy"] == 1
    # Each seed's first epoch with a training accuracy of 100 %, if there is one.
    reached = perfect.argmax(axis=1)[perfect.any(axis=1)] + 1
    lowest = result["lowest_test_loss"]
    cells = (
        final("train_accuracy", 100, 1),
        final("test_accuracy", 100, 1),
        f"{100 * gap:.1f}",
        final("train_loss", 1, 3),
        final("test_loss", 1, 3),
        f"{lowest['mean']:.3f} ({lowest['epoch']})",
        f"{reached.mean():.0f}" if len(reached) == len(perfect) else "-",
        f"{result['seconds']:.1f}",
    )
    sizes = _COLUMNS.values()
    row = "".join(f"{cell:>{size}}" for cell, size in zip(cells, sizes, strict=True))
    return f"{name:<{width}}{row}  {result['verdict']}"


def risen_line(name: str, result: Mapping[str, Any]) -> str | None:
    """Return from where a variant's test loss has risen; None unless it clearly has."""
    lowest = result["lowest_test_loss"]
    if not lowest["has_risen"]:
        return None
    return (
        f"{name}: the test loss rose from {lowest['mean']:.3f} at epoch "
        f"{lowest['epoch']} to {final_mean(result, 'test_loss'):.3f}"
    )


def final_mean(result: Mapping[str, Any], key: str) -> float:
    """Return the mean over seeds after the last epoch, such as of "test_loss"."""
    return float(np.array(result["curves"][key])[:, -1].mean())


COMPARISON_HEADER = (
    f"{'network':<17}{'trained parameters':>19}{'lr':>8}{'best epoch':>12}"
    f"{'validation acc %':>18}{'test acc %':>13}{'s per run':>11}"
)


def at_best(found: Mapping[str, Any], key: str) -> np.ndarray:
    """Return a metric of each run's best epoch, float64[seeds].

    `found` is an entry of "networks" in results.json, `key` such as "test_accuracy".
    """
    runs = found["runs"]
    return np.array([run["rows"][run["best_epoch"] - 1][key] for run in runs])


def comparison_line(name: str, found: Mapping[str, Any]) -> str:
    """Return a network's row of the table: mean ± standard deviation over seeds."""
    epochs = np.array([run["best_epoch"] for run in found["runs"]])
    least, most = epochs.min(), epochs.max()
    seconds = np.mean([run["seconds"] for run in found["runs"]])
    return (
        f"{name:<17}{found['trained_parameters']:>19,}{found['learning_rate']:>8g}"
        f"{str(least) if least == most else f'{least}–{most}':>12}"
        f"{percent(at_best(found, 'validation_accuracy')):>18}"
        f"{percent(at_best(found, 'test_accuracy')):>13}{seconds:>11.1f}"
    )


def percent(shares: np.ndarray) -> str:
    """Return the mean of some shares in percent; ± their deviation, if several."""
    deviation = f" ± {100 * shares.std():.1f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():.1f}{deviation}"
