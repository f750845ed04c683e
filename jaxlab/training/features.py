"""The outputs of frozen layers, computed once instead of once per epoch.

Without augmentation a frozen layer has the same output for an image in every epoch, so
training on stored outputs is exact. For training, only the outputs before the first
dropout layer are stored, because dropout differs in each step even if it is frozen.

The outputs are kept on disk for later runs. Their key is a hash of everything that
determines them: the images, the weights, the device and the program itself.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import environment, runtime
from jaxlab.data.loaders import InMemory, Loader, OnDisk
from jaxlab.errors import CorruptionError
from jaxlab.training.epoch import fetch_lagged
from jaxlab.training.feature_store import ArrayStore, StoreFullError

# Outputs of a split that take at most this fraction of the memory are held in memory,
# larger ones are read from the disk.
IN_MEMORY_FRACTION = 1 / 4
_WAITING = "features: waiting for another run, which is computing them"


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
    pure. Outputs that the store does not hold are computed and written to it; `facts`
    is everything that determines the images besides their hash, such as the version of
    a decoder. `on_batch` receives the number of images of each batch that is done,
    `log` a line for each unusual event.

    Raises StoreFullError or OSError if the outputs are too large to be held in memory
    and the store cannot hold them either.
    """
    outputs = _Outputs(feature_fn, variables, images, batch_size, on_batch)
    about = {
        "images": images.sha256,
        "variables": _sha256(variables),
        # The text contains every operation, constant, shape and precision.
        "program": hashlib.sha256(outputs.lowered.as_text().encode()).hexdigest(),
        "device": runtime.device_name(),
        "environment": environment.variables(),
        **facts,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    labels = np.asarray(images.labels, np.int32)
    in_memory = outputs.size <= runtime.memory_bytes() * IN_MEMORY_FRACTION
    take = _outputs_in_memory if in_memory else _outputs_on_disk
    array, is_stored = take(outputs, store, key, about, log)
    if is_stored:
        on_batch(len(array))
    if in_memory:
        return InMemory(jnp.asarray(array), jnp.asarray(labels)), is_stored
    return OnDisk(array, labels), is_stored


@runtime.shared
def _jitted(function: Callable) -> Callable:
    return jax.jit(function)


class _Outputs:
    """The outputs of a split's images: their shape, size and computation."""

    def __init__(self, feature_fn, variables, images, batch_size, on_batch):
        batch = jax.ShapeDtypeStruct((batch_size, *images.shape), jnp.uint8)
        self._run = _jitted(feature_fn)
        self.lowered = self._run.lower(variables, batch)
        self.shape = (len(images.labels), *self.lowered.out_info.shape[1:])
        self.dtype = np.dtype(self.lowered.out_info.dtype)
        self.size = math.prod(self.shape) * self.dtype.itemsize  # bytes
        self._variables = variables
        self._images = images
        self._batch_size = batch_size
        self._on_batch = on_batch

    def batches(self) -> Iterator[np.ndarray]:
        """Compute and yield the outputs batch by batch, without any padding."""
        remaining = len(self._images.labels)
        load = self._images.load(np.arange(remaining), self._batch_size)
        for outputs in fetch_lagged(self._run(self._variables, b.inputs) for b in load):
            yield outputs[:remaining]  # the last batch is padded
            self._on_batch(min(len(outputs), remaining))
            remaining -= len(outputs)

    def array(self) -> np.ndarray:
        """Compute and return all of them, in memory."""
        array, start = np.empty(self.shape, self.dtype), 0
        for outputs in self.batches():
            array[start : start + len(outputs)] = outputs
            start += len(outputs)
        return array


def _outputs_in_memory(outputs, store, key, about, log) -> tuple[np.ndarray, bool]:
    """Return outputs in memory and whether they were stored; store them if possible."""
    array = None
    try:
        with store.lock(key, functools.partial(log, _WAITING)):
            stored = _read(outputs, store, key, log, mapped=False)
            if stored is not None:
                return stored, True
            # Computed before anything is written: the store may fail, they do not.
            array = outputs.array()
            with store.write(key, outputs.size, about) as append:
                append(array)
    except (StoreFullError, OSError) as error:
        log(
            f"warning: {store.folder}: features are not kept for later runs: {error}; "
            "see --feature-cache-size, or set JAXLAB_HOME to another disk"
        )
    return outputs.array() if array is None else array, False


def _outputs_on_disk(outputs, store, key, about, log) -> tuple[np.ndarray, bool]:
    """Return outputs mapped from the store, and whether it held them already."""
    with store.lock(key, functools.partial(log, _WAITING)):
        stored = _read(outputs, store, key, log, mapped=True)
        if stored is not None:
            return stored, True
        with store.write(key, outputs.size, about) as append:
            for part in outputs.batches():
                append(part)
        return store.read(key, outputs.shape, outputs.dtype, mapped=True), False


def _read(outputs, store, key, log, *, mapped: bool) -> np.ndarray | None:
    """Return the stored outputs, or None if there are none or they are damaged."""
    try:
        return store.read(key, outputs.shape, outputs.dtype, mapped=mapped)
    except CorruptionError as error:
        log(f"warning: {error}; the features are computed again")
        return None


def _sha256(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
