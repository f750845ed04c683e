"""Normalisation by a batch's statistics, with its gradient written out.

The derivatives of the single operations would take more passes over arrays of the size
of the batch, and on a CPU the memory limits the speed of each pass.

Source: Ioffe and Szegedy, "Batch normalization", arXiv:1502.03167.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxlab.models import ops


def normalise(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    weights: jax.Array | None,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x normalised, and each channel's mean and biased variance.

    `x` float[b, ..., c], `scale` and `bias` float[c] -> float[b, ..., c], float[c],
    float[c]. `weights` float[b] are 0 for examples that do not count for mean and
    variance, and 1 for all others; None stands for all 1. They have no gradient. Only
    reverse-mode differentiation is supported, to any order, except within `ops.plain`.
    """
    if ops.is_plain():
        return _forward(x, scale, bias, weights, epsilon)[0]
    return _normalise(x, scale, bias, weights, epsilon)


def count(x: jax.Array, weights: jax.Array | None) -> jax.Array | int:
    """Return the number of values of each channel, in examples of weight 1."""
    examples = x.shape[0] if weights is None else weights.sum()
    return examples * math.prod(x.shape[1:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalise(x, scale, bias, weights, epsilon):
    return _forward(x, scale, bias, weights, epsilon)[0]


def _forward(x, scale, bias, weights, epsilon):
    values = count(x, weights)
    mean = _total(x, weights) / values
    var = _total(jnp.square(x - mean), weights) / values
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (x - mean) * (scale * inverse) + bias
    return (y, mean, var), (x, scale, bias, weights, mean, inverse)


def _backward(epsilon, residuals, gradients):
    x, scale, bias, weights, mean, inverse = residuals
    dy, dmean, dvar = gradients
    axes = tuple(range(x.ndim - 1))
    values = count(x, weights)
    dbias = dy.sum(axes)
    dscale = (dy * (x - mean)).sum(axes) * inverse
    # y depends on mean and variance, and they on each value of x of weight 1.
    dmean = (dmean - scale * inverse * dbias) / values
    dvar = (2 * dvar - scale * jnp.square(inverse) * dscale) / values
    of_statistics = dmean + dvar * (x - mean)
    if weights is not None:
        of_statistics *= weights.reshape(-1, *[1] * (x.ndim - 1))
        weights = jnp.zeros_like(weights)
    dx = (scale * inverse * dy + of_statistics).astype(x.dtype)
    return dx, dscale.astype(scale.dtype), dbias.astype(bias.dtype), weights


_normalise.defvjp(_forward, _backward)


def _total(x, weights):
    """Return the sum of each channel over the examples of weight 1."""
    if weights is None:
        return x.sum(tuple(range(x.ndim - 1)))
    # The weights are multiplied with sums of examples, which are few numbers.
    return (weights[:, None] * x.sum(tuple(range(1, x.ndim - 1)))).sum(0)
