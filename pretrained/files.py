"""Read `.pth` and `.safetensors` files as checked Flax params; write `.safetensors`.

A `.pth` file has torchvision's names. A `.safetensors` file has the names and layouts
of torchvision or of Flax ("conv1/kernel"); names with a "/" identify Flax's.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from pretrained.disk import atomic_write_weights, write_tensors
from pretrained.errors import WeightsError, one_line
from pretrained.layout import (
    Params,
    Table,
    Variables,
    flat,
    flat_arrays,
    flat_params,
    flax_name,
    most_similar,
    nested,
    recognised,
    variables_of,
)
from pretrained.sources import Source, by_sha256
from pretrained.tables import TABLES
from pretrained.torchfile import open_weights, read_torch_file
from pretrained.unpickle import MAX_NAME

MAX_HEADER = 100_000_000  # bytes; that of a DenseNet-201 has 150,000
RUN_MODEL = "model.safetensors"  # the file of weights in the folder of a run


class Weights(NamedTuple):
    """The parameters of a network, and where they come from.

    `batch_stats` are the running statistics, of a network that has some. `source` is
    the published file with the same SHA-256, or None if there is none. `metadata` is
    what a safetensors file states about itself, such as its origin; it is not verified.
    """

    params: Params
    network: str  # its name in TABLES, or as the file describes it
    names: str  # the naming scheme of the file: "torch" or "flax"
    is_safetensors: bool
    sha256: str
    source: Source | None
    metadata: Mapping[str, str] = {}
    batch_stats: Params = {}

    @property
    def variables(self) -> Variables:
        """The tree that a Linen module's `apply` takes."""
        if not self.batch_stats:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def provenance(self) -> Any:
        """What a converted file states about its origin, or None."""
        try:
            return json.loads(self.metadata.get("provenance", "null"))
        except ValueError:  # another program's metadata
            return None


def read_weights(
    path: str | os.PathLike | BinaryIO,
    network: str | None = None,
    described: Callable[[Mapping[str, str]], tuple[str, Table] | None] | None = None,
) -> Weights:
    """Read a `.pth` or `.safetensors` file with any number of classes.

    The folder of a run stands for the model in it. The format is detected from the
    content. `network` is the network that the file must contain; by default it is
    detected from the names and shapes. `described` maps the metadata of a file to the
    name and the key table of the network that they describe, or to None if they
    describe none. The params are Flax's, float32 and finite. Raises WeightsError if the
    file cannot be read or does not fit; the message is one line that names the file and
    every tensor that does not fit.
    """
    if isinstance(path, (str, os.PathLike)):
        model = os.path.join(path, RUN_MODEL)
        path = model if os.path.isfile(model) else path
    with open_weights(path) as (file, name):
        # typing's BinaryIO lacks `readinto`, which binary files of every class have.
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        sha256 = digest.hexdigest()
        file.seek(0)
        is_safetensors = file.read(9)[8:] == b"{"
        file.seek(0)
        metadata: dict[str, str] = {}
        if is_safetensors:
            tensors, metadata = _read_safetensors(file, name)
        else:
            tensors = read_torch_file(file)
    names = "flax" if any("/" in key for key in tensors) else "torch"
    table = None
    if described is not None and (found := described(metadata)) is not None:
        network, table = found
    else:
        network = _network(name, {key: t.shape for key, t in tensors.items()}, network)
    table = table or TABLES[network]
    # Published in half of the bytes; torch, too, widens them when it loads them.
    tensors = {
        key: array.astype(np.float32) if array.dtype == np.float16 else array
        for key, array in tensors.items()
    }
    try:
        if names == "flax":
            variables = _from_flax_names(tensors, table)
        else:
            variables = variables_of(tensors, table)
    except WeightsError as error:
        _, _, reason = str(error).partition(": ")
        raise WeightsError(f"{name}: {reason}") from None
    for path, array in flat(variables).items():
        path = path.split("/", 1)[1]  # without its collection
        if array.dtype == np.int32:  # a counter
            continue
        if array.dtype != np.float32:
            raise WeightsError(
                f"{name}: {path} is {array.dtype}, expected float32; save "
                "model.float().state_dict()"
            )
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{name}: {path} holds NaN or infinity, as after a training run that "
                "diverged; pass other weights"
            )
    source = by_sha256(sha256)
    return Weights(
        variables["params"],
        network,
        names,
        is_safetensors,
        sha256,
        source,
        metadata,
        variables.get("batch_stats", {}),
    )


