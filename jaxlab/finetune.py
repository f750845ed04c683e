"""python -m jaxlab.finetune: fine-tune a pretrained network on images.

The frozen layers run once over the data, and the other layers train on their outputs.
The settings, the results and the weights, which torchvision can load, are written to
the folder of the run.
"""
# It is one long file so that a job can be read from its settings to its last line.

import contextlib
import functools
import hashlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlab import environment, runtime
from jaxlab.cli import flags, signals, terminal
from jaxlab.cli.terminal import Console
from jaxlab.config import LAST, Config, Resolved, warn_of_random_frozen_layers
from jaxlab.errors import InputError, UsageError
from jaxlab.metrics import accuracy_text
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.runs import folder as run_folder
from jaxlab.runs import resume
from jaxlab.runs.record import Record, Rows, read_record
from pretrained import disk, stages
from pretrained.errors import counted
from pretrained.sources import SOURCES
from pretrained.tables import TABLES, layers_of

if TYPE_CHECKING:  # `--help` must not wait for the import of JAX.
    from jaxlab.classifier import Classifier
    from jaxlab.data.preprocess import Preprocess


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its folder, and one row of metrics for each epoch.

    `history` holds the rows of `metrics.jsonl`: `epoch`, `train_loss`,
    `train_accuracy`, `test_loss`, `test_accuracy`, `learning_rate`,
    `examples_per_second` and `seconds`. With a validation split they have
    `validation_loss` and `validation_accuracy`, and only the last one has test values.
    Losses are in nats, accuracies in [0, 1]. The `folder` is absolute, and
    `model_sha256` the SHA-256 of its `model.safetensors`, or None in a process that
    wrote no files. `test_images` is the number of images that were tested.
    """

    folder: Path
    history: list[dict[str, float]]
    model_sha256: str | None
    test_images: int

    def __post_init__(self):
        """Make the folder independent of the working directory."""
        object.__setattr__(self, "folder", self.folder.absolute())
        if not isinstance(self.history, Rows):
            object.__setattr__(self, "history", Rows(self.history))

    @property
    def test_accuracy(self) -> float:
        """The test accuracy of the model, in [0, 1]."""
        return self.history[-1]["test_accuracy"]

    @functools.cached_property
    def classifier(self) -> "Classifier":
        """The trained network, read from the folder when it is first used.

        Raises InputError if the folder was moved, or contains another model since.
        """
        from jaxlab.classifier import Classifier

        model = self.folder / run_folder.MODEL
        if not model.exists():
            raise InputError(
                f"{model}: no longer exists; read the model from where it is now, with "
                "jaxlab.Classifier.load(FOLDER)"
            )
        classifier = Classifier.load(self.folder)
        if self.model_sha256 not in (None, classifier.sha256):
            raise InputError(
                f"{model}: is not the model of this run, but was written later; run "
                "again, or read what is there with "
                f"jaxlab.Classifier.load({str(self.folder)!r})"
            )
        return classifier

    def __repr__(self) -> str:
        """Return one line: the folder, the epochs and the test accuracy."""
        return (
            f"Run({str(self.folder)!r}, {counted(len(self.history), 'epoch')}, "
            f"test {accuracy_text(self.test_accuracy, self.test_images)})"
        )


def main(argv: Sequence[str] | None = None) -> Run | None:
    """Parse the flags, run the job and return its result; None if it only checks.

    Raises JaxlabError or WeightsError with the message that the user sees.
    """
    prog = "python -m jaxlab.finetune"
    given = flags.parse(Config, argv, prog=prog, about=__doc__)
    config = resume.complete(given)
    if config.check:
        _check(config, terminal.SHELL)
        return None
    return _finetune(config, terminal.SHELL, owns_process=True)


def _check(config: Resolved, console: Console) -> None:
    """Load the data, and print what they are; nothing is trained or written.

    Raises InputError, after a line for each problem, if a folder cannot be used.
    """
    stages.begin("loading the data")
    from jaxlab.library import load_of

    data = load_of(config, preprocess_of(config), console)
    console.log(_data_line(data, ": all can be used"))


def preprocess_of(config: Resolved) -> "Preprocess":
    """Return the preprocessing of a config: with `crop`, that of its weights."""
    from jaxlab.data.preprocess import Preprocess

    source = SOURCES.get(config.model, {}).get(config.weights)
    resize_to = source.resize if source else Preprocess.resize_to
    return Preprocess(config.image_size, config.crop, resize_to=resize_to)


def _data_line(data: Any, what: str) -> str:
    """Return the line that names the data, their sizes and `what` is said of them."""
    classes = counted(len(data.class_names), "class")
    note = f"; {data.note}" if data.note else ""
    return f"{data.name}: {data.sizes_text()}, {classes}{what}{note}"


def fine_tune(
    dataset: str | os.PathLike | None = None, *, log: bool = True, **settings: Any
) -> Run:
    """Fine-tune a pretrained network on images, and return the finished run.

    `dataset` is "mnist5k" (5,000 embedded digits, the default), a folder with one
    subfolder of pictures per class, or the name of a TensorFlow Datasets dataset. The
    other settings are the fields of `jaxlab.Config`, which are the flags of
    `python -m jaxlab.finetune`, and have the same effect: the same model to the last
    byte. The run is written to the folder `out`, by default a new one in `runs/`.
    `log=False` prints nothing, not even warnings.

    While it runs, JAX keeps compiled programs in jaxlab's cache folder, unless another
    one is set, and does not warn if this fails, and in the main thread SIGINT and
    SIGTERM end the run; all of this is undone at its end. (The command also keeps freed
    memory, so that it trains faster on a CPU; its process cannot undo that.)

    Raises UsageError for a wrong setting, InputError for unusable data, WeightsError
    for unusable weights, CheckpointError if the run cannot be saved or resumed, and
    JaxlabError if the loss is not finite. An interrupt (Ctrl-C) saves the run after the
    current step; `resume="last"` continues it.

    >>> run = fine_tune(
    ...     "mnist5k", train_size=20, test_size=20, image_size=63, epochs=1, log=False
    ... )
    >>> run.history[0]["epoch"], 0 <= run.test_accuracy <= 1
    (1, True)
    >>> run.classifier.class_names[:3]
    ('0', '1', '2')
    """
    stages.start()
    if not isinstance(dataset, (str, os.PathLike, type(None))):
        raise UsageError(
            f"--dataset: expected a name or a folder, got {type(dataset).__name__}; "
            "write the images into a folder for each class, or train on them with "
            "jaxlab.fit"
        )
    given = settings if dataset is None else {"dataset": dataset, **settings}
    config = resume.complete(given)
    if config.check:
        raise UsageError(
            "--check: trains nothing, and so returns no run; pass it to "
            "jaxlab.load_data instead"
        )
    console = terminal.PYTHON if log else terminal.SILENT
    with signals.installed(second_ends=False), runtime.settings_restored():
        try:
            return _finetune(config, console, owns_process=False)
        except signals.Stopped:
            console.log(terminal.interruption())
            raise
        finally:
            terminal.show_status("")


def _finetune(config: Resolved, console: Console, *, owns_process: bool) -> Run:
    """Run one job and return its result; `config` is complete.

    `owns_process` is that of `runtime.set_up`.
    """
    resuming = config.resume is not None
    folder = run_folder.resolve_folder(config.out, config.overwrite, resuming)
    rows = resume.finished_rows(folder, config) if config.resume == LAST else []
    missing = resume.missing_pictures(folder) if rows else []
    if rows:
        steps = (folder / run_folder.CHECKPOINTS).glob("*")
        has_steps = any(path.name.isdecimal() for path in steps)
        more = "--patience" if len(rows) < config.epochs else "--epochs"
        hint = f"; pass a larger {more} to continue" if has_steps else ""
        console.log(f"the run is finished{hint}")
        if not missing and not resume.is_of_other_data(folder, config):
            return _finished(rows, folder, config, console)

    # JAX is imported here, so that `--help` and a mistyped flag do not wait for it.
    console.wait("starting JAX")
    device = runtime.set_up(console.log, owns_process=owns_process)
    console.wait("loading the data")
    from jaxlab.library import load_of

    preprocess = preprocess_of(config)
    if resuming and (then := read_record(folder / run_folder.CONFIG)) is not None:
        # Its weights may be the same ones from another place, under another name.
        resize_to = then.preprocessing.get("resize_to", type(preprocess).resize_to)
        preprocess = replace(preprocess, resize_to=resize_to)
    warn_of_random_frozen_layers(config, console.log)
    data = load_of(config, preprocess, console)
    if config.patience is not None and data.validation is None:
        raise UsageError(
            f"--patience: {data.name} has no validation split, without which no epoch "
            "is better than another; pass --validation-fraction, such as 0.2"
        )
    config = replace(
        config,
        out=str(folder),
        train_size=len(data.train),
        test_size=len(data.test),
        batch_size=min(config.batch_size, len(data.train)),
    )
    task = Task(config, folder, data, preprocess, device, console)
    console.wait("preparing the run")
    with (
        run_folder.locked(folder, console.log),
        environment.pinned(),
        runtime.memory_errors_explained(
            f"{device} does not have enough memory for batches of {config.batch_size} "
            f"images of {config.image_size}×{config.image_size}; lower --batch-size or "
            "--image-size"
        ),
    ):
        then = resume.open_record(config, folder, data)
        if rows and missing:
            return _draw_missing(task, rows, missing)
        if rows:
            return _finished(rows, folder, config, console)
        return _run(task, then)


class Task(NamedTuple):
    """What every part of a job needs; `config` is complete and fits the data."""

    config: Resolved
    folder: Path  # of the run
    data: Any
    preprocess: Any
    device: str
    console: Console


def _run(task: Task, then: Record | None) -> Run:
    """Train in the locked folder; `then` is the record of the run to resume, if any."""
    from jaxlab.runs import figures
    from jaxlab.runs.checkpoint import CheckpointManager
    from jaxlab.runs.writer import RunWriter
    from jaxlab.training.fit import run_epochs
    from jaxlab.training.job import check_last_batch, class_weights, job_of, network_of

    config, folder, data, preprocess, device, console = task
    console.log(_data_line(data, f", on {device}"))
    weights = class_weights(data, config.class_weights, console.log)
    network = network_of(config, data)
    check_last_batch(config, network, len(data.train))
    checkpoints = CheckpointManager(
        folder / run_folder.CHECKPOINTS, config.keep, console.log
    )
    start = _start(task, then, network, checkpoints)
    _warn_of_low_rate(config, console)
    stages.describe_saved(functools.partial(_how_to_resume, task, checkpoints))
    writer = RunWriter(
        folder,
        checkpoints if config.checkpoint_every else None,
        console.log,
        functools.partial(figures.curves, config, data),
    )
    needed = _begin(task, network, start, writer, checkpoints)
    features = _feature_store(task, needed) if config.feature_cache else None
    with contextlib.closing(runtime.Clock()) as clock, writer:
        job = job_of(
            config,
            data,
            preprocess,
            network,
            start.state,
            clock,
            console,
            class_weights=weights,
            store=features,
        )
        state, rows, predictions = run_epochs(job, start.state, start.progress, writer)
        signals.check()
        console.wait("writing the model")
        _write_model(task, writer, state)
    stages.describe_saved(functools.partial(_how_to_draw, task))
    console.wait("drawing the pictures")
    figures.draw(writer, config, data, preprocess, rows, predictions)
    console.log(
        f"compilation: {clock.compile_seconds:.1f} s, not included in the times above"
    )
    return _finished(rows, folder, config, console)


def _write_model(task: Task, writer: Any, state: Any) -> None:
    """Write the network, in torchvision's names, with what a Classifier needs."""
    import jax

    from jaxlab.classifier import metadata
    from pretrained import to_state_dict

    config = task.config
    variables = jax.device_get({"params": state.params, **state.other_variables})
    writer.write_model(
        to_state_dict(variables, config.model),
        metadata(
            config.model, task.data.class_names, task.preprocess, config.precision
        ),
    )


