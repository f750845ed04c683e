"""AlexNet as torchvision has it (Krizhevsky, "One weird trick", arXiv:1404.5997)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models import chain
from jaxlab.models.chain import Link, Mode
from jaxlab.models.layers import Conv, Dense, adaptive_avg_pool
from jaxlab.models.ops import max_pool

MIN_SIZE = 63  # below, the last max pool has no 3x3 window


class AlexNet(nn.Module):
    """torchvision's AlexNet: float[b, h, w, 3], *, train -> logits[b, num_classes].

    h and w are at least 63; images are normalised by the caller (`jaxlab.Preprocess`).
    Parameters: `conv1..conv5, fc6, fc7, fc8`, each `{kernel, bias}`, kernels HWIO or
    [in, out]. With `train=True` dropout needs `rngs={"dropout": key}`. `dtype` is the
    precision of the computation; by default that of parameters and input. `channels`
    are those of the five convolutions, `hidden` the units of fc6 and of fc7: by default
    torchvision's; a narrow copy is for tests.

    In float32 and float64 it can be differentiated in reverse mode only (`jax.grad`,
    `jax.vjp`), as often as wanted. `jax.jvp`, `jax.jacfwd`, `jax.linearize` and
    `jax.hessian` raise TypeError on every device, because the convolutions and pools
    that run on a CPU have gradients of their own. Within `jaxlab.models.ops.plain()`
    they work, with slower convolutions on a CPU.

    Raises ValueError for inputs of another shape, too small, or not floating-point.
    Unlike torch's, images are channels last, and fc6's input is flattened so.
    """

    num_classes: int = 1000
    dropout_rate: float = 0.5
    dtype: jnp.dtype | None = None
    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096

    def setup(self):
        """Create the named layers."""
        dtype = self.dtype
        c1, c2, c3, c4, c5 = self.channels
        self.conv1 = Conv(3, c1, kernel_size=11, stride=4, padding=2, dtype=dtype)
        self.conv2 = Conv(c1, c2, kernel_size=5, padding=2, dtype=dtype)
        self.conv3 = Conv(c2, c3, kernel_size=3, padding=1, dtype=dtype)
        self.conv4 = Conv(c3, c4, kernel_size=3, padding=1, dtype=dtype)
        self.conv5 = Conv(c4, c5, kernel_size=3, padding=1, dtype=dtype)
        self.drop6 = nn.Dropout(self.dropout_rate)
        self.fc6 = Dense(self.hidden, dtype=dtype)
        self.drop7 = nn.Dropout(self.dropout_rate)
        self.fc7 = Dense(self.hidden, dtype=dtype)
        self.fc8 = Dense(self.num_classes, dtype=dtype)

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
        """Return raw logits, or run a part of the chain; see the class and `chain`."""
        if after is None:
            _check_images(x)
        part = {"frozen": frozen, "after": after, "until": until}
        return chain.run(self.links(), x, train=train, weights=weights, **part)

    def links(self) -> tuple[Link, ...]:
        """Return the chain: each layer with what follows it, to the next."""
        # Shapes for 224 pixels                            [b, 224, 224, 3]
        return (
            Link("conv1", self._conv1),  #                 [b, 27, 27, 64]
            Link("conv2", self._conv2),  #                 [b, 13, 13, 192]
            Link("conv3", self._conv3),  #                 [b, 13, 13, 384]
            Link("conv4", self._conv4),  #                 [b, 13, 13, 256]
            Link("conv5", self._conv5),  #                 [b, 6, 6, 256], at any size
            Link("fc6", self._fc6),  #                     [b, 4096]
            Link("fc7", self._fc7),  #                     [b, 4096]
            Link("fc8", self._fc8),  #                     [b, num_classes]
        )

    def _conv1(self, x: jax.Array, mode: Mode) -> jax.Array:
        return max_pool(nn.relu(self.conv1(x)), 3, 2)

    def _conv2(self, x: jax.Array, mode: Mode) -> jax.Array:
        return max_pool(nn.relu(self.conv2(x)), 3, 2)

    def _conv3(self, x: jax.Array, mode: Mode) -> jax.Array:
        return nn.relu(self.conv3(x))

    def _conv4(self, x: jax.Array, mode: Mode) -> jax.Array:
        return nn.relu(self.conv4(x))

    def _conv5(self, x: jax.Array, mode: Mode) -> jax.Array:
        return adaptive_avg_pool(max_pool(nn.relu(self.conv5(x)), 3, 2), (6, 6))

    def _fc6(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = x.reshape(x.shape[0], -1)  # [b, 9216], rows in H·W·C order
        x = self.drop6(x, deterministic=not mode.train)
        return nn.relu(self.fc6(x))

    def _fc7(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = self.drop7(x, deterministic=not mode.train)
        return nn.relu(self.fc7(x))

    def _fc8(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.fc8(x)


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4 or x.shape[-1] != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        shape = ", ".join(map(str, x.shape))
        raise ValueError(
            f"AlexNet takes normalised images float[b, h, w, 3], got "
            f"{x.dtype}[{shape}]; see jaxlab.Preprocess"
        )
    height, width = x.shape[1:3]
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"AlexNet takes images of at least {MIN_SIZE}x{MIN_SIZE} pixels, got "
            f"{height}x{width}; resize them"
        )
