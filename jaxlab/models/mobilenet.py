"""The network of torchvision.models.mobilenet_v2.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks",
arXiv:1801.04381.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.chain import Link, Mode, Network
from jaxlab.models.layers import (
    AdaptiveAvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    ReLU6,
    kaiming_normal,
    normal,
    zeros,
)
from jaxlab.models.widths import whole_number, whole_numbers


class MobileNetV2(Network):
    """torchvision's MobileNetV2: float[b, h, w, 3] -> logits float[b, num_classes].

    `blocks` are the settings of equal blocks in a row: by how much the first
    convolution of a block expands the channels (not at all if by 1), the output
    channels, the number of blocks, and the stride of the first one. `stem_channels`
    and `last_channels` are the output channels of the first and of the last
    convolution. The defaults are torchvision's. Parameters: `stem`, `block1`, `block2`,
    …, each with `expand`, `depthwise` and `project`, and `last`, all made of
    `{conv, bn}`, and `fc`. `dtype` is the precision of the computation, by default the
    one to which parameters and input promote. With `train=True`, dropout needs
    `rngs={"dropout": key}` and batch normalisation needs `mutable=["batch_stats"]`.

    Derivatives are those of AlexNet: reverse-mode only. Raises UsageError for widths
    that are not whole numbers of at least 1, and ValueError for inputs of another shape
    or dtype.

    >>> model = MobileNetV2(num_classes=10, blocks=((1, 4, 1, 1), (2, 4, 2, 2)))
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> list(variables["params"])
    ['stem', 'block1', 'block2', 'block3', 'last', 'fc']
    """

    num_classes: int = 1000
    dropout_rate: float = 0.2
    dtype: jnp.dtype | None = None
    blocks: tuple[tuple[int, int, int, int], ...] = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    stem_channels: int = 32
    last_channels: int = 1280

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        for name in ("num_classes", "stem_channels", "last_channels"):
            setattr(self, name, whole_number(name, getattr(self, name)))
        self.blocks = tuple(
            whole_numbers("blocks", each, count=4) for each in self.blocks
        )
        super().__post_init__()

    def setup(self):
        """Create the layers."""
        dtype = self.dtype
        self.stem = ConvNorm(self.stem_channels, 3, stride=2, dtype=dtype)
        for name, (expansion, channels, stride) in self._blocks():
            setattr(self, name, InvertedResidual(expansion, channels, stride, dtype))
        self.last = ConvNorm(self.last_channels, 1, dtype=dtype)
        self.avgpool = AdaptiveAvgPool(1)
        self.flatten = Flatten()
        self.drop = Dropout(self.dropout_rate)
        drawn = {"kernel_init": normal(0.01), "bias_init": zeros}
        self.fc = Dense(self.num_classes, dtype=dtype, **drawn)

    def _blocks(self) -> list[tuple[str, tuple[int, int, int]]]:
        """Return the name, the expansion, the channels and the stride of each block."""
        each = [
            (expansion, channels, stride if i == 0 else 1)
            for expansion, channels, count, stride in self.blocks
            for i in range(count)
        ]
        return [(f"block{i}", block) for i, block in enumerate(each, start=1)]

    def links(self) -> tuple[Link, ...]:
        """Return each child with the parameter-free operations around it, in order."""
        return (
            Link("stem", self.stem),
            *(Link(name, getattr(self, name)) for name, _ in self._blocks()),
            Link("last", self._last),
            Link("fc", self._fc),
        )

    def _last(self, x: jax.Array, mode: Mode) -> jax.Array:
        # Averaged here, because stored outputs are 49 times smaller then.
        return self.flatten(self.avgpool(self.last(x, mode)))

    def _fc(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.fc(self.drop(x, train=mode.train))


class InvertedResidual(nn.Module):
    """A depthwise convolution between two of 1x1, the first of which expands.

    The input is added to the output where both have the same shape.
    """

    expansion: int
    channels: int
    stride: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return the output, to which no rectifier is applied."""
        layer = functools.partial(ConvNorm, dtype=self.dtype)
        y, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = layer(width, 1, name="expand")(y, mode)
        y = layer(width, 3, stride=self.stride, groups=width, name="depthwise")(y, mode)
        y = layer(self.channels, 1, is_rectified=False, name="project")(y, mode)
        return x + y if self.stride == 1 and x.shape == y.shape else y


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, and ReLU6 unless switched off.

    It is torchvision's Conv2dNormActivation, padded by half of its kernel.
    """

    channels: int
    size: int
    stride: int = 1
    groups: int = 1
    is_rectified: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return float[b, h', w', channels]."""
        x = Conv(
            x.shape[-1],
            self.channels,
            self.size,
            self.stride,
            padding=self.size // 2,
            groups=self.groups,
            bias=False,
            kernel_init=kaiming_normal("out"),
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(dtype=self.dtype, name="bn")(x, **mode.batch_norm)
        return ReLU6(name="relu6")(x) if self.is_rectified else x
