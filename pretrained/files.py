"""Whole weights files of either kind: hashed, read, converted, checked, and written.

A `.pth` holds torchvision's names. A `.safetensors` holds torchvision's names and
layouts, or Flax's ("conv1/kernel"); the names say which.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from pretrained.disk import atomic_write_weights, write_tensors
from pretrained.errors import WeightsError, one_line
from pretrained.layout import Params, flat, flat_params, nested, recognised, to_flax
from pretrained.sources import Source, by_sha256
from pretrained.tables import TABLES
from pretrained.torchfile import open_weights, read_torch_file
from pretrained.unpickle import MAX_NAME


class Weights(NamedTuple):
    """A network's parameters and where they come from.

    `source` is the published file these very bytes are, or None: not verified.
    `provenance` is what a converted file says of its origin: a claim, not a proof.
    """

    params: Params
    network: str  # its name in TABLES
    names: str  # whose the file's are: "torch" or "flax"
    is_safetensors: bool
    sha256: str
    source: Source | None
    provenance: Any = None


def read_weights(
    path: str | os.PathLike | BinaryIO, network: str | None = None
) -> Weights:
    """Read a `.pth` or `.safetensors` (known by its content) of any number of classes.

    `network` is the one that it must hold; by default the one whose keys it has. The
    params are Flax's, float32 and finite. Raises WeightsError, with one line naming the
    file and all that does not fit.
    """
    with open_weights(path) as (file, name):
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        is_safetensors = file.read(9)[8:] == b"{"
        file.seek(0)
        claim = None
        if is_safetensors:
            tensors, claim = _read_safetensors(file, name)
        else:
            tensors = read_torch_file(file)
    names = "flax" if any("/" in key for key in tensors) else "torch"
    if network is None:
        found = recognised({key: t.shape for key, t in tensors.items()}, names)
        # Of what is none, all is told that the first lacks.
        network = (found or list(TABLES))[0]
    try:
        if names == "flax":
            params = nested(flat_params(tensors, TABLES[network]))
        else:
            params = to_flax(tensors, TABLES[network])
    except WeightsError as error:
        _, _, reason = str(error).partition(": ")
        raise WeightsError(f"{name}: {reason}") from None
    for path, array in flat(params).items():
        if array.dtype != np.float32:
            raise WeightsError(
                f"{name}: {path} is {array.dtype}; save model.float().state_dict()"
            )
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{name}: {path} holds NaN or infinity, as a diverged training leaves; "
                "pass other weights"
            )
    source = by_sha256(sha256)
    return Weights(params, network, names, is_safetensors, sha256, source, claim)


def _read_safetensors(file: BinaryIO, name: str) -> tuple[dict[str, np.ndarray], Any]:
    """Return the tensors, and the provenance in the metadata, if there is any."""
    try:
        content = file.read()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        claim = header.get("__metadata__", {}).get("provenance", "null")
        provenance = json.loads(claim)
    except KeyError as error:  # a type that NumPy lacks, such as BF16
        raise WeightsError(
            f"{name}: holds tensors of type {error.args[0]}; save "
            "model.float().state_dict()"
        ) from error
    # A shape that NumPy cannot hold is a ValueError; metadata may be no JSON.
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise WeightsError(
            f"{name}: is a damaged safetensors file: {one_line(str(error))[:200]}; get "
            "the file again"
        ) from error
    if unusual := [
        key for key in tensors if not key.isprintable() or len(key) > MAX_NAME
    ]:
        raise WeightsError(
            f"{name}: has the odd name {unusual[0][:40]!a}; pass weights of AlexNet"
        )
    return tensors, provenance


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write C-contiguous arrays, whole or not at all; `metadata` holds one entry.

    The same arrays give the same bytes: several entries would be written in no fixed
    order. Raises WeightsError when it cannot be written.
    """
    with atomic_write_weights(path) as partial:
        write_tensors(partial, tensors, metadata)


def provenance(weights: Weights, file_name: str) -> dict[str, str]:
    """Return a converted file's metadata: which bytes it was made from."""
    source = weights.source
    facts = {
        "file": file_name,
        "sha256": weights.sha256,
        "verified": source is not None,
        "url": source.url if source else None,
        "licence": source.licence if source else None,
        "made_from": weights.provenance,
    }
    return {"provenance": json.dumps(facts)}
