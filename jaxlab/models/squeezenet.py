"""The networks of torchvision.models.squeezenet.

Source: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
arXiv:1602.07360.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.errors import UsageError
from jaxlab.models.chain import Link, Mode, Network
from jaxlab.models.layers import (
    AdaptiveAvgPool,
    Conv,
    Dropout,
    Flatten,
    MaxPool,
    ReLU,
    kaiming_uniform,
    normal,
    zeros,
)
from jaxlab.models.widths import whole_number, whole_numbers


class SqueezeNet(Network):
    """torchvision's SqueezeNet: float[b, h, w, 3] -> logits float[b, num_classes].

    The logits are never negative, because a ReLU is behind the last convolution, before
    their average is taken over the image. `stem` are the output channels of conv1 and
    the side of its kernel. `fires` are, for each fire module, the output channels of
    its squeeze convolution and of each of its two expand convolutions; a max pool is
    behind conv1 and behind the fire modules named in `pools`. The defaults are those of
    squeezenet1_0. Parameters: `conv1`, `fire2`, `fire3`, …, each `{squeeze, expand1x1,
    expand3x3}`, and `conv10`. `dtype` is the precision of the computation, by default
    the one to which parameters and input promote. With `train=True`, dropout needs
    `rngs={"dropout": key}`.

    Derivatives are those of AlexNet: reverse-mode only. Raises UsageError for widths
    that are not whole numbers of at least 1, and ValueError for inputs of another
    shape, too small, or not floating-point.

    >>> widths = {"stem": (4, 3), "fires": ((2, 4), (2, 4)), "pools": ("fire2",)}
    >>> model = SqueezeNet(num_classes=10, **widths)
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> list(variables["params"])
    ['conv1', 'fire2', 'fire3', 'conv10']
    """

    num_classes: int = 1000
    dropout_rate: float = 0.5
    dtype: jnp.dtype | None = None
    stem: tuple[int, int] = (96, 7)
    fires: tuple[tuple[int, int], ...] = (
        *((16, 64), (16, 64), (32, 128), (32, 128)),
        *((48, 192), (48, 192), (64, 256), (64, 256)),
    )
    pools: tuple[str, ...] = ("fire4", "fire8")

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        self.num_classes = whole_number("num_classes", self.num_classes)
        self.stem = whole_numbers("stem", self.stem, count=2)
        self.fires = tuple(whole_numbers("fires", each, count=2) for each in self.fires)
        self.pools = tuple(self.pools)
        names = [f"fire{i}" for i in range(2, len(self.fires) + 2)]
        if unknown := set(self.pools) - set(names):
            raise UsageError(
                f"pools: {', '.join(sorted(unknown))} is no fire module; pass some of "
                f"{', '.join(names)}"
            )
        super().__post_init__()

    @property
    def min_size(self) -> int:
        """The smallest size, for which the last pool has one pixel and its half."""
        size = 1
        for _ in range(len(self.pools) + 1):
            size = 2 * size  # of the input of a pool of 3x3 windows, which may overhang
        return 2 * (size - 1) + self.stem[1]

    def setup(self):
        """Create the layers."""
        channels, size = self.stem
        drawn = {"kernel_init": kaiming_uniform(), "bias_init": zeros}
        self.conv1 = Conv(3, channels, size, stride=2, dtype=self.dtype, **drawn)
        for name, widths in self._fires():
            setattr(self, name, Fire(*widths, self.dtype))
        self.relu = ReLU()
        self.pool = MaxPool(window=3, stride=2, ceil_mode=True)
        self.drop10 = Dropout(self.dropout_rate)
        drawn = {"kernel_init": normal(0.01), "bias_init": zeros}
        inputs = 2 * self.fires[-1][1]
        self.conv10 = Conv(inputs, self.num_classes, 1, dtype=self.dtype, **drawn)
        self.avgpool = AdaptiveAvgPool(1)
        self.flatten = Flatten()

    def _fires(self) -> list[tuple[str, tuple[int, int]]]:
        return [(f"fire{i}", widths) for i, widths in enumerate(self.fires, start=2)]

    def links(self) -> tuple[Link, ...]:
        """Return each child with the parameter-free operations around it, in order."""
        fires = [
            Link(name, functools.partial(self._fire, name)) for name, _ in self._fires()
        ]
        return (Link("conv1", self._conv1), *fires, Link("conv10", self._conv10))

    def _conv1(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.pool(self.relu(self.conv1(x)))

    def _fire(self, name: str, x: jax.Array, mode: Mode) -> jax.Array:
        x = getattr(self, name)(x)
        return self.pool(x) if name in self.pools else x

    def _conv10(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = self.relu(self.conv10(self.drop10(x, train=mode.train)))
        return self.flatten(self.avgpool(x))


class Fire(nn.Module):
    """A 1x1 convolution, then 1x1 and 3x3 convolutions side by side, all rectified."""

    squeezed: int
    expanded: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the outputs of both, float[b, h, w, 2 · expanded]."""
        relu = ReLU(name="relu")
        conv = functools.partial(
            Conv, dtype=self.dtype, kernel_init=kaiming_uniform(), bias_init=zeros
        )
        x = relu(conv(x.shape[-1], self.squeezed, 1, name="squeeze")(x))
        small = conv(self.squeezed, self.expanded, 1, name="expand1x1")(x)
        large = conv(self.squeezed, self.expanded, 3, padding=1, name="expand3x3")(x)
        return jnp.concatenate([relu(small), relu(large)], axis=-1)
