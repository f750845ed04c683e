"""python -m jaxlab.finetune: fine-tune a pretrained network on images.

The frozen layers run once over the data, and the other layers train on their outputs.
The settings, the results and the weights, which torchvision can load, are written to
the folder of the run.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import runtime
from jaxlab.cli import flags, signals, terminal
from jaxlab.cli.terminal import log
from jaxlab.config import LAST, RESOLVED_FROM_DATA, Config, resolved
from jaxlab.errors import CheckpointError, JaxlabError, UsageError
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.runs import folder as run_folder
from jaxlab.runs import resume
from jaxlab.runs.record import Record, read_record, read_rows
from pretrained import disk

IMBALANCE = 10  # warn if the largest class is more than this times the smallest


class Result(NamedTuple):
    """The result of a run: its test accuracy in [0, 1], and its folder."""

    test_accuracy: float
    folder: str


def main(argv: Sequence[str] | None = None) -> Result:
    """Parse the flags, run the job and return its result.

    Raises JaxlabError or WeightsError with the message that the user sees.
    """
    prog = "python -m jaxlab.finetune"
    given = flags.parse(Config, argv, prog=prog, about=__doc__)
    config = Config(**given)
    if config.resume is None:
        return finetune(resolved(config))
    then = resume.settings(config)
    unset = {name: value for name, value in then.items() if name not in given}
    try:
        config = Config(**flags.check(Config, unset), **given)
    except UsageError as error:
        where = Path(config.out) / run_folder.CONFIG
        raise UsageError(f"--resume: {where}: {error}") from error
    config = resolved(config)
    resume.check_settings(config, then, None)
    return finetune(config)


def finetune(config: Config) -> Result:
    """Run one job and return its result; `config` comes from `resolved`."""
    resuming = config.resume is not None
    folder = run_folder.resolve_folder(config.out, config.overwrite, resuming)
    accuracy = None
    if config.resume == LAST:
        accuracy = resume.final_accuracy(folder, config.epochs)
    if accuracy is not None:
        steps = (folder / run_folder.CHECKPOINTS).glob("*")
        has_steps = any(path.name.isdecimal() for path in steps)
        can = "; pass a larger --epochs to continue" if has_steps else ""
        print(f"the run is finished{can}")
        if not resume.missing_pictures(folder):
            return _told(accuracy, folder)

    # JAX is imported here, so that `--help` and a mistyped flag do not wait for it.
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
        then = _record_to_resume(config, data)
        if accuracy is not None:
            return _draw_missing(config, data, preprocess, accuracy)
        return _run(config, data, preprocess, device, then)


def _record_to_resume(config: Config, data: Any) -> Record | None:
    """Return the record of the run in the locked folder; None to start a new run.

    Raises UsageError if the folder cannot be used or the settings differ from the
    run's, CheckpointError if the data differ or if no run contains the given step.
    """
    folder, resuming = Path(config.out), config.resume is not None
    # Checked again, because another process may have used the folder before the lock.
    run_folder.resolve_folder(config.out, config.overwrite, resuming)
    then = read_record(folder / run_folder.CONFIG) if resuming else None
    if then is None and config.resume not in (None, LAST):
        raise CheckpointError(
            f"{folder}: contains no run, so there is no step {config.resume}; pass "
            "another --out, or pass --resume without a step to start a run"
        )
    if then is not None:
        resume.check_settings(config, then.settings, RESOLVED_FROM_DATA)
        resume.check_data(then, data)
        run_folder.remove_partial_files(folder)
    return then


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
    """Train in the locked folder; `then` is the record of the run to resume, if any."""
    import jax

    from jaxlab.runs.checkpoint import CheckpointManager
    from jaxlab.runs.writer import RunWriter
    from jaxlab.training.fit import fit
    from jaxlab.training.job import job_of, network_of
    from pretrained import to_state_dict

    folder = Path(config.out)
    weights = _class_weights(data, config.class_weights)
    network = network_of(config, data)
    checkpoints = CheckpointManager(folder / run_folder.CHECKPOINTS, config.keep, log)
    environment = {"device": device, "versions": runtime.versions()}
    start = _start(config, data, preprocess, environment, then, network, checkpoints)
    writer = RunWriter(folder, checkpoints if config.checkpoint_every else None, log)
    needed = _begin(config, data, device, network, start, writer, checkpoints)
    features = _feature_store(config, needed) if config.feature_cache else None
    job = job_of(config, data, preprocess, network, start.state, weights, features)
    with writer:
        try:
            state, rows, predictions = fit(job, start.state, start.progress, writer)
        except signals.Stopped:
            _tell_how_to_go_on(config, writer.last_step)
            raise
        signals.check()
        variables = jax.device_get({"params": state.params, **state.other_variables})
        tensors = to_state_dict(variables, config.model)
        writer.write_model(tensors, {"format": "pt"})
    for name in (run_folder.CURVES, run_folder.CONFUSION):
        _draw(name, writer, config, data, rows, predictions)
    seconds = job.clock.compile_seconds
    print(f"compilation: {seconds:.1f} s, not included in the times above")
    return _told(rows[-1]["test_accuracy"], folder)


def _begin(
    config: Config,
    data: Any,
    device: str,
    network: Any,
    start: "Start",
    writer: Any,
    checkpoints: Any,
) -> int:
    """Write the run's record, print a summary and return the disk space still needed.

    It is in bytes and covers checkpoints and the model; 0 if checkpoints are off.
    """
    from jaxlab.figures.text import layer_table
    from jaxlab.runs.checkpoint import check_disk_space
    from jaxlab.training.initial_weights import describe

    sizes = (checkpoints.folder, start.state, network.trainable, config.keep)
    kept = needed = 0
    if config.checkpoint_every:
        check_disk_space(*sizes)  # before any file is removed
    writer.begin(start.record, start.progress.rows, data.files)
    if config.checkpoint_every:
        kept, needed = check_disk_space(*sizes)
    print(
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test "
        f"images, {len(data.class_names)} classes, on {device}"
    )
    if words := describe(start.record.weights):
        print(words)
    origins = start.record.weights["layers"]
    table = layer_table(start.state.params, network.trainable, origins)
    print(table, flush=True)
    if kept:
        log(
            f"checkpoints: {kept / 1e9:.1f} GB in {checkpoints.folder} for the latest "
            f"{config.keep}; only the last one is kept at the end"
        )
    return needed


def _feature_store(config: Config, needed: int) -> Any:
    """Return the cache of features; it leaves `needed` bytes free on the run's disk."""
    from jaxlab.training.feature_store import ArrayStore

    size = int(config.feature_cache_size * 1e9)
    cache = disk.cache_folder() / "features"
    leave = needed if disk.on_one_disk(cache, Path(config.out)) else 0
    return ArrayStore(cache, size, leave=leave)


