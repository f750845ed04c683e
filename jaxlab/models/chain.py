"""A network as the chain of its children, in the order in which they are run.

Whoever would know a network's layers by name asks the chain instead: what is frozen,
where stored outputs end, which child is the head.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax


class Mode(NamedTuple):
    """How a link is run.

    `train` turns dropout on. `weights` float[b] are 0 for examples that only fill a
    batch up, which batch normalisation does not count; None counts all. In a `frozen`
    link batch normalisation uses and keeps its running statistics, as under torch's
    `.eval()`, while dropout stays on in training.
    """

    train: bool
    weights: jax.Array | None = None
    frozen: bool = False

    @property
    def updates_statistics(self) -> bool:
        """Whether batch normalisation uses the batch's statistics."""
        return self.train and not self.frozen


class Link(NamedTuple):
    """A child of the params tree by name, and what is done from the one before to it.

    `run(x, mode)` includes what has no parameters: activations, pools, dropout.
    """

    name: str
    run: Callable[[jax.Array, Mode], jax.Array]


def run(
    links: Sequence[Link],
    x: jax.Array,
    *,
    train: bool,
    weights: jax.Array | None = None,
    frozen: str | None = None,
    after: str | None = None,
    until: str | None = None,
) -> jax.Array:
    """Run a chain, or the part of it behind child `after`, up to and with `until`.

    Links up to and with child `frozen` are run frozen (see Mode). Raises ValueError for
    a name that is no child's.
    """
    names = [link.name for link in links]
    for name in (frozen, after, until):
        if name is not None and name not in names:
            raise ValueError(f"{name!r} is no child; pass one of {', '.join(names)}")

    def behind(name: str | None, default: int) -> int:
        return default if name is None else names.index(name) + 1

    first, end, thawed = behind(after, 0), behind(until, len(links)), behind(frozen, 0)
    for i in range(first, end):
        x = links[i].run(x, Mode(train, weights, frozen=i < thawed))
    return x


def takes(apply_fn: Callable, name: str) -> bool:
    """Return whether a function, or the module whose `apply` it is, has a keyword.

    It may be wrapped, by functools.partial or functools.wraps.
    """
    while True:
        if isinstance(apply_fn, functools.partial):
            apply_fn = apply_fn.func
        elif hasattr(apply_fn, "__wrapped__") and not hasattr(apply_fn, "__self__"):
            apply_fn = apply_fn.__wrapped__
        else:
            break
    module = getattr(apply_fn, "__self__", None)
    if isinstance(module, nn.Module):
        apply_fn = type(module).__call__
    return name in inspect.signature(apply_fn).parameters
