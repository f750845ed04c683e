"""The networks of torchvision.models.vgg, with and without batch normalisation.

Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", arXiv:1409.1556.
"""

import functools

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
    MaxPool,
    ReLU,
    kaiming_normal,
    normal,
    zeros,
)
from jaxlab.models.widths import whole_number, whole_numbers


class VGG(Network):
    """torchvision's VGG: float[b, h, w, 3] -> logits float[b, num_classes].

    h and w are at least 32. The caller normalises the images (see `jaxlab.Preprocess`).
    `channels` are the output channels of the convolutions of each stage, behind which
    is a max pool; the defaults are those of vgg16. `hidden` are the units of fc6 and of
    fc7. Parameters: `conv1_1, conv1_2, conv2_1, …`, with `batch_norm` also `bn1_1, …`,
    and `fc6, fc7, fc8`. `dtype` is the precision of the computation, by default the one
    to which parameters and input promote. With `train=True`, dropout needs
    `rngs={"dropout": key}`.

    Unlike in torch, images are channels last, so fc6's input is flattened in the order
    H·W·C; `pretrained.to_variables` permutes torch's weights accordingly. Derivatives
    are those of AlexNet: reverse-mode only.

    Raises UsageError for widths that are not whole numbers of at least 1, and
    ValueError for inputs of another shape, too small, or not floating-point.

    >>> model = VGG(num_classes=10, channels=((4,), (4,), (4, 4)), hidden=8)
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> list(variables["params"])
    ['conv1_1', 'conv2_1', 'conv3_1', 'conv3_2', 'fc6', 'fc7', 'fc8']
    """

    num_classes: int = 1000
    dropout_rate: float = 0.5
    dtype: jnp.dtype | None = None
    channels: tuple[tuple[int, ...], ...] = (
        *((64, 64), (128, 128)),
        *((256, 256, 256), (512, 512, 512), (512, 512, 512)),
    )
    batch_norm: bool = False
    hidden: int = 4096

    def __post_init__(self):
        """Check the widths, and make lists tuples."""
        self.num_classes = whole_number("num_classes", self.num_classes)
        self.channels = tuple(
            whole_numbers("channels", stage) for stage in self.channels
        )
        self.hidden = whole_number("hidden", self.hidden)
        super().__post_init__()

    @property
    def min_size(self) -> int:
        """The smallest size; for smaller images, the last pool has no 2x2 window."""
        return 2 ** len(self.channels)

    def setup(self):
        """Create the layers."""
        inputs, drawn = 3, {"kernel_init": kaiming_normal("out"), "bias_init": zeros}
        for name, channels in self._convolutions():
            layer = Conv(inputs, channels, 3, padding=1, dtype=self.dtype, **drawn)
            setattr(self, f"conv{name}", layer)
            if self.batch_norm:
                setattr(self, f"bn{name}", BatchNorm(dtype=self.dtype))
            inputs = channels
        self.relu = ReLU()
        self.pool = MaxPool(window=2)
        self.avgpool = AdaptiveAvgPool((7, 7))
        self.flatten = Flatten()
        drawn = {"kernel_init": normal(0.01), "bias_init": zeros}
        self.fc6 = Dense(self.hidden, dtype=self.dtype, **drawn)
        self.drop6 = Dropout(self.dropout_rate)
        self.fc7 = Dense(self.hidden, dtype=self.dtype, **drawn)
        self.drop7 = Dropout(self.dropout_rate)
        self.fc8 = Dense(self.num_classes, dtype=self.dtype, **drawn)

    def _convolutions(self) -> list[tuple[str, int]]:
        """Return the stage and place of each convolution, "1_1", and its channels."""
        return [
            (f"{stage}_{place}", channels)
            for stage, widths in enumerate(self.channels, start=1)
            for place, channels in enumerate(widths, start=1)
        ]

    def links(self) -> tuple[Link, ...]:
        """Return each layer with the parameter-free operations around it, in order."""
        links = []
        ends = [f"{stage}_{len(w)}" for stage, w in enumerate(self.channels, start=1)]
        for name, _ in self._convolutions():
            pools = [self.pool] if name in ends else []
            # The output of the last one is [b, 7, 7, 512] for images of any size.
            pools += [self.avgpool] if name == ends[-1] else []
            layers = [f"conv{name}"] + ([f"bn{name}"] if self.batch_norm else [])
            for layer in layers:
                behind = (self.relu, *pools) if layer == layers[-1] else ()
                links.append(Link(layer, functools.partial(self._layer, layer, behind)))
        dense = (("fc6", self._fc6), ("fc7", self._fc7), ("fc8", self._fc8))
        return (*links, *(Link(*each) for each in dense))

    def _layer(self, name, behind, x: jax.Array, mode: Mode) -> jax.Array:
        is_norm = name.startswith("bn")
        x = getattr(self, name)(x, **(mode.batch_norm if is_norm else {}))
        for operation in behind:
            x = operation(x)
        return x

    def _fc6(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.relu(self.fc6(self.flatten(x)))  # [b, 4096]

    def _fc7(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.relu(self.fc7(self.drop6(x, train=mode.train)))

    def _fc8(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.fc8(self.drop7(x, train=mode.train))
