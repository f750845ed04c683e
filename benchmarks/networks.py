"""Compare other networks' forward passes and training steps with PyTorch's.

    python -m benchmarks.networks [--names NAME …]

As `forward` and `train_step` do for AlexNet, in float32 on a CPU, with a small batch.
PyTorch's side runs eagerly in its faster memory layout, with its faster Adam; compiling
it takes minutes for each network (`--compiled` tries that too). A last row for each
network is the time that the first training step takes to compile, in an empty cache.
"""

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks.harness.pairs import compare, published, worker
from benchmarks.harness.sides import describe, side, torch_at_its_best

BATCHES = {"resnet18": 16, "resnet50": 16, "vgg16": 8, "mobilenet_v2": 16}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--names", nargs="*", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--compiled", action="store_true", help="try torch.compile")
    options = parser.parse_args(argv)
    results = []
    for name in options.names:
        task = {"network": name, "batch": BATCHES[name]}
        for job in ("forward", "step"):
            way = torch_at_its_best(eager=not options.compiled, job=job, **task)
            with (
                side(who="torch", job=job, **task, **way) as theirs,
                side(who="ours", job=job, **task) as ours,
            ):
                results.append(
                    compare(
                        f"networks/{name}/{job}, batch {BATCHES[name]}",
                        ours,
                        theirs,
                        pairs=options.pairs,
                        images=BATCHES[name],
                        torch_way=describe(way),
                    )
                )
        results.append(compiling(name, options.pairs))
    return results


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