def _begin(
    task: Task, network: Any, start: "Start", writer: Any, checkpoints: Any
) -> int:
    """Write the run's record, print a summary and return the disk space still needed.

    It is in bytes and covers checkpoints and the model; 0 if checkpoints are off.
    """
    from jaxlab.figures.text import layer_table
    from jaxlab.runs.checkpoint import check_disk_space
    from jaxlab.training.initial_weights import describe

    config, data, log = task.config, task.data, task.console.log
    sizes = (checkpoints.folder, start.state, network.trainable, config.keep)
    kept = needed = 0
    if config.checkpoint_every:
        check_disk_space(*sizes)  # before any file is removed
    writer.begin(start.record, start.progress.rows, data.files)
    if config.checkpoint_every:
        kept, needed = check_disk_space(*sizes)
    origins = start.record.weights["layers"]
    layers = layers_of(TABLES[config.model]) if config.layers == "all" else None
    table = layer_table(start.state.params, network.trainable, origins, layers)
    for line in [*describe(start.record.weights).splitlines(), *table.splitlines()]:
        log(line)
    if kept:
        log(
            f"checkpoints: {kept / 1e9:.1f} GB in {checkpoints.folder} for the latest "
            f"{config.keep}; only the last one is kept at the end"
        )
    return needed


