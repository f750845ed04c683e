"""The epochs of a run: train, test, write down, save; or go on where one stopped."""

import functools
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab.cli import signals, terminal
from jaxlab.data.loaders import epoch_order
from jaxlab.errors import CorruptionError, InputError, JaxlabError
from jaxlab.runs import folder as run_folder
from jaxlab.runs.checkpoint import Checkpoint, CheckpointManager, unflatten_like
from jaxlab.runtime import Clock
from jaxlab.training.epoch import NotFinite, evaluate_split, train_epoch
from jaxlab.training.inputs import FORWARD_BATCH, Inputs
from jaxlab.training.step import Metrics, TrainState
from pretrained.files import write_safetensors


class Job(NamedTuple):
    """What does not change while a run trains.

    `inputs` and `counts` by split, `rate` from an epoch to its learning rate, `key` for
    dropout, `weights` from params to what a file of weights holds. Every `every` epochs
    a checkpoint is written, never for 0.
    """

    folder: Path
    inputs: dict[str, Inputs]
    counts: dict[str, int]
    train_step: Callable
    eval_step: Callable
    rate: Callable[[int], float]
    trainable: Any
    weights: Callable[[Any], dict[str, np.ndarray]]
    key: jax.Array
    seed: int
    batch_size: int
    epochs: int
    every: int
    clock: Clock


class Progress(NamedTuple):
    """How far a run has come: what the arrays of its state do not say.

    The entries of metrics.jsonl, the metrics of the steps of an epoch that is not
    finished and the seconds it took so far, and the best epoch saved.
    """

    history: tuple[dict[str, float], ...] = ()
    step_metrics: tuple[Metrics, ...] = ()
    seconds: float = 0.0
    best: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it, without loss."""
        step_metrics = [[float(value) for value in step] for step in self.step_metrics]
        return {**self._asdict(), "step_metrics": step_metrics}

    @classmethod
    def from_checkpoint(cls, saved: Checkpoint) -> "Progress":
        """Return the progress of a saved step."""
        steps = [
            Metrics(*map(np.float32, step)) for step in saved.about["step_metrics"]
        ]
        fields = {name: saved.about[name] for name in ("history", "seconds", "best")}
        return cls(step_metrics=tuple(steps), **fields)


def fit(
    job: Job, state: TrainState, progress: Progress, checkpoints: CheckpointManager
) -> tuple[TrainState, list[dict[str, float]], np.ndarray]:
    """Train from a progress to the last epoch, whose checkpoint may not be written yet.

    Returns the state, metrics.jsonl's entries and the predictions int32[tested] of the
    last epoch. A signal ends it between two steps, with a checkpoint (see
    `jaxlab.cli.signals`). Raises JaxlabError when a loss is not finite, CheckpointError
    when a checkpoint cannot be written.
    """
    history, step_metrics = list(progress.history), list(progress.step_metrics)
    best, predictions = progress.best, None
    started = job.clock() - progress.seconds
    try:
        for epoch in range(len(history), job.epochs):
            rate = job.rate(epoch)
            order = epoch_order(job.counts["train"], job.seed, epoch)
            with (
                signals.deferred() as stop,
                terminal.progress_bar(len(order), f"epoch {epoch + 1}") as bar,
            ):
                bar.update(min(len(step_metrics) * job.batch_size, len(order)))
                state, trained = train_epoch(
                    job.train_step,
                    state,
                    job.inputs["train"].load,
                    order=order,
                    batch_size=job.batch_size,
                    key=job.key,
                    step_metrics=step_metrics,
                    stop=stop,
                    on_batch=functools.partial(_update_bar, bar, rate),
                )
                signals.check()
            training_seconds = job.clock() - started
            tested, predictions = _test(job, state)
            if not math.isfinite(tested.loss):
                # The training loss does not yet see what the last update did.
                raise NotFinite(len(step_metrics), tested.loss)
            entry = {
                "epoch": epoch + 1,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "test_loss": tested.loss,
                "test_accuracy": tested.accuracy,
                "learning_rate": rate,
                "examples_per_second": len(order) / training_seconds,
                "seconds": job.clock() - started,
            }
            with signals.deferred():  # what was reached and what is told go together
                history.append(entry)
                step_metrics, started = [], job.clock()
                run_folder.write_metrics(job.folder, history)
                try:
                    _log_epoch(job, entry)
                finally:  # whether somebody reads it or not
                    if job.every and (
                        (epoch + 1) % job.every == 0 or epoch + 1 == job.epochs
                    ):
                        if best is None or tested.accuracy > best["test_accuracy"]:
                            best = {"epoch": epoch + 1, "step": int(state.step)}
                            best["test_accuracy"] = tested.accuracy
                        progress = Progress(tuple(history), best=best)
                        checkpoints.save(state, job.trainable, progress.as_json())
            signals.check()
    except NotFinite as error:
        raise _diverged(job, error, epoch, rate, checkpoints) from error
    except signals.Stopped:
        seconds = job.clock() - started if step_metrics else 0.0
        _stop(job, state, Progress(history, step_metrics, seconds, best), checkpoints)
        raise
    if predictions is None:  # all was trained before
        _, predictions = _test(job, state)
    if best:
        _write_best(job, state, best, checkpoints)
    return state, history, predictions


def _log_epoch(job: Job, entry: dict[str, float]) -> None:
    reached = "".join(
        f"{split} loss {entry[f'{split}_loss']:.4f} "
        f"accuracy {entry[f'{split}_accuracy']:.4f}  "
        for split in ("train", "test")
    )
    print(
        f"epoch {entry['epoch']}/{job.epochs}  {reached}"
        f"lr {entry['learning_rate']:.2g}  "
        f"{entry['examples_per_second']:,.0f} images/s",
        flush=True,
    )


def _test(job: Job, state: TrainState):
    return evaluate_split(
        job.eval_step,
        state,
        job.inputs["test"].load,
        count=job.counts["test"],
        batch_size=FORWARD_BATCH,
    )


def _write_best(
    job: Job, state: TrainState, best: dict[str, Any], checkpoints: CheckpointManager
) -> None:
    """Write the weights of the best epoch, unless it is the last one, the run's own."""
    path = checkpoints.folder / f"best-epoch-{best['epoch']}.safetensors"
    last = int(state.step)
    if best["step"] != last:
        try:
            saved = checkpoints.read(best["step"], "params.")
        except CorruptionError as error:
            checkpoints.log(f"warning: {error}; the best weights are not written")
            return
        params = unflatten_like({"params": state.params}, saved)["params"]
        write_safetensors(path, job.weights(params), {"format": "pt"})
        checkpoints.log(
            f"best: epoch {best['epoch']}, test accuracy {best['test_accuracy']:.4f}: "
            f"{path}"
        )
    for other in checkpoints.folder.glob("best-*"):
        if best["step"] == last or other != path:
            other.unlink()


