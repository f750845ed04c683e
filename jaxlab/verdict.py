"""Whether a network under-fits or over-fits, by one rule for its curves."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FITTED = 0.95  # training accuracy from which the network has learned its images
GAP = 0.05  # between the accuracies
RISE = 0.10  # of the test loss above its minimum; below that it is mostly noise

RULE = (
    f"over-fits: a mean training accuracy of at least {FITTED:.0%} and more than "
    f"{100 * GAP:.0f} points above the mean test accuracy, or a mean test loss more "
    f"than {RISE:.0%} above its minimum while the training loss fell; under-fits: "
    f"otherwise, a mean training accuracy below {FITTED:.0%}; balanced: all other "
    "cases"
).replace("%", " %")


class Verdict(NamedTuple):
    """What RULE says of the means over seeds, and where the test loss was lowest.

    `lowest` is the least mean test loss, in nats, and `epoch` its epoch, from 1 on.
    `has_risen` is whether the test loss ended clearly above it.
    """

    word: str  # "over-fits", "under-fits" or "balanced"
    lowest: float
    epoch: int
    has_risen: bool


def verdict(curves: Mapping[str, ArrayLike]) -> Verdict:
    """Return the verdict on curves [seeds, epochs]: loss and accuracy of both splits.

    >>> curves = {"train_accuracy": [[0.9, 1.0]], "test_accuracy": [[0.8, 0.98]]}
    >>> curves |= {"train_loss": [[0.3, 0.1]], "test_loss": [[0.4, 0.6]]}
    >>> verdict(curves).word, verdict(curves).epoch
    ('over-fits', 1)
    """
    means = {key: np.asarray(values).mean(axis=0) for key, values in curves.items()}
    last = {key: float(values[-1]) for key, values in means.items()}
    # The loss of a training run that diverged is NaN, which is no minimum.
    losses = np.nan_to_num(means["test_loss"], nan=np.inf)
    at = int(np.argmin(losses))
    lowest = float(losses[at])
    # If the training loss has risen as well, training diverges: no over-fitting.
    has_risen = (
        last["test_loss"] > (1 + RISE) * lowest
        and last["train_loss"] < means["train_loss"][at]
    )
    train, test = last["train_accuracy"], last["test_accuracy"]
    if has_risen or (train >= FITTED and train - test > GAP):
        word = "over-fits"
    else:
        word = "under-fits" if train < FITTED else "balanced"
    return Verdict(word, lowest, at + 1, bool(has_risen))