def _warn_of_low_rate(config: Resolved, console: Console) -> None:
    """Log a warning if the schedule leaves many epochs in which little is learned."""
    from jaxlab.training.job import schedule_of

    epoch = schedule_of(config).starves_from()
    if epoch is not None:
        console.log(
            f"warning: from epoch {epoch + 1} of {config.epochs} on, the learning rate "
            f"is below a thousandth of --lr {config.lr:g}, and little is learned; a "
            "new run with a larger --lr-step would use these epochs"
        )


def _feature_store(task: Task, needed: int) -> Any:
    """Return the cache of features; it leaves `needed` bytes free on the run's disk.

    If the user has no home folder for it, log a warning and return None.
    """
    from jaxlab.training.feature_store import ArrayStore

    size = int(task.config.feature_cache_size * 1e9)
    try:
        cache = disk.cache_folder() / "features"
    except OSError as error:
        task.console.log(
            f"warning: features are not kept: {error.strerror}; set JAXLAB_HOME to a "
            "writable folder"
        )
        return None
    leave = needed if disk.on_one_disk(cache, task.folder) else 0
    return ArrayStore(cache, size, leave=leave)


def _finished(
    rows: list[dict[str, float]], folder: Path, config: Resolved, console: Console
) -> Run:
    model, sha256 = folder / run_folder.MODEL, None
    if model.exists():  # a process with a SilentWriter has none
        with open(model, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows = Rows(rows, ARCHITECTURES[config.model].has_dropout)
    run = Run(folder, rows, sha256, config.test_size or 0)
    console.log(f"test_accuracy={run.test_accuracy:.4f} run={folder}")
    return run


def _how_to_resume(task: Task, checkpoints: Any) -> str:
    """Return what a run that is stopped now leaves, and how to go on."""
    out = shlex.quote(str(task.folder))
    again = f"pass --resume --out {out}"
    if checkpoints.last is not None:
        return f"stopped after step {checkpoints.last}; to continue, {again}"
    if task.config.checkpoint_every:
        return f"no step was saved yet; to start again, {again}"
    return (
        "nothing was saved, because of --checkpoint-every 0; to start again, pass "
        f"--overwrite --out {out}"
    )


def _how_to_draw(task: Task) -> str:
    return (
        "the run is finished except for its pictures; to draw them, pass --resume "
        f"--out {shlex.quote(str(task.folder))}"
    )


class Start(NamedTuple):
    """The starting point of a run: its state, its progress so far and its record."""

    state: Any
    progress: Any
    record: Record


def _start(task: Task, then: Record | None, network: Any, checkpoints: Any) -> Start:
    """Return where training starts: the checkpoint to resume, or the initial weights.

    Raises UsageError if the checkpoint is beyond `config.epochs`, CheckpointError if no
    usable one exists.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab.runs.checkpoint import unflatten_like
    from jaxlab.training.fit import Progress, ValidatedState
    from jaxlab.training.initial_weights import initial_variables
    from jaxlab.training.step import init_state

    config, console, log = task.config, task.console, task.console.log

    def first_state(variables):
        params, statistics = variables["params"], variables.get("batch_stats")
        state = init_state(params, network.optimizer, statistics)
        if task.data.validation is None:
            return state
        return ValidatedState.of(state, network.trainable)

    now = environment.recorded(task.device)
    saved = None
    if then is not None and config.resume is not None:
        saved = resume.checkpoint_to_resume(checkpoints, config.resume, log)
    if then is None or saved is None:
        name = "random" if config.weights == "none" else config.weights
        console.wait("preparing the weights", f"weights: {name}")
        variables, weights = initial_variables(
            ARCHITECTURES[config.model],
            network.model,
            network.init_key,
            config.weights,
            class_names=task.data.class_names,
            offline=config.offline,
            log=console.shown,
        )
        record = Record.of(config, task.data, task.preprocess, weights, now)
        return Start(first_state(variables), Progress(), record)
    progress = Progress.from_checkpoint(saved.about)
    if config.epochs < progress.epochs_begun:
        raise UsageError(
            f"--epochs: step {saved.step} belongs to epoch {progress.epochs_begun}; "
            f"pass {progress.epochs_begun} or more, or pass an earlier step to --resume"
        )
    log(f"resumed from step {saved.step}")
    template = jax.eval_shape(first_state, network.shapes)
    state = jax.tree.map(jnp.array, unflatten_like(template, saved))
    resume.warn_if_environment_changed(then, now, log)
    return Start(state, progress, then.resumed(config, saved.step, now))


def _draw_missing(task: Task, rows: list[dict[str, float]], missing: list[str]) -> Run:
    """Draw the missing figures of a finished run, from its model and its metrics."""
    import jax.numpy as jnp

    from jaxlab.runs import figures
    from jaxlab.runs.writer import RunWriter
    from jaxlab.training import inputs
    from jaxlab.training.epoch import evaluate_split
    from jaxlab.training.initial_weights import whole_network
    from jaxlab.training.job import eval_step_of, network_of
    from jaxlab.training.step import TrainState

    config, folder, data = task.config, task.folder, task.data
    stages.describe_saved(functools.partial(_how_to_draw, task))
    task.console.wait("evaluating")
    model = network_of(config, data).model
    weights = whole_network(str(folder / run_folder.MODEL), config.model)
    test = inputs.image_inputs(model, data, task.preprocess, config.workers)["test"]
    _, predictions = evaluate_split(
        eval_step_of(test.apply_fn),
        TrainState(weights.params, weights.batch_stats, (), jnp.int32(0)),
        test.load,
        count=len(data.test),
        batch_size=inputs.forward_batch(model, config.image_size),
    )
    writer = RunWriter(folder, None, task.console.log)
    preprocess = task.preprocess
    figures.draw(writer, config, data, preprocess, rows, predictions, missing)
    return _finished(rows, folder, config, task.console)


if __name__ == "__main__":
    sys.exit(terminal.run(main))
