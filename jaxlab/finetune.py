"""python -m jaxlab.finetune: fine-tune ImageNet's AlexNet on images.

The frozen part runs once over the data; the rest trains on its outputs. What the run
was and what it reached goes to a folder, with weights that torchvision loads.
"""

import contextlib
import dataclasses
import functools
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import runtime
from jaxlab.cli import flags, signals, terminal
from jaxlab.cli.terminal import log
from jaxlab.config import (
    FREEZE,
    LAST,
    NOT_COMPARED,
    RESOLVED_FROM_DATA,
    Config,
    resolved,
)
from jaxlab.errors import CheckpointError, JaxlabError, UsageError
from jaxlab.runs import folder as run_folder
from jaxlab.runs import resume
from jaxlab.runs.record import Record, read_record, read_rows
from pretrained.disk import cache_folder

IMBALANCE = 10  # largest class to smallest, from where a warning is due


class Result(NamedTuple):
    """What a run reached: test accuracy in [0, 1], and its folder."""

    test_accuracy: float
    folder: str


def main(argv: Sequence[str] | None = None) -> Result:
    """Parse the flags and run; raises JaxlabError or WeightsError for what is wrong."""
    parse = functools.partial(
        flags.parse, Config, argv, prog="python -m jaxlab.finetune", about=__doc__
    )
    config = parse()
    if config.resume is not None:
        then = resume.settings(config)
        try:
            config = parse(unset=then)
        except UsageError as error:  # those given were parsed before
            where = Path(config.out) / run_folder.CONFIG
            raise UsageError(f"--resume: {where}: {error}") from error
        config = resolved(config)
        names = then.keys() - NOT_COMPARED - RESOLVED_FROM_DATA
        resume.check_settings(config, then, names)
        return finetune(config)
    return finetune(resolved(config))


def finetune(config: Config) -> Result:
    """Run one job, of a config whose every setting is resolved; returns its result."""
    resuming = config.resume is not None
    folder = run_folder.resolve_folder(config.out, config.overwrite, resuming)
    accuracy = None
    if config.resume == LAST:
        accuracy = resume.final_accuracy(folder, config.epochs)
    if accuracy is not None:
        steps = (folder / run_folder.CHECKPOINTS).glob("*")
        has_steps = any(path.name.isdecimal() for path in steps)
        can = "; with more --epochs it can go on" if has_steps else ""
        print(f"the run is finished{can}")
        if not resume.missing_pictures(folder):
            return _told(accuracy, folder)

    # Imported here, so that `--help` and a mistyped flag do not wait for JAX.
    device = runtime.set_up()
    from jaxlab.data.preprocess import Preprocess

    preprocess = Preprocess(config.image_size, config.crop)
    data = _load(config, preprocess)
    config = dataclasses.replace(
        config,
        out=str(folder),
        train_size=len(data.train),
        test_size=len(data.test),
        batch_size=min(config.batch_size, len(data.train)),
    )
    with run_folder.locked(folder), _memory_named(config, device):
        # Once more: another process may have been there meanwhile.
        run_folder.resolve_folder(config.out, config.overwrite, resuming)
        then = read_record(folder / run_folder.CONFIG) if resuming else None
        if then is None and config.resume not in (None, LAST):
            raise CheckpointError(
                f"{folder}: no run has begun there, so it has no step {config.resume}; "
                "pass another --out, or --resume without a step, which begins"
            )
        if then is not None:
            resume.check_settings(config, then.settings, RESOLVED_FROM_DATA)
            resume.check_data(then, data)
            run_folder.remove_partial_files(folder)
        if accuracy is not None:
            return _draw_missing(config, data, preprocess, accuracy)
        return _run(config, data, preprocess, device, then)


def _load(config: Config, preprocess: Any) -> Any:
    from jaxlab.data.load import load

    return load(
        config.dataset,
        preprocess,
        train_size=config.train_size,
        test_size=config.test_size,
        val_fraction=config.val_fraction,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        offline=config.offline,
        progress=terminal.progress_bar,
        log=log,
    )


