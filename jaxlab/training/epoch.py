"""Train a network for one epoch, and evaluate it on a split."""

import functools
import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.loaders import InMemory, Loader, batches, gather
from jaxlab.training.step import Metrics, TrainState

# Several steps run as one program that should take at most about this long, because
# progress bars are updated and signals are handled only between two programs.
MAX_DISPATCH_SECONDS = 0.5


class NotFinite(Exception):
    """Raised if the loss of a step, counted from 1 in its epoch, is not finite."""

    def __init__(self, step: int, loss: float):
        """Store the step and its loss."""
        super().__init__(f"step {step}: the loss is {loss}")
        self.step = step
        self.loss = loss


class Score(NamedTuple):
    """The mean loss and the accuracy, in [0, 1], over a number of examples."""

    loss: float
    accuracy: float


def train_epoch(
    train_step: Callable,
    state: TrainState,
    load: Loader,
    *,
    order: np.ndarray,
    batch_size: int,
    key: jax.Array,
    step_metrics: list[Metrics] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Score, int], None] = lambda score, count: None,
    pads: bool = True,
) -> tuple[TrainState, Score]:
    """Take one step for every batch of `order`; return the state and the mean score.

    `on_batch` receives the score and the number of examples since its last call. The
    device rarely waits for the host: with an `InMemory` loader, the steps of half a
    second are one program; otherwise the metrics of each step are fetched while the
    next step runs.

    `step_metrics` holds the metrics of the first batches if an earlier call has taken
    their steps; this call appends its own. It returns early if `stop()` is True between
    two steps. If `pads` is False, the last batch is shorter instead of padded. Raises
    NotFinite when a loss is not finite.
    """
    scores = [] if step_metrics is None else step_metrics
    run = _steps_in_memory if isinstance(load, InMemory) else _steps_one_by_one
    whole = len(order) if pads else len(order) - len(order) % batch_size
    steps_before = 0  # those of the part before
    for part in (order[:whole], order[whole:]):
        if not len(part):
            continue
        size = min(batch_size, len(part)) if not pads else batch_size
        done = max(0, len(scores) - steps_before)
        for after, metrics in run(train_step, state, load, part, size, key, done, stop):
            for step in metrics:
                if not np.isfinite(step.loss):
                    raise NotFinite(len(scores) + 1, float(step.loss / step.count))
                scores.append(step)
            on_batch(_score(metrics), int(sum(step.count for step in metrics)))
            state = after
        steps_before += -(-len(part) // size)
    return state, _score(scores)


def _steps_in_memory(train_step, state, load, order, batch_size, key, done, stop):
    """Yield the state and the metrics of each program of several steps."""
    indices, weights = map(np.stack, zip(*batches(order, batch_size), strict=True))
    start, count = done, 1
    while start < len(indices) and not stop():
        end = min(start + count, len(indices))
        began = time.perf_counter()
        state, metrics = _steps(
            train_step, state, load, indices, weights, key, start, end
        )
        new = [column[start:end] for column in jax.device_get(metrics)]
        # One program for any number of steps, so the result is the same to the bit.
        count *= 2 if time.perf_counter() - began < MAX_DISPATCH_SECONDS / 2 else 1
        start = end
        yield state, [Metrics(*step) for step in zip(*new, strict=True)]


def _steps_one_by_one(train_step, state, load, order, batch_size, key, done, stop):
    """Yield the state and the metrics of each step, when the next step is running."""

    def steps():
        nonlocal state
        remaining = order[done * batch_size :]
        for batch in load(remaining, batch_size) if len(remaining) else ():
            if stop():
                return
            state, metrics = train_step(state, batch, key)
            yield metrics

    for metrics in fetch_lagged(steps()):
        yield state, [metrics]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _steps(train_step, state, data, indices, weights, key, start, stop):
    """Run the training steps of the batches from `start` up to, but excluding, `stop`.

    Each of the metrics has shape [number of batches] and is 0 for all other batches.
    """

    def take(i, state):
        return train_step(state, gather(data, indices[i], weights[i]), key)

    def body(i, carry):
        state, history = carry
        state, metrics = take(i, state)
        return state, jax.tree.map(lambda a, b: a.at[i].set(b), history, metrics)

    _, metrics = jax.eval_shape(take, 0, state)
    history = jax.tree.map(lambda a: jnp.zeros(len(indices), a.dtype), metrics)
    return jax.lax.fori_loop(start, stop, body, (state, history))


def fetch_lagged(results: Iterable[Any]) -> Iterator[Any]:
    """Yield results copied to the host, each after the next one was dispatched."""
    pending: deque[Any] = deque()
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            yield jax.device_get(pending.popleft())
    yield from jax.device_get(list(pending))


def evaluate_split(
    eval_step: Callable,
    state: TrainState,
    load: Loader,
    *,
    count: int,
    batch_size: int,
) -> tuple[Score, Any]:
    """Return the mean score and the predictions, int32[count], of `count` examples.

    `load` yields each `Batch` of an order of examples. Each example counts once; the
    padding of the last batch is ignored. With the step of `make_prediction_step`, the
    predictions are `Predictions`.

    >>> import jaxlab, optax
    >>> inputs, labels = jnp.eye(3), jnp.array([0, 1, 1])
    >>> def load(order, size):
    ...     for indices, weights in jaxlab.batches(order, size):
    ...         yield jaxlab.Batch(inputs[indices], labels[indices], weights)
    >>> eval_step = jaxlab.make_eval_step(lambda variables, x, *, train: x)
    >>> state = jaxlab.init_state({}, optax.sgd(0.1))
    >>> score, predictions = evaluate_split(
    ...     eval_step, state, load, count=3, batch_size=2
    ... )
    >>> round(score.accuracy, 3), predictions.tolist()
    (0.667, [0, 1, 2])
    """
    scores, predictions = [], []
    steps = (eval_step(state, batch) for batch in load(np.arange(count), batch_size))
    for metrics, predicted in fetch_lagged(steps):
        scores.append(metrics)
        examples = slice(int(metrics.count))  # the padding is at the end
        predictions.append(jax.tree.map(operator.itemgetter(examples), predicted))
    return _score(scores), jax.tree.map(
        lambda *parts: np.concatenate(parts), *predictions
    )


def _score(metrics: list[Metrics]) -> Score:
    if not metrics:
        return Score(float("nan"), float("nan"))
    loss, correct, count = np.asarray(metrics).sum(axis=0, dtype=np.float64)
    return Score(float(loss / count), float(correct / count))
