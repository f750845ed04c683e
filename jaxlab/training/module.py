"""What `jaxlab.fit` expects of a module, which may be anyone's, and checks at its call.

A module is traced before anything is trained, because the errors of Flax and JAX in the
middle of a step say neither what the loop expects nor what to change.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.errors import UsageError
from pretrained.errors import counted, one_line

COLLECTIONS = ("params", "batch_stats")  # of variables; a step updates no others


def check_call(model: nn.Module) -> None:
    """Raise UsageError unless the module is called as `model(images)`.

    It may have further arguments with defaults, and `train`.
    """
    if not callable(model):
        raise UsageError(
            f"model: {type(model).__name__} has no __call__; write one that takes "
            "images and returns logits"
        )
    signature = inspect.signature(type(model).__call__)
    train = {"train": True} if "train" in signature.parameters else {}
    try:
        signature.bind(model, None, **train)
    except TypeError:
        names = ", ".join(list(signature.parameters)[1:])
        raise UsageError(
            f"model: its __call__ takes ({names}); fit calls it with images and, if it "
            "has this keyword, train; give the other arguments defaults"
        ) from None


def checked_variables(variables: Any, is_given: bool) -> dict[str, Any]:
    """Return the variables of a module as nested dicts.

    Raises UsageError if they are no dict, contain no params, or have a collection that
    the loop would lose. `is_given` is True for an argument of `fit`, and False for what
    the module's own `init` returned.
    """
    variables = flax.core.unfreeze(variables)
    if is_given and (not isinstance(variables, dict) or "params" not in variables):
        raise UsageError(
            "variables: expected a dict with 'params', as model.init returns it; pass "
            "{'params': params}"
        )
    what = "variables" if is_given else "model"
    if others := sorted(variables.keys() - set(COLLECTIONS)):
        names = ", ".join(map(repr, others))
        raise UsageError(
            f"{what}: has variables in {names}; fit keeps 'params' and 'batch_stats' "
            "alone; put what is not trained into 'batch_stats'"
        )
    if not jax.tree.leaves(variables.get("params")):
        raise UsageError(f"{what}: has no parameters to train; add a layer that has")
    return variables


def check_outputs(
    apply_fn: Callable, variables: Mapping[str, Any], images: Any, classes: int
) -> None:
    """Trace a module in training, on the last batch of an epoch, and in evaluation.

    `apply_fn` has the signature of `Inputs.apply_fn`. Raises UsageError if it does not
    return logits float[b, classes or more], or needs what the loop does not give. On a
    last batch of one example, BatchNorm has no variance and raises ValueError.
    """
    train = functools.partial(
        apply_fn,
        train=True,
        rngs={"dropout": jax.random.key(0)},
        mutable=["batch_stats"],
    )
    with faults_named("training", ("dropout",)):
        logits, _ = jax.eval_shape(train, dict(variables), images)
    _check_logits(logits, len(images), classes)
    with faults_named("evaluation", ()):
        evaluate = functools.partial(apply_fn, train=False)
        logits = jax.eval_shape(evaluate, dict(variables), images)
    _check_logits(logits, len(images), classes)


def _check_logits(logits: Any, count: int, classes: int) -> None:
    if not hasattr(logits, "shape"):
        raise UsageError(
            f"model: returns a {type(logits).__name__}; return only the logits, "
            f"float[b, {classes}]"
        )
    is_float = jnp.issubdtype(logits.dtype, jnp.floating)
    if len(logits.shape) != 2 or logits.shape[0] != count or not is_float:
        raise UsageError(
            f"model: returns {logits.dtype}{list(logits.shape)} for "
            f"{counted(count, 'image')}; return logits, float[b, {classes}]"
        )
    if logits.shape[1] < classes:
        raise UsageError(
            f"model: returns {list(logits.shape)} for {counted(count, 'image')}, but "
            f"the data have {counted(classes, 'class')}; return logits of "
            f"[b, {classes}]"
        )


@contextlib.contextmanager
def faults_named(phase: str, keys: Sequence[str]) -> Iterator[None]:
    """Raise UsageError for what a module needs of Flax that the loop does not give.

    `keys` are the names of the PRNG keys that it gives in this phase.
    """
    try:
        yield
    except flax.errors.FlaxError as error:
        raise UsageError(f"model: {_advice(error, phase, keys)}") from error


def _advice(error: flax.errors.FlaxError, phase: str, keys: Sequence[str]) -> str:
    """Return in one line what a module lacks in this phase, and what to change."""
    said = one_line(str(error)).partition(" (https:")[0]
    if match := re.search(r'needs PRNG for "(\w+)"', said):
        if not keys:
            return (
                f"needs a key for {match[1]!r} in {phase}, but has none there; draw "
                "random numbers in training only"
            )
        return (
            f"needs a key for {match[1]!r} in {phase}, but has one for {keys[-1]!r} "
            f"there; call make_rng({keys[-1]!r})"
        )
    if match := re.search(r'because collection "(\w+)" is immutable', said):
        return (
            f"changes {match[1]!r} in {phase}; change variables in training only, as "
            "with BatchNorm(use_running_average=not train)"
        )
    return f"in {phase}: {said.rstrip('.')}; see the documentation of Flax"
