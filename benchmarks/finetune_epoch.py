"""Compare an epoch of fine-tuning, from the second on, with PyTorch's.

    python -m benchmarks.finetune_epoch

An epoch trains on the default job's 4,000 digits once and tests on its 1,000: with the
convolutions frozen, with all layers but the head frozen, and (on a fourth of the
images) with nothing frozen. Ours already has the stored outputs of the frozen layers,
as in every epoch but the first of a first run. PyTorch's side uses its DataLoader with
the transforms, and the faster of 0 and 1 worker processes. Its fused Adam is fast, but
not the default: with the convolutions frozen, where Adam matters most, a further row
has the plain one.
"""

import argparse
from typing import Any

from benchmarks.harness.pairs import compare
from benchmarks.harness.sides import describe, side, torch_at_its_best

BATCH = 64
WHOLE = {"train_size": 4000, "test_size": 1000}
# A fourth, in full batches: ours would pad a last batch of 40 images with 24 more, but
# the full job has one padded batch in 63.
FOURTH = {"train_size": 960, "test_size": 200}
JOBS = {
    "features": {"freeze": "features", **WHOLE},
    "features, plain Adam": {"freeze": "features", "plain_adam": True, **WHOLE},
    "backbone": {"freeze": "backbone", **WHOLE},
    "none": {"freeze": "none", **FOURTH},
}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
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
