"""An epoch of the command, from the second on, beside the same epoch in PyTorch.

    python -m benchmarks.finetune_epoch

The default job's 4,000 digits trained on once and the 1,000 tested: with the
convolutions frozen, with all but the head frozen, and (on a fourth of the images) with
nothing frozen. Ours has the features of frozen layers already, as from the second epoch
on, or the second run. PyTorch's has its DataLoader with the transforms, at its best of
0 and 1 further processes. Its fused Adam is fast, and not what one gets unasked: with
the convolutions frozen, where it matters most, the plain one is a row of its own.
"""

import argparse
from typing import Any

from benchmarks.harness.pairs import compare
from benchmarks.harness.sides import describe, side, torch_at_its_best

BATCH = 64
WHOLE = {"train_size": 4000, "test_size": 1000}
# Whole batches of a fourth: a last one of 40 images would cost ours another 24, which
# the whole job has once in 63 batches.
FOURTH = {"train_size": 960, "test_size": 200}
JOBS = {
    "features": {"freeze": "features", **WHOLE},
    "features, plain Adam": {"freeze": "features", "plain_adam": True, **WHOLE},
    "backbone": {"freeze": "backbone", **WHOLE},
    "none": {"freeze": "none", **FOURTH},
}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print, and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--jobs", choices=JOBS, nargs="*", default=list(JOBS))
    options = parser.parse_args(argv)
    results = []
    for name in options.jobs:
        job = {"job": "epoch", "batch": BATCH, **JOBS[name]}
        way = torch_at_its_best(**job)
        job.pop("plain_adam", None)
        with (
            side(who="torch", **job, **way) as theirs,
            side(who="ours", **job) as ours,
        ):
            results.append(
                compare(
                    f"finetune_epoch/{name}",
                    ours,
                    theirs,
                    pairs=options.pairs,
                    images=job["train_size"],
                    torch_way=describe(way),
                )
            )
    return results


if __name__ == "__main__":
    main()
