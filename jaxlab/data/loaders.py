"""Loaders that yield batches of examples in memory, on disk or decoded when needed.

Which examples a batch contains depends only on the order that the loader is given, not
on where the examples are stored or which process decodes them.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.pictures import BadPicture, Pictures, read, read_image
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import InputError, JaxlabError

BATCHES_AHEAD = 4  # minimum number of batches to decode in advance


class Batch(NamedTuple):
    """A batch: inputs [b, ...], labels int32[b], weights float[b] (0 for padding).

    The weight of an example that is not padding is 1.

    >>> Batch(jnp.zeros((2, 4)), jnp.array([0, 1]), jnp.ones(2)).inputs.shape
    (2, 4)
    """

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array


def batches(order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of an order as (indices int32[size], weights float32[size]).

    The last batch is padded with its first index at weight 0, so that all batches have
    the same shape and nothing is recompiled.

    >>> for indices, weights in batches(np.arange(3), 2):
    ...     print(indices, weights)
    [0 1] [1. 1.]
    [2 2] [1. 0.]
    """
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        indices = np.full(size, chunk[0], np.int32)
        indices[: len(chunk)] = chunk
        yield indices, (np.arange(size) < len(chunk)).astype(np.float32)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled order of an epoch, which depends only on seed and epoch."""
    # RandomState's stream is fixed; default_rng's may change with NumPy's version.
    return np.random.RandomState([seed, epoch]).permutation(count)


class Loader(Protocol):
    """A function of an order, int[n], and a batch size.

    It yields batches of one shape, with the examples that `batches` selects.
    """

    def __call__(self, order: np.ndarray, size: int, /) -> Iterator[Batch]:
        """Yield the batches of an order."""


class InMemory(NamedTuple):
    """A loader of examples on the device: inputs [n, ...], labels int32[n].

    Only the indices of a batch are transferred to the device, and `train_epoch` runs
    several steps in one program, without the host.
    """

    inputs: jax.Array
    labels: jax.Array

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order, gathered inside jit."""
        for indices, weights in batches(order, size):
            yield gather(self, indices, weights)


@jax.jit
def gather(data: InMemory, indices: jax.Array, weights: jax.Array) -> Batch:
    """Return the batch of the examples at indices int32[b], with weights float[b]."""
    return Batch(data.inputs[indices], data.labels[indices], weights)


class OnDisk(NamedTuple):
    """A loader of a memory-mapped array [n, ...], whose rows are read when needed."""

    inputs: np.ndarray
    labels: np.ndarray

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order."""
        for indices, weights in batches(order, size):
            inputs, labels = self.inputs[indices], self.labels[indices]
            yield Batch(jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(weights))


class Streamed(NamedTuple):
    """A loader of pictures that do not fit into memory, resized to [size, size, 3].

    They are decoded in advance while the network computes, by `workers` processes, or
    by threads of this process if `workers` is 0. The iteration raises InputError for a
    file that was removed or has changed since it was checked.
    """

    pictures: Pictures
    labels: np.ndarray
    preprocess: Preprocess
    workers: int = 0

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order, inputs uint8[b, size, size, 3]."""
        import grain  # The import takes a second.

        chunks = list(batches(order, size))
        chosen = self.pictures.take(np.concatenate([indices for indices, _ in chunks]))
        threads = os.cpu_count() or 1
        dataset = (
            grain.MapDataset.source(
                list(zip(chosen.paths, chosen.digests, strict=True))
            )
            .map(_Resize(self.preprocess))
            .batch(size)
            .to_iter_dataset(grain.ReadOptions(threads, max(BATCHES_AHEAD, threads)))
        )
        if self.workers:
            from absl import flags

            # Grain's worker processes read absl flags, which only absl programs parse.
            # Marking the flags as parsed selects their default values.
            flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self.workers))
        decoded = _ends_explained(dataset)
        for images, (indices, weights) in zip(decoded, chunks, strict=True):
            labels = jnp.asarray(self.labels[indices], jnp.int32)
            yield Batch(jnp.asarray(images), labels, jnp.asarray(weights))


def _ends_explained(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; raise JaxlabError, with a remedy, if a worker was ended."""
    try:
        yield from batches
    except RuntimeError as error:
        ended = re.search(r"terminated unexpectedly with exit code -?\d+", str(error))
        if ended is None:
            raise
        raise JaxlabError(
            f"--workers: a process that decodes images {ended[0]}, as it does without "
            "memory, or where /dev/shm is small, as in a container; enlarge it, or "
            "pass --workers 0"
        ) from error


class _Resize:
    """A function that decodes one picture, as an object that can be pickled."""

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess

    def __call__(self, picture: tuple[Path, str]) -> np.ndarray:
        path, digest = picture
        try:
            content = read(path)
            if hashlib.sha256(content).hexdigest() != digest:
                raise InputError(
                    f"{path}: has changed since the run began; leave the folder "
                    "unchanged during a run, and run again"
                )
            return self.preprocess.resize(read_image(content))
        except BadPicture as error:
            raise InputError(
                f"{path}: can no longer be read: {error}; leave the folder unchanged "
                "during a run, and run again"
            ) from error
