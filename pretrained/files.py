"""Whole weights files of either kind: hashed, read, converted, checked, and written.

A `.pth` holds torchvision's names. A `.safetensors` holds torchvision's names and
layouts, or Flax's ("conv1/kernel"); the names say which.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from pretrained.errors import WeightsError
from pretrained.sources import Source, by_sha256
from pretrained.tables import (
    ALEXNET,
    Params,
    Row,
    flat_params,
    nested_params,
    to_flax,
)
from pretrained.torchfile import open_weights, read_torch_file


class Weights(NamedTuple):
    """A network's parameters and where they come from.

    `source` is the published file these very bytes are, or None: not verified.
    """

    params: Params
    names: str  # whose the file's are: "torch" or "flax"
    sha256: str
    source: Source | None


def read_weights(
    path: str | os.PathLike | BinaryIO, table: tuple[Row, ...] = ALEXNET
) -> Weights:
    """Read a `.pth` or `.safetensors` (known by its content) of any number of classes.

    The params are Flax's, float32 and finite. Raises WeightsError, with one line naming
    the file and all that does not fit.
    """
    with open_weights(path) as (file, name):
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        is_safetensors = file.read(9)[8:] == b"{"
        file.seek(0)
        tensors = (
            _read_safetensors(file, name) if is_safetensors else read_torch_file(file)
        )
    names = "flax" if any("/" in key for key in tensors) else "torch"
    try:
        if names == "flax":
            params = nested_params(flat_params(tensors, table))
        else:
            params = to_flax(tensors, table)
    except WeightsError as error:
        _, _, reason = str(error).partition(": ")
        raise WeightsError(f"{name}: {reason}") from None
    for layer, leaves in params.items():
        for leaf, array in leaves.items():
            if array.dtype != np.float32:
                raise WeightsError(
                    f"{name}: {layer}/{leaf} is {array.dtype}; save "
                    "model.float().state_dict()"
                )
            if not np.isfinite(array).all():
                raise WeightsError(
                    f"{name}: {layer}/{leaf} holds NaN or infinity, as a diverged "
                    "training leaves; pass other weights"
                )
    return Weights(params, names, sha256, by_sha256(sha256))


def _read_safetensors(file: BinaryIO, name: str) -> dict[str, np.ndarray]:
    try:
        return load(file.read())
    except SafetensorError as error:
        raise WeightsError(
            f"{name}: is a damaged safetensors file: {error}; get the file again"
        ) from error
    except KeyError as error:  # a type that NumPy lacks, such as BF16
        raise WeightsError(
            f"{name}: holds tensors of type {error.args[0]}; save "
            "model.float().state_dict()"
        ) from error


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write C-contiguous arrays, whole or not at all; `metadata` holds one entry.

    The same arrays give the same bytes: several entries would be written in no fixed
    order. Raises WeightsError when it cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except (SafetensorError, OSError) as error:
        # A full disk comes as a SafetensorError too.
        raise WeightsError(
            f"{path}: cannot be written: {error}; check the folder and the free space"
        ) from error
    # The library creates the file for its owner only; give it the user's usual mode.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def provenance(weights: Weights, file_name: str) -> dict[str, str]:
    """Return a converted file's metadata: which bytes it was made from."""
    source = weights.source
    facts = {
        "file": file_name,
        "sha256": weights.sha256,
        "verified": source is not None,
        "url": source.url if source else None,
        "licence": source.licence if source else None,
    }
    return {"provenance": json.dumps(facts)}
