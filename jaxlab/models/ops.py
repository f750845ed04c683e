"""Convolution and max pooling with a faster implementation for CPUs.

On a CPU, XLA's gradients of both operations are slow, above all inside a loop, and its
convolutions are slower than Winograd's algorithm, so programs for a CPU use the
implementations of this module. They compute in at least float32, because no CPU that
was measured multiplies bfloat16 faster.
The platform is the one that a program is lowered for, not the host that traces it: the
same program lowered for another platform consists of XLA's own operations. Only
reverse-mode differentiation is supported, to any order, except within `plain`.

It is one file because each operation stands beside its gradient.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import depthwise, winograd
from jaxlab.models.windows import windows

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SIZES = (3, 5)  # of kernels for which Winograd's algorithm is faster
_MIN_CHANNELS = 32  # of the output; with fewer, the transforms cost more than they save
_is_plain = False


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Make code that is traced within this context use XLA's own operations only.

    It is meant for programs that are exported from this process. They are shorter,
    support forward-mode differentiation, and round as on other platforms. Functions
    that `jax.jit` has traced before are not affected.
    """
    global _is_plain
    before, _is_plain = _is_plain, True
    try:
        yield
    finally:
        _is_plain = before


def is_plain() -> bool:
    """Return whether code that is traced now is within `plain`."""
    return _is_plain


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """Convolve: float[b, h, w, c], float[k, k, c / groups, o] -> float[b, h', w', o].

    h' = (h + 2·padding - k) // stride + 1, and w' likewise, as in
    torch.nn.functional.conv2d. On platforms other than a CPU the operation is
    `lax.conv_general_dilated`. On a CPU it is Winograd's algorithm, a matrix product
    (for 1×1), a sum of products (for one channel a group), or `conv_general_dilated`
    with gradients of our own, whichever is the fastest.
    """
    if _is_plain:
        return _plain_conv(x, kernel, stride, padding, groups)
    return _conv(x, kernel, stride, padding, groups)


def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Return the maximum of each window: float[b, h, w, c] -> float[b, h', w', c].

    h' = (h - window) // stride + 1, and w' likewise, as in torch.nn.MaxPool2d without
    padding. Among equal values the gradient goes to the first one in row-major order,
    as in torch and XLA.
    """
    if _is_plain or window < stride:
        return _plain_max_pool(x, window, stride)
    return _max_pool(x, window, stride)


def _plain_conv(x, kernel, stride, padding, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _plain_max_pool(x, window, stride):
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        "VALID",
    )


# Convolution.


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _conv(x, kernel, stride, padding, groups):
    """Convolve as one compiled program, even if the caller does not use `jax.jit`."""
    return _chosen_conv(x, kernel, stride, padding, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _chosen_conv(x, kernel, stride, padding, groups):
    arguments = {"stride": stride, "padding": padding, "groups": groups}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu_conv, **arguments),
        default=functools.partial(_plain_conv, **arguments),
    )


def _conv_forward(x, kernel, stride, padding, groups):
    return _chosen_conv(x, kernel, stride, padding, groups), (x, kernel)


def _conv_backward(stride, padding, groups, residuals, dy):
    # XLA removes a gradient that is not used, such as that of the images.
    arguments = {"stride": stride, "padding": padding, "groups": groups}
    return jax.lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_pullback, _cpu_conv, **arguments),
        default=functools.partial(_pullback, _plain_conv, **arguments),
    )


_chosen_conv.defvjp(_conv_forward, _conv_backward)


def _pullback(function, *inputs_and_dy, **arguments):
    """Return the gradients of `function`'s inputs, given `dy`, that of its output."""
    *inputs, dy = inputs_and_dy
    _, pullback = jax.vjp(functools.partial(function, **arguments), *inputs)
    return pullback(dy)


def _cpu_conv(x, kernel, stride, padding, groups):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = _wide_conv(x.astype(wide), kernel.astype(wide), stride, padding, groups)
    return y.astype(x.dtype)


