"""The network of torchvision.models.alexnet.

Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
arXiv:1404.5997.
"""

import jax
import jax.numpy as jnp

from jaxlab.models.chain import Link, Mode, Network
from jaxlab.models.layers import (
    AdaptiveAvgPool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    MaxPool,
    ReLU,
)
from jaxlab.models.widths import whole_number, whole_numbers


class AlexNet(Network):
    """torchvision's AlexNet: float[b, h, w, 3] -> logits float[b, num_classes].

    h and w are at least 63. The caller normalises the images (see `jaxlab.Preprocess`).
    Parameters: `conv1..conv5, fc6, fc7, fc8`, each `{kernel, bias}`; kernels are
    [k, k, in, out] for convolutions and [in, out] for dense layers. `channels` are the
    output channels of the five convolutions and `hidden` the units of fc6 and of fc7;
    the defaults are torchvision's, and tests use smaller ones. `dtype` is the precision
    of the computation, by default the one to which parameters and input promote. With
    `train=True`, dropout needs `rngs={"dropout": key}`.

    Unlike in torch, images are channels last, so fc6's input is flattened in the order
    H·W·C instead of C·H·W; `pretrained.to_flax` permutes torch's weights accordingly.

    In float32 and float64 only reverse-mode differentiation is supported (`jax.grad`,
    `jax.vjp`), to any order. `jax.jvp`, `jax.jacfwd`, `jax.linearize` and `jax.hessian`
    raise TypeError on every device, because convolutions and max pools have custom
    gradients for CPUs (`jax.custom_vjp`). Within `jaxlab.models.ops.plain()` they work,
    with slower convolutions on a CPU.

    Raises UsageError for widths that are not whole numbers of at least 1, and
    ValueError for inputs of another shape, too small, or not floating-point.

    >>> model = AlexNet(num_classes=10, channels=(4, 4, 4, 4, 4), hidden=8)
    >>> images = jnp.zeros((1, 63, 63, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.apply(variables, images, train=False).shape
    (1, 10)
    """

    num_classes: int = 1000
    dropout_rate: float = 0.5
    dtype: jnp.dtype | None = None
    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        self.num_classes = whole_number("num_classes", self.num_classes)
        self.channels = whole_numbers("channels", self.channels, count=5)
        self.hidden = whole_number("hidden", self.hidden)
        super().__post_init__()

    def setup(self):
        """Create the layers."""
        dtype = self.dtype
        c1, c2, c3, c4, c5 = self.channels
        self.conv1 = Conv(3, c1, kernel_size=11, stride=4, padding=2, dtype=dtype)
        self.conv2 = Conv(c1, c2, kernel_size=5, padding=2, dtype=dtype)
        self.conv3 = Conv(c2, c3, kernel_size=3, padding=1, dtype=dtype)
        self.conv4 = Conv(c3, c4, kernel_size=3, padding=1, dtype=dtype)
        self.conv5 = Conv(c4, c5, kernel_size=3, padding=1, dtype=dtype)
        self.relu = ReLU()
        self.pool = MaxPool(window=3, stride=2)
        self.avgpool = AdaptiveAvgPool((6, 6))
        self.flatten = Flatten()
        self.drop6 = Dropout(self.dropout_rate)
        self.fc6 = Dense(self.hidden, dtype=dtype)
        self.drop7 = Dropout(self.dropout_rate)
        self.fc7 = Dense(self.hidden, dtype=dtype)
        self.fc8 = Dense(self.num_classes, dtype=dtype)

    @property
    def min_size(self) -> int:
        """The smallest size; for smaller images, the last pool has no 3x3 window."""
        return 63

    def links(self) -> tuple[Link, ...]:
        """Return each layer with the parameter-free operations around it, in order."""
        # Output shapes for images of shape                [b, 224, 224, 3]
        return (
            Link("conv1", self._conv1),  #                 [b, 27, 27, 64]
            Link("conv2", self._conv2),  #                 [b, 13, 13, 192]
            Link("conv3", self._conv3),  #                 [b, 13, 13, 384]
            Link("conv4", self._conv4),  #                 [b, 13, 13, 256]
            Link("conv5", self._conv5),  #                 [b, 6, 6, 256], for any size
            Link("fc6", self._fc6),  #                     [b, 4096]
            Link("fc7", self._fc7),  #                     [b, 4096]
            Link("fc8", self._fc8),  #                     [b, num_classes]
        )

    def _conv1(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.pool(self.relu(self.conv1(x)))

    def _conv2(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.pool(self.relu(self.conv2(x)))

    def _conv3(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.relu(self.conv3(x))

    def _conv4(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.relu(self.conv4(x))

    def _conv5(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.avgpool(self.pool(self.relu(self.conv5(x))))

    def _fc6(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = self.flatten(x)  # [b, 9216], in H·W·C order
        return self.relu(self.fc6(self.drop6(x, train=mode.train)))

    def _fc7(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.relu(self.fc7(self.drop7(x, train=mode.train)))

    def _fc8(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.fc8(x)
