"""Measure the test accuracy of the default fine-tuning run for several seeds.

    python -m benchmarks.accuracy --mnist-test FOLDER

Runs `python -m jaxlab.finetune` once per seed and prints the accuracy on its 1,000
held-out digits, the wall time and the peak memory of the process. If FOLDER contains
MNIST's own t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, it also prints the
accuracy on these 10,000 images, on which nothing was tuned. The last line is JSON.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxlab import AlexNet, Preprocess, make_eval_step, runtime
from jaxlab.data.loaders import InMemory
from jaxlab.training.epoch import evaluate_split
from jaxlab.training.step import TrainState
from pretrained import to_flax


def main() -> None:
    """Run the job with each seed, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--mnist-test", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    test = read_mnist_test(arguments.mnist_test) if arguments.mnist_test else None

    print(f"{'seed':>4}{'held out':>10}{'MNIST test':>12}{'seconds':>9}{'peak GB':>9}")
    rows = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            row = run(seed, Path(folder))
            row["mnist_test"] = on_mnist_test(Path(folder), *test) if test else None
        rows.append(row)
        on_test = f"{row['mnist_test']:.4f}" if test else "-"
        print(
            f"{seed:>4}{row['held_out']:>10.4f}{on_test:>12}"
            f"{row['seconds']:>9.0f}{row['peak_gb']:>9.2f}",
            flush=True,
        )
    held_out = [row["held_out"] for row in rows]
    print(f"mean{np.mean(held_out):>10.4f}")
    device = runtime.device_name()
    print(json.dumps({"name": "accuracy", "device": device, "rows": rows}))


def run(seed: int, folder: Path) -> dict[str, float]:
    """Run the default job in a new process; return its accuracy, seconds and memory."""
    command = [sys.executable, "-m", "jaxlab.finetune", "--seed", str(seed)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.PIPE, text=True
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: seed {seed}: the run failed; see the error above")
    last = output.splitlines()[-1].split()[0]
    return {
        "seed": seed,
        "held_out": float(last.removeprefix("test_accuracy=")),
        "seconds": time.perf_counter() - started,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,  # Linux reports KiB
    }


def read_mnist_test(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read MNIST's test files: images uint8[10000, 28, 28, 1], labels int32[10000]."""
    # An IDX header is 4 bytes for dtype and rank, then 4 bytes for each dimension.
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1),
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int32),
    )


def on_mnist_test(folder: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of the model of a run on the given images."""
    preprocess, model = Preprocess(), AlexNet(10)
    params = to_flax(load_file(folder / "model.safetensors"))

    def apply_fn(variables, images, **kwargs):
        return model.apply(variables, preprocess(images), **kwargs)

    state = TrainState(params, batch_stats={}, opt_state=(), step=jnp.int32(0))
    score, _ = evaluate_split(
        make_eval_step(apply_fn),
        state,
        InMemory(jnp.asarray(images), jnp.asarray(labels)),
        count=len(labels),
        batch_size=100,
    )
    return score.accuracy


if __name__ == "__main__":
    main()
