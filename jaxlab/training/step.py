"""The training state, and pure steps `(state, batch, key) -> (state, metrics)`.

The steps work with any model and any optimizer: they are made from an `apply_fn` with
the signature of a Linen module's `apply`, and an Optax transformation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxlab.data.loaders import Batch
from jaxlab.models.chain import takes


class TrainState(struct.PyTreeNode):
    """Everything that a step reads and updates, as nested dicts and arrays.

    `params` and `batch_stats` have the form that Linen uses, `opt_state` that of Optax.
    `step`, int32, is the number of steps taken.
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
    """Sums over examples: the loss, the correct predictions, and the examples."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def init_state(
    params: Any, optimizer: optax.GradientTransformation, batch_stats: Any = None
) -> TrainState:
    """Return the state before the first step.

    It contains copies of the arrays, because the first step donates its buffers.
    """
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
    frozen: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Return the jitted step `(state, batch, key) -> (state, metrics)`; donates state.

    The loss is the mean cross entropy over the examples of weight 1, plus `penalty` of
    the params, which the metrics leave out. With `class_weights` float[classes] it is
    the mean weighted by each example's class, as torch's CrossEntropyLoss(weight) has
    it; the metrics stay unweighted. A network that takes `weights` gets the batch's,
    and one that takes `frozen` the child up to which it is so (see
    `jaxlab.models.chain`); others are called without. Gradients are computed for the
    leaves where the tree `trainable` is True and for no others; frozen leaves leave the
    step as they entered it, bit for bit. Dropout's key is `key` folded with the step's
    number, so the caller passes the same key all along. The metrics are those of the
    forward pass in training mode, before the update.
    """
    trainable = flax.traverse_util.flatten_dict(trainable)
    if frozen is not None and not takes(apply_fn, "frozen"):
        raise ValueError(f"frozen: {frozen!r}, but the network takes no such argument")
    takes_weights = takes(apply_fn, "weights")

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
                **({"weights": batch.weights} if takes_weights else {}),
                **({"frozen": frozen} if frozen is not None else {}),
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
    """Return the jitted step `(state, batch) -> (metrics, predictions int32[b])`."""

    def eval_step(state, batch):
        logits = apply_fn(
            {"params": state.params, "batch_stats": state.batch_stats},
            batch.inputs,
            train=False,
        )
        return _metrics(logits, batch), logits.argmax(-1).astype(jnp.int32)

    return jax.jit(eval_step)


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
