"""Optimizers and learning rate schedules as in torch; frozen parameters; penalties."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax


def trainable_tree(params: Any, patterns: Sequence[tuple[str, str]]) -> Any:
    """Return a tree of bool like `params`: True for the leaves that are trained.

    `patterns` are ordered pairs of a regular expression and a label, "trainable" or
    "frozen". A leaf gets the label of the first pattern that matches its whole path,
    such as `conv1/kernel`.

    Raises ValueError, which names every leaf that no pattern matches, every pattern
    that determines no leaf, and every unknown label: each would freeze wrong layers.

    >>> params = {"conv1": {"kernel": 0.0}, "fc2": {"kernel": 0.0}}
    >>> trainable_tree(params, [("conv.*", "frozen"), (".*", "trainable")])
    {'conv1': {'kernel': False}, 'fc2': {'kernel': True}}
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
    for pattern, _ in patterns:
        if pattern not in used:
            is_layer = pattern in params
            hint = f" (a layer's leaves are {pattern + '/.*'!r})" if is_layer else ""
            problems.append(f"{pattern!r} applies to no leaf{hint}")
    if problems:
        raise ValueError(f"freezing patterns: {'; '.join(problems)}")
    return flax.traverse_util.unflatten_dict(decided, sep="/")


def require_tree(trainable: Any) -> None:
    """Raise ValueError unless `trainable` is a nested dict of bool."""
    leaves = jax.tree.leaves(trainable)
    if not isinstance(trainable, Mapping) or not all(
        isinstance(leaf, (bool, np.bool_)) for leaf in leaves
    ):
        kind = type(trainable).__name__
        raise ValueError(
            f"trainable: expected a tree of bool like the params, got {kind}; make one "
            "with trainable_tree(params, patterns)"
        )


def check_trainable(trainable: Any, params: Any) -> None:
    """Raise ValueError unless `trainable` is a tree of bool with the params' leaves."""
    require_tree(trainable)
    known = flax.traverse_util.flatten_dict(params, sep="/").keys()
    given = flax.traverse_util.flatten_dict(trainable, sep="/").keys()
    if known != given:
        raise ValueError(
            f"trainable: does not fit the params: {', '.join(sorted(known ^ given))}; "
            "make one with trainable_tree(params, patterns)"
        )


def only_trainable(
    transformation: optax.GradientTransformation, trainable: Any
) -> optax.GradientTransformation:
    """Return a transformation for the trainable leaves; the others do not change."""
    # optax.masked would return the gradients of frozen leaves as their updates.
    return optax.partition(
        {True: transformation, False: optax.set_to_zero()}, trainable
    )


def step_decay(
    learning_rate: float, step_epochs: int, gamma: float, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Return a schedule: learning_rate · gamma^(epoch // step_epochs), epoch from 0.

    The schedule maps a step, int or int32 array, to a float or float array. It equals
    torch.optim.lr_scheduler.StepLR, which counts epochs instead of steps.

    >>> rate = step_decay(1.0, step_epochs=2, gamma=0.5, steps_per_epoch=10)
    >>> [rate(step) for step in (0, 19, 20, 40)]
    [1.0, 1.0, 0.5, 0.25]
    """
    period = min(step_epochs * steps_per_epoch, 2**31 - 1)  # a step is an int32

    # optax.exponential_decay(staircase=True) divides in floating point, which can round
    # to the wrong side of a boundary; integer division is exact.
    def schedule(step):
        return learning_rate * gamma ** (step // period)

    return schedule


class Schedule(NamedTuple):
    """A learning rate for each epoch, which is the same in all steps of the epoch.

    `kind` is "constant"; "step", which multiplies the rate by `gamma` every
    `step_epochs`, as torch's StepLR; or "cosine", which lowers it from `lr` to almost 0
    in the last of `epochs`, as CosineAnnealingLR. In the first `warmup_epochs` the rate
    rises in equal steps to `lr`, as with LinearLR, and `kind` begins after them, as
    with SequentialLR.

    >>> schedule = Schedule(0.1, "cosine", warmup_epochs=1, epochs=3)
    >>> [round(schedule.rate(epoch), 4) for epoch in range(3)]
    [0.05, 0.1, 0.05]
    """

    lr: float
    kind: str = "constant"
    step_epochs: int = 1
    gamma: float = 0.1
    warmup_epochs: int = 0
    epochs: int = 0

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        since = epoch - self.warmup_epochs
        if since < 0:
            return self.lr * (epoch + 1) / (self.warmup_epochs + 1)
        if self.kind == "step":
            return self.lr * self.gamma ** (since // self.step_epochs)
        if self.kind == "cosine":
            period = self.epochs - self.warmup_epochs
            return self.lr * (1 + math.cos(math.pi * since / period)) / 2
        return self.lr

    def of_steps(self, steps_per_epoch: int) -> float | Callable[[Any], Any]:
        """Return the learning rate, or a schedule from a step, int32, to a rate."""
        if self.kind == "constant" and not self.warmup_epochs:
            return self.lr
        if self.kind == "step" and not self.warmup_epochs:
            return step_decay(self.lr, self.step_epochs, self.gamma, steps_per_epoch)
        rates = [self.rate(epoch) for epoch in range(self.epochs)]

        def schedule(step):
            return jnp.asarray(rates)[step // steps_per_epoch]

        return schedule

    def starves_from(self) -> int | None:
        """Return the first epoch, counted from 0, that can hardly learn anything.

        Its rate is below a thousandth of `lr`, and over a fourth of the epochs are
        still to come from there on. None if there is no such epoch.
        """
        for epoch in range(self.warmup_epochs, self.epochs):
            if self.rate(epoch) < self.lr / 1000:
                return epoch if 4 * (self.epochs - epoch) > self.epochs else None
        return None


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

    Raises ValueError for another name, or if `trainable` is not a tree of bool.

    >>> optimizer = make_optimizer("sgd", 0.5, trainable={"a": True, "b": False})
    >>> params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    >>> gradients = {"a": jnp.ones(1), "b": jnp.ones(1)}
    >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    >>> float(updates["a"][0]), float(updates["b"][0])
    (-0.5, 0.0)
    """
    require_tree(trainable)
    if not callable(learning_rate) and not learning_rate > 0:
        raise ValueError(
            f"learning_rate: {learning_rate} is out of range; pass a number that is "
            "above 0, or a schedule"
        )
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
    return only_trainable(transformation, trainable)


def penalty(params: Any, *, l1: float = 0.0, l2: float = 0.0) -> jax.Array | float:
    """Return l1·Σ|w| + l2·Σw² over all leaves, biases included: a term of the loss.

    Its gradient is l1·sign(w) + 2·l2·w, with sign(0) = 0. Therefore `l2` here has the
    same effect as `make_optimizer(..., l2=2 * l2)`, for both sgd and adam.

    >>> float(penalty({"w": jnp.array([3.0, -4.0])}, l1=1.0, l2=0.5))
    19.5
    """
    leaves = jax.tree.leaves(params)
    total: jax.Array | float = 0.0
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
