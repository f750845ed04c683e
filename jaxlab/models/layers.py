"""Pieces that torch has and Flax lacks, or has with other defaults."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer

from jaxlab.models import ops


class Conv(nn.Module):
    """A convolution with torch's arguments: padding explicit, torch's init.

    float[b, h, w, in_channels] -> float[b, h', w', out_channels], where
    h' = (h + 2·padding - kernel_size) // stride + 1. Parameters: `kernel`
    [k, k, in, out] and `bias`. See torch.nn.Conv2d; flax.linen.Conv has no say in how
    a convolution is computed, which on a CPU is worth half the time.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve; see the class."""
        size = (self.kernel_size, self.kernel_size)
        init = uniform_fan_in(self.in_channels * self.kernel_size**2)
        kernel = self.param(
            "kernel", init, (*size, self.in_channels, self.out_channels)
        )
        bias = self.param("bias", init, (self.out_channels,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return ops.conv(x, kernel, self.stride, self.padding) + bias


class Dense(nn.Module):
    """A dense layer with torch's init: float[..., in] -> float[..., features].

    Parameters: `kernel` [in, features] and `bias`. See torch.nn.Linear; Flax's own
    starts its bias at zero, which torch draws by the number of inputs.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply and add; see the class."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias


def uniform_fan_in(fan_in: int) -> Initializer:
    """Return torch's default init of conv and linear, kernel and bias: U(±1/√fan_in).

    Flax's own default is lecun_normal for kernels and zero for biases. A bias does not
    know its fan_in, so it is passed in.
    """
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        # The same numbers as drawn in that shape, by a program that XLA compiles for a
        # CPU in a fourth of the time: it vectorises one axis better than four.
        flat = (math.prod(shape),)
        drawn = jax.random.uniform(key, flat, dtype, minval=-bound, maxval=bound)
        return drawn.reshape(shape)

    return init


def adaptive_avg_pool(x: jax.Array, output_size: tuple[int, int]) -> jax.Array:
    """Average over torch's bins: floor(i·n/k) to ceil((i+1)·n/k), which may overlap.

    float[b, h, w, c] -> float[b, *output_size, c], for every h and w, smaller ones
    included; the identity where the sizes agree. See torch.nn.AdaptiveAvgPool2d.
    """
    for axis, bins in zip((1, 2), output_size, strict=True):
        size = x.shape[axis]
        if size != bins:
            # A bin is a rectangle: its mean is the mean over one axis, then the other.
            means = [
                jax.lax.slice_in_dim(
                    x, i * size // bins, -(-(i + 1) * size // bins), axis=axis
                ).mean(axis)
                for i in range(bins)
            ]
            x = jnp.stack(means, axis)
    return x


class BatchNorm(nn.Module):
    """Batch normalisation with torch's numbers: float[b, ..., c] -> the same shape.

    In training it normalises with the batch's mean and biased variance, moves the
    running statistics `mean` and `var` (in `batch_stats`) by `momentum` towards the
    mean and the *unbiased* variance, and adds one to `count`, int32; otherwise it
    normalises with those. Examples whose `weights` float[b] are 0 are not counted; all
    others have 1. Parameters: `scale` and `bias`. See torch.nn.BatchNorm1d, whose
    num_batches_tracked is `count`; Flax's own keeps 0.99 of the old statistics where
    torch takes 0.1 of the new, and stores the biased variance.

    Raises ValueError in training on one value a channel, which has no variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, weights: jax.Array | None = None
    ) -> jax.Array:
        """Normalise; `train` decides with which statistics."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        batches = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if train:
            mean, var, count = _statistics(x, weights)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
                batches.value += 1
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias


def _statistics(
    x: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | int]:
    """Return mean and biased variance of each channel, and the number of values."""
    axes = tuple(range(x.ndim - 1))
    positions = math.prod(x.shape[1:-1])  # of an example
    if x.shape[0] * positions < 2:
        raise ValueError(
            "BatchNorm needs more than one value a channel in training, got "
            f"{x.shape[0] * positions}; use larger batches"
        )
    if weights is None:
        return x.mean(axes), x.var(axes), x.shape[0] * positions
    weights = weights.astype(x.dtype)
    count = weights.sum() * positions
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))
    mean = (x * weights).sum(axes) / count
    var = (jnp.square(x - mean) * weights).sum(axes) / count
    return mean, var, count
