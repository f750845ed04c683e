"""What metrics say: the best epoch, the end of patience, how sure an accuracy is."""

import math
from collections.abc import Mapping, Sequence

Row = dict[str, float]  # the metrics of an epoch, a line of metrics.jsonl
FEW = 1000  # with fewer images, the interval of an accuracy is over 3 points wide


def best_epoch(rows: Sequence[Mapping[str, float]]) -> int | None:
    """Return the number of the epoch with the lowest validation loss.

    Of equal losses the latest one counts. None without rows, or if they have no
    `validation_loss`: then no epoch is chosen.

    >>> best_epoch([{"epoch": 1, "validation_loss": 0.5}])
    1
    """
    best = None
    for row in rows:
        if "validation_loss" not in row:
            return None
        if best is None or row["validation_loss"] <= best["validation_loss"]:
            best = row
    return None if best is None else int(best["epoch"])


def patience_ended(rows: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Return whether the last `patience` epochs were all worse than the best one.

    False for a patience of None.

    >>> losses = [0.5, 0.6, 0.7]
    >>> rows = [{"epoch": i, "validation_loss": x} for i, x in enumerate(losses, 1)]
    >>> patience_ended(rows, 2), patience_ended(rows, 3)
    (True, False)
    """
    best = best_epoch(rows)
    if patience is None or best is None:
        return False
    return rows[-1]["epoch"] - best >= patience


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share, both ends in [0, 1].

    >>> [round(end, 3) for end in wilson_interval(57, 58)]
    [0.909, 0.997]
    """
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    share, scale = correct / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_text(accuracy: float, count: int, *, aligned: bool = False) -> str:
    """Return an accuracy; where it was measured on few images, with what it is worth.

    If `aligned`, texts of the same `count` have the same length.

    >>> accuracy_text(57 / 58, 58)
    'accuracy 0.9828 (57 of 58; 90.9–99.7 %)'
    >>> accuracy_text(0.9853, 10_000)
    'accuracy 0.9853'
    """
    text = f"accuracy {accuracy:.4f}"
    if count >= FEW or count < 1:  # a run of before says nothing of their number
        return text
    correct = round(accuracy * count)
    low, high = (100 * end for end in wilson_interval(correct, count))
    width = len(str(count)) if aligned else 0
    of = f"{text} ({correct:>{width}} of {count}; "
    longest = len(f"{of}99.9–100.0 %)") if aligned else 0
    return f"{of}{low:.1f}–{high:.1f} %)".ljust(longest)
