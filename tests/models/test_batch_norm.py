"""Test the gradient of normalisation against JAX's derivative of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models import batch_norm, ops
from tests.conftest import FORWARD_FLOAT64, relative_error

SHAPES = {"images": (3, 4, 5, 2), "vectors": (6, 3)}
WEIGHTS = {"whole": None, "padded": "a last example of weight 0"}


def defined(x, scale, bias, weights, epsilon):
    """Normalise as the definition says, each operation with JAX's derivative."""
    of_each = jnp.ones(len(x)) if weights is None else weights
    of_each = jnp.broadcast_to(of_each.reshape(-1, *[1] * (x.ndim - 1)), x.shape)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.average(x, axes, of_each)
    var = jnp.average((x - mean) ** 2, axes, of_each)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def without_weights(x, scale, bias, weights, epsilon):
    """Return a negative control: examples of weight 0 move the statistics' gradient."""
    y, mean, var = defined(x, scale, bias, weights, epsilon)
    wrong, *_ = defined(x, scale, bias, None, epsilon)
    return wrong + jax.lax.stop_gradient(y - wrong), mean, var


def steepness(function, shape, weights):
    """Return the results, their gradients, and the gradient of the gradients' square.

    The cotangents of all three results are random, and not 0 for the padding.
    """
    random = np.random.default_rng(0)
    x, scale, bias = (
        random.standard_normal(s) for s in (shape, shape[-1:], shape[-1:])
    )
    weights = (
        None if weights is None else (np.arange(len(x)) < len(x) - 1).astype(float)
    )
    cotangents = [random.standard_normal(s) for s in (shape, shape[-1:], shape[-1:])]

    def total(inputs):
        out = function(*inputs, weights, 0.01)
        return sum((a * b).sum() for a, b in zip(out, cotangents, strict=True)), out

    def square(inputs):
        gradients, out = jax.grad(total, has_aux=True)(inputs)
        return sum((g**2).sum() for g in gradients), (out, gradients)

    second, (out, first) = jax.jit(jax.grad(square, has_aux=True))((x, scale, bias))
    return [*out, *first, *second[:2]]  # the third is 0: y is linear in the bias


def errors(function, shape, weights):
    """Return the relative errors of `steepness` against the definition's."""
    wanted = steepness(defined, shape, weights)
    return list(map(relative_error, steepness(function, shape, weights), wanted))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_derivatives_equal_those_of_the_definition(shape, weights, x64):
    assert max(errors(batch_norm.normalise, shape, weights)) <= FORWARD_FLOAT64


def test_a_gradient_through_padding_fails(x64):
    found = errors(without_weights, SHAPES["images"], WEIGHTS["padded"])
    assert found[0] <= FORWARD_FLOAT64 and found[3] > 0.01


def test_plain_normalisation_has_forward_mode_derivatives(x64):
    x = np.random.default_rng(0).standard_normal((4, 2))

    def normalised(x):
        return batch_norm.normalise(x, x[0], x[1], None, 0.01)[0]

    _, back = jax.vjp(normalised, x)
    with ops.plain():
        _, forward = jax.jvp(normalised, (x,), (x,))
    assert abs((forward * x).sum() - (x * back(x)[0]).sum()) <= FORWARD_FLOAT64
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(normalised, (x,), (x,))


def test_gradients_have_the_dtypes_of_what_they_are_of(x64):
    x, scale = np.ones((4, 2), np.float32), np.ones(2)
    _, back = jax.vjp(
        lambda *inputs: batch_norm.normalise(*inputs, None, 0.01)[0], x, scale, scale
    )
    assert [g.dtype for g in back(jnp.ones((4, 2)))] == [x.dtype, *[scale.dtype] * 2]


def test_the_weights_have_no_gradient(x64):
    x = np.random.default_rng(0).standard_normal((4, 2))

    def total(weights):
        return (batch_norm.normalise(x, x[0], x[1], weights, 0.01)[0] ** 2).sum()

    assert not np.any(jax.grad(total)(jnp.ones(4)))
