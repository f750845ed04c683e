"""The initial variables of a run: fresh layers, pretrained layers, or both.

Fresh layers are randomly initialised as torchvision initialises those of the network.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import runtime
from jaxlab.data.files import listed, nfc
from jaxlab.models.architecture import DEFAULT, Architecture
from jaxlab.models.chain import children, variables_of
from pretrained import embedded
from pretrained.download import open_published
from pretrained.errors import IntegrityError, WeightsError
from pretrained.files import Weights, read_weights
from pretrained.layout import flat
from pretrained.sources import PUBLISHED, published

METADATA = "jaxlab"  # the one entry of model.safetensors, which describes the network
IMAGE_SIZE = 64  # of the image for Linen's `init`; affects no parameter's shape


def keys(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the initial variables and of dropout; seed is below 2³²."""
    # Not jitted: JAX would keep the first program for another generator of its config.
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


def initial_variables(
    architecture: Architecture,
    model: nn.Module,
    key: jax.Array,
    name: str,
    *,
    class_names: Sequence[str] | None = None,
    offline: bool = False,
    log: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Return the initial variables of a network, and a record of their origin.

    `name` is "none" (all layers fresh), "imagenet-conv" (the embedded ImageNet
    convolutions, all other layers fresh), "imagenet" (all layers of the published
    weights, which are read from the cache, or downloaded unless `offline`, with
    messages unless `log` is False), or the path of a weights file. If the number of
    classes differs from the model's, the head of the weights is not used and the
    model's head is fresh. The same holds if the file names other classes than
    `class_names`; the same classes in another order are put into the model's order. The
    record contains the source, its SHA-256, whether it is a published file, the origin
    of each layer, and the classes of a head that was not used as it is. The variables
    have "batch_stats" only if the network has some.

    Raises WeightsError, DownloadError or IntegrityError if the weights are missing,
    damaged or for a different network.
    """
    head = architecture.head
    # Weights are read first, since this may fail, and fresh layers take seconds.
    loaded: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    record: dict[str, Any] = {"name": name}
    origin = "ImageNet"
    if name == "imagenet-conv":
        loaded = embedded.imagenet_conv(architecture.name)
        file = embedded.SOURCES[architecture.name]
        record |= {"source": file.title, "sha256": file.sha256, "verified": True}
    elif name != "none":
        weights = whole_network(name, architecture.name, offline=offline, log=log)
        loaded, source = dict(weights.params), weights.source
        statistics = weights.batch_stats
        record |= {
            "source": source.url if source else os.path.abspath(name),
            "sha256": weights.sha256,
            "verified": source is not None and source.is_hash_known,
            "classes": int(np.size(loaded[head]["bias"])),
        }
        record |= _fit_head(loaded, head, _class_names(weights.metadata), class_names)
        origin = "ImageNet" if source else "file"
    shapes = variable_shapes(model)
    classes = shapes["params"][head]["bias"].shape
    if head in loaded and loaded[head]["bias"].shape != classes:
        del loaded[head]
    _require_fitting(loaded, shapes["params"], name)
    _require_fitting(statistics, shapes.get("batch_stats", {}), name)
    layers = {
        layer: origin if layer in loaded else "fresh" for layer in children(model)
    }

    fresh = tuple(layer for layer in layers if layer not in loaded)
    variables = _fresh_program(model, fresh)(key)
    variables["params"] = variables["params"] | loaded
    if "batch_stats" in variables:
        variables["batch_stats"] = variables["batch_stats"] | statistics
    return variables_of(variables, list(layers)), {**record, "layers": layers}


def _require_fitting(loaded: Any, shapes: Any, name: str) -> None:
    """Raise WeightsError if loaded layers are not of the module's depths and widths.

    Those of a module are free, and may differ from those of the key table.
    """
    for layer, tree in loaded.items():
        ours = {path: leaf.shape for path, leaf in flat(shapes.get(layer, {})).items()}
        theirs = {path: np.shape(leaf) for path, leaf in flat(tree).items()}
        if ours != theirs:
            raise WeightsError(
                f"{name}: {layer} has other layers or shapes than this network's; "
                "leave the fields of depths and widths out, or pass 'none'"
            )


def _class_names(metadata: Mapping[str, str]) -> list[str] | None:
    """Return the class names that a run's file states, or None if it states none."""
    try:
        names = json.loads(metadata[METADATA])["class_names"]
        return [nfc(name) for name in names]
    except (ValueError, LookupError, TypeError):
        return None


def _fit_head(
    loaded: dict[str, Any],
    head: str,
    then: list[str] | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Reorder the loaded head for other class names, or remove it; return a record.

    `then` are the names of the loaded head's classes. If either names are unknown, or
    they are the same, nothing is changed and the record is empty.
    """
    if then is None or class_names is None:
        return {}
    now = [nfc(name) for name in class_names]
    # A head of another number of classes is left to the comparison of shapes.
    if then == now or not len(then) == len(now) == len(loaded[head]["bias"]):
        return {}
    if sorted(then) == sorted(now) and len(set(now)) == len(now):
        order = [then.index(name) for name in now]
        loaded[head] = {  # kernel [in, classes], bias [classes]
            name: np.ascontiguousarray(leaf[..., order])
            for name, leaf in loaded[head].items()
        }
        return {"reordered_classes": then}
    del loaded[head]
    return {"other_classes": then}


@runtime.shared
def _fresh_program(model: nn.Module, layers: tuple[str, ...]) -> Callable:
    """Return the compiled `key -> variables` of some layers.

    The others are not even compiled, which would take seconds.
    """

    @jax.jit
    def fresh(key):
        return variables_of(_init(model, key), layers)

    return fresh


@functools.cache  # a run calls this twice
def variable_shapes(model: nn.Module) -> Any:
    """Return the shapes and dtypes of a network's variables, without computing them."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def _init(model: nn.Module, key: jax.Array) -> Any:
    images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
    return model.init(key, images, train=False)


def whole_network(
    name: str, network: str | None = None, *, offline: bool = False, log: bool = True
) -> Weights:
    """Return the weights of all layers; `name` is published, or the path of a file.

    `network` is the network that they must belong to; by default it is detected from
    their names and shapes, and that of published weights is the default network.
    `offline` and `log` are those of `open_published`. Raises WeightsError,
    DownloadError or IntegrityError.
    """
    if name in PUBLISHED:
        source = published(network or DEFAULT, name)
        with open_published(source, offline=offline, log=log) as file:
            weights = read_weights(file, source.network)
        if source.is_hash_known and weights.source is None:
            raise IntegrityError(
                f"{name}: the file changed while it was read; try again"
            )
        return weights._replace(source=source)
    return read_weights(name, network)


def describe(record: dict[str, Any]) -> str:
    """Return the lines that describe the initial weights; "" if all are fresh."""
    if "sha256" not in record:
        return ""
    trust = "unverified: not a published file"
    if record["verified"]:
        trust = "as published"
    elif record["source"].startswith("https:"):
        trust = "its first 8 digits are the published ones"
    digest = record["sha256"][:16]
    words = f"weights: {record['source']}, SHA-256 {digest}… ({trust})"
    head = list(record["layers"])[-1]
    if "reordered_classes" in record:
        words += f"\n{head} is reordered: the weights have its classes in another order"
    elif "other_classes" in record:
        names = record["other_classes"]
        words += (
            f"\n{head} is fresh: the weights have a head for other classes: "
            f"{listed(names)}"
        )
    elif "classes" in record and record["layers"][head] == "fresh":
        count = record["classes"]
        words += f"\n{head} is fresh: the weights have a head for {count:,} classes"
    return words