def _told(accuracy: float, folder: Path) -> Result:
    print(f"test_accuracy={accuracy:.4f} run={folder}")
    return Result(accuracy, str(folder))


def _tell_how_to_go_on(config: Config, step: int | None) -> None:
    if config.checkpoint_every:
        print(
            f"stopped after step {step}; to continue, pass --resume --out "
            f"{shlex.quote(config.out)}",
            flush=True,
        )
    else:
        print("stopped; nothing was saved, because of --checkpoint-every 0", flush=True)


class Start(NamedTuple):
    """The starting point of a run: its state, its progress so far and its record."""

    state: Any
    progress: Any
    record: Record


def _start(
    config: Config,
    data: Any,
    preprocess: Any,
    environment: dict[str, Any],
    then: Record | None,
    network: Any,
    checkpoints: Any,
) -> Start:
    """Return where training starts: the checkpoint to resume, or the initial weights.

    Raises UsageError if the checkpoint is beyond `config.epochs`, CheckpointError if no
    usable one exists.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab.runs.checkpoint import unflatten_like
    from jaxlab.training.fit import Progress
    from jaxlab.training.initial_weights import initial_params
    from jaxlab.training.step import init_state

    saved = then and resume.checkpoint_to_resume(checkpoints, config.resume, log)
    if saved is None:
        params, weights = initial_params(
            ARCHITECTURES[config.model],
            network.model,
            network.init_key,
            config.weights,
            offline=config.offline,
        )
        record = Record.of(config, data, preprocess, weights, environment)
        return Start(init_state(params, network.optimizer), Progress(), record)
    progress = Progress.from_checkpoint(saved.about)
    if config.epochs < progress.epochs_begun:
        raise UsageError(
            f"--epochs: step {saved.step} belongs to epoch {progress.epochs_begun}; "
            f"pass {progress.epochs_begun} or more, or pass an earlier step to --resume"
        )
    log(f"resumed from step {saved.step}")
    template = jax.eval_shape(
        lambda params: init_state(params, network.optimizer), network.shapes
    )
    state = jax.tree.map(jnp.array, unflatten_like(template, saved))
    resume.warn_if_environment_changed(then, environment, log)
    return Start(state, progress, then.resumed(config, saved.step, environment))


def _draw(
    name: str, writer: Any, config: Config, data: Any, rows: Any, predictions: Any
) -> None:
    """Draw one of the figures of a finished run."""
    from jaxlab.figures.confusion import draw_confusion
    from jaxlab.figures.curves import draw_curves

    network, accuracy = config.model, rows[-1]["test_accuracy"]
    draw = {
        run_folder.CURVES: lambda: draw_curves(
            rows,
            f"{network} on {data.name}, {os.path.basename(config.weights)} weights, "
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
    """Draw the missing figures of a finished run, from its model and its metrics."""
    from jaxlab.runs.writer import RunWriter
    from jaxlab.training import inputs
    from jaxlab.training.epoch import evaluate_split
    from jaxlab.training.initial_weights import whole_network
    from jaxlab.training.job import network_of
    from jaxlab.training.step import TrainState, make_eval_step

    folder = Path(config.out)
    model = network_of(config, data).model
    params = whole_network(str(folder / run_folder.MODEL), config.model).params
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
            f"memory: {device} does not have enough memory for batches of "
            f"{config.batch_size} images of {config.image_size}×{config.image_size}; "
            "lower --batch-size or --image-size"
        ) from error


def _class_weights(data: Any, kind: str) -> np.ndarray | None:
    """Return class weights float32[classes] for the loss; None for equal weights.

    Of n training images in k classes, a class of m images gets the weight n / (k · m);
    classes without images do not count and get 0. Logs a warning if the classes are
    imbalanced and `kind` is not "balanced".
    """
    counts = np.bincount(data.train.labels, minlength=len(data.class_names))
    present = counts[counts > 0]
    if kind == "balanced":
        weights = np.zeros(len(counts), np.float32)
        weights[counts > 0] = counts.sum() / (len(present) * present)
        return weights
    if present.max() > IMBALANCE * present.min():
        log(
            f"warning: the largest class has {present.max():,} training images and "
            f"the smallest has {present.min():,}; pass --class-weights balanced to "
            "give all classes equal weight"
        )
    return None


if __name__ == "__main__":
    sys.exit(terminal.run(main))
