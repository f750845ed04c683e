"""The optimiser as torch runs it: L2 first, step decay, frozen parameters alone."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


def trainable_tree(params: Any, patterns: Sequence[tuple[str, str]]) -> Any:
    """Return a tree of bool like `params`: True for the leaves that are trained.

    `patterns` are ordered pairs of a regular expression and "trainable" or "frozen".
    Of a path such as `conv1/kernel` the first that matches all of it decides.

    Raises ValueError naming every leaf that no pattern covers, every pattern that
    decides no leaf, and every other word: each would freeze the wrong layers.
    """
    words = {"trainable": True, "frozen": False}
    problems = [f"{word!r} is no label" for _, word in patterns if word not in words]
    decided, used = {}, set()
    for path in flax.traverse_util.flatten_dict(params, sep="/"):
        for pattern, word in patterns:
            if re.fullmatch(pattern, path):
                decided[path] = words.get(word)
                used.add(pattern)
                break
        else:
            problems.append(f"no pattern covers {path}")
    problems += [f"{p!r} decides no leaf" for p, _ in patterns if p not in used]
    if problems:
        raise ValueError(f"freezing patterns: {'; '.join(problems)}")
    return flax.traverse_util.unflatten_dict(decided, sep="/")


def step_decay(
    learning_rate: float, step_epochs: int, gamma: float, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Return a schedule: learning_rate · gamma^(epoch // step_epochs), epoch from 0.

    It takes a step, int or int32 array, and returns a float or float array.
    torch.optim.lr_scheduler.StepLR counts epochs; an Optax schedule counts steps.
    """
    period = min(step_epochs * steps_per_epoch, 2**31 - 1)  # a step is an int32

    # optax.exponential_decay(staircase=True) divides in floating point, which can round
    # to the wrong side of a boundary; whole numbers cannot.
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
    """Return torch.optim.SGD or Adam over the trainable leaves of a tree.

    `name` is "sgd" (with `momentum`) or "adam" (0.9, 0.999, ε 1e-8). `l2` is torch's
    weight_decay: l2·w joins the gradient, biases included, before momentum or moments;
    it equals a penalty l2/2·‖w‖² in the loss. `learning_rate` is a number or a schedule
    of steps. `trainable` is a `trainable_tree`: the other leaves get an update of zero
    and hold no state, whatever their gradient is.

    Raises ValueError for another name.
    """
    if name == "sgd":
        # As in torch, the buffer holds gradients, so a new rate does not rescale it.
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
    # Not optax.masked, which passes the other leaves' gradients through as updates.
    return optax.partition(
        {True: transformation, False: optax.set_to_zero()}, trainable
    )


def penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array | float:
    """Return l1·Σ|w| + l2·Σw² over all leaves, biases included: a term of the loss.

    Its gradient is l1·sign(w) + 2·l2·w, with sign(0) = 0. So `l2` here is the same as
    `make_optimizer(..., l2=2 * l2)`, for sgd and adam alike.
    """
    leaves = jax.tree.leaves(params)
    total = 0.0
    # A term that is off is left out of the program, not multiplied by zero.
    if l1:
        # Not jnp.abs: its gradient at 0 is 1, where torch's is 0.
        signs = [jax.lax.stop_gradient(jnp.sign(leaf)) for leaf in leaves]
        total += l1 * sum(
            (leaf * s).sum() for leaf, s in zip(leaves, signs, strict=True)
        )
    if l2:
        total += l2 * sum(jnp.square(leaf).sum() for leaf in leaves)
    return total
