"""How much a checkpoint holds up the training beside it.

    python -m benchmarks.saving

The default job with a checkpoint after every second epoch: each epoch beside which one
is written, and the one before, beside which none is. An epoch's seconds are those of
metrics.jsonl: they begin before the state is copied, and end after the test.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.pairs import published


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print, and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args(argv)
    from jaxlab import finetune
    from jaxlab.runs.folder import read_metrics

    # Nothing is written beside the first epoch, which warms up.
    epochs = 1 + 2 * options.pairs
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--out", f"{folder}/run", "--checkpoint-every", "2"]
        with contextlib.redirect_stdout(sys.stderr):
            finetune.main([*flags, "--epochs", str(epochs)])
        entries = read_metrics(Path(folder) / "run")
    seconds = [entry["seconds"] for entry in entries[1:]]
    without, beside = seconds[::2], seconds[1::2]
    shares = [slow / fast - 1 for fast, slow in zip(without, beside, strict=True)]
    share = statistics.median(beside) / statistics.median(without) - 1
    return published(
        {
            "name": "saving",
            "unit": "s",
            "beside": round(statistics.median(beside), 3),
            "without": round(statistics.median(without), 3),
            "longer": round(share, 4),
            "range": [round(min(shares), 4), round(max(shares), 4)],
            "pairs": options.pairs,
        }
    )


if __name__ == "__main__":
    main()
