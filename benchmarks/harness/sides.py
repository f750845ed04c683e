"""Both sides of the benchmarks of networks, as processes that measure on request.

It is one file because both sides measure the same jobs with the same helpers.
"""

import argparse
import contextlib
import functools
import json
import time
from typing import Any

import numpy as np

from benchmarks.harness.pairs import Measure, serve, worker

SECONDS = 1.0  # about the length of a measurement, unless one call is longer

# Starts a side in a new process; takes `who` and the arguments of `ours` or `theirs`.
side = functools.partial(worker, "benchmarks.harness.sides")


def torch_at_its_best(
    *, eager: bool = False, plain_adam: bool = False, **options: Any
) -> dict[str, Any]:
    """Time PyTorch's ways to do a job; return the fastest, as options of `theirs`.

    They are the memory layouts, `torch.compile` unless `eager`, and then, unless
    `plain_adam`, the fused Adam. A way that fails, as torch.compile does without a C++
    compiler, is left out. For an epoch, the fastest way of its step is used, with the
    faster of 0 and 1 loader processes.
    """
    job = {**options, "who": "torch"}
    bare = {**job, "job": "step"} if job["job"] == "epoch" else job
    way = fastest(
        bare,
        [
            {"channels_last": last, "compiled": compiled, "fused": False}
            for compiled in ((False,) if eager else (False, True))
            for last in (False, True)
        ],
    )
    if bare["job"] == "step" and not plain_adam:
        way = fastest(bare, [{**way, "fused": fused} for fused in (False, True)])
    if job["job"] == "epoch":
        trial = {**job, "train_size": 640, "test_size": 100}
        way = fastest(trial, [{**way, "workers": workers} for workers in (0, 1)])
    return way


def fastest(job: dict[str, Any], ways: list[dict[str, Any]]) -> dict[str, Any]:
    """Time ways of PyTorch; return the fastest. A way that fails is left out."""
    seconds = {}
    for i, way in enumerate(ways):
        with contextlib.suppress(RuntimeError), side(**job, **way) as measure:
            measure()
            seconds[i] = min(measure() for _ in range(3))
            print(f"  torch {describe(way)}: {seconds[i] * 1e3:.1f} ms", flush=True)
    return ways[min(seconds, key=seconds.get)]


def describe(way: dict[str, Any]) -> str:
    """Return a description of PyTorch's settings for the table."""
    words = ["channels_last" if way["channels_last"] else "contiguous"]
    words += ["compiled"] if way["compiled"] else []
    words += ["fused Adam"] if way["fused"] else []
    words += ["1 loader process"] if way.get("workers") else []
    return ", ".join(words)


def repeated(call: Measure) -> Measure:
    """Return a measure: the mean seconds of calls that together last about SECONDS."""

    def measure() -> float:
        started, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - started < SECONDS:
            call()
            count += 1
        return (time.perf_counter() - started) / count

    return measure


def timed(call: Measure) -> Measure:
    """Return a measure: the seconds of one call."""

    def measure() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return measure


