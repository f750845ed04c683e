"""The outputs of frozen layers, computed once instead of once per epoch.

Without augmentation a frozen layer has the same output for an image in every epoch, so
training on stored outputs is exact. For training, only the outputs before the first
dropout layer are stored, because dropout differs in each step even if it is frozen.

The outputs are kept on disk for later runs. Their key is a hash of everything that
determines them: the images, the weights, the device and the program itself.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import runtime
from jaxlab.data.loaders import InMemory, Loader, OnDisk
from jaxlab.errors import CorruptionError
from jaxlab.training.epoch import fetch_lagged
from jaxlab.training.feature_store import ArrayStore, StoreFullError

# A split's outputs are held in memory up to this fraction of it; larger ones on disk.
IN_MEMORY_PART = 1 / 4


class Images(NamedTuple):
    """Images: a loader, the shape of one, their labels, and the SHA-256 of the data."""

    load: Loader
    shape: tuple[int, ...]
    labels: np.ndarray
    sha256: str


def feature_loader(
    feature_fn: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: Images,
    store: ArrayStore,
    *,
    batch_size: int,
    facts: Mapping[str, Any],
    on_batch: Callable[[int], None] = lambda count: None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Loader, bool]:
    """Return a loader of the images' outputs, and whether they come from the store.

    `feature_fn(variables, uint8[batch_size, *shape]) -> float[batch_size, ...]` is
    pure. Outputs that the store does not hold are computed and put there; `facts` are
    what decides the images besides their hash, such as a decoder's version. `on_batch`
    gets the number of images done in each batch, `log` a line for what is unusual.

    Raises StoreFullError, or OSError, when there are too many to be held in memory and
    the store cannot take them.
    """
    batch = jax.ShapeDtypeStruct((batch_size, *images.shape), jnp.uint8)
    lowered = jax.jit(feature_fn).lower(variables, batch)
    shape = (len(images.labels), *lowered.out_info.shape[1:])
    dtype = np.dtype(lowered.out_info.dtype)
    size = math.prod(shape) * dtype.itemsize
    in_memory = size <= runtime.memory_bytes() * IN_MEMORY_PART
    about = {
        "images": images.sha256,
        "variables": _sha256(variables),
        # The text names every operation, constant, shape and precision.
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "device": runtime.device_name(),
        **facts,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def computed() -> Iterator[np.ndarray]:
        for outputs in _outputs(lowered.compile(), variables, images, batch_size):
            yield outputs
            on_batch(len(outputs))

    def computed_in_memory() -> np.ndarray:
        array, start = np.empty(shape, dtype), 0
        for outputs in computed():
            array[start : start + len(outputs)] = outputs
            start += len(outputs)
        return array

    found = array = None
    try:
        with store.lock(
            key, lambda: log("features: waiting for the run that makes them")
        ):
            try:
                found = array = store.read(key, shape, dtype, mapped=not in_memory)
            except CorruptionError as error:
                log(f"warning: {error}; computing it anew")
            if found is None:
                # In memory they are whole, whatever the disk does next.
                array = computed_in_memory() if in_memory else None
                with store.write(key, size, about) as append:
                    for outputs in computed() if array is None else [array]:
                        append(outputs)
            if array is None:
                array = store.read(key, shape, dtype, mapped=True)
    except (StoreFullError, OSError) as error:
        if not in_memory:
            raise
        log(
            f"warning: {store.folder}: features are not kept for later runs: {error}; "
            "see --feature-cache-size, or set JAXLAB_HOME to another disk"
        )
        array = computed_in_memory() if array is None else array
    if found is not None:
        on_batch(len(found))
    labels = np.asarray(images.labels, np.int32)
    if in_memory:
        loader = InMemory(jnp.asarray(array), jnp.asarray(labels))
    else:
        loader = OnDisk(array, labels)
    return loader, found is not None


def _outputs(
    run: Callable, variables: Any, images: Images, batch_size: int
) -> Iterator[np.ndarray]:
    remaining = len(images.labels)
    load = images.load(np.arange(remaining), batch_size)
    for outputs in fetch_lagged(run(variables, batch.inputs) for batch in load):
        yield outputs[:remaining]  # without the padding of the last batch
        remaining -= len(outputs)


def _sha256(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
