"""The pixels of the windows of images, for sums and maxima over a window."""

import jax


def windows(x: jax.Array, window: int, stride: int) -> list[jax.Array]:
    """Return the pixels of all windows by row-major index: k·k float[b, h', w', c].

    h' = (h - window) // stride + 1, and w' likewise.
    """
    down, right = ((length - window) // stride * stride + 1 for length in x.shape[1:3])
    return [
        x[:, i : i + down : stride, j : j + right : stride]
        for i in range(window)
        for j in range(window)
    ]
