"""Compare the entire regularisation lab with the same lab written in PyTorch.

    python -m benchmarks.overfit

Both sides run 8 variants × 10 seeds × 40 epochs. Each run is a new process, timed from
start to end, including imports and (for ours) compilation. The sides run in turn: ours,
torch, ours, …. PyTorch's side is a loop over variants and seeds, as its users write it,
with data in memory. The last line is JSON; ratios above 1 mean that ours is faster.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.overfit import VARIANTS, Config, Variant


def main() -> None:
    """Run the pairs and print the table; with --torch, run only PyTorch's side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=Config.seeds)
    parser.add_argument("--torch", action="store_true", help="run only PyTorch's side")
    arguments = parser.parse_args()
    if arguments.torch:
        return print(json.dumps(torch_lab(arguments.seeds)))

    print(
        f"{'pair':>4}{'ours s':>9}{'compile s':>11}{'torch s':>9}{'ratio':>7}{'run':>7}"
    )
    rows = []
    for pair in range(arguments.pairs):
        ours, compiling, ours_accuracy = run_ours(arguments.seeds)
        theirs, theirs_accuracy = run_torch(arguments.seeds)
        row = {
            "ours": ours,
            "compile": compiling,
            "torch": theirs,
            "ratio": theirs / ours,
            "ratio_without_compile": theirs / (ours - compiling),
        }
        rows.append(row)
        print(
            f"{pair:>4}{ours:>9.1f}{compiling:>11.1f}{theirs:>9.1f}"
            f"{row['ratio']:>7.2f}{row['ratio_without_compile']:>7.2f}",
            flush=True,
        )
    print("\ntest accuracy of the last pair, mean over seeds (ours, torch):")
    for name in VARIANTS:
        print(f"{name:<22}{ours_accuracy[name]:.3f}  {theirs_accuracy[name]:.3f}")
    print(json.dumps({"name": "overfit", **summary(rows)}))


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Return the median of each column and the range of each ratio."""
    result = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    for key in ("ratio", "ratio_without_compile"):
        values = [row[key] for row in rows]
        result[f"{key}_range"] = [min(values), max(values)]
    return result


def run_ours(seeds: int) -> tuple[float, float, dict[str, float]]:
    """Run ours; return seconds, seconds of compilation, test accuracy by variant."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["jaxlab.overfit", "--seeds", str(seeds), "--out", folder]
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "JAXLAB_HOME": f"{folder}/home"},  # an empty cache
        )
        seconds = time.perf_counter() - started
        results = json.loads((Path(folder) / "results.json").read_text())["variants"]
    accuracy = {
        name: float(np.mean([c[-1] for c in result["curves"]["test_accuracy"]]))
        for name, result in results.items()
    }
    compiling = sum(result["compile_seconds"] for result in results.values())
    return seconds, compiling, accuracy


def run_torch(seeds: int) -> tuple[float, dict[str, float]]:
    """Run PyTorch's side; return seconds and test accuracy by variant."""
    command = ["benchmarks.overfit", "--torch", "--seeds", str(seeds)]
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", *command], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, json.loads(process.stdout)


def torch_lab(seeds: int) -> dict[str, float]:
    """Run the lab in PyTorch; return the mean test accuracy by variant."""
    import torch

    from jaxlab.data.digits import mnist5k

    config = Config()
    data = mnist5k().first(config.train_size, config.test_size)
    splits = {
        name: (
            torch.from_numpy(split.images).float().div(255).flatten(1),
            torch.from_numpy(split.labels).long(),
        )
        for name, split in data.splits.items()
    }
    return {
        name: float(
            np.mean([torch_train(variant, config, splits, i) for i in range(seeds)])
        )
        for name, variant in VARIANTS.items()
    }


def torch_model(variant: Variant, config: Config) -> Any:
    """Return a variant's network in PyTorch."""
    from torch import nn

    normalization = [nn.BatchNorm1d(512)] if variant.batch_norm else []
    dropout = [nn.Dropout(config.dropout_rate)] if variant.dropout else []
    return nn.Sequential(
        nn.Linear(784, 512),
        *normalization,
        nn.ReLU(),
        *dropout,
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def torch_train(variant: Variant, config: Config, splits: Any, seed: int) -> float:
    """Train a variant as PyTorch's users write it; return its final test accuracy."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    images, labels = splits["train"]
    model = torch_model(variant, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    step_size = config.lr_step if variant.step_decay else config.epochs
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size, config.lr_gamma)
    curves = []
    for _ in range(config.epochs):
        model.train()
        for indices in torch.randperm(len(labels)).split(config.batch_size):
            loss = cross_entropy(model(images[indices]), labels[indices])
            if variant.l1:
                weights = model.parameters()
                loss = loss + config.l1 * sum(w.abs().sum() for w in weights)
            if variant.l2:
                weights = model.parameters()
                loss = loss + config.l2 * sum(w.square().sum() for w in weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            point = {}
            for name, (inputs, targets) in splits.items():
                logits = model(inputs)
                right = (logits.argmax(1) == targets).float().mean().item()
                point[name] = (cross_entropy(logits, targets).item(), right)
        curves.append(point)
    return curves[-1]["test"][1]


if __name__ == "__main__":
    main()