def _run(
    config: Config, data: Any, preprocess: Any, device: str, then: Record | None
) -> Result:
    """Run in a folder that is held; `then` is the record of a run to resume."""
    import jax

    from jaxlab.figures.text import layer_table
    from jaxlab.runs.checkpoint import CheckpointManager, check_disk_space
    from jaxlab.runs.writer import RunWriter
    from jaxlab.training import fit
    from jaxlab.training.initial_weights import describe
    from pretrained import to_torch

    folder = Path(config.out)
    class_weights = _class_weights(data, config.class_weights)
    network = _network(config, data)
    checkpoints = CheckpointManager(folder / run_folder.CHECKPOINTS, config.keep, log)
    environment = {"device": device, "versions": runtime.versions()}
    start = _start(config, data, preprocess, environment, then, network, checkpoints)
    writer = RunWriter(folder, checkpoints if config.checkpoint_every else None, log)
    step_sizes = (checkpoints.folder, start.state, network.trainable, config.keep)
    kept = needed = 0
    if config.checkpoint_every:
        check_disk_space(*step_sizes)  # before anything is removed
    writer.begin(start.record, start.progress.rows, data.files)
    if config.checkpoint_every:
        kept, needed = check_disk_space(*step_sizes)
    print(
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test "
        f"images, {len(data.class_names)} classes, on {device}"
    )
    if words := describe(start.record.weights):
        print(words)
    layers = start.record.weights["layers"]
    table = layer_table(start.state.params, network.trainable, layers)
    print(table, flush=True)
    if kept:
        log(
            f"checkpoints: {kept / 1e9:.1f} GB in {checkpoints.folder}, the last "
            f"{config.keep}; at the end one"
        )
    job = _job(config, data, preprocess, network, start.state, needed, class_weights)
    with writer:
        try:
            state, rows, predictions = fit.fit(job, start.state, start.progress, writer)
        except signals.Stopped:
            _tell_how_to_go_on(config, writer.last_step)
            raise
        writer.write_model(to_torch(jax.device_get(state.params)), {"format": "pt"})
    for name in (run_folder.CURVES, run_folder.CONFUSION):
        _draw(name, writer, config, data, rows, predictions)
    seconds = job.clock.compile_seconds
    print(f"compilation: {seconds:.1f} s, left out of the times above")
    return _told(rows[-1]["test_accuracy"], folder)


def _told(accuracy: float, folder: Path) -> Result:
    print(f"test_accuracy={accuracy:.4f} run={folder}")
    return Result(accuracy, str(folder))


def _tell_how_to_go_on(config: Config, step: int | None) -> None:
    if config.checkpoint_every:
        print(
            f"stopped after step {step}; to go on: --resume --out "
            f"{shlex.quote(config.out)}",
            flush=True,
        )
    else:
        print("stopped; nothing is saved, as --checkpoint-every 0 asks for", flush=True)


class Network(NamedTuple):
    """A module, its parameters' shapes, which are trained, and how."""

    model: Any
    shapes: Any
    trainable: Any
    optimizer: Any
    rate: Callable[[int], float]  # of an epoch
    init_key: Any
    dropout_key: Any


def _network(config: Config, data: Any) -> Network:
    import jax
    import jax.numpy as jnp

    from jaxlab.models.alexnet import AlexNet
    from jaxlab.training import optim
    from jaxlab.training.initial_weights import param_shapes

    model = AlexNet(len(data.class_names), dtype=jnp.dtype(config.precision))
    shapes = param_shapes(model)
    trainable = optim.trainable_tree(shapes, FREEZE[config.freeze])
    steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
    schedule = optim.step_decay(
        config.lr, config.lr_step, config.lr_gamma, steps_per_epoch
    )
    optimizer = optim.make_optimizer(
        config.optimizer,
        schedule,
        trainable=trainable,
        momentum=config.momentum,
        l2=config.l2,
    )
    return Network(
        model,
        shapes,
        trainable,
        optimizer,
        lambda epoch: schedule(epoch * steps_per_epoch),
        *jax.random.split(jax.random.key(config.seed)),
    )


class Start(NamedTuple):
    """What a run trains from: its state, how far it has come, and its record."""

    state: Any
    progress: Any
    record: Record


def _start(
    config: Config,
    data: Any,
    preprocess: Any,
    environment: dict[str, Any],
    then: Record | None,
    network: Network,
    checkpoints: Any,
) -> Start:
    """Return the newest step of the run to resume, else the first parameters."""
    import jax
    import jax.numpy as jnp

    from jaxlab.runs.checkpoint import unflatten_like
    from jaxlab.training.fit import Progress
    from jaxlab.training.initial_weights import initial_params
    from jaxlab.training.step import init_state

    saved = then and resume.checkpoint_to_resume(checkpoints, config.resume, log)
    if saved is None:
        params, weights = initial_params(
            network.model, network.init_key, config.weights, offline=config.offline
        )
        record = Record.of(config, data, preprocess, weights, environment)
        return Start(init_state(params, network.optimizer), Progress(), record)
    progress = Progress.from_checkpoint(saved.about)
    if config.epochs < progress.epochs_begun:
        raise UsageError(
            f"--epochs: step {saved.step} is of epoch {progress.epochs_begun}; pass "
            f"{progress.epochs_begun} or more, or an earlier step to --resume"
        )
    log(f"resumed from step {saved.step}")
    template = jax.eval_shape(
        lambda params: init_state(params, network.optimizer), network.shapes
    )
    state = jax.tree.map(jnp.array, unflatten_like(template, saved))
    resume.warn_if_environment_changed(then, environment, log)
    return Start(state, progress, then.resumed(config, saved.step, environment))


