"""From an order of examples to batches: in memory, on the disk, decoded as they come.

Which examples a batch holds depends on the order alone, never on where they lie or who
decodes them.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data.pictures import BadPicture, Pictures, decode, read
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import InputError

BATCHES_AHEAD = 4  # that are decoded while the network computes


class Batch(NamedTuple):
    """inputs [b, ...], labels int32[b], weights float[b]: 1, or 0 for padding."""

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array


def batches(order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut an order into (indices int32[size], weights float32[size]).

    The last batch is filled up with its first index at weight 0, so that every batch
    has one shape and nothing recompiles.
    """
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        indices = np.full(size, chunk[0], np.int32)
        indices[: len(chunk)] = chunk
        yield indices, (np.arange(size) < len(chunk)).astype(np.float32)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled order of an epoch: a function of seed and epoch alone."""
    # RandomState's stream is frozen for good; default_rng's may change with NumPy.
    return np.random.RandomState([seed, epoch]).permutation(count)


# From an order int[n] and a batch size to batches of one shape, as `batches` cuts them.
Loader = Callable[[np.ndarray, int], Iterator[Batch]]


class InMemory(NamedTuple):
    """A loader of examples on the device: inputs [n, ...], labels int32[n].

    A batch moves its indices only, and `train_epoch` takes its steps without the host.
    """

    inputs: jax.Array
    labels: jax.Array

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order, gathered inside jit."""
        for indices, weights in batches(order, size):
            yield gather(self, indices, weights)


@jax.jit
def gather(data: InMemory, indices: jax.Array, weights: jax.Array) -> Batch:
    """Return the batch of these examples: indices int32[b], weights float[b]."""
    return Batch(data.inputs[indices], data.labels[indices], weights)


class OnDisk(NamedTuple):
    """A loader of a mapped array's rows [n, ...], read as they are asked for."""

    inputs: np.ndarray
    labels: np.ndarray

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order."""
        for indices, weights in batches(order, size):
            inputs, labels = self.inputs[indices], self.labels[indices]
            yield Batch(jnp.asarray(inputs), jnp.asarray(labels), weights)


class Streamed(NamedTuple):
    """A loader of pictures that do not fit into memory, resized to [size, size, 3].

    They are read ahead while the network computes, by `workers` processes, or by
    threads of this process for 0. Raises InputError, while it runs, for a file that is
    gone or not the one that was checked.
    """

    pictures: Pictures
    labels: np.ndarray
    preprocess: Preprocess
    workers: int = 0

    def __call__(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the batches of an order, inputs uint8[b, size, size, 3]."""
        import grain  # takes a second

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

            # Grain's processes read command-line flags that only absl's own programs
            # have parsed; the defaults are meant.
            flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self.workers))
        for images, (indices, weights) in zip(dataset, chunks, strict=True):
            labels = jnp.asarray(self.labels[indices], jnp.int32)
            yield Batch(jnp.asarray(images), labels, weights)


class _Resize:
    """Decodes one picture; an object, so that a worker process can be sent it."""

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess

    def __call__(self, picture: tuple[Path, str]) -> np.ndarray:
        path, digest = picture
        try:
            content = read(path)
            if hashlib.sha256(content).hexdigest() != digest:
                raise InputError(
                    f"{path}: has changed since the run began; leave the folder as it "
                    "is, and run again"
                )
            return self.preprocess.resize(decode(content))
        except BadPicture as error:
            raise InputError(
                f"{path}: cannot be read any more: {error}; leave the folder as it is, "
                "and run again"
            ) from error
