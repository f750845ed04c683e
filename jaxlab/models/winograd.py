"""Winograd's convolution: 2.25 (3x3) or 2.8 (5x5) times fewer multiplications.

Tiles of the input and the kernel are transformed, multiplied by plain matrix products,
and transformed back. The result equals a direct convolution up to roundoff.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks",
arXiv:1509.09308; the transforms are Cook and Toom's, computed from evaluation points.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

TILE = 2  # outputs per side of a tile; more would save products but round worse
# The polynomials are evaluated at these points and at infinity. The points are small to
# limit cancellation.
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2")))


def conv(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Convolve: float[b, h, w, c], float[k, k, c, o] -> float[b, h', w', o].

    The stride is 1, k is at most 5, h' = h + 2·padding - k + 1, w' likewise.
    """
    size, _, _, channels = kernel.shape
    height, width = (n + 2 * padding - size + 1 for n in x.shape[1:3])
    to_output, to_kernel, _ = _transforms(size)
    products = [
        jnp.einsum("rbhwc,rco->rbhwo", tiles, transformed)
        for tiles, transformed in zip(
            _input_tiles(x, size, padding), _columns(to_kernel, kernel), strict=True
        )
    ]
    columns = [
        _combine(to_output, list(column)) for column in _combine(to_output, products)
    ]
    # From columns[column][row], each [b, rows, columns, o], to the pixels of the image.
    y = jnp.stack([jnp.stack(row, 3) for row in zip(*columns, strict=True)], 2)
    rows_and_columns = -(-height // TILE) * TILE, -(-width // TILE) * TILE
    y = y.reshape(x.shape[0], *rows_and_columns, channels)
    return y[:, :height, :width]


def kernel_gradient(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """Return the kernel's gradient, float[size, size, c, o], given the output's, dy."""
    to_output, to_kernel, _ = _transforms(size)
    height, width = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, -height % TILE), (0, -width % TILE), (0, 0)))

    def flat(tiles):  # XLA is slower at a sum over three axes than over one
        return tiles.reshape(tiles.shape[0], -1, tiles.shape[-1])

    products = [
        jnp.einsum("rtc,rto->rco", flat(tiles), flat(gradients))
        for tiles, gradients in zip(
            _input_tiles(x, size, padding), _tiles(to_output.T, dy), strict=True
        )
    ]
    return jnp.stack(_columns(to_kernel.T, jnp.stack(products)))


def _input_tiles(x, size, padding):
    """Return the transformed tiles of a convolution's input; see `_tiles`."""
    *_, to_tile = _transforms(size)
    counts = [-(-(length + 2 * padding - size + 1) // TILE) for length in x.shape[1:3]]
    # The far edges are padded to complete tiles.
    margins = [
        (padding, count * TILE + size - 1 - length - padding)
        for count, length in zip(counts, x.shape[1:3], strict=True)
    ]
    return _tiles(to_tile, jnp.pad(x, ((0, 0), *margins, (0, 0))))


def _tiles(matrix, x):
    """Transform both axes of all tiles of x by a matrix [n, m].

    The tiles have m pixels a side and begin TILE pixels apart. The result is a list of
    n arrays, one for each column of the transformed tiles, float[n, b, rows, columns,
    c], whose first axis is the row within the tile. An array for each pixel of a tile
    would be n² kernels for XLA to compile, which takes longer than running them.
    """

    def taps(x, axis):
        count = matrix.shape[1]
        length = x.shape[axis] - count + 1
        return [
            jax.lax.slice_in_dim(x, i, i + length, TILE, axis) for i in range(count)
        ]

    rows = jnp.stack(_combine(matrix, taps(x, 1)))
    return _combine(matrix, taps(rows, 3))


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Return matrix @ parts for a list of arrays, without multiplying by 0 and 1."""

    def total(row):
        terms = [
            part if factor == 1 else part * factor.astype(part.dtype)
            for factor, part in zip(row, parts, strict=True)
            if factor
        ]
        return functools.reduce(jnp.add, terms)

    return [total(row) for row in matrix]


def _columns(matrix: np.ndarray, kernel: jax.Array) -> list[jax.Array]:
    """Transform both leading axes of a kernel, and swap them, by a matrix [n, m].

    float[m, m, c, o] -> n float[n, c, o], each of which is one matrix product with the
    m² kernel elements. A single product for all of them would be cut up by n kernels.
    """
    n, m = matrix.shape
    both = np.einsum("ai,bj->baij", matrix, matrix).reshape(n, n, m * m)
    flat = kernel.reshape(m * m, -1)
    return [
        jnp.matmul(rows.astype(kernel.dtype), flat, precision="highest").reshape(
            n, *kernel.shape[2:]
        )
        for rows in both
    ]


@functools.cache
def _transforms(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrices to_output [t, n], to_kernel [n, size] and to_tile [n, n].

    Here t is TILE and n = t + size - 1. Along one axis,
    output = to_output @ ((to_kernel @ kernel) * (to_tile @ tile)). Kernel and output
    are treated as polynomials evaluated at n - 1 points and at infinity, where only the
    highest coefficient counts; the tile's transform is the transposed interpolation.
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
    # Lagrange's denominators scale the kernel, which is transformed least often.
    scales = [
        1 / math.prod((point - q for q in rest), start=Fraction(1))
        for point, rest in zip(points, others, strict=True)
    ]
    kernel = [
        [value * scale for value in row]
        for row, scale in zip(powers(size), [*scales, Fraction(1)], strict=True)
    ]
    tile = [*map(product, others), product(points)]
    output = np.array(powers(TILE), float).T
    return output, np.array(kernel, float), np.array(tile, float)
