"""torch's layers with torch's defaults and initialisation: `jaxlab.layers`.

Flax's own differ where it matters: they draw other initial weights, their BatchNorm
keeps other running statistics, and a train switch is called `deterministic`. All layers
have channels last. Those that behave differently in training take `train`, as modules
of a student's own may.

It is one file because a reader compares these layers with torch's.

>>> class Net(nn.Module):
...     @nn.compact
...     def __call__(self, x, *, train):
...         x = Flatten()(x)
...         x = Dropout(0.5)(ReLU()(Dense(128)(x)), train=train)
...         return Dense(10)(x)
>>> variables = Net().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
>>> Net().apply(variables, jnp.zeros((2, 28, 28, 1)), train=False).shape
(2, 10)
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer

from jaxlab.models import batch_norm, ops


class Conv(nn.Module):
    """A convolution with the arguments and the initialisation of torch.nn.Conv2d.

    float[b, h, w, in_channels] -> float[b, h', w', out_channels], where
    h' = (h + 2·padding - kernel_size) // stride + 1, and w' likewise. Parameters:
    `kernel` [k, k, in / groups, out] (torch's weight is [out, in / groups, k, k]) and,
    unless `bias` is False, `bias` [out]. `dtype` is the precision of the result, by
    default the one to which input and parameters promote. `kernel_init` and `bias_init`
    draw fresh parameters, by default as torch's Conv2d does (see `uniform_fan_in`);
    torchvision's networks draw them otherwise. Dilation is not supported. Unlike
    flax.linen.Conv it calls `ops.conv`, which needs 30 to 50 % less time on a CPU than
    XLA's convolution.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dtype: jnp.dtype | None = None
    groups: int = 1
    bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of x plus the bias."""
        inside = self.in_channels // self.groups
        shape = (self.kernel_size, self.kernel_size, inside, self.out_channels)
        default = uniform_fan_in(math.prod(shape[:-1]))
        kernel = self.param("kernel", self.kernel_init or default, shape)
        bias = None
        if self.bias:
            bias = self.param("bias", self.bias_init or default, shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = ops.conv(x, kernel, self.stride, self.padding, self.groups)
        return x if bias is None else x + bias


class Dense(nn.Module):
    """A dense layer, torch.nn.Linear: float[..., in] -> float[..., features].

    Parameters: `kernel` [in, features] (torch's weight is [out, in]) and `bias`
    [features]. `dtype`, `kernel_init` and `bias_init` are as in `Conv`. Unlike
    flax.linen.Dense, whose bias starts at zero, kernel and bias are by default drawn
    from torch's distribution (see `uniform_fan_in`).
    """

    features: int
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x @ kernel + bias."""
        default = uniform_fan_in(x.shape[-1])
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or default, shape)
        bias = self.param("bias", self.bias_init or default, shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias


def uniform_fan_in(fan_in: int) -> Initializer:
    """Return torch's default initialiser of convolutions and linear layers.

    It draws kernels and biases from U(-1/√fan_in, 1/√fan_in), where Flax's defaults are
    lecun_normal for kernels and zero for biases. `fan_in`, the number of inputs of one
    output, is an argument because the shape of a bias does not determine it.
    """
    return _uniform(lambda shape: fan_in**-0.5)


def kaiming_uniform() -> Initializer:
    """Return `torch.nn.init.kaiming_uniform_` for kernels [k, k, in, out] and ReLU.

    It draws from U(-√(6/fan_in), √(6/fan_in)).
    """
    return _uniform(lambda shape: (6 / math.prod(shape[:-1])) ** 0.5)


def kaiming_normal(fan: Literal["in", "out"]) -> Initializer:
    """Return `torch.nn.init.kaiming_normal_` for kernels [k, k, in / groups, out].

    It draws from N(0, 2 / fan), where fan_in is k·k·in / groups and fan_out is k·k·out,
    whatever the groups are.
    """

    def std(shape):
        channels = shape[-2] if fan == "in" else shape[-1]
        return (2 / (math.prod(shape[:-2]) * channels)) ** 0.5

    return _normal(std)


def normal(std: float) -> Initializer:
    """Return `torch.nn.init.normal_` with mean 0: N(0, std²)."""
    return _normal(lambda shape: std)


def zeros(key, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
    """Return `torch.nn.init.zeros_`, whatever the key is."""
    return jnp.zeros(shape, dtype)


# A flat draw gives the same numbers as one in `shape`. XLA compiles it for CPUs in a
# fourth of the time, because it vectorises one axis better than four.


def _uniform(bound: Callable[[Sequence[int]], float]) -> Initializer:
    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        flat, limit = (math.prod(shape),), bound(shape)
        drawn = jax.random.uniform(key, flat, dtype, minval=-limit, maxval=limit)
        return drawn.reshape(shape)

    return init


def _normal(std: Callable[[Sequence[int]], float]) -> Initializer:
    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        drawn = jax.random.normal(key, (math.prod(shape),), dtype)
        return (drawn * std(shape)).reshape(shape)

    return init


class Dropout(nn.Dropout):
    """Dropout, torch.nn.Dropout: zeroes a fraction `rate` of the values in training.

    The others are divided by 1 - rate. With `train=True` it needs
    `rngs={"dropout": key}`; with `train=False` it is the identity.
    """

    rate: float = 0.5

    def __call__(
        self,
        inputs: jax.Array,
        deterministic: bool | None = None,
        rng=None,
        *,
        train=None,
    ) -> jax.Array:
        """Return the inputs with a random fraction of them zeroed, if `train`.

        `deterministic` and `rng` are Flax's own arguments.
        """
        if not 0 <= self.rate <= 1:
            raise ValueError(
                f"Dropout: rate {self.rate} is out of range; pass a number from 0 to 1"
            )
        if train is not None:
            deterministic = not train
        return super().__call__(inputs, deterministic, rng)


class ReLU(nn.Module):
    """The rectifier max(x, 0), torch.nn.ReLU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return max(x, 0)."""
        return nn.relu(x)


class ReLU6(nn.Module):
    """The rectifier min(max(x, 0), 6), torch.nn.ReLU6.

    As in torch its gradient is 0 at 0 and at 6, where that of `jnp.clip` is 1/2.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return min(max(x, 0), 6)."""
        inside = (x > 0) & (x < 6)
        return jnp.where(inside, x, jax.lax.stop_gradient(jnp.clip(x, 0, 6)))


class Flatten(nn.Module):
    """Flatten each example, torch.nn.Flatten: [b, ...] -> [b, n].

    Images are flattened in the order H·W·C, where torch has C·H·W.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x with one axis behind the batch's."""
        return x.reshape(x.shape[0], -1)


class MaxPool(nn.Module):
    """The largest value of each window, torch.nn.MaxPool2d.

    float[b, h, w, c] -> float[b, h', w', c], where
    h' = (h + 2·padding - window) // stride + 1. By default the stride is the window, so
    that the windows do not overlap. With `ceil_mode` the division rounds up, so that
    the last window may reach beyond the image, but must begin inside it or its padding
    in front. What is outside the image is -∞, so that it is never the largest.
    """

    window: int
    stride: int | None = None
    padding: int = 0
    ceil_mode: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the largest value of each window."""
        stride = self.window if self.stride is None else self.stride
        margins = [(self.padding, self._behind(n, stride)) for n in x.shape[1:3]]
        if any(map(any, margins)):
            outside = jnp.array(-jnp.inf, x.dtype)
            axes = [(0, 0, 0), *((*margin, 0) for margin in margins), (0, 0, 0)]
            x = jax.lax.pad(x, outside, axes)
        return ops.max_pool(x, self.window, stride)

    def _behind(self, length: int, stride: int) -> int:
        """Return the pixels to add behind an axis."""
        if not self.ceil_mode:
            return self.padding
        reach = length + 2 * self.padding - self.window
        count = -(-reach // stride) + 1
        if (count - 1) * stride >= length + self.padding:
            count -= 1  # the last window would begin behind the image
        return (count - 1) * stride + self.window - length - self.padding


class AvgPool(nn.Module):
    """The mean of each window, torch.nn.AvgPool2d with the stride of its window.

    float[b, h, w, c] -> float[b, h // window, w // window, c]. Rows and columns that
    fill no window are left out.
    """

    window: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the mean of each window."""
        size = self.window
        height, width = (length // size for length in x.shape[1:3])
        x = x[:, : height * size, : width * size]
        blocks = x.reshape(x.shape[0], height, size, width, size, x.shape[3])
        return blocks.mean((2, 4))


class AdaptiveAvgPool(nn.Module):
    """Averages over a fixed number of bins, torch.nn.AdaptiveAvgPool2d.

    float[b, h, w, c] -> float[b, rows, columns, c], where `output_size` is both numbers
    or one for both; see `adaptive_avg_pool`.
    """

    output_size: int | tuple[int, int]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the average over each bin."""
        size = self.output_size
        return adaptive_avg_pool(x, (size, size) if isinstance(size, int) else size)


def adaptive_avg_pool(x: jax.Array, output_size: tuple[int, int]) -> jax.Array:
    """Average over the bins of torch.nn.AdaptiveAvgPool2d.

    float[b, h, w, c] -> float[b, rows, columns, c], for h and w of any size. On an axis
    of n pixels and k bins, bin i reaches from floor(i·n/k) to ceil((i+1)·n/k), so bins
    may overlap, and n may be smaller than k. If n equals k, the axis is unchanged.
    """
    for axis, bins in zip((1, 2), output_size, strict=True):
        size = x.shape[axis]
        if size != bins:
            # A bin is a rectangle, so its mean can be taken over one axis at a time.
            means = [
                jax.lax.slice_in_dim(
                    x, i * size // bins, -(-(i + 1) * size // bins), axis=axis
                ).mean(axis)
                for i in range(bins)
            ]
            x = jnp.stack(means, axis)
    return x


class BatchNorm(nn.Module):
    """Batch normalisation, equal to torch's: float[b, ..., c] -> the same shape.

    In training it normalises with the batch's mean and biased variance, moves the
    running statistics `mean` and `var` (in `batch_stats`) by the fraction `momentum`
    towards the batch's mean and *unbiased* variance, and adds one to `count`, int32. In
    evaluation it normalises with the running statistics. Examples of weight 0 in
    `weights` float[b] are ignored; all other weights must be 1. Parameters: `scale` and
    `bias`, both [c].

    See torch.nn.BatchNorm1d and BatchNorm2d, whose num_batches_tracked is `count`.
    flax.linen.BatchNorm keeps 0.99 of the old statistics, where torch takes 0.1 of the
    new ones, and it stores the biased variance. `dtype` is the precision of the result,
    by default the one to which input and parameters promote; statistics are computed in
    at least float32. In training only reverse-mode differentiation is supported, except
    within `ops.plain`.

    Raises ValueError in training if the batch, including examples of weight 0, has only
    one value per channel, for which there is no unbiased variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, weights: jax.Array | None = None
    ) -> jax.Array:
        """Normalise with the batch's statistics if `train`, else the running ones."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        batches = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not train:
            inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
            x = (x - running_mean.value) * (scale * inverse) + bias
            return x.astype(dtype)
        values = math.prod(x.shape[:-1])
        if values < 2:
            raise ValueError(
                "BatchNorm: expected more than one value per channel in training, got "
                f"{values}; use larger batches"
            )
        weights = None if weights is None else weights.astype(x.dtype)
        y, mean, var = batch_norm.normalise(x, scale, bias, weights, self.epsilon)
        if not self.is_initializing():
            count = batch_norm.count(x, weights)
            unbiased = var * (count / (count - 1))
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_var.value += self.momentum * (unbiased - running_var.value)
            batches.value += 1
        return y.astype(dtype)
