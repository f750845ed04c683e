"""Rows of a key table: a tensor's two names, its shape, and the order of its axes.

torch stores convolution kernels as OIHW and flattens feature maps as C·H·W. Flax stores
HWIO and, with channels last, flattens H·W·C. Every difference is a named transform.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A reordering of the axes of one tensor, and its exact inverse."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One tensor: its names in torch and Flax, its shape in torch, and its transform.

    `flax` is a path of any depth in `collection`, "params" or "batch_stats". A string
    in `shape` is a free dimension: its size is the same wherever the string occurs. A
    tensor of kind "count", such as BatchNorm's number of batches, is int64 in torch and
    int32 in Flax, and 0 if a state_dict lacks it. All other tensors have kind "float".
    `also` is an older name in torch, which published files still have.
    """

    torch: str
    flax: str
    shape: tuple[int | str, ...]
    transform: Transform
    collection: Literal["params", "batch_stats"] = "params"
    kind: Literal["float", "count"] = "float"
    also: str | None = None


Size = int | str  # of a dimension; a string names a free dimension


def flattened_chw(channels: int, height: int, width: int) -> Transform:
    """Return the transform of a linear layer that follows a flattened feature map.

    It converts [out, C·H·W] in torch to [H·W·C, out] in Flax and back.
    """
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


def conv(
    torch: str,
    flax: str,
    out: Size,
    inputs: int,
    kernel: int,
    *,
    groups: int = 1,
    bias: bool = True,
) -> Iterator[Row]:
    """Yield the rows of a convolution of [out, inputs / groups, kernel, kernel]."""
    shape = (out, inputs // groups, kernel, kernel)
    yield Row(f"{torch}.weight", f"{flax}/kernel", shape, oihw_hwio)
    if bias:
        yield Row(f"{torch}.bias", f"{flax}/bias", (out,), same)


def linear(
    torch: str, flax: str, out: Size, inputs: int, transform: Transform = transposed
) -> Iterator[Row]:
    """Yield the rows of a linear layer of [out, inputs]."""
    yield Row(f"{torch}.weight", f"{flax}/kernel", (out, inputs), transform)
    yield Row(f"{torch}.bias", f"{flax}/bias", (out,), same)


def batch_norm(torch: str, flax: str, channels: int) -> Iterator[Row]:
    """Yield the five rows of a batch normalization layer, in torch's order."""
    shape = (channels,)
    yield Row(f"{torch}.weight", f"{flax}/scale", shape, same)
    yield Row(f"{torch}.bias", f"{flax}/bias", shape, same)
    yield Row(f"{torch}.running_mean", f"{flax}/mean", shape, same, "batch_stats")
    yield Row(f"{torch}.running_var", f"{flax}/var", shape, same, "batch_stats")
    count = f"{torch}.num_batches_tracked"
    yield Row(count, f"{flax}/count", (), same, "batch_stats", "count")