def _job(
    config: Config,
    data: Any,
    preprocess: Any,
    network: Network,
    state: Any,
    needed: int,
    class_weights: np.ndarray | None,
) -> Any:
    """Return what the loop repeats; `needed` bytes of the disk are left alone."""
    from jaxlab.training import inputs
    from jaxlab.training.feature_store import ArrayStore
    from jaxlab.training.fit import Job
    from jaxlab.training.step import make_eval_step, make_train_step

    clock = runtime.Clock()
    split_inputs = inputs.image_inputs(network.model, data, preprocess, config.workers)
    if config.feature_cache:
        size = int(config.feature_cache_size * 1e9)
        cache = cache_folder() / "features"
        leave = needed * _on_one_disk(cache, Path(config.out))
        split_inputs = inputs.feature_inputs(
            split_inputs,
            network.model,
            state.params,
            data,
            preprocess,
            network.trainable,
            ArrayStore(cache, size, leave=leave),
            clock=clock,
            progress=terminal.progress_bar,
            log=log,
        )
    return Job(
        inputs=split_inputs,
        counts={name: len(split) for name, split in data.splits.items()},
        train_step=make_train_step(
            split_inputs["train"].apply_fn,
            network.optimizer,
            network.trainable,
            class_weights=class_weights,
        ),
        eval_step=make_eval_step(split_inputs["test"].apply_fn),
        rate=network.rate,
        trainable=network.trainable,
        key=network.dropout_key,
        seed=config.seed,
        batch_size=config.batch_size,
        epochs=config.epochs,
        every=config.checkpoint_every,
        clock=clock,
    )


def _draw(
    name: str, writer: Any, config: Config, data: Any, rows: Any, predictions: Any
) -> None:
    """Draw a picture of a finished run."""
    from jaxlab.figures.confusion import draw_confusion
    from jaxlab.figures.curves import draw_curves

    accuracy = rows[-1]["test_accuracy"]
    draw = {
        run_folder.CURVES: lambda: draw_curves(
            rows,
            f"AlexNet on {data.name}, {os.path.basename(config.weights)} weights, "
            f"seed {config.seed}",
        ),
        run_folder.CONFUSION: lambda: draw_confusion(
            data.test.labels,
            predictions,
            data.class_names,
            f"{data.name}: test accuracy {accuracy:.1%}",
        ),
    }
    writer.draw(name, draw[name])


def _draw_missing(
    config: Config, data: Any, preprocess: Any, accuracy: float
) -> Result:
    """Draw what a finished run lacks, from its model and its rows."""
    import jax

    from jaxlab.runs.writer import RunWriter
    from jaxlab.training import inputs
    from jaxlab.training.epoch import evaluate_split
    from jaxlab.training.initial_weights import initial_params
    from jaxlab.training.step import TrainState, make_eval_step

    folder = Path(config.out)
    model = _network(config, data).model
    params, _ = initial_params(model, jax.random.key(0), str(folder / run_folder.MODEL))
    test = inputs.image_inputs(model, data, preprocess, config.workers)["test"]
    _, predictions = evaluate_split(
        make_eval_step(test.apply_fn),
        TrainState(params, {}, (), 0),
        test.load,
        count=len(data.test),
        batch_size=inputs.FORWARD_BATCH,
    )
    writer = RunWriter(folder, None, log)
    rows = read_rows(folder / run_folder.METRICS)
    for name in resume.missing_pictures(folder):
        _draw(name, writer, config, data, rows, predictions)
    return _told(accuracy, folder)


@contextlib.contextmanager
def _memory_named(config: Config, device: str) -> Iterator[None]:
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        known = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not known:
            raise
        raise JaxlabError(
            f"memory: {device} has too little for batches of {config.batch_size} "
            f"images of {config.image_size}×{config.image_size}; lower --batch-size or "
            "--image-size"
        ) from error


def _on_one_disk(*paths: Path) -> bool:
    """Return whether files lie on one disk, or will, where they are not there yet."""
    existing = [
        next(parent for parent in (path, *path.parents) if parent.exists())
        for path in map(Path.absolute, paths)
    ]
    return len({path.stat().st_dev for path in existing}) == 1


def _class_weights(data: Any, kind: str) -> np.ndarray | None:
    """Return float32[classes], n / (classes · n of the class); None for all equal."""
    counts = np.bincount(data.train.labels, minlength=len(data.class_names))
    present = counts[counts > 0]
    if kind == "balanced":
        weights = np.zeros(len(counts), np.float32)
        weights[counts > 0] = counts.sum() / (len(present) * present)
        return weights
    if present.max() > IMBALANCE * present.min():
        log(
            f"warning: the largest class has {present.max():,} training images, the "
            f"smallest {present.min():,}; --class-weights balanced weighs them alike"
        )
    return None


if __name__ == "__main__":
    sys.exit(terminal.run(main))