def _wide_conv(x, kernel, stride, padding, groups):
    size = -(-kernel.shape[0] // stride)
    wins = groups == 1 and size in _SIZES and kernel.shape[3] >= _MIN_CHANNELS
    if kernel.shape[0] == 1 and padding == 0 and groups == 1:
        return _pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    if kernel.shape[2] == 1 and groups > 1:
        x = jnp.repeat(x, kernel.shape[3] // x.shape[3], axis=3)
        return depthwise.conv(x, kernel[:, :, 0], stride, padding)
    if not wins or padding >= kernel.shape[0]:
        return _direct(x, kernel, stride, padding, groups)
    if stride > 1:
        output = [
            (n + 2 * padding - kernel.shape[0]) // stride + 1 for n in x.shape[1:3]
        ]
        x = _fold(x, output, size, stride, padding)
        kernel, padding = _fold_kernel(kernel, size, stride), 0
    return _winograd(x, kernel, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x, kernel, padding):
    return winograd.conv(x, kernel, padding)


def _winograd_forward(x, kernel, padding):
    return _winograd(x, kernel, padding), (x, kernel)


def _winograd_backward(padding, residuals, dy):
    x, kernel = residuals
    size = kernel.shape[0]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _winograd(dy, turned, size - 1 - padding)
    return dx, winograd.kernel_gradient(x, dy, size, padding)


_winograd.defvjp(_winograd_forward, _winograd_backward)


@jax.custom_vjp
def _pointwise(x, kernel):
    """Convolve with a kernel of one pixel, float[c, o]."""
    return x @ kernel


def _pointwise_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _pointwise_backward(residuals, dy):
    """Return both gradients as products of matrices.

    JAX's own gradient of the kernel is the transpose of the product of dy and x. XLA
    would transpose dy for it, in one pass with the operations before, which takes
    several times as long as the product.
    """
    x, kernel = residuals
    inside, outside = kernel.shape
    return dy @ kernel.T, x.reshape(-1, inside).T @ dy.reshape(-1, outside)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _direct(x, kernel, stride, padding, groups):
    margins = [(padding, padding)] * 2
    return _in_layout(x, kernel, margins, stride=stride, groups=groups)


def _direct_forward(x, kernel, stride, padding, groups):
    return _direct(x, kernel, stride, padding, groups), (x, kernel)


def _direct_backward(stride, padding, groups, residuals, dy):
    """Return both gradients as convolutions of `_LAYOUT`, whose operands are copied.

    XLA's own gradients read their operands in other layouts. It has fast kernels for
    `_LAYOUT` alone, and rewrites other convolutions into it, but not those in the body
    of a loop, such as that of the steps of `train_epoch`, where they take 3 to 17 times
    as long. The gradients of grouped convolutions it rewrites nowhere.
    """
    x, kernel = residuals
    size, _, inside, outside = kernel.shape  # inside and outside: of a group, of all
    # The number of padded pixels behind the last one that dy reaches, on each axis.
    far = [
        length + padding - (count - 1) * stride - 1
        for length, count in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    turned = kernel[::-1, ::-1].reshape(size, size, inside, groups, -1)
    dx = _in_layout(
        dy,
        turned.swapaxes(2, 4).reshape(size, size, outside // groups, -1),
        [(size - 1 - padding, margin) for margin in far],
        x_dilation=stride,
        groups=groups,
    )
    # Images take the place of channels, channels that of images, and dy the kernel's.
    channels = x.reshape(*x.shape[:3], groups, inside).transpose(4, 1, 2, 3, 0)
    dkernel = _in_layout(
        channels.reshape(inside, *x.shape[1:3], -1),
        dy.transpose(1, 2, 0, 3),
        [(padding, size - 1 - margin) for margin in far],
        kernel_dilation=stride,
        groups=groups,
    )
    return dx, dkernel.transpose(1, 2, 0, 3)


def _in_layout(
    x, kernel, margins, *, stride=1, x_dilation=1, kernel_dilation=1, groups=1
):
    """Convolve so that the compiled program has a convolution of `_LAYOUT`."""
    if math.prod(x.shape[1:3]) < math.prod(kernel.shape[:2]):
        # XLA would exchange operands of these sizes, and with them the layout. The
        # barrier keeps it from moving the margins back into the convolution.
        inner = [(*margin, x_dilation - 1) for margin in margins]
        zero = jnp.zeros((), x.dtype)
        x = jax.lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])
        x, margins, x_dilation = jax.lax.optimization_barrier(x), [(0, 0)] * 2, 1
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        margins,
        lhs_dilation=(x_dilation, x_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


_direct.defvjp(_direct_forward, _direct_backward)


def _fold(x, output_size, size, stride, padding):
    """Move blocks of stride × stride pixels into channels, so that stride 1 is enough.

    float[b, h, w, c] -> float[b, h' + size - 1, w' + size - 1, stride·stride·c], where
    size = ceil(k / stride) is the size of the folded kernel.
    """
    blocks = [length + size - 1 for length in output_size]
    # A negative margin at the far edge cuts off the pixels that no window covers.
    margins = [
        (padding, count * stride - length - padding, 0)
        for count, length in zip(blocks, x.shape[1:3], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    batch, channels = x.shape[0], x.shape[3]
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride * channels)
    return x.swapaxes(2, 3).reshape(batch, *blocks, -1)


def _fold_kernel(kernel, size, stride):
    """Fold a kernel: float[k, k, c, o] -> float[size, size, stride·stride·c, o]."""
    margin = size * stride - kernel.shape[0]
    kernel = jnp.pad(kernel, ((0, margin), (0, margin), (0, 0), (0, 0)))
    kernel = kernel.reshape(size, stride, size, stride, *kernel.shape[2:])
    return kernel.swapaxes(1, 2).reshape(size, size, -1, kernel.shape[-1])


# Max pooling.


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _max_pool(x, window, stride):
    """Pool as one compiled program, even if the caller does not use `jax.jit`."""
    return _chosen_max_pool(x, window, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _chosen_max_pool(x, window, stride):
    arguments = {"window": window, "stride": stride}
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: functools.reduce(jnp.maximum, windows(x, **arguments)),
        default=functools.partial(_plain_max_pool, **arguments),
    )


def _max_pool_forward(x, window, stride):
    def default(x):  # XLA's own gradient finds the maxima again, and needs no indices
        largest = _plain_max_pool(x, window, stride)
        return largest, jnp.zeros(largest.shape, jnp.uint8)

    largest, place = jax.lax.platform_dependent(
        x,
        cpu=functools.partial(_largest_and_place, window=window, stride=stride),
        default=default,
    )
    return largest, (x, place)


def _max_pool_backward(window, stride, residuals, dy):
    x, place = residuals
    dx = jax.lax.platform_dependent(
        x,
        place,
        dy,
        cpu=lambda x, place, dy: _to_places(
            place,
            dy.astype(jnp.promote_types(dy.dtype, jnp.float32)),
            window,
            stride,
            x.shape[1:3],
        ).astype(dy.dtype),
        default=lambda x, place, dy: _pullback(
            _plain_max_pool, x, dy, window=window, stride=stride
        )[0],
    )
    return (dx,)


_chosen_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _largest_and_place(x, window, stride):
    """Return each window's maximum, and its row-major index in the window, uint8."""
    largest, *others = windows(x, window, stride)
    place = jnp.zeros(largest.shape, jnp.uint8)
    for i, other in enumerate(others, start=1):
        larger = (other > largest) | jnp.isnan(other)
        largest = jnp.where(larger, other, largest)
        place = jnp.where(larger, jnp.uint8(i), place)
    return largest, place


def _to_places(place, dy, window, stride, size):
    """Add dy to the pixels of the maxima: [b, h', w', c] -> [b, *size, c]."""
    # Pixels whose row and column have the same remainders modulo the stride have the
    # same indices in the windows that cover them. For each pair of remainders their
    # gradient is a sum of shifted slices of dy; the sums are interleaved at the end.
    reach = -(-window // stride)
    blocks = [count + reach - 1 for count in dy.shape[1:3]]
    margins = ((0, 0), (reach - 1, reach - 1), (reach - 1, reach - 1), (0, 0))
    # The barrier makes XLA compute these arrays once. Otherwise it would fuse the
    # comparisons of a window (nine pixels for a 3×3 window) into every slice.
    place, dy = jax.lax.optimization_barrier(
        (jnp.pad(place, margins, constant_values=255), jnp.pad(dy, margins))
    )

    def reached_from(i, j):
        top, left = reach - 1 - i // stride, reach - 1 - j // stride
        window_slice = np.s_[:, top : top + blocks[0], left : left + blocks[1]]
        return jnp.where(place[window_slice] == i * window + j, dy[window_slice], 0)

    remainders = [
        [
            sum(
                reached_from(i, j)
                for i in range(row, window, stride)
                for j in range(column, window, stride)
            )
            for column in range(stride)
        ]
        for row in range(stride)
    ]
    dx = jnp.stack([jnp.stack(row, 3) for row in remainders], 2)
    dx = dx.reshape(dy.shape[0], blocks[0] * stride, blocks[1] * stride, -1)
    margins = [(0, size[i] - dx.shape[1 + i], 0) for i in range(2)]
    zero = jnp.zeros((), dx.dtype)
    return jax.lax.pad(dx, zero, [(0, 0, 0), *margins, (0, 0, 0)])
