"""The training loop of a run, which can start at the first step or at any later one.

In each epoch it trains, tests, logs the metrics and saves a checkpoint. It writes files
only through the `Writer` that it is given.

Test images never choose anything. With a validation split, each epoch is measured on
that split instead, the best epoch is the one with the lowest validation loss, and its
network is tested once, at the end.

It is one file because a run that stops at any point of it must be able to go on.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.cli import signals
from jaxlab.cli.terminal import Console
from jaxlab.data.loaders import Batch, epoch_order
from jaxlab.errors import DivergedError
from jaxlab.metrics import Row, accuracy_text, best_epoch, patience_ended
from jaxlab.runtime import Clock
from jaxlab.training.epoch import NotFinite, Score, evaluate_split, train_epoch
from jaxlab.training.inputs import FORWARD_BATCH, Inputs
from jaxlab.training.step import Metrics, TrainState
from pretrained import stages
from pretrained.errors import counted


class Writer(Protocol):
    """The methods of a run's writer that the training loop calls."""

    @property
    def last_step(self) -> int | None:
        """The step of the latest checkpoint, or None if nothing was saved."""

    def write_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the metrics of all epochs so far."""

    def renew_curves(
        self, rows: Sequence[Mapping[str, float]], *, stopping: bool = False
    ) -> None:
        """Draw the metrics of all epochs so far, at least before training stops."""

    def save(self, state: Any, trainable: Any, progress: Mapping[str, Any]) -> None:
        """Save a checkpoint; this may return before it is written."""

    def wait(self) -> None:
        """Wait until the checkpoint is written."""


class NoWriter:
    """A writer that writes nothing."""

    last_step: int | None = None

    def write_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Do nothing."""

    def renew_curves(
        self, rows: Sequence[Mapping[str, float]], *, stopping: bool = False
    ) -> None:
        """Do nothing."""

    def save(self, state: Any, trainable: Any, progress: Mapping[str, Any]) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""


class Job(NamedTuple):
    """Everything that is constant during the training of a run.

    `inputs` and `counts` (numbers of examples) are by split. `rate` returns the
    learning rate of an epoch, counted from 0. `key` is the PRNG key for dropout. A
    checkpoint is saved every `every` epochs and after the last one, or never for 0.
    Training ends early after `patience` epochs without a better one, if given. The
    splits in `also` are measured after each epoch besides the watched one: of "train",
    this replaces the mean of its steps; a "test" that chooses nothing is a curve.
    Splits are measured in batches of `forward_batch` examples.
    """

    inputs: dict[str, Inputs]
    counts: dict[str, int]
    train_step: Callable
    eval_steps: dict[str, Callable]
    rate: Callable[[int], float] | None
    trainable: Any
    key: jax.Array
    seed: int
    batch_size: int
    epochs: int
    every: int
    clock: Clock
    console: Console
    patience: int | None = None
    also: tuple[str, ...] = ()
    pads: bool = True
    forward_batch: int = FORWARD_BATCH

    @property
    def watched(self) -> str:
        """The split that is measured after each epoch: "validation" or "test"."""
        return "validation" if "validation" in self.counts else "test"


class ValidatedState(TrainState):
    """The training state of a run with a validation split.

    `best` holds the trained params and the running statistics of the best epoch so far;
    before the first epoch has ended, the initial ones.
    """

    best: Any

    @classmethod
    def of(cls, state: TrainState, trainable: Any) -> "ValidatedState":
        """Return the state with a copy of its own variables as the best ones."""
        params = jax.tree.map(
            lambda leaf, is_trained: jnp.copy(leaf) if is_trained else None,
            state.params,
            trainable,
        )
        statistics = jax.tree.map(jnp.copy, state.batch_stats)
        return cls(
            state.params,
            state.batch_stats,
            state.opt_state,
            state.step,
            best={"params": params, "batch_stats": statistics},
        )

    def best_state(self) -> TrainState:
        """Return the state with the variables of the best epoch."""
        params = jax.tree.map(
            lambda frozen, best: frozen if best is None else best,
            self.params,
            self.best["params"],
        )
        statistics = self.best["batch_stats"]
        return TrainState(params, statistics, self.opt_state, self.step)


