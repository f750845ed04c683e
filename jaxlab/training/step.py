"""The training state, and pure steps `(state, batch, key) -> (state, metrics)`.

The steps work with any model and any optimizer: they are made from an `apply_fn` with
the signature of a Linen module's `apply`, and an Optax transformation.

It is one file because the state and the steps over it are one idea.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlab.data.loaders import Batch
from jaxlab.models.chain import takes
from jaxlab.training.optim import require_tree


class TrainState(struct.PyTreeNode):
    """Everything that a step reads and updates, as nested dicts and arrays.

    `params` and `batch_stats` have the form that Linen uses, `opt_state` that of Optax.
    `step`, int32, is the number of steps taken.

    >>> import jaxlab
    >>> params = {"w": jnp.zeros(2)}
    >>> optimizer = jaxlab.make_optimizer("sgd", 0.1, trainable={"w": True})
    >>> state = jaxlab.init_state(params, optimizer)
    >>> int(state.step), state.other_variables
    (0, {})
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array

    @property
    def other_variables(self) -> dict[str, Any]:
        """The variables other than the params: running statistics, if there are any."""
        return {"batch_stats": self.batch_stats} if self.batch_stats else {}


class Metrics(NamedTuple):
    """Sums over examples: the loss, the correct predictions, and the examples.

    On the host they are arrays or numbers of NumPy.
    """

    loss: jax.Array | np.ndarray | np.floating
    correct: jax.Array | np.ndarray | np.floating
    # It hides the tuple's method `count`, which nothing needs.
    count: jax.Array | np.ndarray | np.floating  # type: ignore[assignment]


class Predictions(NamedTuple):
    """The predicted class of each example, int32[n], and its probability, float[n]."""

    classes: Any
    probabilities: Any


def init_state(
    params: Any, optimizer: optax.GradientTransformation, batch_stats: Any = None
) -> TrainState:
    """Return the state before the first step.

    It contains copies of the arrays, because the first step donates its buffers.
    `batch_stats` are the module's running statistics, if it has any.

    >>> optimizer = optax.sgd(0.1)
    >>> init_state({"w": jnp.ones(2)}, optimizer).params
    {'w': Array([1., 1.], dtype=float32)}
    """
    return _first_state(optimizer, params, batch_stats or {})


