"""A row of a key table: a tensor's two names, its shape, how its axes move.

torch keeps convolutions as OIHW and flattens C·H·W; Flax keeps HWIO and, with channels
last, flattens H·W·C. Every difference is a named transform.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A re-ordering of one tensor's axes and its exact inverse."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One tensor: its name on both sides, its shape in torch, how the axes move.

    A string in `shape` is a free dimension, equal wherever the same string stands.
    """

    torch: str
    flax: str
    shape: tuple[int | str, ...]
    transform: Transform


def flattened_chw(channels: int, height: int, width: int) -> Transform:
    """[out, C·H·W] <-> [H·W·C, out]: a linear layer behind a flattened feature map."""
    rows = channels * height * width

    def to_flax(weight):
        weight = weight.reshape(-1, channels, height, width)  # [out, C, H, W]
        return weight.transpose(2, 3, 1, 0).reshape(rows, -1)  # [H·W·C, out]

    def to_torch(kernel):
        kernel = kernel.reshape(height, width, channels, -1)  # [H, W, C, out]
        return kernel.transpose(3, 2, 0, 1).reshape(-1, rows)  # [out, C·H·W]

    return Transform(to_flax, to_torch)


same = Transform(lambda bias: bias, lambda bias: bias)
oihw_hwio = Transform(
    lambda weight: weight.transpose(2, 3, 1, 0),
    lambda kernel: kernel.transpose(3, 2, 0, 1),
)
transposed = Transform(lambda weight: weight.T, lambda kernel: kernel.T)