class Progress(NamedTuple):
    """The progress of a run, as far as it is not part of the training state.

    `rows` are the metrics of the finished epochs. For an unfinished epoch,
    `step_metrics` are the metrics of the steps that were taken, and `seconds` is the
    time that it has taken so far.
    """

    rows: tuple[Row, ...] = ()
    step_metrics: tuple[Metrics, ...] = ()
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the progress as values for JSON, which represents it exactly."""
        steps = [[float(value) for value in step] for step in self.step_metrics]
        return {**self._asdict(), "step_metrics": steps}

    @classmethod
    def from_checkpoint(cls, about: Mapping[str, Any]) -> "Progress":
        """Return the progress that was saved in a checkpoint."""
        steps = [Metrics(*map(np.float32, step)) for step in about["step_metrics"]]
        return cls(tuple(about["rows"]), tuple(steps), about["seconds"])

    @property
    def epochs_begun(self) -> int:
        """The number of epochs in which at least one step was taken."""
        return len(self.rows) + bool(self.step_metrics)


def run_epochs(
    job: Job, state: TrainState, progress: Progress, writer: Writer
) -> tuple[TrainState, list[Row], Any]:
    """Train from `progress` to the last epoch; the last save may still be running.

    Returns the state, the rows of all epochs, and its predictions for the test images,
    in the form of the evaluation step. With a validation split, `state` is a
    `ValidatedState`, and the state that is returned has the variables of the best
    epoch. On a signal, training ends after the current step, saves a checkpoint unless
    `job.every` is 0, and raises Stopped (see `jaxlab.cli.signals`). Raises
    DivergedError if a loss is not finite, CheckpointError if saving fails.
    """
    rows, step_metrics = list(progress.rows), list(progress.step_metrics)
    predictions = None
    started = job.clock() - progress.seconds
    # JAX compiles a function when it is first called.
    job.console.wait("compiling the training step", "compilation: the training step")
    try:
        while not _has_ended(job, rows):
            epoch = len(rows)
            with signals.deferred() as stop:
                state, trained = _train(job, state, epoch, step_metrics, stop)
                signals.check()
            training_seconds = job.clock() - started
            measured, predictions = _evaluate(job, state, job.watched)
            if not math.isfinite(measured.loss):
                # A training loss is computed before the update of its step, so it does
                # not show the effect of the last update.
                raise NotFinite(len(step_metrics), measured.loss)
            scores = {"train": trained, job.watched: measured}
            scores |= {split: _evaluate(job, state, split)[0] for split in job.also}
            row = _row(job, epoch, scores, training_seconds)
            row["seconds"] = job.clock() - started
            with signals.deferred():  # a signal must not separate these updates
                rows.append(row)
                step_metrics, started = [], job.clock()
                if best_epoch(rows) == row["epoch"]:
                    state = ValidatedState.of(state, job.trainable)
                writer.write_rows(rows)
                try:
                    _log_epoch(job, row)
                finally:  # also if stdout was closed
                    if _is_saved(job, rows):
                        progress = Progress(tuple(rows))
                        writer.save(state, job.trainable, progress.as_json())
            signals.check()
            if not _has_ended(job, rows):
                writer.renew_curves(rows)
                started = job.clock()
        if isinstance(state, ValidatedState):
            return _test_the_best(job, state, rows, writer)
    except NotFinite as error:
        raise _diverged(job, error, len(rows), writer) from error
    except signals.Stopped:
        if job.every:
            seconds = job.clock() - started if step_metrics else 0.0
            progress = Progress(tuple(rows), tuple(step_metrics), seconds)
            writer.save(state, job.trainable, progress.as_json())
            writer.wait()
        writer.renew_curves(rows, stopping=True)
        raise
    if predictions is None:  # no epoch was left to train
        _, predictions = _evaluate(job, state, "test")
    return state, rows, predictions


def _has_ended(job: Job, rows: Sequence[Row]) -> bool:
    return len(rows) >= job.epochs or patience_ended(rows, job.patience)


def _test_the_best(
    job: Job, state: ValidatedState, rows: list[Row], writer: Writer
) -> tuple[TrainState, list[Row], Any]:
    """Measure the best epoch's network on the test split, and add it to the last row.

    The arguments stay as they are, so that a signal can still save them.
    """
    best, best_of_all = best_epoch(rows), state.best_state()
    if "test" in job.also:  # it was measured after each epoch
        return best_of_all, rows, None
    if len(rows) < job.epochs:
        job.console.log(
            f"stopped after epoch {len(rows)}: the validation loss was lowest in epoch "
            f"{best} and has not improved for "
            f"{counted(job.patience or 0, 'epoch')}"
        )
    tested, predictions = _evaluate(job, best_of_all, "test")
    if not math.isfinite(tested.loss):
        raise DivergedError(
            f"testing: the network of the best epoch, {best}, has the loss "
            f"{tested.loss} on the test split; lower --lr"
        )
    tested_row = {"test_loss": tested.loss, "test_accuracy": tested.accuracy}
    with signals.deferred():
        rows = [*rows[:-1], rows[-1] | tested_row]
        writer.write_rows(rows)
        job.console.log(
            f"best epoch {best} of {len(rows)}, by validation loss  test loss "
            f"{tested.loss:.4f} {accuracy_text(tested.accuracy, job.counts['test'])}"
        )
    signals.check()
    return best_of_all, rows, predictions


def _train(
    job: Job,
    state: TrainState,
    epoch: int,
    step_metrics: list[Metrics],
    stop: Callable[[], bool],
) -> tuple[TrainState, Score]:
    """Run the steps of an epoch that `step_metrics` lacks, until `stop()` is true."""
    order = epoch_order(job.counts["train"], job.seed, epoch)
    label = _numbered(epoch + 1, job.epochs)
    with job.console.progress(len(order), label, eta=False) as bar:
        bar.set_postfix_str(stages.current())  # perhaps it waits for the compiler
        bar.update(min(len(step_metrics) * job.batch_size, len(order)))
        return train_epoch(
            job.train_step,
            state,
            job.inputs["train"].load,
            order=order,
            batch_size=job.batch_size,
            key=job.key,
            step_metrics=step_metrics,
            stop=stop,
            on_batch=functools.partial(_update_bar, bar, job.epochs - epoch - 1),
            pads=job.pads,
        )


def _evaluate(job: Job, state: TrainState, split: str) -> tuple[Score, np.ndarray]:
    if isinstance(state, ValidatedState):  # one program for both kinds of state
        state = TrainState(state.params, state.batch_stats, state.opt_state, state.step)
    count, load = job.counts[split], job.inputs[split].load
    label = f"evaluating {'training' if split == 'train' else split} images"
    with (
        stages.stage("evaluating"),
        job.console.progress(count, label) as bar,
    ):

        def counted_load(order: np.ndarray, size: int) -> Iterator[Batch]:
            for batch in load(order, size):
                yield batch
                bar.update(min(size, count - bar.n))

        return evaluate_split(
            job.eval_steps[split],
            state,
            counted_load,
            count=count,
            batch_size=job.forward_batch,
        )


def _row(job: Job, epoch: int, scores: Mapping[str, Score], seconds: float) -> Row:
    row: Row = {"epoch": epoch + 1}
    for split, score in scores.items():
        row |= {f"{split}_loss": score.loss, f"{split}_accuracy": score.accuracy}
    if job.rate is not None:
        row["learning_rate"] = job.rate(epoch)
    return {**row, "examples_per_second": job.counts["train"] / seconds}


def _is_saved(job: Job, rows: Sequence[Row]) -> bool:
    """Return whether a checkpoint is saved after the last of these epochs."""
    return job.every > 0 and (len(rows) % job.every == 0 or _has_ended(job, rows))


def _log_epoch(job: Job, row: Row) -> None:
    """Log an epoch's metrics, in columns of the same width in all epochs."""
    watched = job.watched
    accuracy = accuracy_text(
        row[f"{watched}_accuracy"], job.counts[watched], aligned=True
    )
    rate = f"lr {row['learning_rate']:<7.2g}  " if "learning_rate" in row else ""
    job.console.log(
        f"{_numbered(row['epoch'], job.epochs)}  "
        f"train loss {_fixed(row['train_loss'])} accuracy {row['train_accuracy']:.4f}  "
        f"{watched} loss {_fixed(row[f'{watched}_loss'])} {accuracy}  {rate}"
        f"{row['examples_per_second']:>6,.0f} images/s"
    )


