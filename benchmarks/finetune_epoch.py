"""An epoch of the command, from the second on, beside the same epoch in PyTorch.

    python -m benchmarks.finetune_epoch

The default job's 4,000 digits trained on once and the 1,000 tested: with the
convolutions frozen, with all but the head frozen, and (on a fourth of the images) with
nothing frozen. Ours has the features of frozen layers already, as from the second epoch
on, or the second run. PyTorch's has its DataLoader with the transforms, at its best of
0 and 1 further processes.
"""

import argparse
from typing import Any

from benchmarks.alexnet import in_words, side, torch_at_its_best
from benchmarks.pairs import compare
from jaxlab.finetune import FREEZE

BATCH = 64
WHOLE = {"train_size": 4000, "test_size": 1000}
# A fourth, in whole batches: a last one of 40 images would cost ours another 24.
SIZES = {"features": WHOLE, "backbone": WHOLE}
SIZES |= {"none": {"train_size": 960, "test_size": 200}}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print, and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--freeze", choices=FREEZE, nargs="*", default=list(FREEZE))
    options = parser.parse_args(argv)
    results = []
    for freeze in options.freeze:
        sizes = SIZES[freeze]
        job = {"job": "epoch", "freeze": freeze, "batch": BATCH, **sizes}
        way = torch_at_its_best(**job)
        with (
            side(who="torch", **job, **way) as theirs,
            side(who="ours", **job) as ours,
        ):
            results.append(
                compare(
                    f"finetune_epoch/{freeze}",
                    ours,
                    theirs,
                    pairs=options.pairs,
                    images=sizes["train_size"],
                    torch_way=in_words(way),
                )
            )
    return results


if __name__ == "__main__":
    main()