# One program starts sooner than one for each leaf's shape.
@functools.partial(jax.jit, static_argnums=0)
def _first_state(optimizer, params, batch_stats):
    return TrainState(
        params=jax.tree.map(jnp.array, params),
        batch_stats=jax.tree.map(jnp.array, batch_stats),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    apply_fn: Callable,
    optimizer: optax.GradientTransformation,
    trainable: Any,
    penalty: Callable[[Any], jax.Array | float] = lambda params: 0.0,
    class_weights: jax.typing.ArrayLike | None = None,
    frozen: str | None = None,
    *,
    donate: bool = True,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Return the jitted training step `(state, batch, key) -> (state, metrics)`.

    The step reuses the memory of the state that it is given, which cannot be used
    again; `donate=False` keeps it, at the price of that memory.

    The loss is the mean cross entropy over the examples of weight 1, plus `penalty` of
    the params, which is not part of the metrics. With `class_weights` float[classes],
    the mean is weighted by the class of each example, as in torch's
    `CrossEntropyLoss(weight)`; the metrics stay unweighted. A network that accepts
    `weights` receives the weights of the batch, and one that accepts `frozen` receives
    the name of its last frozen child (see `jaxlab.models.chain`); all other networks
    are called without these arguments.

    Gradients are computed for the leaves for which the tree `trainable` is True and for
    no others; frozen leaves stay the same to the last bit. The dropout key is `key`
    folded with the number of the step, so the caller passes the same key to every step.
    The metrics are those of the forward pass in training mode, before the update.

    Raises ValueError if `trainable` is not a tree of bool, or if `frozen` is given and
    the network does not accept it. The step raises TypeError for a batch that is not a
    `Batch`, and ValueError for a state that was used up.

    >>> import jaxlab
    >>> model = jaxlab.MLP(features=(4, 4), num_classes=2)
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 3)), train=False)["params"]
    >>> trainable = jaxlab.trainable_tree(params, [(".*", "trainable")])
    >>> optimizer = jaxlab.make_optimizer("adam", 1e-3, trainable=trainable)
    >>> step = make_train_step(model.apply, optimizer, trainable)
    >>> state = init_state(params, optimizer)
    >>> batch = jaxlab.Batch(jnp.ones((2, 3)), jnp.array([0, 1]), jnp.ones(2))
    >>> state, metrics = step(state, batch, jax.random.key(1))
    >>> int(state.step), float(metrics.count)
    (1, 2.0)
    """
    require_tree(trainable)
    trainable = flax.traverse_util.flatten_dict(trainable)
    forward = _training_forward(apply_fn, frozen)

    def loss_fn(trained, frozen_leaves, state, batch, key):
        params = flax.traverse_util.unflatten_dict({**frozen_leaves, **trained})
        logits, batch_stats = forward(params, state, batch, key)
        loss, metrics = _loss_and_metrics(logits, batch, class_weights)
        return loss + penalty(params), (metrics, batch_stats)

    def train_step(state, batch, key):
        flat = flax.traverse_util.flatten_dict(state.params)
        trained = {path: flat[path] for path in flat if trainable[path]}
        frozen_leaves = {path: flat[path] for path in flat if not trainable[path]}
        gradients, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(
            trained, frozen_leaves, state, batch, key
        )
        # The optimizer expects a whole tree; XLA removes the zeros, which nothing uses.
        zeros = jax.tree.map(jnp.zeros_like, frozen_leaves)
        updates, opt_state = optimizer.update(
            flax.traverse_util.unflatten_dict({**zeros, **gradients}),
            state.opt_state,
            state.params,
        )
        updates = flax.traverse_util.flatten_dict(updates)
        # Not even zero is added to frozen leaves: it would turn -0.0 into 0.0.
        moved = {path: trained[path] + updates[path] for path in trained}
        state = state.replace(
            params=flax.traverse_util.unflatten_dict({**flat, **moved}),
            batch_stats=batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, metrics

    jitted = jax.jit(train_step, donate_argnums=0 if donate else ())

    def checked_step(state, batch, key):
        _check_step_arguments(state, batch)
        return jitted(state, batch, key)

    return _like_jitted(checked_step, jitted)


def _like_jitted(function: Callable, jitted: Any) -> Any:
    """Return the function with the name, `lower` and `trace` of the jitted one."""
    wrapper: Any = functools.wraps(jitted)(function)
    wrapper.lower, wrapper.trace = jitted.lower, jitted.trace
    return wrapper


def _check_step_arguments(state, batch):
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state: expected a TrainState, got {type(state).__name__}; make one with "
            "init_state"
        )
    if not isinstance(batch, Batch):
        raise TypeError(
            "batch: expected a Batch(inputs, labels, weights), got "
            f"{type(batch).__name__}"
        )
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            if leaf.is_deleted():
                raise ValueError(
                    "state: was used up by an earlier step, which reuses its memory; "
                    "go on with the state that the step returned, or make the step "
                    "with donate=False"
                )


def _training_forward(apply_fn, frozen):
    """Return `(params, state, batch, key) -> (logits, batch_stats)`, in training mode.

    The network is called with `weights` and `frozen` only if it accepts them.
    """
    if frozen is not None and not takes(apply_fn, "frozen"):
        raise ValueError(f"frozen: {frozen!r}, but the network takes no such argument")
    takes_weights = takes(apply_fn, "weights")

    def forward(params, state, batch, key):
        logits, updated = apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch.inputs,
            train=True,
            rngs={"dropout": jax.random.fold_in(key, state.step)},
            mutable=["batch_stats"],
            **({"weights": batch.weights} if takes_weights else {}),
            **({"frozen": frozen} if frozen is not None else {}),
        )
        return logits, updated.get("batch_stats", state.batch_stats)

    return forward


def _loss_and_metrics(logits, batch, class_weights):
    """Return the loss of a batch, weighted by class, and its unweighted metrics."""
    metrics = counted = _metrics(logits, batch)
    if class_weights is not None:
        weights = batch.weights * jnp.asarray(class_weights)[batch.labels]
        counted = _metrics(logits, batch._replace(weights=weights))
    return counted.loss / counted.count, metrics


def make_eval_step(
    apply_fn: Callable,
) -> Callable[[TrainState, Batch], tuple[Metrics, jax.Array]]:
    """Return the jitted step `(state, batch) -> (metrics, predictions int32[b])`.

    The network runs in evaluation mode; the metrics are sums over the examples of
    weight 1.

    >>> import jaxlab
    >>> def apply_fn(variables, inputs, *, train):
    ...     return inputs @ variables["params"]["w"]
    >>> state = init_state({"w": jnp.eye(2)}, optax.sgd(0.1))
    >>> batch = jaxlab.Batch(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
    >>> metrics, predictions = make_eval_step(apply_fn)(state, batch)
    >>> predictions.tolist(), float(metrics.correct / metrics.count)
    ([0, 1], 0.5)
    """

    return _eval_step(apply_fn, _classes)


def make_prediction_step(
    apply_fn: Callable,
) -> Callable[[TrainState, Batch], tuple[Metrics, Predictions]]:
    """Return the step of `make_eval_step`, which returns `Predictions` instead."""
    return _eval_step(apply_fn, _predictions)


def _classes(logits: jax.Array) -> jax.Array:
    return logits.argmax(-1).astype(jnp.int32)


def _predictions(logits: jax.Array) -> Predictions:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return Predictions(_classes(logits), jax.nn.softmax(logits).max(-1))


def _eval_step(apply_fn: Callable, predict: Callable[[jax.Array], Any]) -> Callable:
    """Return the jitted step `(state, batch) -> (metrics, predict(logits))`."""

    def eval_step(state, batch):
        logits = apply_fn(
            {"params": state.params, "batch_stats": state.batch_stats},
            batch.inputs,
            train=False,
        )
        return _metrics(logits, batch), predict(logits)

    jitted = jax.jit(eval_step)

    def checked_step(state, batch):
        _check_step_arguments(state, batch)
        return jitted(state, batch)

    return _like_jitted(checked_step, jitted)


def _metrics(logits: jax.Array, batch: Batch) -> Metrics:
    # At least float32, so that the loss of bfloat16 logits is not rounded.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = logits.argmax(-1) == batch.labels
    return Metrics(
        loss=jnp.sum(losses * batch.weights),
        correct=jnp.sum(correct * batch.weights),
        count=jnp.sum(batch.weights),
    )
