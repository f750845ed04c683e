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
    kernels = _both_axes(to_kernel, kernel)
    sums = [
        _combine(
            to_output,
            [tile @ kernels[a, b] for b, tile in enumerate(row)],
        )
        for a, row in enumerate(_input_tiles(x, size, padding))
    ]
    # From sums[a][column] to columns[column][row], each [b, rows, columns, channels].
    columns = [_combine(to_output, parts) for parts in zip(*sums, strict=True)]
    y = jnp.stack([jnp.stack(column, 2) for column in columns], 4)
    rows_and_columns = -(-height // TILE) * TILE, -(-width // TILE) * TILE
    y = y.reshape(x.shape[0], *rows_and_columns, channels)
    return y[:, :height, :width]


def kernel_gradient(x: jax.Array, dy: jax.Array, size: int, padding: int) -> jax.Array:
    """Return the kernel's gradient, float[size, size, c, o], given the output's, dy."""
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
    """Return the transformed input tiles, n lists of n float[b, rows, columns, c]."""
    *_, to_tile = _transforms(size)
    n = len(to_tile)
    counts = [-(-(length + 2 * padding - size + 1) // TILE) for length in x.shape[1:3]]
    # The far edges are padded to complete tiles.
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
    """Return matrix @ parts for a list of arrays, without multiplying by 0 and 1."""

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
