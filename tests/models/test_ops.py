"""Test the convolution and max-pool for CPUs against XLA's, including gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxlab.models import depthwise, ops, winograd
from tests.conftest import FORWARD_FLOAT32, FORWARD_FLOAT64, relative_error

# height, width, in, out, kernel, stride, padding, groups: AlexNet's first three layers,
# images smaller than a tile or not a multiple of it, and other paddings and strides
CONVOLUTIONS = {
    "conv1": (63, 66, 3, 64, 11, 4, 2, 1),
    "conv2": (7, 6, 8, 32, 5, 1, 2, 1),
    "conv3": (13, 13, 8, 32, 3, 1, 1, 1),
    "smaller than a tile": (1, 3, 4, 32, 3, 1, 1, 1),
    "unpadded": (9, 8, 3, 32, 3, 1, 0, 1),
    "padded most": (6, 9, 3, 32, 3, 1, 2, 1),
    "strided in twos": (11, 12, 4, 32, 5, 2, 1, 1),
}
# Those that Winograd's algorithm would not make faster.
DIRECT = {
    "narrow": (7, 6, 8, 4, 3, 1, 1, 1),
    "1×1": (5, 4, 8, 32, 1, 1, 0, 1),
    "1×1, strided": (6, 5, 8, 32, 1, 2, 0, 1),
    "7×7, strided": (12, 11, 3, 8, 7, 2, 3, 1),
    "pixels behind the last window": (9, 10, 3, 4, 3, 4, 0, 1),
    "image smaller than the kernel": (2, 1, 8, 8, 3, 1, 1, 1),
    "padded more than the kernel": (5, 6, 3, 4, 3, 1, 3, 1),
    "grouped": (7, 6, 8, 32, 3, 1, 1, 4),
    "grouped, strided": (8, 7, 8, 12, 3, 2, 1, 4),
    "depthwise": (7, 6, 8, 16, 3, 1, 1, 8),
    "depthwise, strided": (19, 18, 6, 12, 3, 2, 1, 6),
    "depthwise, unpadded": (11, 5, 4, 4, 3, 1, 0, 4),
    "depthwise, padded most": (5, 9, 3, 3, 3, 1, 2, 3),
    "depthwise, pixels behind the last window": (9, 10, 3, 3, 3, 4, 0, 3),
}
QUICK = ("conv3", *DIRECT)
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


def random_operands(shape, dtype):
    """Return random images and a random kernel of a convolution."""
    height, width, inside, outside, size, _, _, groups = shape
    random = np.random.default_rng(0)
    x = random.standard_normal((2, height, width, inside))
    kernel = random.standard_normal((size, size, inside // groups, outside))
    return x.astype(dtype), kernel.astype(dtype)


def convolutions(shape, dtype, ours=ops.conv):
    """Return relative errors of output, input gradient and kernel gradient."""
    *_, stride, padding, groups = shape
    arguments = stride, padding, groups
    x, kernel = random_operands(shape, dtype)
    found = result_and_gradients(lambda x, k: ours(x, k, *arguments), x, kernel)
    wanted = result_and_gradients(
        lambda x, k: ops._plain_conv(x, k, *arguments), x, kernel
    )
    assert all(array.dtype == dtype for array in found)
    return [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*CONVOLUTIONS, *DIRECT)
    ],
)
def test_convolution_and_its_gradients_equal_xlas(name, x64, slow_is_compiled_quickly):
    shape = (CONVOLUTIONS | DIRECT)[name]
    assert max(convolutions(shape, np.float64)) <= FORWARD_FLOAT64


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
@pytest.mark.parametrize("name", ["conv3", "1×1", "depthwise, strided"])
def test_convolution_can_be_differentiated_twice(name, x64):
    *_, stride, padding, groups = shape = (CONVOLUTIONS | DIRECT)[name]
    x, kernel = random_operands(shape, np.float64)

    def steepness(conv):
        def of_cube(operands):
            return jnp.sum(conv(*operands, stride, padding, groups) ** 3)

        def square(operands):
            return sum(jnp.sum(g**2) for g in jax.grad(of_cube)(operands))

        return jax.jit(jax.grad(square))((x, kernel))

    found, wanted = steepness(ops.conv), steepness(ops._plain_conv)
    assert max(map(relative_error, found, wanted)) <= FORWARD_FLOAT64


@pytest.mark.parametrize("name", ["depthwise", "depthwise, strided"])
def test_a_depthwise_kernel_gradient_with_exchanged_axes_fails(
    name, monkeypatch, recompiled, x64
):
    gradient = depthwise._kernel_gradient

    def wrong(*arguments):
        return gradient(*arguments).swapaxes(0, 1)

    monkeypatch.setattr(depthwise, "_kernel_gradient", wrong)
    recompiled()
    output, dx, dkernel = convolutions(DIRECT[name], np.float64)
    assert max(output, dx) <= FORWARD_FLOAT64 < dkernel


def test_narrow_kernels_other_sizes_and_groups_are_left_to_xla():
    def has_convolution(size, outside, groups=1, dtype=jnp.float32):
        kernel = jnp.zeros((size, size, 4 // groups, outside), dtype)
        images = jnp.zeros((1, 16, 16, 4), dtype)
        program = jax.jit(lambda x: ops.conv(x, kernel, 1, 1, groups)).lower(images)
        return "stablehlo.convolution" in program.as_text()

    assert not has_convolution(5, 64) and not has_convolution(5, 64, dtype=jnp.bfloat16)
    assert has_convolution(3, 8) and has_convolution(7, 64)
    assert has_convolution(5, 64, groups=2)


@pytest.mark.parametrize("name", ["conv3", "7×7, strided", "depthwise"])
def test_bfloat16_is_float32_rounded(name):
    *_, stride, padding, groups = shape = (CONVOLUTIONS | DIRECT)[name]
    operands = [x.astype(jnp.bfloat16) for x in random_operands(shape, np.float32)]

    def run(x, kernel):
        return ops.conv(x, kernel, stride, padding, groups)

    narrow = result_and_gradients(run, *operands)
    wide = result_and_gradients(run, *(x.astype(np.float32) for x in operands))
    assert all(array.dtype == jnp.bfloat16 for array in narrow)
    assert relative_error(narrow[0], wide[0].astype(jnp.bfloat16)) <= FORWARD_FLOAT32
    # The cotangent is rounded, too, so that the gradients are only close.
    assert max(map(relative_error, narrow[1:], wide[1:])) <= 0.01


def layouts_in_a_loop(conv, name, dtype):
    """Return the layouts of the convolutions of a loop over steps, as compiled."""
    *_, stride, padding, groups = shape = DIRECT[name]
    x, kernel = random_operands(shape, dtype)

    def loss(inputs):
        return jnp.sum(conv(*inputs, stride, padding, groups) ** 2)

    def step(_, inputs):
        gradients = jax.grad(loss)(inputs)
        return jax.tree.map(lambda a, b: a - b, inputs, gradients)

    def steps(inputs):
        return jax.lax.fori_loop(0, 3, step, inputs)

    text = jax.jit(steps).lower((x, kernel)).compile().as_text()
    return set(re.findall(r" convolution\(.*dim_labels=(\S+?),? ", text + " "))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", DIRECT)
def test_no_convolution_in_a_loop_has_a_layout_for_which_xla_is_slow(name, dtype):
    # A 1×1 or depthwise convolution is none in the program.
    assert layouts_in_a_loop(ops.conv, name, dtype) <= {"b01f_01io->b01f"}


def test_xlas_own_gradients_in_a_loop_have_other_layouts():
    assert len(layouts_in_a_loop(ops._plain_conv, "7×7, strided", np.float32)) > 1


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
