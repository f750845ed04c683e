"""Convolution and max-pool as a CPU computes them fastest, gradients included.

XLA's own gradients of both are slow on a CPU. Here a convolution is Winograd's: tiles
of input and kernel are transformed, multiplied by plain matrix products, and
transformed back, with 2.25 (3x3) or 2.8 (5x5) times fewer multiplications. The sums are
the same up to roundoff. Reverse-mode differentiation only, as often as wanted.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks",
arXiv:1509.09308; the transforms are Cook and Toom's, built here from their points.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

TILE = 2  # outputs a side of each tile; larger saves more products and rounds worse
# Where the polynomials are evaluated, besides infinity: small, so that little cancels.
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2")))
_SIZES = (3, 5)  # of the kernels that win
_MIN_CHANNELS = 32  # of the output; with fewer, the transforms cost more than they save


# Compiled as a whole even where the caller does not; one by one would take seconds.
@functools.partial(jax.jit, static_argnames=("stride", "padding"), inline=True)
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolve: float[b, h, w, c], float[k, k, c, o] -> float[b, h', w', o].

    h' = (h + 2·padding - k) // stride + 1. Elsewhere than on a CPU, and for kernels and
    precisions that would not win, it is `lax.conv_general_dilated` and nothing else.
    """
    size = -(-kernel.shape[0] // stride)
    wins = size in _SIZES and kernel.shape[3] >= _MIN_CHANNELS
    if _is_cpu(x) and wins and padding < kernel.shape[0]:
        return _conv(x, kernel, stride, padding)
    return _plain_conv(x, kernel, stride, padding)


@functools.partial(jax.jit, static_argnames=("window", "stride"), inline=True)
def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Return the largest of each window: float[b, h, w, c] -> float[b, h', w', c].

    The gradient goes to the first of equals, in rows, as torch's and XLA's does.
    """
    if _is_cpu(x) and window >= stride:
        return _max_pool(x, window, stride, x.shape[1:3])
    return _plain_max_pool(x, window, stride)


def _is_cpu(x: jax.Array) -> bool:
    # Asked while tracing: both ways are right everywhere, one is slower.
    return jax.default_backend() == "cpu" and x.dtype in (jnp.float32, jnp.float64)


def _plain_conv(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, stride, padding):
    # A strided forward pass does not win: conv1 has too few channels.
    if stride > 1:
        return _plain_conv(x, kernel, stride, padding)
    return _winograd(x, kernel, padding)


def _conv_forward(x, kernel, stride, padding):
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    if stride > 1:
        # Of images nobody asks the gradient, so XLA drops this one.
        _, of_x = jax.vjp(lambda x: _plain_conv(x, kernel, stride, padding), x)
        size = -(-kernel.shape[0] // stride)
        folded = _winograd_kernel_gradient(
            _fold(x, dy.shape[1:3], size, stride, padding), dy, size, 0
        )
        return of_x(dy)[0], _unfold_kernel(folded, kernel.shape, stride)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _conv(dy, turned, 1, kernel.shape[0] - 1 - padding)
    return dx, _winograd_kernel_gradient(x, dy, kernel.shape[0], padding)


_conv.defvjp(_conv_forward, _conv_backward)


def _winograd(x, kernel, padding):
    size, _, _, channels = kernel.shape
    height, width = (n + 2 * padding - size + 1 for n in x.shape[1:3])
    to_output, to_kernel, _ = _transforms(size)
    kernels = _both_axes(to_kernel, kernel)
    sums = [
        _combine(
            to_output,
            [tile @ kernels[a, b] for b, tile in enumerate(row)],
        )
        for a, row in enumerate(_input_tiles(x, size, padding))
    ]
    # [a][column] -> [column][row], each [b, rows, columns, channels]
    columns = [_combine(to_output, parts) for parts in zip(*sums, strict=True)]
    y = jnp.stack([jnp.stack(column, 2) for column in columns], 4)
    rows_and_columns = -(-height // TILE) * TILE, -(-width // TILE) * TILE
    y = y.reshape(len(x), *rows_and_columns, channels)
    return y[:, :height, :width]


def _winograd_kernel_gradient(x, dy, size, padding):
    """Return the gradient of the kernel, float[size, size, c, o]."""
    to_output, to_kernel, _ = _transforms(size)
    height, width = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, -height % TILE), (0, -width % TILE), (0, 0)))
    rows = _combine(to_output.T, [dy[:, i::TILE] for i in range(TILE)])
    products = [
        [
            tile.reshape(-1, tile.shape[-1]).T @ d.reshape(-1, d.shape[-1])
            for tile, d in zip(
                tiles,
                _combine(to_output.T, [row[:, :, j::TILE] for j in range(TILE)]),
                strict=True,
            )
        ]
        for tiles, row in zip(_input_tiles(x, size, padding), rows, strict=True)
    ]
    return _both_axes(to_kernel.T, jnp.stack([jnp.stack(row) for row in products]))


def _input_tiles(x, size, padding):
    """Return the transformed tiles: [n][n] of float[b, rows, columns, c]."""
    *_, to_tile = _transforms(size)
    n = len(to_tile)
    counts = [-(-(length + 2 * padding - size + 1) // TILE) for length in x.shape[1:3]]
    # Pad on the far side to whole tiles.
    margins = [
        (padding, count * TILE + size - 1 - length - padding)
        for count, length in zip(counts, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *margins, (0, 0)))
    down, right = ((count - 1) * TILE + 1 for count in counts)
    rows = _combine(to_tile, [x[:, i : i + down : TILE] for i in range(n)])
    return [
        _combine(to_tile, [row[:, :, j : j + right : TILE] for j in range(n)])
        for row in rows
    ]


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Return matrix @ parts over a list, without multiplying by 0 and ±1."""

    def total(row):
        terms = [
            part if factor == 1 else part * factor.astype(part.dtype)
            for factor, part in zip(row, parts, strict=True)
            if factor
        ]
        return functools.reduce(jnp.add, terms)

    return [total(row) for row in matrix]


def _both_axes(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    matrix = matrix.astype(x.dtype)
    return jnp.einsum("ai,bj,ijco->abco", matrix, matrix, x, precision="highest")


@functools.cache
def _transforms(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return to_output [t, n], to_kernel [n, size], to_tile [n, n], n = t + size - 1.

    Of one axis: output = to_output @ ((to_kernel @ kernel) * (to_tile @ tile)). Kernel
    and output are polynomials evaluated at n - 1 points and at infinity, where only the
    highest coefficient counts; the tile's transform interpolates, transposed.
    """
    n = TILE + size - 1
    points = _POINTS[: n - 1]

    def powers(length):
        finite = [[point**i for i in range(length)] for point in points]
        return [*finite, [Fraction(i == length - 1) for i in range(length)]]

    def product(roots):  # the coefficients of Π (z - root), padded to n
        coefficients = [Fraction(1)]
        for root in roots:
            shifted = [Fraction(0), *coefficients]
            scaled = [root * c for c in coefficients] + [Fraction(0)]
            coefficients = [s - c for s, c in zip(shifted, scaled, strict=True)]
        return coefficients + [Fraction(0)] * (n - len(coefficients))

    others = [[q for q in points if q != point] for point in points]
    # Lagrange's denominators go to the kernel, which is transformed the least often.
    scales = [
        Fraction(1) / np.prod([point - q for q in rest] or [Fraction(1)])
        for point, rest in zip(points, others, strict=True)
    ]
    kernel = [
        [value * scale for value in row]
        for row, scale in zip(powers(size), [*scales, Fraction(1)], strict=True)
    ]
    tile = [*map(product, others), product(points)]
    output = np.array(powers(TILE), float).T
    return output, np.array(kernel, float), np.array(tile, float)


def _fold(x, output_size, size, stride, padding):
    """Make a strided convolution a plain one, over blocks of stride x stride pixels.

    float[b, h, w, c] -> float[b, h' + size - 1, w' + size - 1, stride·stride·c].
    """
    blocks = [length + size - 1 for length in output_size]
    # A far margin below zero cuts off the pixels that no window reaches.
    margins = [
        (padding, count * stride - length - padding, 0)
        for count, length in zip(blocks, x.shape[1:3], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    batch, channels = x.shape[0], x.shape[3]
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride * channels)
    return x.swapaxes(2, 3).reshape(batch, *blocks, -1)


def _unfold_kernel(folded, shape, stride):
    """Take float[size, size, stride·stride·c, o] back to float[k, k, c, o]."""
    size = folded.shape[0]
    kernel = folded.reshape(size, size, stride, stride, shape[2], shape[3])
    kernel = kernel.swapaxes(1, 2).reshape(size * stride, size * stride, *shape[2:])
    return kernel[: shape[0], : shape[1]]


# Max-pool.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, size):
    return functools.reduce(jnp.maximum, _windows(x, window, stride))


def _max_pool_forward(x, window, stride, size):
    largest, *others = _windows(x, window, stride)
    place = jnp.zeros(largest.shape, jnp.uint8)
    for i, other in enumerate(others, start=1):
        larger = (other > largest) | jnp.isnan(other)
        largest = jnp.where(larger, other, largest)
        place = jnp.where(larger, jnp.uint8(i), place)
    return largest, place


def _max_pool_backward(window, stride, size, place, dy):
    # Pixels whose row and column leave the same remainders by the stride are reached
    # from the same places of the windows: sums of shifted slices, then interleaved.
    reach = -(-window // stride)
    blocks = [count + reach - 1 for count in dy.shape[1:3]]
    margins = ((0, 0), (reach - 1, reach - 1), (reach - 1, reach - 1), (0, 0))
    # Written out once: fused into each slice, all nine comparisons would run anew.
    place, dy = jax.lax.optimization_barrier(
        (jnp.pad(place, margins, constant_values=255), jnp.pad(dy, margins))
    )

    def reached_from(i, j):
        top, left = reach - 1 - i // stride, reach - 1 - j // stride
        here = np.s_[:, top : top + blocks[0], left : left + blocks[1]]
        return jnp.where(place[here] == i * window + j, dy[here], 0)

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
    dx = dx.reshape(len(dy), blocks[0] * stride, blocks[1] * stride, -1)
    margins = [(0, size[i] - dx.shape[1 + i], 0) for i in range(2)]
    zero = jnp.zeros((), dx.dtype)
    return (jax.lax.pad(dx, zero, [(0, 0, 0), *margins, (0, 0, 0)]),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _windows(x, window, stride):
    """Return each place of the windows, in rows: k·k times float[b, h', w', c]."""
    down, right = ((length - window) // stride * stride + 1 for length in x.shape[1:3])
    return [
        x[:, i : i + down : stride, j : j + right : stride]
        for i in range(window)
        for j in range(window)
    ]