def random_batch(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images float32[b, 224, 224, 3], normalised, and labels int32[b]."""
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, 224, 224, 3), np.float32)
    return images, random.integers(0, 10, batch).astype(np.int32)


def ours(
    job: str, freeze: str, batch: int, precision: str, network: str, **sizes: Any
) -> Measure:
    """Return our measure of a job: a forward pass, a training step, or an epoch.

    It can also be "single": a step that is a program of its own, instead of one of
    several in a program; or "compile": the first step, less a second one.
    """
    from jaxlab import runtime

    runtime.set_up()
    import jax
    import jax.numpy as jnp

    from jaxlab.models.architecture import ARCHITECTURES
    from jaxlab.training.initial_weights import initial_variables

    architecture = ARCHITECTURES[network]
    model = architecture.build(10, dtype=jnp.dtype(precision))
    # Where fc6 and fc7 are frozen, random ones take as long as trained ones.
    key = jax.random.key(0)
    embedded = architecture.weights == "imagenet-conv"
    weights = architecture.weights if embedded else "none"
    variables, _ = initial_variables(architecture, model, key, weights)
    if job == "forward":
        images, _ = map(jnp.asarray, random_batch(batch))
        forward = jax.jit(functools.partial(model.apply, train=False))
        call = functools.partial(forward, variables, images)
        return repeated(lambda: call().block_until_ready())
    return _ours_training(job, architecture, model, variables, freeze, batch, sizes)


def _ours_training(
    job: str,
    architecture: Any,
    model: Any,
    variables: Any,
    freeze: str,
    batch: int,
    sizes: dict[str, int],
) -> Measure:
    """Return our measure of a training step of the whole network, or of an epoch."""
    import jax
    import jax.numpy as jnp

    from jaxlab.data.loaders import InMemory, epoch_order
    from jaxlab.training import inputs, optim
    from jaxlab.training.epoch import evaluate_split, train_epoch
    from jaxlab.training.step import init_state, make_eval_step, make_train_step

    params = variables["params"]
    trainable = optim.trainable_tree(params, architecture.freezing_patterns(freeze))
    optimizer = optim.make_optimizer("adam", 1e-4, trainable=trainable, l2=5e-4)
    if job in ("step", "single", "compile"):
        load = InMemory(*map(jnp.asarray, random_batch(batch)))
        train = test = inputs.Inputs(load, model.apply)
        order = np.arange(batch)
    else:
        train, test = _ours_inputs(architecture, model, variables, trainable, sizes)
        order = epoch_order(sizes["train_size"], 0, 0)
    train_step = make_train_step(train.apply_fn, optimizer, trainable)
    eval_step = make_eval_step(test.apply_fn)
    state = init_state(params, optimizer, variables.get("batch_stats"))
    del params, variables

    def take():
        nonlocal state
        state, _ = train_epoch(
            train_step,
            state,
            train.load,
            order=order,
            batch_size=batch,
            key=jax.random.key(0),
        )
        if job == "epoch":
            evaluate_split(
                eval_step,
                state,
                test.load,
                count=sizes["test_size"],
                batch_size=inputs.FORWARD_BATCH,
            )

    def take_alone():
        nonlocal state
        for loaded in train.load(order, batch):
            state, _ = train_step(state, loaded, jax.random.key(0))
        jax.block_until_ready(state)

    if job == "compile":
        return lambda: timed(take)() - timed(take)()
    if job == "epoch":
        return timed(take)
    return repeated(take if job == "step" else take_alone)


def _ours_inputs(
    architecture: Any,
    model: Any,
    variables: Any,
    trainable: Any,
    sizes: dict[str, int],
) -> tuple[Any, Any]:
    """Return what the training and the test split feed, with frozen layers stored."""
    from jaxlab import runtime
    from jaxlab.data.dataset import no_progress
    from jaxlab.data.digits import mnist5k
    from jaxlab.data.preprocess import Preprocess
    from jaxlab.training import inputs
    from jaxlab.training.feature_store import ArrayStore
    from pretrained.disk import cache_folder

    data = mnist5k().first(sizes["train_size"], sizes["test_size"])
    found = inputs.feature_inputs(
        inputs.image_inputs(model, data, Preprocess(), workers=0),
        architecture,
        model,
        variables,
        data,
        Preprocess(),
        trainable,
        ArrayStore(cache_folder() / "features", 10**10),
        clock=runtime.Clock(),
        progress=no_progress,
        log=print,
    )
    return found["train"], found["test"]


def theirs(
    job: str,
    freeze: str,
    batch: int,
    precision: str,
    **lab_options: Any,
) -> Measure:
    """Return PyTorch's measure of a job; `lab_options` are arguments of `Lab`."""
    from benchmarks.harness.peers import Lab, torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    torch.backends.cudnn.benchmark = True  # XLA also times its kernels
    lab = Lab(freeze=freeze, **lab_options)
    if job == "epoch":
        return timed(lab.epoch)
    lab.plain.to(device)
    lab.model.train(job == "step")
    images, labels = random_batch(batch)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    images = images.to(memory_format=lab.layout)
    labels = torch.from_numpy(labels).long().to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def call():
        with half:
            if job == "step":
                lab.step(images, labels)
            else:
                with torch.no_grad():
                    lab.model(images)
        if device == "cuda":
            torch.cuda.synchronize()

    return repeated(call)


def main() -> None:
    """Measure one side once for each request; see `serve`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=json.loads, required=True)
    options = {"freeze": "none", "batch": 64, "precision": "float32"}
    options["network"] = "alexnet"
    options |= parser.parse_args().worker
    who = {"ours": ours, "torch": theirs}[options.pop("who")]
    serve(functools.partial(who, **options))


if __name__ == "__main__":
    main()
