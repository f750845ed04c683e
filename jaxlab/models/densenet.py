"""The networks of torchvision.models.densenet.

Source: Huang et al., "Densely connected convolutional networks", arXiv:1608.06993.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.chain import Link, Mode, Network
from jaxlab.models.layers import (
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    ReLU,
    kaiming_normal,
    zeros,
)
from jaxlab.models.widths import whole_number, whole_numbers


class DenseNet(Network):
    """torchvision's DenseNet: float[b, h, w, 3] -> logits float[b, num_classes].

    h and w are at least 29. `depths` are the numbers of layers of the four blocks. Each
    layer adds `growth_rate` channels to those before it, which it sees through a 1x1
    convolution of `bottleneck` times as many. `stem_channels` are the output channels
    of the first convolution. The defaults are those of densenet121. Parameters:
    `conv0`, `norm0`, `block1`…`block4`, in which the layers are `layer1`, `layer2`, …,
    between them `transition1`…`transition3`, `norm5` and `fc`. `dtype` is the precision
    of the computation, by default the one to which parameters and input promote. There
    is no dropout.

    With `train=True` batch normalisation needs `mutable=["batch_stats"]`. Derivatives
    are those of AlexNet: reverse-mode only. Raises UsageError for widths that are not
    whole numbers of at least 1, and ValueError for inputs of another shape, too small,
    or not floating-point.

    >>> widths = {"growth_rate": 2, "stem_channels": 4, "bottleneck": 2}
    >>> model = DenseNet(num_classes=10, depths=(1, 1, 1, 2), **widths)
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> list(variables["params"]["block4"])
    ['layer1', 'layer2']
    """

    num_classes: int = 1000
    dtype: jnp.dtype | None = None
    depths: tuple[int, int, int, int] = (6, 12, 24, 16)
    growth_rate: int = 32
    stem_channels: int = 64
    bottleneck: int = 4

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        for name in ("num_classes", "growth_rate", "stem_channels", "bottleneck"):
            setattr(self, name, whole_number(name, getattr(self, name)))
        self.depths = whole_numbers("depths", self.depths, count=4)
        super().__post_init__()

    @property
    def min_size(self) -> int:
        """The smallest size; for smaller images, the last pool has no 2x2 window."""
        return 29

    def setup(self):
        """Create the layers."""
        dtype, channels = self.dtype, self.stem_channels
        self.conv0 = _conv(3, channels, 7, stride=2, padding=3, dtype=dtype)
        self.norm0 = BatchNorm(dtype=dtype)
        self.relu = ReLU()
        self.pool0 = MaxPool(window=3, stride=2, padding=1)
        for i, depth in enumerate(self.depths, start=1):
            block = Block(depth, self.growth_rate, self.bottleneck, dtype)
            setattr(self, f"block{i}", block)
            channels += depth * self.growth_rate
            if i < len(self.depths):
                channels //= 2
                setattr(self, f"transition{i}", Transition(channels, dtype))
        self.norm5 = BatchNorm(dtype=dtype)
        self.avgpool = AdaptiveAvgPool(1)
        self.flatten = Flatten()
        self.fc = Dense(self.num_classes, dtype=dtype, bias_init=zeros)

    def links(self) -> tuple[Link, ...]:
        """Return each child with the parameter-free operations around it, in order."""
        # Output shapes of densenet121 for images of shape    [b, 224, 224, 3]
        return (
            Link("conv0", lambda x, mode: self.conv0(x)),  #  [b, 112, 112, 64]
            Link("norm0", self._norm0),  #                    [b, 56, 56, 64]
            Link("block1", self.block1),  #                   [b, 56, 56, 256]
            Link("transition1", self.transition1),  #         [b, 28, 28, 128]
            Link("block2", self.block2),  #                   [b, 28, 28, 512]
            Link("transition2", self.transition2),  #         [b, 14, 14, 256]
            Link("block3", self.block3),  #                   [b, 14, 14, 1024]
            Link("transition3", self.transition3),  #         [b, 7, 7, 512]
            Link("block4", self.block4),  #                   [b, 7, 7, 1024]
            Link("norm5", self._norm5),  #                    [b, 1024]
            Link("fc", lambda x, mode: self.fc(x)),  #        [b, num_classes]
        )

    def _norm0(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.pool0(self.relu(self.norm0(x, **mode.batch_norm)))

    def _norm5(self, x: jax.Array, mode: Mode) -> jax.Array:
        # Averaged here, because stored outputs are 49 times smaller then.
        x = self.relu(self.norm5(x, **mode.batch_norm))
        return self.flatten(self.avgpool(x))


class Block(nn.Module):
    """Layers, each of which sees the input and the outputs of all layers before it."""

    depth: int
    growth_rate: int
    bottleneck: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return the input and all outputs, float[b, h, w, c + depth · growth_rate]."""
        for i in range(1, self.depth + 1):
            layer = Layer(
                self.growth_rate, self.bottleneck, self.dtype, name=f"layer{i}"
            )
            x = jnp.concatenate([x, layer(x, mode)], axis=-1)
        return x


class Layer(nn.Module):
    """A 1x1 and a 3x3 convolution, each behind a norm and a rectifier."""

    growth_rate: int
    bottleneck: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return float[b, h, w, growth_rate]."""
        relu, norm = ReLU(name="relu"), functools.partial(BatchNorm, dtype=self.dtype)
        channels = self.growth_rate * self.bottleneck
        x = relu(norm(name="norm1")(x, **mode.batch_norm))
        x = _conv(x.shape[-1], channels, 1, dtype=self.dtype, name="conv1")(x)
        x = relu(norm(name="norm2")(x, **mode.batch_norm))
        return _conv(
            channels, self.growth_rate, 3, padding=1, dtype=self.dtype, name="conv2"
        )(x)


class Transition(nn.Module):
    """A norm, a rectifier, a 1x1 convolution and an average pool that halves sides."""

    channels: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return float[b, h // 2, w // 2, channels]."""
        x = BatchNorm(dtype=self.dtype, name="norm")(x, **mode.batch_norm)
        x = ReLU(name="relu")(x)
        x = _conv(x.shape[-1], self.channels, 1, dtype=self.dtype, name="conv")(x)
        return AvgPool(2, name="pool")(x)


def _conv(inputs, outputs, size, **keywords) -> Conv:
    """Return a convolution without bias, drawn as in torchvision's DenseNet."""
    kernel_init = kaiming_normal("in")
    return Conv(inputs, outputs, size, bias=False, kernel_init=kernel_init, **keywords)
