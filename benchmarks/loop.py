"""Compare training steps in one program with steps of a program each, and PyTorch's.

    python -m benchmarks.loop

The steps of half a second run as a loop inside one program. Each row trains a network
of two convolutions of one kind, which needs both gradients, on 32 images of 28×28 with
64 channels, or all of AlexNet on 8 images. It shows the milliseconds of a step in the
loop beside PyTorch's (eager, with its faster memory layout), and how many times as long
it takes as a step that is a program of its own. PyTorch's step is always in float32:
many processors have no instructions for bfloat16, and there it is ten times slower.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness.pairs import Measure, serve, summary, worker
from benchmarks.harness.sides import timed

# kernel size, stride, padding and groups
KINDS = {
    "5×5": (5, 1, 2, 1),
    "3×3": (3, 1, 1, 1),
    "1×1": (1, 1, 0, 1),
    "3×3, stride 2": (3, 2, 1, 1),
    "3×3, 8 groups": (3, 1, 1, 8),
    "3×3, depthwise": (3, 1, 1, 64),
}
ALEXNET = "AlexNet"
CHANNELS, SIZE, CLASSES = 64, 28, 10
STEPS = 4  # of each measurement


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(argv)
    return [
        measure(kind, precision, options.pairs)
        for kind in (*KINDS, ALEXNET)
        for precision in ("float32", "bfloat16")
    ]


def measure(kind: str, precision: str, pairs: int) -> dict[str, Any]:
    """Measure the three sides in turn after a warm-up; return the summary."""
    start = functools.partial(worker, "benchmarks.loop", kind=kind, precision=precision)
    with (
        start(who="loop") as loop,
        start(who="single") as single,
        start(who="torch") as torch,
    ):
        sides = (loop, single, torch)
        for side in sides:
            side()
        rows = [[side() for side in sides] for _ in range(pairs)]
    times = [ours / alone for ours, alone, _ in rows]
    middle = statistics.median(times)
    return summary(
        f"loop/{kind}/{precision}",
        [(ours * 1e3, theirs * 1e3) for ours, _, theirs in rows],
        unit="ms",
        single=round(middle, 3),
        torch_way=(
            f"eager; our step in the loop takes {middle:.2f} times "
            f"({min(times):.2f}–{max(times):.2f}) as long as alone"
        ),
    )


def batch_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return random images float32[b, h, w, c] and labels int32[b]."""
    shape = (8, 224, 224, 3) if kind == ALEXNET else (32, SIZE, SIZE, CHANNELS)
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, shape[0]).astype(np.int32)
    return random.standard_normal(shape, np.float32), labels


def ours(kind: str, precision: str, *, alone: bool) -> Measure:
    """Return the measure of our step, in a loop or `alone`, in seconds."""
    from jaxlab import runtime

    runtime.set_up()
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import jaxlab
    from jaxlab.data.loaders import InMemory
    from jaxlab.training.epoch import train_epoch

    dtype = jnp.dtype(precision)

    class TwoConvolutions(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            size, stride, padding, groups = KINDS[kind]
            for _ in range(2):
                x = jaxlab.layers.Conv(
                    *(CHANNELS, CHANNELS, size, stride, padding), dtype, groups
                )(x)
                x = nn.relu(x)
            return jaxlab.layers.Dense(CLASSES, dtype)(x.mean((1, 2)))

    model = TwoConvolutions()
    if kind == ALEXNET:
        model = jaxlab.AlexNet(CLASSES, dtype=dtype)
    images, labels = map(jnp.asarray, batch_of(kind))
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.sgd(1e-3)
    trainable = jax.tree.map(lambda _: True, params)
    step = jaxlab.make_train_step(model.apply, optimizer, trainable)
    state = jaxlab.init_state(params, optimizer)
    load, key = InMemory(images, labels), jax.random.key(0)
    order = np.tile(np.arange(len(labels)), STEPS)

    def in_a_loop():
        nonlocal state
        state, _ = train_epoch(
            step, state, load, order=order, batch_size=len(labels), key=key
        )

    def one_by_one():
        nonlocal state
        for batch in load(order, len(labels)):
            state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)

    return per_step(one_by_one if alone else in_a_loop)


def theirs(kind: str) -> Measure:
    """Return the measure of PyTorch's step with its faster layout, in seconds."""
    from benchmarks.harness.peers import torch, torchvision

    images, labels = batch_of(kind)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels).long()

    def side(layout: Any) -> Callable[[], None]:
        if kind == ALEXNET:
            model = torchvision.models.alexnet(num_classes=CLASSES)
        else:
            size, stride, padding, groups = KINDS[kind]
            layers = []
            for _ in range(2):
                layers += [
                    torch.nn.Conv2d(
                        *(CHANNELS, CHANNELS, size, stride, padding), groups=groups
                    ),
                    torch.nn.ReLU(),
                ]
            model = torch.nn.Sequential(
                *layers,
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
                torch.nn.Linear(CHANNELS, CLASSES),
            )
        model = model.to(memory_format=layout)
        x = images.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)

        def steps() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), labels)
                loss.backward()
                optimizer.step()

        return steps

    layouts = (torch.contiguous_format, torch.channels_last)
    measures = [per_step(side(layout)) for layout in layouts]
    seconds = [min(measure() for _ in range(3)) for measure in measures]
    return measures[int(np.argmin(seconds))]


def per_step(steps: Callable[[], None]) -> Measure:
    """Return a measure: the least seconds of a step in three times STEPS."""

    once = timed(steps)
    return lambda: min(once() for _ in range(3)) / STEPS


def serve_side() -> None:
    """Measure one side once for each request; see `serve`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=json.loads, required=True)
    task = parser.parse_args().worker
    who = task.pop("who")
    if who == "torch":
        serve(functools.partial(theirs, task["kind"]))
    else:
        serve(functools.partial(ours, **task, alone=who == "single"))


if __name__ == "__main__":
    import sys

    if "--worker" in sys.argv:
        serve_side()
    else:
        main()
