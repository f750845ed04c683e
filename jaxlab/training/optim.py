"""Optimizers and a learning rate schedule as in torch; frozen parameters; penalties."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


def trainable_tree(params: Any, patterns: Sequence[tuple[str, str]]) -> Any:
    """Return a tree of bool like `params`: True for the leaves that are trained.

    `patterns` are ordered pairs of a regular expression and a label, "trainable" or
    "frozen". A leaf gets the label of the first pattern that matches its whole path,
    such as `conv1/kernel`.

    Raises ValueError, which names every leaf that no pattern matches, every pattern
    that determines no leaf, and every unknown label: each would freeze wrong layers.
    """
    words = {"trainable": True, "frozen": False}
    problems = [f"{word!r} is not a label" for _, word in patterns if word not in words]
    decided, used = {}, set()
    for path in flax.traverse_util.flatten_dict(params, sep="/"):
        for pattern, word in patterns:
            if re.fullmatch(pattern, path):
                decided[path] = words.get(word)
                used.add(pattern)
                break
        else:
            problems.append(f"no pattern matches {path}")
    problems += [f"{p!r} applies to no leaf" for p, _ in patterns if p not in used]
    if problems:
        raise ValueError(f"freezing patterns: {'; '.join(problems)}")
    return flax.traverse_util.unflatten_dict(decided, sep="/")


def step_decay(
    learning_rate: float, step_epochs: int, gamma: float, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Return a schedule: learning_rate · gamma^(epoch // step_epochs), epoch from 0.

    The schedule maps a step, int or int32 array, to a float or float array. It equals
    torch.optim.lr_scheduler.StepLR, which counts epochs instead of steps.
    """
    period = min(step_epochs * steps_per_epoch, 2**31 - 1)  # a step is an int32

    # optax.exponential_decay(staircase=True) divides in floating point, which can round
    # to the wrong side of a boundary; integer division is exact.
    def schedule(step):
        return learning_rate * gamma ** (step // period)

    return schedule


def make_optimizer(
    name: str,
    learning_rate: float | Callable[[Any], Any],
    *,
    trainable: Any,
    momentum: float = 0.9,
    l2: float = 0.0,
) -> optax.GradientTransformation:
    """Return an optimizer equal to torch.optim.SGD or Adam for the trainable leaves.

    `name` is "sgd" (with `momentum`) or "adam" (β 0.9 and 0.999, ε 1e-8). `l2` is
    torch's weight_decay: l2·w is added to the gradient, also of biases, before momentum
    or moments are computed; this equals a penalty l2/2·‖w‖² in the loss.
    `learning_rate` is a number or a schedule of steps. `trainable` is a tree from
    `trainable_tree`: frozen leaves have an update of zero for any gradient, and no
    optimizer state.

    Raises ValueError for any other name.
    """
    if name == "sgd":
        # As in torch, the buffer sums gradients without the rate, so a new learning
        # rate does not rescale it.
        direction = optax.trace(momentum) if momentum else optax.identity()
    elif name == "adam":
        direction = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    else:
        raise ValueError(f"optimizer: expected 'sgd' or 'adam', got {name!r}")
    transformation = optax.chain(
        optax.add_decayed_weights(l2) if l2 else optax.identity(),
        direction,
        optax.scale_by_learning_rate(learning_rate),
    )
    # optax.masked would return the gradients of frozen leaves as their updates.
    return optax.partition(
        {True: transformation, False: optax.set_to_zero()}, trainable
    )


def penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array | float:
    """Return l1·Σ|w| + l2·Σw² over all leaves, biases included: a term of the loss.

    Its gradient is l1·sign(w) + 2·l2·w, with sign(0) = 0. Therefore `l2` here has the
    same effect as `make_optimizer(..., l2=2 * l2)`, for both sgd and adam.
    """
    leaves = jax.tree.leaves(params)
    total = 0.0
    # A term whose factor is 0 is not computed, instead of being multiplied by zero.
    if l1:
        # At 0 the gradient of jnp.abs is 1, but that of torch.abs is 0.
        signs = [jax.lax.stop_gradient(jnp.sign(leaf)) for leaf in leaves]
        total += l1 * sum(
            (leaf * s).sum() for leaf, s in zip(leaves, signs, strict=True)
        )
    if l2:
        total += l2 * sum(jnp.square(leaf).sum() for leaf in leaves)
    return total
