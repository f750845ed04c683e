"""The networks of torchvision.models.resnet: ResNet, ResNeXt and wide ResNet.

Sources: He et al., "Deep residual learning for image recognition", arXiv:1512.03385;
Xie et al., "Aggregated residual transformations", arXiv:1611.05431; Zagoruyko and
Komodakis, "Wide residual networks", arXiv:1605.07146.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.errors import UsageError
from jaxlab.models.chain import Link, Mode, Network
from jaxlab.models.layers import (
    AdaptiveAvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    ReLU,
    kaiming_normal,
)
from jaxlab.models.widths import whole_number, whole_numbers
from pretrained.tables.resnet import EXPANSION


class ResNet(Network):
    """torchvision's ResNet: float[b, h, w, 3] -> logits float[b, num_classes].

    `depths` are the numbers of blocks of the four stages, and `channels` those of their
    3x3 convolutions, or of their outputs without `bottleneck`; the defaults are those
    of resnet18. In a bottleneck the 3x3 convolution has `groups` groups and
    `channels · width_per_group / 64 · groups` channels. Parameters: `conv1`, `bn1`,
    `layer1`…`layer4`, in which the blocks are `0`, `1`, …, and `fc`, as in torchvision,
    but `downsample_conv` and `downsample_bn` for its `downsample.0` and `.1`. `dtype`
    is the precision of the computation, by default the one to which parameters and
    input promote. There is no dropout.

    With `train=True` batch normalisation needs `mutable=["batch_stats"]`. Derivatives
    are those of AlexNet: reverse-mode only. Raises UsageError for widths that are not
    whole numbers of at least 1, and ValueError for inputs of another shape or dtype.

    >>> model = ResNet(num_classes=10, depths=(1, 1, 1, 1), channels=(4, 4, 8, 8))
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> sorted(variables["params"]["layer2"]["0"])
    ['bn1', 'bn2', 'conv1', 'conv2', 'downsample_bn', 'downsample_conv']
    """

    num_classes: int = 1000
    dtype: jnp.dtype | None = None
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    bottleneck: bool = False
    groups: int = 1
    width_per_group: int = 64

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        for name in ("num_classes", "groups", "width_per_group"):
            setattr(self, name, whole_number(name, getattr(self, name)))
        self.depths = whole_numbers("depths", self.depths, count=4)
        self.channels = whole_numbers("channels", self.channels, count=4)
        if not self.bottleneck and (self.groups, self.width_per_group) != (1, 64):
            raise UsageError(
                "groups and width_per_group: have no effect without bottleneck; pass "
                "bottleneck=True, or leave them out"
            )
        super().__post_init__()

    def setup(self):
        """Create the layers."""
        self.conv1 = _conv(3, self.channels[0], 7, stride=2, dtype=self.dtype)
        self.bn1 = BatchNorm(dtype=self.dtype)
        self.relu = ReLU()
        self.maxpool = MaxPool(window=3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            Stage(
                depth,
                channels,
                1 if i == 0 else 2,
                self.bottleneck,
                self.groups,
                self.width_per_group,
                self.dtype,
            )
            for i, (depth, channels) in enumerate(
                zip(self.depths, self.channels, strict=True)
            )
        )
        self.avgpool = AdaptiveAvgPool(1)
        self.flatten = Flatten()
        self.fc = Dense(self.num_classes, dtype=self.dtype)

    def links(self) -> tuple[Link, ...]:
        """Return each child with the parameter-free operations around it, in order."""
        # Output shapes of resnet50 for images of shape  [b, 224, 224, 3]
        return (
            Link("conv1", lambda x, mode: self.conv1(x)),  # [b, 112, 112, 64]
            Link("bn1", self._bn1),  #                       [b, 56, 56, 64]
            Link("layer1", self.layer1),  #                  [b, 56, 56, 256]
            Link("layer2", self.layer2),  #                  [b, 28, 28, 512]
            Link("layer3", self.layer3),  #                  [b, 14, 14, 1024]
            Link("layer4", self._layer4),  #                 [b, 2048]
            Link("fc", lambda x, mode: self.fc(x)),  #       [b, num_classes]
        )

    def _bn1(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.maxpool(self.relu(self.bn1(x, **mode.batch_norm)))

    def _layer4(self, x: jax.Array, mode: Mode) -> jax.Array:
        # Averaged here, because stored outputs are 49 times smaller then.
        return self.flatten(self.avgpool(self.layer4(x, mode)))


class Stage(nn.Module):
    """Blocks in a row, of which the first one has the `stride`."""

    depth: int
    channels: int
    stride: int
    bottleneck: bool
    groups: int
    width_per_group: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return the output of the last block."""
        width = self.channels * self.width_per_group // 64 * self.groups
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            block = (
                Bottleneck(
                    self.channels, width, stride, self.groups, self.dtype, name=f"{i}"
                )
                if self.bottleneck
                else Basic(self.channels, stride, self.dtype, name=f"{i}")
            )
            x = block(x, mode)
        return x


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut; torchvision's BasicBlock."""

    channels: int
    stride: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return the sum of both paths, rectified."""
        dtype, channels = self.dtype, self.channels
        relu = ReLU(name="relu")
        y = _conv(x.shape[-1], channels, 3, self.stride, dtype=dtype, name="conv1")(x)
        y = relu(BatchNorm(dtype=dtype, name="bn1")(y, **mode.batch_norm))
        y = _conv(channels, channels, 3, dtype=dtype, name="conv2")(y)
        y = BatchNorm(dtype=dtype, name="bn2")(y, **mode.batch_norm)
        return relu(y + _shortcut(x, channels, self.stride, dtype, mode))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut.

    As in torchvision the stride is that of the 3x3 convolution; the paper strides in
    the first one.
    """

    channels: int
    width: int
    stride: int
    groups: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """Return the sum of both paths, rectified."""
        dtype, width, outputs = self.dtype, self.width, self.channels * EXPANSION
        relu = ReLU(name="relu")
        y = _conv(x.shape[-1], width, 1, dtype=dtype, name="conv1")(x)
        y = relu(BatchNorm(dtype=dtype, name="bn1")(y, **mode.batch_norm))
        y = _conv(width, width, 3, self.stride, self.groups, dtype=dtype, name="conv2")(
            y
        )
        y = relu(BatchNorm(dtype=dtype, name="bn2")(y, **mode.batch_norm))
        y = _conv(width, outputs, 1, dtype=dtype, name="conv3")(y)
        y = BatchNorm(dtype=dtype, name="bn3")(y, **mode.batch_norm)
        return relu(y + _shortcut(x, outputs, self.stride, dtype, mode))


def _shortcut(x, outputs, stride, dtype, mode) -> jax.Array:
    """Return x, or where the block changes its shape, a projection of it.

    Called in a block's `__call__`, to which the projection's layers belong.
    """
    if stride == 1 and x.shape[-1] == outputs:
        return x
    x = _conv(x.shape[-1], outputs, 1, stride, dtype=dtype, name="downsample_conv")(x)
    return BatchNorm(dtype=dtype, name="downsample_bn")(x, **mode.batch_norm)


def _conv(inputs, outputs, size, stride=1, groups=1, **keywords) -> Conv:
    """Return a convolution without bias, padded by half of its kernel."""
    return Conv(
        inputs,
        outputs,
        size,
        stride,
        padding=size // 2,
        groups=groups,
        bias=False,
        kernel_init=kaiming_normal("out"),
        **keywords,
    )
