"""Functional training: a state, pure steps over it, and the loop of an epoch.

The steps know no model and no optimiser by name: they take an `apply_fn` with the
signature of a Linen module's `apply`, and an Optax transformation.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

# How long the device may work without the host: what a progress bar, or who interrupts
# the run, has to wait.
SECONDS_AWAY = 0.5


class TrainState(struct.PyTreeNode):
    """All that a step reads and writes; plain nested dicts and arrays.

    `params` and `batch_stats` as Linen keeps them, `opt_state` as Optax does, `step`
    int32: the number of steps taken.
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array


class Batch(NamedTuple):
    """inputs [b, ...], labels int32[b], weights float[b]: 1, or 0 for padding."""

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array


class Metrics(NamedTuple):
    """Sums over examples: of the loss, of correct answers, and their number."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


class NotFinite(Exception):
    """A loss that is not finite: the number of its step in the epoch, and its value."""

    def __init__(self, step: int, loss: float):
        """Keep both."""
        super().__init__(f"step {step}: the loss is {loss}")
        self.step = step
        self.loss = loss


class Score(NamedTuple):
    """Means over examples."""

    loss: float
    accuracy: float


def init_state(
    params: Any, optimizer: optax.GradientTransformation, batch_stats: Any = None
) -> TrainState:
    """Return the state before the first step. The first step donates its buffers."""
    return TrainState(
        params=jax.tree.map(jnp.array, params),
        batch_stats=jax.tree.map(jnp.array, batch_stats or {}),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    apply_fn: Callable,
    optimizer: optax.GradientTransformation,
    trainable: Any,
    penalty: Callable[[Any], jax.Array | float] = lambda params: 0.0,
    class_weights: jax.Array | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Return the jitted step `(state, batch, key) -> (state, metrics)`; donates state.

    The loss is the mean cross entropy over the examples of weight 1, plus `penalty` of
    the params, which the metrics leave out. With `class_weights` float[classes] it is
    the mean weighted by each example's class, as torch's CrossEntropyLoss(weight) has
    it; the metrics stay unweighted. Gradients are computed for the leaves where
    the tree `trainable` is True and for no others; frozen leaves leave the step as they
    entered it, bit for bit. Dropout's key is `key` folded with the step's number, so
    the caller passes the same key all along. The metrics are those of the forward pass
    in training mode, before the update.
    """
    trainable = flax.traverse_util.flatten_dict(trainable)

    def train_step(state, batch, key):
        flat = flax.traverse_util.flatten_dict(state.params)
        trained = {path: flat[path] for path in flat if trainable[path]}

        def loss_fn(trained):
            params = flax.traverse_util.unflatten_dict({**flat, **trained})
            logits, updated = apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch.inputs,
                train=True,
                rngs={"dropout": jax.random.fold_in(key, state.step)},
                mutable=["batch_stats"],
            )
            metrics = _metrics(logits, batch)
            counted = metrics
            if class_weights is not None:
                weights = batch.weights * jnp.asarray(class_weights)[batch.labels]
                counted = _metrics(logits, batch._replace(weights=weights))
            loss = counted.loss / counted.count + penalty(params)
            return loss, (metrics, updated)

        gradients, (metrics, updated) = jax.grad(loss_fn, has_aux=True)(trained)
        # The optimiser wants a whole tree. Nothing reads these zeros: XLA drops them.
        zeros = {p: jnp.zeros_like(flat[p]) for p in flat if p not in trained}
        updates, opt_state = optimizer.update(
            flax.traverse_util.unflatten_dict({**zeros, **gradients}),
            state.opt_state,
            state.params,
        )
        updates = flax.traverse_util.flatten_dict(updates)
        # Frozen leaves are not even added zero to: that would turn -0.0 into 0.0.
        moved = {path: trained[path] + updates[path] for path in trained}
        state = TrainState(
            params=flax.traverse_util.unflatten_dict({**flat, **moved}),
            batch_stats=updated.get("batch_stats", state.batch_stats),
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(
    apply_fn: Callable,
) -> Callable[[TrainState, Batch], tuple[Metrics, jax.Array]]:
    """Return the jitted `(state, batch) -> (metrics, predictions int32[b])`."""

    def eval_step(state, batch):
        logits = apply_fn(
            {"params": state.params, "batch_stats": state.batch_stats},
            batch.inputs,
            train=False,
        )
        return _metrics(logits, batch), logits.argmax(-1).astype(jnp.int32)

    return jax.jit(eval_step)


def _metrics(logits: jax.Array, batch: Batch) -> Metrics:
    # At least float32, so that bfloat16 logits do not round the loss.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = logits.argmax(-1) == batch.labels
    return Metrics(
        loss=jnp.sum(losses * batch.weights),
        correct=jnp.sum(correct * batch.weights),
        count=jnp.sum(batch.weights),
    )


def batches(order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut an order into (indices int32[size], weights float32[size]).

    The last batch is filled up with its first index at weight 0, so that every batch
    has one shape and nothing recompiles.
    """
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        indices = np.full(size, chunk[0], np.int32)
        indices[: len(chunk)] = chunk
        yield indices, (np.arange(size) < len(chunk)).astype(np.float32)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled order of an epoch: a function of seed and epoch alone."""
    # RandomState's stream is frozen for good; default_rng's may change with NumPy.
    return np.random.RandomState([seed, epoch]).permutation(count)


# From an order int[n] and a batch size to batches of one shape, as `batches` cuts them.
Loader = Callable[[np.ndarray, int], Iterator[Batch]]


class Resident(NamedTuple):
    """A loader of examples on the device: inputs [n, ...], labels int32[n].

    A batch moves its indices only, and `train_epoch` takes its steps without the host.
    """

    inputs: jax.Array
    labels: jax.Array

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order, gathered inside jit."""
        for indices, weights in batches(order, size):
            yield _gather(self, indices, weights)


@jax.jit
def _gather(data: Resident, indices, weights) -> Batch:
    return Batch(data.inputs[indices], data.labels[indices], weights)


def train_epoch(
    train_step: Callable,
    state: TrainState,
    load: Loader,
    *,
    order: np.ndarray,
    batch_size: int,
    key: jax.Array,
    taken: list[Metrics] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Score, int], None] = lambda score, count: None,
) -> tuple[TrainState, Score]:
    """Take one step for every batch of `order`; return the state and the mean score.

    `on_batch` gets the score and the number of examples since its last call. The device
    hardly waits for the host: with a `Resident` loader the steps of half a second are
    one program, else each step's metrics are fetched while the next one runs.

    `taken` are the metrics of the steps for the first batches, where an earlier call
    took them; those of this call are appended. It returns early when `stop()` says so
    between two steps. Raises NotFinite when a loss is not.
    """
    scores = [] if taken is None else taken
    done = len(scores)

    def collect(metrics):
        for step in metrics:
            if not np.isfinite(step.loss):
                raise NotFinite(len(scores) + 1, float(step.loss / step.count))
            scores.append(step)
        score = _score(metrics)
        on_batch(score, int(sum(step.count for step in metrics)))

    if isinstance(load, Resident):
        indices, weights = map(np.stack, zip(*batches(order, batch_size), strict=True))
        start, count = done, 1
        while start < len(indices) and not stop():
            end = min(start + count, len(indices))
            began = time.perf_counter()
            state, metrics = _steps(
                train_step, state, load, indices, weights, key, start, end
            )
            new = [column[start:end] for column in jax.device_get(metrics)]
            collect([Metrics(*step) for step in zip(*new, strict=True)])
            # The same program for any number of steps, so the same result to the bit.
            count *= 2 if time.perf_counter() - began < SECONDS_AWAY / 2 else 1
            start = end
        return state, _score(scores)

    def steps():
        nonlocal state
        left = order[done * batch_size :]
        for batch in load(left, batch_size) if len(left) else ():
            if stop():
                return
            state, metrics = train_step(state, batch, key)
            yield metrics

    for metrics in fetched_late(steps()):
        collect([metrics])
    return state, _score(scores)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _steps(train_step, state, data, indices, weights, key, start, stop):
    """Take the steps of batches start to stop; metrics are [number of batches]."""

    def take(i, state):
        return train_step(state, _gather(data, indices[i], weights[i]), key)

    def body(i, carry):
        state, history = carry
        state, metrics = take(i, state)
        return state, jax.tree.map(lambda a, b: a.at[i].set(b), history, metrics)

    _, metrics = jax.eval_shape(take, 0, state)
    history = jax.tree.map(lambda a: jnp.zeros(len(indices), a.dtype), metrics)
    return jax.lax.fori_loop(start, stop, body, (state, history))


def fetched_late(results: Iterable[Any]) -> Iterator[Any]:
    """Yield device results on the host, each when the next one is under way."""
    pending: deque[Any] = deque()
    for result in results:
        pending.append(result)
        if len(pending) > 1:
            yield jax.device_get(pending.popleft())
    yield from jax.device_get(list(pending))


def evaluate(
    eval_step: Callable,
    state: TrainState,
    load: Loader,
    *,
    count: int,
    batch_size: int,
) -> tuple[Score, np.ndarray]:
    """Return the mean score and predictions int32[count]; each example counts once."""
    scores, predictions = [], []
    steps = (eval_step(state, batch) for batch in load(np.arange(count), batch_size))
    for metrics, predicted in fetched_late(steps):
        scores.append(metrics)
        predictions.append(predicted[: int(metrics.count)])  # padding stands last
    return _score(scores), np.concatenate(predictions)


def _score(metrics: list[Metrics]) -> Score:
    if not metrics:
        return Score(float("nan"), float("nan"))
    loss, correct, count = np.sum(metrics, axis=0, dtype=np.float64)
    return Score(float(loss / count), float(correct / count))
