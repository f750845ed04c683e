"""The outputs of frozen layers, computed once instead of once an epoch.

Without augmentation a frozen layer gives the same output for an image in every epoch,
so training on stored outputs is exact. The store stops before the first dropout, whose
output changes from step to step even where its neighbours are frozen.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def compute_features(
    feature_fn: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    splits: Mapping[str, tuple[Callable[[np.ndarray, int], Iterator[Any]], int]],
    preprocess: Callable[[jax.Array], jax.Array],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, jax.Array]:
    """Run `feature_fn(variables, preprocess(images))` once over each split's images.

    `splits` holds for each a loader, from an order and a batch size to batches with
    `inputs` uint8[b, h, w, c], and the number n of images. The result is float[n, ...]
    by split, on the device. All splits share one compiled program.
    `on_batch` gets the number of images done in each batch.
    """

    @jax.jit
    def run(variables, images):
        return feature_fn(variables, preprocess(images))

    def over(load, count):
        outputs = []
        for start, batch in zip(
            range(0, count, batch_size), load(np.arange(count), batch_size), strict=True
        ):
            new = min(batch_size, count - start)
            outputs.append(run(variables, batch.inputs)[:new].block_until_ready())
            on_batch(new)
        return jnp.concatenate(outputs)

    return {name: over(*split) for name, split in splits.items()}
