"""Depthwise convolution, of each channel by itself, for programs for a CPU.

XLA has no fast kernel for it. For all such layers of MobileNetV2, its forward pass
takes 19 times as long as this one, and its gradients 13 times (of the kernel) and 43
times (of the input), on 2 cores with AVX-512 (2026-11-26).
"""

import functools

import jax
import jax.numpy as jnp

from jaxlab.models.windows import windows


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolve: float[b, h, w, c], float[k, k, c] -> float[b, h', w', c].

    h' = (h + 2·padding - k) // stride + 1, and w' likewise.
    """
    size = kernel.shape[0]
    x = _padded(x, [(padding, padding, 0)] * 2)
    pixels = zip(windows(x, size, stride), _pixels(size), strict=True)
    return _sum(window * kernel[i, j] for window, (i, j) in pixels)


def _forward(x, kernel, stride, padding):
    return conv(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
    x, kernel = residuals
    # XLA computes a padded array once. Operations before it would otherwise be computed
    # again for each pixel of the kernel.
    margin = max(kernel.shape[0] - 1 - padding, 0)
    dy = _padded(dy, [(margin, margin, 0)] * 2)
    dx = _input_gradient(kernel, dy, x.shape[1:3], stride, padding + margin * stride)
    return dx, _kernel_gradient(x, dy, kernel.shape[0], stride, padding, margin)


conv.defvjp(_forward, _backward)


def _input_gradient(kernel, dy, shape, stride, padding):
    """Return the gradient of the input, whose rows and columns are `shape`."""

    def term(i, j):  # dy at the pixels that kernel[i, j] is multiplied with
        margins = []
        for n, length, count in zip((i, j), shape, dy.shape[1:3], strict=True):
            before, reach = n - padding, (count - 1) * stride + 1
            margins.append((before, length - before - reach, stride - 1))
        return _padded(dy * kernel[i, j], margins)

    return _sum(term(i, j) for i, j in _pixels(kernel.shape[0]))


def _kernel_gradient(x, dy, size, stride, padding, margin):
    """Return the gradient of the kernel, given dy with a `margin` on each side.

    Each of its pixels is a sum over images, rows and columns. The products of up to
    eight parts of the rows are added first, in the pass that multiplies them. XLA's own
    sum has operands that are written to memory before: slices of x and dy.
    """
    rows = dy.shape[1] - 2 * margin
    part = -(-rows // 8)
    parts = -(-rows // part)
    dy = _padded(dy, [(-margin, parts * part - rows - margin, 0), (0, 0, 0)])
    before = (padding, padding + margin * stride)
    margins = []
    for low, count, length in zip(before, dy.shape[1:3], x.shape[1:3], strict=True):
        reach = (count - 1) * stride + size
        margins.append((low, reach - length - low, 0))
    x = _padded(x, margins)
    right = (dy.shape[2] - 1) * stride + 1

    def products(i, j):
        columns = x[:, i:, j : j + right : stride]
        return _sum(
            columns[:, top * stride : (top + part - 1) * stride + 1 : stride]
            * dy[:, top : top + part]
            for top in range(0, parts * part, part)
        )

    totals = jnp.stack([products(i, j) for i, j in _pixels(size)]).sum((1, 2, 3))
    return totals.reshape(size, size, -1)


def _sum(terms):
    return functools.reduce(jnp.add, terms)


def _pixels(size):
    """Return the rows and columns of a kernel, in row-major order."""
    return [(i, j) for i in range(size) for j in range(size)]


def _padded(x, margins):
    """Pad rows and columns, each by the zeros (before, behind, between).

    Negative numbers before and behind cut off.
    """
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
