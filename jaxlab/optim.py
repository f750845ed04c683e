"""The optimiser as torch runs it: L2 first, step decay, frozen parameters alone."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

TRAINABLE, FROZEN = True, False


def label_tree(params: Any, patterns: Sequence[tuple[str, bool]]) -> Any:
    """Label every leaf of `params` TRAINABLE or FROZEN by its path.

    `patterns` are ordered pairs of a regular expression and a label; a path such as
    `conv1/kernel` takes the label of the first expression that matches all of it.

    Raises ValueError naming every leaf that no pattern covers, and every pattern that
    covers no leaf: either is a mistake that would freeze the wrong layers.
    """
    labels, used = {}, set()
    paths = flax.traverse_util.flatten_dict(params, sep="/")
    for path in paths:
        for pattern, label in patterns:
            if re.fullmatch(pattern, path):
                labels[path] = label
                used.add(pattern)
                break
    problems = [f"no pattern covers {path}" for path in paths if path not in labels]
    problems += [f"{p!r} covers no leaf" for p, _ in patterns if p not in used]
    if problems:
        raise ValueError(f"label patterns: {'; '.join(problems)}")
    return flax.traverse_util.unflatten_dict(labels, sep="/")


def step_decay(
    learning_rate: float, step_epochs: int, gamma: float, steps_per_epoch: int
) -> Callable[[jax.Array], jax.Array]:
    """Return a schedule: learning_rate · gamma^(epoch // step_epochs), epoch from 0.

    torch.optim.lr_scheduler.StepLR counts epochs; an Optax schedule counts steps.
    """
    period = step_epochs * steps_per_epoch

    # optax.exponential_decay(staircase=True) divides in floating point, which can round
    # to the wrong side of a boundary; whole numbers cannot.
    def schedule(step):
        return learning_rate * jnp.power(gamma, step // period)

    return schedule


def make_optimizer(
    name: str,
    learning_rate: float | Callable[[jax.Array], jax.Array],
    *,
    labels: Any,
    momentum: float = 0.9,
    l2: float = 0.0,
) -> optax.GradientTransformation:
    """Return torch.optim.SGD or Adam over the trainable leaves of a labelled tree.

    `name` is "sgd" (with `momentum`) or "adam" (0.9, 0.999, ε 1e-8). `l2` is torch's
    weight_decay: l2·w joins the gradient, biases included, before momentum or moments;
    it equals a penalty l2/2·‖w‖² in the loss. `learning_rate` is a number or a schedule
    of steps. `labels` is a `label_tree`: frozen leaves get an update of zero and hold
    no state, whatever their gradient is.

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
        {TRAINABLE: transformation, FROZEN: optax.set_to_zero()}, labels
    )