def network_of(path: str | os.PathLike) -> str:
    """Return the network in TABLES of a file of weights, or of a run's folder.

    It is the most similar one if the file is of none. Raises WeightsError if the file
    cannot be read.
    """
    model = os.path.join(path, RUN_MODEL)
    with open_weights(model if os.path.isfile(model) else path) as (file, name):
        size, brace = struct.unpack("<Qc", file.read(9).ljust(9))
        file.seek(0)
        if brace != b"{":
            tensors = read_torch_file(file)
            return _network(name, {key: t.shape for key, t in tensors.items()}, None)
        try:  # the header alone
            header = json.loads(file.read(8 + min(size, MAX_HEADER))[8:])
            header.pop("__metadata__", None)
            shapes = {key: tuple(tensor["shape"]) for key, tensor in header.items()}
            _require_shapes(shapes.values(), os.fstat(file.fileno()).st_size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            file.seek(0)
            tensors, _ = _read_safetensors(file, name)  # it says what is damaged
            shapes = {key: tensor.shape for key, tensor in tensors.items()}
    return _network(name, shapes, None)


def _require_shapes(shapes: Iterable[tuple[Any, ...]], size: int) -> None:
    """Raise ValueError for what is no shape of a tensor in a file of `size` bytes."""
    for shape in shapes:
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > size:
            raise ValueError(f"{shape}: not the shape of a tensor")


def _network(
    name: str, shapes: Mapping[str, tuple[int, ...]], expected: str | None
) -> str:
    """Return the network of a file; raise WeightsError if another one is expected.

    If none fits, it is the expected one or else the most similar one, the differences
    from which the error will list.
    """
    likely = recognised(shapes)
    if expected in likely or not likely:
        return expected or most_similar(shapes)
    if expected is None:
        return likely[0]
    raise WeightsError(
        f"{name}: contains the weights of {likely[0]}, expected {expected}; pass "
        f"--model {likely[0]}, or other weights"
    )


def _from_flax_names(tensors: Mapping[str, np.ndarray], table: Table) -> Variables:
    """Return the variables of a file that `with_flax_names` named."""
    if all(row.collection == "params" for row in table):
        return {"params": nested(flat_params(tensors, table))}
    trees: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        collection, _, path = name.partition("/")
        trees.setdefault(collection, {})[path] = array
    collections = dict.fromkeys(row.collection for row in table)
    if others := sorted(trees.keys() - collections.keys()):
        raise WeightsError(
            f"{others[0]}: is in none of the collections {', '.join(collections)}; "
            "convert the original again"
        )
    return {
        collection: nested(flat_arrays(trees.get(collection, {}), table, collection))
        for collection in collections
    }


def with_flax_names(variables: Variables, table: Table) -> dict[str, np.ndarray]:
    """Return the arrays of a file with Flax's names; see `layout.flax_name`."""
    trees = {
        collection: flat_arrays(tree, table, collection)
        for collection, tree in variables.items()
    }
    return {flax_name(row, table): trees[row.collection][row.flax] for row in table}


def _read_safetensors(
    file: BinaryIO, name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors and the metadata, {} if the file has none."""
    try:
        content = file.read()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except KeyError as error:  # a dtype that NumPy lacks, such as BF16
        raise WeightsError(
            f"{name}: holds tensors of type {error.args[0]}, expected float32; save "
            "model.float().state_dict()"
        ) from error
    # A shape that NumPy does not support, or invalid JSON, raises ValueError.
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise WeightsError(
            f"{name}: is a damaged safetensors file: {one_line(str(error))[:200]}; get "
            "the file again"
        ) from error
    if unusual := [
        key for key in tensors if not key.isprintable() or len(key) > MAX_NAME
    ]:
        raise WeightsError(
            f"{name}: has a tensor with the invalid name {unusual[0][:40]!a}; pass "
            "weights of a supported network"
        )
    return tensors, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write C-contiguous arrays to a file atomically; `metadata` must have one entry.

    The same arrays then give the same bytes; several entries would be written in no
    fixed order. Raises WeightsError if the file cannot be written.
    """
    with atomic_write_weights(path) as partial:
        write_tensors(partial, tensors, metadata)


def provenance(weights: Weights, file_name: str) -> dict[str, str]:
    """Return the metadata of a converted file: the file that it was made from."""
    source = weights.source
    facts = {
        "file": file_name,
        "sha256": weights.sha256,
        "verified": source is not None and source.is_hash_known,
        "url": source.url if source else None,
        "licence": source.licence if source else None,
        "made_from": weights.provenance,
    }
    return {"provenance": json.dumps(facts)}
