"""Test the convolution and max-pool for CPUs against XLA's, including gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxlab.models import ops, winograd
from tests.conftest import FORWARD_FLOAT32, FORWARD_FLOAT64, relative_error

# height, width, in, out, kernel, stride, padding: AlexNet's first three kernels, then
# images smaller than a tile or not a multiple of it, and other paddings and strides
CONVOLUTIONS = {
    "conv1": (63, 66, 3, 64, 11, 4, 2),
    "conv2": (7, 6, 8, 32, 5, 1, 2),
    "conv3": (13, 13, 8, 32, 3, 1, 1),
    "smaller than a tile": (1, 3, 4, 32, 3, 1, 1),
    "unpadded": (9, 8, 3, 32, 3, 1, 0),
    "padded most": (6, 9, 3, 32, 3, 1, 2),
    "strided in twos": (11, 12, 4, 32, 5, 2, 1),
}
QUICK = ("conv3",)
POOLS = {"AlexNet's": (3, 2), "apart": (2, 2), "overlapping": (3, 1)}


def result_and_gradients(function, *inputs, seed=1):
    """Return the function's value and its gradients for one random cotangent."""
    shape = jax.eval_shape(function, *inputs)
    cotangent = np.random.default_rng(seed).standard_normal(shape.shape)

    @jax.jit  # one program compiles faster than several
    def run(inputs, cotangent):
        out, pullback = jax.vjp(function, *inputs)
        return [out, *pullback(cotangent)]

    return run(inputs, cotangent.astype(shape.dtype))


def convolutions(shape, dtype, ours=ops.conv):
    """Return relative errors of output, input gradient and kernel gradient."""
    height, width, inside, outside, size, stride, padding = shape
    random = np.random.default_rng(0)
    x = random.standard_normal((2, height, width, inside)).astype(dtype)
    kernel = random.standard_normal((size, size, inside, outside)).astype(dtype)
    found = result_and_gradients(lambda x, k: ours(x, k, stride, padding), x, kernel)
    wanted = result_and_gradients(
        lambda x, k: ops._plain_conv(x, k, stride, padding), x, kernel
    )
    assert all(array.dtype == dtype for array in found)
    return [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in CONVOLUTIONS
    ],
)
def test_convolution_and_its_gradients_equal_xlas(name, x64, slow_is_compiled_quickly):
    assert max(convolutions(CONVOLUTIONS[name], np.float64)) <= FORWARD_FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3"])
def test_convolution_equals_xlas_in_float32(name):
    assert max(convolutions(CONVOLUTIONS[name], np.float32)) <= FORWARD_FLOAT32


@pytest.mark.slow
def test_convolution_with_a_wrong_transform_fails(monkeypatch, recompiled, x64):
    transforms = winograd._transforms

    def wrong(size):
        to_output, to_kernel, to_tile = transforms(size)
        return to_output, to_kernel * (1 + 1e-9), to_tile

    monkeypatch.setattr(winograd, "_transforms", wrong)
    recompiled()
    assert min(convolutions(CONVOLUTIONS["conv3"], np.float64)) > FORWARD_FLOAT64


@pytest.mark.slow
def test_convolution_can_be_differentiated_twice(x64):
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 2))
    kernel = np.random.default_rng(1).standard_normal((3, 3, 2, 32))

    def steepness(conv):
        def of_square(x):
            return jnp.sum(conv(x, kernel, 1, 1) ** 3)

        twice = jax.grad(lambda x: jnp.sum(jax.grad(of_square)(x) ** 2))
        return jax.jit(twice)(x)

    ours, plain = steepness(ops.conv), steepness(ops._plain_conv)
    assert relative_error(ours, plain) <= FORWARD_FLOAT64


def test_narrow_kernels_other_sizes_and_other_precisions_are_left_to_xla():
    def primitives(shape, dtype):
        kernel = jnp.zeros((*shape, 3, 64 if shape != (3, 3) else 8), dtype)
        images = jnp.zeros((1, 16, 16, 3), dtype)
        return str(jax.make_jaxpr(lambda x: ops.conv(x, kernel, 1, 1))(images))

    assert "custom_vjp" in primitives((5, 5), jnp.float32)  # the control
    assert "custom_vjp" not in primitives((3, 3), jnp.float32)
    assert "custom_vjp" not in primitives((7, 7), jnp.float32)
    assert "custom_vjp" not in primitives((5, 5), jnp.bfloat16)


def pools(window, stride, ours=ops.max_pool, size=(10, 13)):
    """Return the largest differences of output and gradient, for images with ties."""
    # The pixels have only 5 values, so that nearly every window contains ties.
    x = np.random.default_rng(0).integers(-2, 3, (2, *size, 3)).astype(np.float32)
    found = result_and_gradients(lambda x: ours(x, window, stride), x)
    wanted = result_and_gradients(lambda x: ops._plain_max_pool(x, window, stride), x)
    return [float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", [(9, 9), (10, 13), (4, 3)])
def test_max_pool_and_its_gradient_equal_xlas_where_values_are_equal(name, size):
    window, stride = POOLS[name]
    out, gradient = pools(window, stride, size=size)
    # Up to nine windows share a pixel. Their gradients are summed in different orders.
    assert out == 0 and gradient <= 1e-5


def test_max_pool_that_prefers_the_last_of_equals_fails():
    def last(x, window, stride):
        return ops.max_pool(x[:, ::-1, ::-1], window, stride)[:, ::-1, ::-1]

    out, gradient = pools(3, 2, last, size=(9, 9))
    assert out == 0 and gradient > 0.1


def test_max_pool_passes_on_what_is_not_a_number():
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 1, 1] = np.nan
    out, _ = jax.vjp(lambda x: ops.max_pool(x, 3, 2), x)
    assert np.isnan(out).all() and np.isnan(ops.max_pool(x, 3, 2)).all()


def forward(params_and_images):
    """Run a convolution and a max-pool that both have an implementation for CPUs."""
    kernel, x = params_and_images
    return ops.max_pool(ops.conv(x, kernel, 1, 1), 3, 2)


SHAPES = (
    jax.ShapeDtypeStruct((3, 3, 4, 32), jnp.float32),
    jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32),
)


@pytest.mark.parametrize("is_plain", [False, True])
def test_plain_operations_are_lowered_for_a_cpu_when_asked_for(is_plain):
    def program():
        return jax.jit(lambda inputs: forward(inputs)).lower(SHAPES).as_text()

    if is_plain:
        with ops.plain():
            text = program()
    else:
        text = program()
    assert ("stablehlo.convolution(" in text) == is_plain
    assert ("stablehlo.reduce_window" in text) == is_plain


def test_plain_operations_have_forward_mode_derivatives():
    inputs = jax.tree.map(lambda shape: jnp.ones(shape.shape), SHAPES)
    with ops.plain():
        _, change = jax.jvp(forward, (inputs,), (inputs,))
    assert change.shape == (2, 4, 4, 32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(forward, (inputs,), (inputs,))


def test_any_batch_is_exported_for_every_platform():
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *SHAPES[1].shape[1:]), jnp.float32)
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(jax.jit(forward), platforms=platforms)((SHAPES[0], images))
    assert exported.platforms == platforms
    found = exported.call(tuple(jnp.ones(s.shape) for s in SHAPES))
    np.testing.assert_allclose(
        found, forward(tuple(jnp.ones(s.shape) for s in SHAPES)), FORWARD_FLOAT32
    )
