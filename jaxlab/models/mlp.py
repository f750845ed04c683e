"""The network that over-fits: hidden layers of 512 and 128 units on 28x28 digits."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.layers import BatchNorm, linear


class MLP(nn.Module):
    """A multilayer perceptron: float[b, ...], *, train -> logits[b, num_classes].

    The input is flattened. A hidden layer is `fc -> (BatchNorm) -> ReLU -> (Dropout)`,
    the bracketed pieces between hidden layers only, that is behind all but the last.
    Parameters: `fc1, fc2, …` each `{kernel, bias}`, `bn1, …` each `{scale, bias}`, with
    running `mean` and `var` in `batch_stats`.

    With `train=True` dropout needs `rngs={"dropout": key}` and batch normalisation
    `mutable=["batch_stats"]`. Raises ValueError for one hidden layer with dropout or
    batch normalisation, which would have no place, and for inputs of integers.
    """

    features: Sequence[int] = (512, 128)
    num_classes: int = 10
    dropout_rate: float = 0.0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return raw logits; see the class."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"MLP takes float[b, ...], got {x.dtype}; scale to [0, 1]")
        if len(self.features) < 2 and (self.dropout_rate or self.batch_norm):
            raise ValueError(
                "MLP puts dropout and batch normalisation between hidden layers, got "
                f"{len(self.features)} hidden layer; give it two or more"
            )
        x = x.reshape(x.shape[0], -1)  # [b, 784] for digits
        for i, units in enumerate(self.features, start=1):
            x = linear(x.shape[-1], units, name=f"fc{i}")(x)  # [b, units]
            between = i < len(self.features)
            if self.batch_norm and between:
                x = BatchNorm(name=f"bn{i}")(x, train=train)
            x = nn.relu(x)
            if self.dropout_rate and between:
                drop = nn.Dropout(self.dropout_rate, name=f"drop{i}")
                x = drop(x, deterministic=not train)
        head = linear(x.shape[-1], self.num_classes, name=f"fc{len(self.features) + 1}")
        return head(x)
