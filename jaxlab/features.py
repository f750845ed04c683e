"""The outputs of frozen layers, computed once instead of once an epoch.

Without augmentation a frozen layer gives the same output for an image in every epoch,
so training on stored outputs is exact. The store stops before the first dropout, whose
output changes from step to step even where its neighbours are frozen.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.preprocess import Preprocess


def compute_features(
    feature_fn: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    splits: Mapping[str, np.ndarray],
    preprocess: Preprocess,
    *,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, jax.Array]:
    """Run `feature_fn(variables, preprocess(images))` once over each split's images.

    uint8[n, h, w, c] -> float[n, ...], on the device. All splits share one compiled
    program. `on_batch` gets the number of images done in each batch.
    """

    @jax.jit
    def run(variables, images):
        return feature_fn(variables, preprocess(images))

    def over(images):
        outputs = []
        for start in range(0, len(images), batch_size):
            count = min(batch_size, len(images) - start)
            # The last batch repeats the last image, so that nothing recompiles.
            indices = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            outputs.append(run(variables, images[indices])[:count].block_until_ready())
            on_batch(count)
        return jnp.concatenate(outputs)

    return {name: over(images) for name, images in splits.items()}
