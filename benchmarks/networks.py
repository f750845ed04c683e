"""Compare other networks with PyTorch: forward pass, training step and frozen epoch.

    python -m benchmarks.networks [--names NAME …]

As `forward`, `train_step` and `finetune_epoch` do for AlexNet, in float32 on a CPU,
with a small batch. PyTorch runs in its faster memory layout, with its faster Adam, and
compiled if that is faster. In the frozen epoch all but torchvision's last child is
frozen, in evaluation mode, the images are the first digits, at 224×224 pixels, and
PyTorch runs eagerly. Ours is an epoch with stored features; computing them is not
included. A last row for each network is the time that the first training step takes to
compile, in an empty cache.
"""

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks.harness.pairs import compare, published, worker
from benchmarks.harness.sides import describe, fastest, side, torch_at_its_best

BATCHES = {"resnet18": 16, "resnet50": 16, "vgg16": 8, "mobilenet_v2": 16}
JOBS = ("forward", "step", "epoch", "compile")
EPOCH = {"train_size": 256, "test_size": 64}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--names", nargs="*", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(argv)
    results = []
    for name in options.names:
        for job in options.jobs:
            if job == "epoch":
                results.append(frozen_epoch(name, options.pairs))
            elif job == "compile":
                results.append(compiling(name, options.pairs))
            else:
                results.append(measured(name, job, options.pairs, options.eager))
    return results


def measured(name: str, job: str, pairs: int, eager: bool) -> dict[str, Any]:
    """Compare a forward pass or a step, and a step also with one that is alone.

    Our training steps are a loop in one program; see `benchmarks.loop`.
    """
    task = {"network": name, "batch": BATCHES[name]}
    way = torch_at_its_best(eager=True, job=job, **task)
    if not eager:
        way = fastest(
            {**task, "who": "torch", "job": job}, [way, {**way, "compiled": True}]
        )
    about = describe(way)
    if job == "step":
        about += f"; our step in the loop takes {in_a_loop(task, pairs)}"
    with (
        side(who="torch", job=job, **task, **way) as theirs,
        side(who="ours", job=job, **task) as ours,
    ):
        return compare(
            f"networks/{name}/{job}, batch {BATCHES[name]}",
            ours,
            theirs,
            pairs=pairs,
            images=BATCHES[name],
            torch_way=about,
        )


def in_a_loop(task: dict[str, Any], pairs: int) -> str:
    """Return how many times as long a step takes in the loop as alone, as a text."""
    with (
        side(who="ours", job="step", **task) as loop,
        side(who="ours", job="single", **task) as alone,
    ):
        loop(), alone()
        times = sorted(loop() / alone() for _ in range(pairs))
    middle = statistics.median(times)
    return f"{middle:.2f} times ({times[0]:.2f}–{times[-1]:.2f}) as long as alone"


def frozen_epoch(name: str, pairs: int) -> dict[str, Any]:
    """Compare an epoch and a test in which torchvision's last child is trained."""
    task = {"network": name, "job": "epoch", "freeze": "features", "batch": 64, **EPOCH}
    way = {"channels_last": True, "compiled": False, "fused": True}
    with (
        side(who="torch", **task, **way) as theirs,
        side(who="ours", **task) as ours,
    ):
        return compare(
            f"networks/{name}/frozen epoch",
            ours,
            theirs,
            pairs=min(pairs, 3),
            images=EPOCH["train_size"],
            torch_way=f"{describe(way)}, eager",
        )


def compiling(name: str, times: int) -> dict[str, Any]:
    """Return the median seconds that a network's first training step compiles."""
    seconds = []
    for _ in range(min(times, 3)):
        with (
            tempfile.TemporaryDirectory() as home,
            worker(
                "benchmarks.harness.sides",
                who="ours",
                job="compile",
                network=name,
                batch=BATCHES[name],
                home=home,
            ) as measure,
        ):
            seconds.append(measure())
            print(f"{name}: compiling the step takes {seconds[-1]:.1f} s", flush=True)
    return published(
        {
            "name": f"networks/{name}/compiling the step",
            "unit": "s",
            "ours": round(statistics.median(seconds), 1),
            "torch": 0.0,
            "torch_way": "eager: nothing to compile",
        }
    )


if __name__ == "__main__":
    main()
