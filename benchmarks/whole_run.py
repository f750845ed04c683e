"""Compare the entire default run, from process start to end, with PyTorch's.

    python -m benchmarks.whole_run

Three runs of five epochs take turns: `python -m jaxlab.finetune` with an empty cache
folder, the same command again, and `python -m benchmarks.harness.peers`, eager, with
its fastest memory layout, Adam and loader. Ours also writes checkpoints, weights,
and pictures; PyTorch's side writes its weights. All runs of ours must
write byte-identical weights.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.harness.pairs import published, summary
from benchmarks.harness.sides import describe, torch_at_its_best


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(argv)
    # Eager, because compiling takes longer than it saves in five epochs.
    way = torch_at_its_best(job="epoch", freeze="features", eager=True)
    flags = ["--workers", str(way["workers"])]
    flags += ["--channels-last"] if way["channels_last"] else []
    flags += ["--fused"] if way["fused"] else []
    rows, weights = [], set()
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            out = ["--overwrite", "--out", f"{folder}/run"]
            runs = []
            for _ in range(2):
                runs.append(run("jaxlab.finetune", *out, JAXLAB_HOME=f"{folder}/home"))
                with open(f"{folder}/run/model.safetensors", "rb") as file:
                    weights.add(hashlib.file_digest(file, "sha256").hexdigest())
        first, second = runs
        theirs = run("benchmarks.harness.peers", *flags)
        rows.append((first, second, theirs))
        print(
            f"{pair:>3}  first {first[0]:.1f} s, second {second[0]:.1f} s, torch "
            f"{theirs[0]:.1f} s: {theirs[0] / first[0]:.2f}×, "
            f"{theirs[0] / second[0]:.2f}×",
            flush=True,
        )
    if len(weights) > 1:
        raise RuntimeError(
            f"model.safetensors: runs of ours wrote {len(weights)} different files"
        )
    print(f"all {2 * len(rows)} runs of ours wrote the same weights", flush=True)
    return [
        *(
            summary(
                f"whole_run/{name}",
                [(row[place][0], row[2][0]) for row in rows],
                torch_way=describe(way),
            )
            for place, name in enumerate(("first", "second"))
        ),
        published(
            {
                "name": "whole_run/peak memory",
                "unit": "MB",
                "ours": max(row[0][1] for row in rows),
                "torch": max(row[2][1] for row in rows),
            }
        ),
    ]


def run(module: str, *flags: str, **environment: str) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{module}: failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss >> 10


if __name__ == "__main__":
    main()