def _update_bar(bar: Any, rate: float, score: Any, count: int) -> None:
    status = f"loss {score.loss:.3f} acc {score.accuracy:.1%} lr {rate:.2g}"
    bar.set_postfix_str(status, refresh=False)
    bar.update(count)


def _stop(
    job: Job, state: TrainState, progress: Progress, checkpoints: CheckpointManager
) -> None:
    if not job.every:
        print("stopped; nothing is saved, as --checkpoint-every 0 asks for", flush=True)
        return
    checkpoints.save(state, job.trainable, progress.as_json())
    checkpoints.wait()
    print(
        f"stopped after step {state.step}; to go on: --resume --out "
        f"{shlex.quote(str(job.folder))}",
        flush=True,
    )


def _diverged(
    job: Job, error: NotFinite, epoch: int, rate: float, checkpoints: CheckpointManager
) -> JaxlabError:
    checkpoints.wait()
    last = checkpoints.last
    step = epoch * math.ceil(job.counts["train"] / job.batch_size) + error.step
    return JaxlabError(
        f"training: the loss is {error.loss} after step {step}, in epoch {epoch + 1} "
        f"at learning rate {rate:g}; lower --lr"
        + (f"; the last step saved is {last}" if last is not None else "")
    )


def check_disk_space(
    folder: Path, state: TrainState, trainable: Any, keep: int, every: int
) -> tuple[int, int]:
    """Return the bytes of a run's checkpoints, and those it will still write at most.

    Both are 0 where none are written, for `every` 0. `state` may be of shapes. Raises
    InputError when the disk has less.
    """
    if not every:
        return 0, 0

    def size(leaves):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    params = jax.tree.leaves(state.params)
    trainable = jax.tree.leaves(trainable)
    frozen = size(
        leaf
        for leaf, is_trainable in zip(params, trainable, strict=True)
        if not is_trainable
    )
    moving = size(jax.tree.leaves(state)) - frozen
    kept = (keep + 1) * moving + frozen  # the last ones and the best
    # While a step is written it is there besides; at the end so are the model's weights
    # and the best.
    needed = kept + moving + 2 * size(params)
    free = shutil.disk_usage(folder).free
    # What an earlier run, or this one before, has written goes or is there already.
    existing = (folder / run_folder.CHECKPOINTS).rglob("*")
    needed -= sum(path.lstat().st_size for path in existing)
    if free < needed:
        raise InputError(
            f"{folder}: checkpoints need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            "are free; free some, pass another --out, or --checkpoint-every 0"
        )
    return kept, max(needed, 0)
