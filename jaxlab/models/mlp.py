"""The multilayer perceptron of `jaxlab.overfit`, by default for 28x28 digits."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models import chain
from jaxlab.models.chain import Link, Mode
from jaxlab.models.layers import BatchNorm, Dense, Dropout, Flatten, ReLU
from jaxlab.models.widths import whole_number, whole_numbers


class MLP(nn.Module):
    """A multilayer perceptron: float[b, ...] -> logits float[b, num_classes].

    The input is flattened. `features` are the units of the hidden layers, each of which
    is `fc -> (BatchNorm) -> ReLU -> (Dropout)`; the operations in brackets are optional
    and left out of the last hidden layer. In torch it is a Sequential of Flatten,
    Linear, BatchNorm1d, ReLU and Dropout. Parameters: `fc1, fc2, …`, each
    `{kernel [in, out], bias}`, and `bn1, …`, each `{scale, bias}`, with running `mean`,
    `var` and `count` in `batch_stats`. `dtype` is the precision of the dense layers, by
    default the one to which parameters and input promote.

    With `train=True`, dropout needs `rngs={"dropout": key}` and batch normalisation
    needs `mutable=["batch_stats"]`. Raises UsageError for widths that are not whole
    numbers of at least 1, and ValueError for dropout or batch
    normalisation with fewer than two hidden layers, where neither would be applied, and
    for inputs that are not floating-point.

    >>> model = MLP(features=(8, 4), dropout_rate=0.5)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28)), train=False)
    >>> sorted(variables["params"])
    ['fc1', 'fc2', 'fc3']
    >>> dropout = {"dropout": jax.random.key(1)}
    >>> model.apply(variables, jnp.ones((2, 28, 28)), train=True, rngs=dropout).shape
    (2, 10)
    """

    features: Sequence[int] = (512, 128)
    num_classes: int = 10
    dropout_rate: float = 0.0
    batch_norm: bool = False
    dtype: jnp.dtype | None = None

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        self.features = whole_numbers("features", self.features)
        self.num_classes = whole_number("num_classes", self.num_classes)
        super().__post_init__()

    def setup(self):
        """Create the layers."""
        self.flatten, self.relu = Flatten(), ReLU()
        for i, units in enumerate((*self.features, self.num_classes), start=1):
            setattr(self, f"fc{i}", Dense(units, dtype=self.dtype))
        for i in range(1, len(self.features)):
            if self.batch_norm:
                setattr(self, f"bn{i}", BatchNorm())
            if self.dropout_rate:
                setattr(self, f"drop{i}", Dropout(self.dropout_rate))

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
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                f"MLP: dropout_rate {self.dropout_rate} is out of range; pass a number "
                "that is at least 0 and below 1"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"MLP: expected float[b, ...], got {x.dtype}; scale inputs to [0, 1]"
            )
        if len(self.features) < 2 and (self.dropout_rate or self.batch_norm):
            raise ValueError(
                "MLP: dropout and batch normalisation need at least two hidden layers, "
                f"got {len(self.features)}; pass more layer widths in features"
            )
        if after is None:
            x = self.flatten(x)  # [b, 784] for digits
        part = {"frozen": frozen, "after": after, "until": until}
        return chain.run(self.links(), x, train=train, weights=weights, **part)

    def links(self) -> tuple[Link, ...]:
        """Return each layer with the parameter-free operations around it, in order."""
        links = []
        for i in range(1, len(self.features) + 1):
            between = i < len(self.features)
            if self.batch_norm and between:
                links.append(Link(f"fc{i}", functools.partial(self._dense, i)))
                links.append(Link(f"bn{i}", functools.partial(self._normalise, i)))
            else:
                links.append(Link(f"fc{i}", functools.partial(self._hidden, i)))
        head = len(self.features) + 1
        links.append(Link(f"fc{head}", functools.partial(self._dense, head)))
        return tuple(links)

    def _dense(self, i: int, x: jax.Array, mode: Mode) -> jax.Array:
        return getattr(self, f"fc{i}")(x)  # [b, units]

    def _normalise(self, i: int, x: jax.Array, mode: Mode) -> jax.Array:
        x = getattr(self, f"bn{i}")(x, **mode.batch_norm)
        return self._activate(i, x, mode)

    def _hidden(self, i: int, x: jax.Array, mode: Mode) -> jax.Array:
        return self._activate(i, self._dense(i, x, mode), mode)

    def _activate(self, i: int, x: jax.Array, mode: Mode) -> jax.Array:
        x = self.relu(x)
        if self.dropout_rate and i < len(self.features):
            x = getattr(self, f"drop{i}")(x, train=mode.train)
        return x