def _numbered(epoch: float, epochs: int) -> str:
    """Return the number of an epoch, as wide as that of the last one."""
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}"


def _fixed(loss: float) -> str:
    """Return a loss in six characters, with four decimals if it is below 10."""
    return f"{loss:.{max(0, 5 - len(str(int(loss))))}f}"


def _update_bar(bar: Any, later: int, score: Score, count: int) -> None:
    """Show the score of the latest steps, and the time until training ends.

    `later` is the number of epochs after this one.
    """
    stages.begin("training")
    bar.update(count)
    status = f"loss {score.loss:.3f} acc {score.accuracy:.1%}"
    if rate := bar.format_dict["rate"]:
        seconds = (bar.total - bar.n + later * bar.total) / rate
        status += f", ETA {bar.format_interval(seconds)}"
    bar.set_postfix_str(status, refresh=False)


def _diverged(job: Job, error: NotFinite, epoch: int, writer: Writer) -> DivergedError:
    writer.wait()
    last = writer.last_step
    step = epoch * math.ceil(job.counts["train"] / job.batch_size) + error.step
    rate = f" at learning rate {job.rate(epoch):g}" if job.rate else ""
    return DivergedError(
        f"training: the loss is {error.loss} after step {step}, in epoch {epoch + 1}"
        f"{rate}; lower {'--lr' if rate else 'the learning rate of the optimizer'}"
        + (f"; the latest checkpoint is step {last}" if last is not None else "")
    )
