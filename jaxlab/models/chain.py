"""A network as a chain of links, one for each child of its params tree, in order.

A part of the chain can be run by itself, and its first links can be run as frozen. So
frozen outputs can be stored and reused without code that is specific to a network.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mode(NamedTuple):
    """How a link is run.

    `train` turns dropout on and makes batch normalisation use the batch's statistics,
    as torch's `.train()` does. In a `frozen` link, batch normalisation uses its running
    statistics and does not update them, as after torch's `.eval()`, while dropout stays
    on in training. `weights` float[b] are 0 for examples that only pad the batch, which
    batch normalisation ignores, and 1 for all others; None stands for all 1.
    """

    train: bool
    weights: jax.Array | None = None
    frozen: bool = False

    @property
    def updates_statistics(self) -> bool:
        """Whether batch normalisation is in training mode."""
        return self.train and not self.frozen

    @property
    def batch_norm(self) -> dict[str, Any]:
        """The keyword arguments of `layers.BatchNorm`: `train` and `weights`."""
        return {"train": self.updates_statistics, "weights": self.weights}


class Link(NamedTuple):
    """The name of a child, and the function from the previous link's output to its own.

    `run(x, mode)` includes the operations without parameters around the child, such as
    activations, pooling and dropout.
    """

    name: str
    run: Callable[[jax.Array, Mode], jax.Array]


class Network(nn.Module):
    """A network for images as a chain: float[b, h, w, 3] -> logits[b, num_classes].

    A subclass has `links`, and its fields and layers.
    """

    @property
    def min_size(self) -> int:
        """The smallest height and width of images, in pixels."""
        return 1

    def links(self) -> tuple[Link, ...]:
        """Return each child with the parameter-free operations around it, in order."""
        raise NotImplementedError

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        weights: jax.Array | None = None,
        frozen: str | None = None,
        after: str | None = None,
        until: str | None = None,
    ) -> jax.Array:
        """Return the logits, or the output of a part of the chain; see `chain.run`."""
        if after is None:
            self._check_images(x)
        part = {"frozen": frozen, "after": after, "until": until}
        return run(self.links(), x, train=train, weights=weights, **part)

    def _check_images(self, x: jax.Array) -> None:
        name = type(self).__name__
        if x.ndim != 4 or x.shape[-1] != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
            shape = ", ".join(map(str, x.shape))
            raise ValueError(
                f"{name}: expected normalised images float[b, h, w, 3], got "
                f"{x.dtype}[{shape}]; prepare them with jaxlab.Preprocess"
            )
        height, width = x.shape[1:3]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"{name}: expected images of at least {self.min_size}x{self.min_size} "
                f"pixels, got {height}x{width}; resize them"
            )


def children(model: nn.Module) -> list[str]:
    """Return the names of a module's links, in order, without building the module."""
    return [link.name for link in model.bind({}).links()]


def variables_of(variables: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the variables of the named children, in every collection, in this order.

    >>> variables_of({"params": {"fc1": 1, "fc2": 2}, "batch_stats": {}}, ["fc2"])
    {'params': {'fc2': 2}, 'batch_stats': {}}
    """
    return {
        collection: {name: tree[name] for name in names if name in tree}
        for collection, tree in variables.items()
    }


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
    """Run the links after child `after`, up to and including child `until`.

    By default all links are run; `x` is the input of the first one that is run. Links
    up to and including child `frozen` are run as frozen; see Mode for this, `train` and
    `weights`. Raises ValueError for a name that is not a child.
    """
    names = [link.name for link in links]
    for name in (frozen, after, until):
        if name is not None and name not in names:
            raise ValueError(f"{name!r}: unknown layer; pass one of {', '.join(names)}")

    def behind(name: str | None, default: int) -> int:
        return default if name is None else names.index(name) + 1

    first, end, thawed = behind(after, 0), behind(until, len(links)), behind(frozen, 0)
    for i in range(first, end):
        x = links[i].run(x, Mode(train, weights, frozen=i < thawed))
    return x


def takes(apply_fn: Callable, name: str) -> bool:
    """Return whether `apply_fn` has a parameter called `name`.

    For the `apply` of a Linen module, the parameters are those of its `__call__`.
    `apply_fn` may be wrapped by functools.partial or functools.wraps. `**kwargs` does
    not count.
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
