"""Text tables of a network's layers and of the variants in `jaxlab.overfit`."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def layer_table(params: Any, trainable: Any, origins: Mapping[str, str]) -> str:
    """Return a table with one line per layer, and a last line with the totals.

    The columns are the name, the shape of the kernel, the number of parameters, whether
    they are trained, and the origin of the weights. `trainable` is a tree of bool like
    `params`; `origins` maps each layer to the origin of its weights.
    """
    lines = [f"{'layer':<8}{'kernel':<18}{'parameters':>12}  {'state':<11}weights"]
    totals = {True: 0, False: 0}
    for layer, leaves in params.items():
        count = sum(np.size(value) for value in leaves.values())
        # Leaves of a layer may differ; it counts as frozen only if all of them are.
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


VARIANT_HEADER = (
    f"{'variant':<22}{'train acc %':>13}{'test acc %':>13}{'gap':>6}"
    f"{'train loss':>16}{'test loss':>16}{'100 % at':>10}{'s':>7}  verdict"
)


def variant_line(name: str, result: Mapping[str, Any]) -> str:
    """Return a variant's row of the table: mean ± standard deviation over seeds.

    One seed has no deviation, and its values stand alone.
    """
    curves = {key: np.array(values) for key, values in result["curves"].items()}

    def final(key, scale, digits):
        values = scale * curves[key][:, -1]
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{deviation}"

    perfect = curves["train_accuracy"] == 1
    # Each seed's first epoch with a training accuracy of 100 %, if there is one.
    reached = perfect.argmax(axis=1)[perfect.any(axis=1)] + 1
    at = f"{reached.mean():.0f}" if len(reached) == len(perfect) else "-"
    return (
        f"{name:<22}{final('train_accuracy', 100, 1):>13}"
        f"{final('test_accuracy', 100, 1):>13}{accuracy_gap(result):>6.1f}"
        f"{final('train_loss', 1, 3):>16}{final('test_loss', 1, 3):>16}"
        f"{at:>10}{result['seconds']:>7.1f}  {result['verdict']}"
    )


def accuracy_gap(result: Mapping[str, Any]) -> float:
    """Return mean training minus mean test accuracy after the last epoch, in points."""
    train, test = (
        np.array(result["curves"][f"{split}_accuracy"])[:, -1].mean()
        for split in ("train", "test")
    )
    return 100 * float(train - test)
