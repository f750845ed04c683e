"""python -m jaxlab.finetune: fine-tune ImageNet's AlexNet on images.

The frozen part runs once over the data; the rest trains on its outputs. What the run
was and what it reached goes to a folder, with weights that torchvision loads.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import runtime
from jaxlab.cli import flags, terminal
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
from pretrained.download import cache_folder
from pretrained.files import write_safetensors

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
    if config.resume == LAST:
        accuracy = resume.final_accuracy(folder, config.epochs)
        if accuracy is not None:
            steps = (folder / run_folder.CHECKPOINTS).glob("*")
            has_steps = any(path.name.isdecimal() for path in steps)
            can = "; with more --epochs it can go on" if has_steps else ""
            print(f"the run is finished{can}")
            print(f"test_accuracy={accuracy:.4f} run={folder}")
            return Result(accuracy, str(folder))

    # Imported here, so that `--help` and a mistyped flag do not wait for JAX.
    device = runtime.set_up()
    from jaxlab.data.load import load
    from jaxlab.data.preprocess import Preprocess

    preprocess = Preprocess(config.image_size, config.crop)
    data = load(
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
        record = run_folder.read_record(folder) if resuming else None
        if record is None and config.resume not in (None, LAST):
            raise CheckpointError(
                f"{folder}: no run has begun there, so it has no step {config.resume}; "
                "pass another --out, or --resume without a step, which begins"
            )
        if record is not None:
            resume.check_settings(config, record["settings"], RESOLVED_FROM_DATA)
            resume.check_data(record, data)
            run_folder.remove_partial_files(folder)
        return _run(config, data, preprocess, device, record)


def _run(
    config: Config,
    data: Any,
    preprocess: Any,
    device: str,
    record: dict[str, Any] | None,
) -> Result:
    """Run in a folder that is held; `record` is config.json's of a run to resume."""
    import jax
    import jax.numpy as jnp

    from jaxlab import fit
    from jaxlab.figures.confusion import write_confusion
    from jaxlab.figures.curves import write_curves
    from jaxlab.figures.text import layer_table
    from jaxlab.models.alexnet import AlexNet
    from jaxlab.runs import checkpoint
    from jaxlab.training import inputs, optim
    from jaxlab.training.feature_store import ArrayStore
    from jaxlab.training.initial_weights import describe, initial_params, param_shapes
    from jaxlab.training.step import init_state, make_eval_step, make_train_step
    from pretrained import to_torch

    folder = Path(config.out)
    class_weights = _class_weights(data, config.class_weights)
    model = AlexNet(len(data.class_names), dtype=jnp.dtype(config.precision))
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
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
    checkpoints = checkpoint.CheckpointManager(
        folder / run_folder.CHECKPOINTS, config.keep, log
    )
    saved = record and resume.checkpoint_to_resume(
        checkpoints, config.resume, config.epochs, log
    )
    environment = {"device": device, "versions": runtime.versions()}
    if saved:
        template = jax.eval_shape(lambda p: init_state(p, optimizer), shapes)
        state = jax.tree.map(jnp.array, checkpoint.unflatten_like(template, saved))
        progress, weights = fit.Progress.from_checkpoint(saved), record["weights"]
        resume.warn_if_environment_changed(record, environment, log)
        resumption = {"step": saved.step, **environment}
        environment = {name: record[name] for name in environment}
        resumptions = [*record.get("resumptions", ()), resumption]
    else:
        params, weights = initial_params(
            model, init_key, config.weights, offline=config.offline
        )
        state, progress = init_state(params, optimizer), fit.Progress()
        del params  # the state holds its own copy
        resumptions = []
    check_disk_space = functools.partial(
        fit.check_disk_space,
        folder,
        state,
        trainable,
        config.keep,
        config.checkpoint_every,
    )
    check_disk_space()  # before anything is removed
    if saved:  # the end of a shorter run, where it goes on now, is no end any more
        (folder / run_folder.MODEL).unlink(missing_ok=True)
    else:
        run_folder.remove_run(folder)
    kept, needed = check_disk_space()
    run_folder.write_json(
        folder / run_folder.CONFIG,
        {
            **_record(config, data, weights, preprocess),
            **environment,
            "resumptions": resumptions,
        },
    )
    if data.files:
        run_folder.write_json(folder / run_folder.SPLIT, data.files)
    if progress.history:
        run_folder.write_metrics(folder, progress.history)
    print(
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test "
        f"images, {len(data.class_names)} classes, on {device}"
    )
    if words := describe(weights):
        print(words)
    print(layer_table(state.params, trainable, weights["layers"]), flush=True)
    if kept:
        log(
            f"checkpoints: {kept / 1e9:.1f} GB in {checkpoints.folder}, the last "
            f"{config.keep} and the best"
        )

    clock = runtime.Clock()
    run_inputs = inputs.image_inputs(model, data, preprocess, config.workers)
    if config.feature_cache:
        size = int(config.feature_cache_size * 1e9)
        cache = cache_folder() / "features"
        run_inputs = inputs.feature_inputs(
            run_inputs,
            model,
            state.params,
            data,
            preprocess,
            trainable,
            ArrayStore(cache, size, leave=needed * _on_one_disk(cache, folder)),
            clock=clock,
            progress=terminal.progress_bar,
            log=log,
        )
    job = fit.Job(
        folder=folder,
        inputs=run_inputs,
        counts={name: len(split) for name, split in data.splits.items()},
        train_step=make_train_step(
            run_inputs["train"].apply_fn,
            optimizer,
            trainable,
            class_weights=class_weights,
        ),
        eval_step=make_eval_step(run_inputs["test"].apply_fn),
        rate=lambda epoch: schedule(epoch * steps_per_epoch),
        trainable=trainable,
        weights=to_torch,
        key=dropout_key,
        seed=config.seed,
        batch_size=config.batch_size,
        epochs=config.epochs,
        every=config.checkpoint_every,
        clock=clock,
    )
    with checkpoints:
        state, history, predictions = fit.fit(job, state, progress, checkpoints)
        accuracy = history[-1]["test_accuracy"]
        write_curves(
            folder / run_folder.CURVES,
            history,
            f"AlexNet on {data.name}, {os.path.basename(config.weights)} weights, "
            f"seed {config.seed}",
        )
        write_confusion(
            folder / run_folder.CONFUSION,
            data.test.labels,
            predictions,
            data.class_names,
            f"{data.name}: test accuracy {accuracy:.1%}",
        )
        state_dict = to_torch(jax.device_get(state.params))
        checkpoints.wait()
        # After all else: it makes a run a finished one.
        write_safetensors(folder / run_folder.MODEL, state_dict, {"format": "pt"})
    print(f"compilation: {clock.compile_seconds:.1f} s, left out of the times above")
    print(f"test_accuracy={accuracy:.4f} run={folder}")
    return Result(accuracy, str(folder))


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


def _record(
    config: Config,
    data: Any,
    weights: dict[str, Any],
    preprocess: Any,
) -> dict[str, Any]:
    """Return all that decides the run, but where it runs, for config.json."""
    return {
        "settings": dataclasses.asdict(config),
        "dataset": {
            "name": data.name,
            "sha256": data.fingerprint(),
            "train_images": len(data.train),
            "test_images": len(data.test),
        },
        "class_names": data.class_names,
        "weights": weights,
        "preprocessing": {
            "channels": "RGB, grey repeated",
            "resize": "Pillow's bilinear",
            **dataclasses.asdict(preprocess),
        },
    }


if __name__ == "__main__":
    sys.exit(terminal.run(main))
