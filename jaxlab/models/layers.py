"""Pieces that torch has and Flax lacks, or has with other defaults."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


def conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dtype: jnp.dtype | None = None,
) -> nn.Conv:
    """Return a convolution with torch's arguments: padding explicit, torch's init.

    float[b, h, w, in_channels] -> float[b, h', w', out_channels], where
    h' = (h + 2·padding - kernel) // stride + 1. See torch.nn.Conv2d.
    """
    init = uniform_fan_in(in_channels * kernel * kernel)
    return nn.Conv(
        out_channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
    )


def linear(
    in_features: int, out_features: int, *, dtype: jnp.dtype | None = None
) -> nn.Dense:
    """Return a dense layer with torch's init. See torch.nn.Linear.

    float[..., in_features] -> float[..., out_features].
    """
    init = uniform_fan_in(in_features)
    return nn.Dense(out_features, kernel_init=init, bias_init=init, dtype=dtype)


def uniform_fan_in(fan_in: int) -> Initializer:
    """Return torch's default init of conv and linear, kernel and bias: U(±1/√fan_in).

    Flax's own default is lecun_normal for kernels and zero for biases. A bias does not
    know its fan_in, so it is passed in.
    """
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

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
