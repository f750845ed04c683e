"""Batches of pictures that do not fit into memory, decoded while the network computes.

Grain reads ahead, in threads or in processes; which pictures a batch holds depends on
the order alone, never on who decoded them.
"""

import hashlib
import os
from pathlib import Path

import grain
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxlab.data.pictures import BadPicture, Pictures, decode, read
from jaxlab.errors import InputError
from jaxlab.preprocess import Preprocess
from jaxlab.train import Batch, Loader, batches

BATCHES_AHEAD = 4


class _Fit:
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
            return self.preprocess.fit(decode(content))
        except BadPicture as error:
            raise InputError(
                f"{path}: cannot be read any more: {error}; leave the folder as it is, "
                "and run again"
            ) from error


def streamed(
    pictures: Pictures, labels: np.ndarray, preprocess: Preprocess, workers: int = 0
) -> Loader:
    """Return a loader of pictures fitted to uint8[b, size, size, 3].

    `workers` processes decode, or threads of this process for 0. Raises InputError,
    while it runs, for a file that is gone or not the one that was checked.
    """
    labels = np.asarray(labels, np.int32)

    def load(order, size):
        chunks = list(batches(order, size))
        places = np.concatenate([indices for indices, _ in chunks])
        chosen = pictures.take(places)
        threads = os.cpu_count() or 1
        dataset = (
            grain.MapDataset.source(
                list(zip(chosen.paths, chosen.digests, strict=True))
            )
            .map(_Fit(preprocess))
            .batch(size)
            .to_iter_dataset(grain.ReadOptions(threads, max(BATCHES_AHEAD, threads)))
        )
        if workers:
            # Grain's processes read command-line flags that only absl's own programs
            # have parsed; the defaults are meant.
            flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers))
        for images, (indices, weights) in zip(dataset, chunks, strict=True):
            yield Batch(jnp.asarray(images), jnp.asarray(labels[indices]), weights)

    return load
