"""The initial parameters of a run: fresh layers, pretrained layers, or both.

Fresh layers are randomly initialised as torch initialises them.
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
from jaxlab.models.architecture import Architecture
from pretrained import embedded
from pretrained.download import open_published
from pretrained.errors import IntegrityError
from pretrained.files import Weights, read_weights
from pretrained.sources import SOURCES

METADATA = "jaxlab"  # the one entry of model.safetensors, which describes the network
IMAGE_SIZE = 64  # of the image for Linen's `init`; affects no parameter's shape


def keys(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the initial variables and of dropout; seed is below 2³²."""
    # Not jitted: JAX would keep the first program for another generator of its config.
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


def initial_params(
    architecture: Architecture,
    model: nn.Module,
    key: jax.Array,
    name: str,
    *,
    class_names: Sequence[str] | None = None,
    offline: bool = False,
    log: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Return the initial params of a network, and a record of their origin.

    `name` is "none" (all layers fresh), "imagenet-conv" (the embedded ImageNet
    convolutions, all other layers fresh), "imagenet" (all layers of the published
    weights, which are read from the cache, or downloaded unless `offline`, with
    messages unless `log` is False), or the path of a weights file. If the number of
    classes differs from the model's, the head of the weights is not used and the
    model's head is fresh. The same holds if the file names other classes than
    `class_names`; the same classes in another order are put into the model's order. The
    record contains the source, its SHA-256, whether it is a published file, the origin
    of each layer, and the classes of a head that was not used as it is.

    Raises WeightsError, DownloadError or IntegrityError if the weights are missing,
    damaged or for a different network.
    """
    head = architecture.head
    # Weights are read first, since this may fail, and fresh layers take seconds.
    loaded: dict[str, Any] = {}
    record: dict[str, Any] = {"name": name}
    origin = "ImageNet"
    if name == "imagenet-conv":
        loaded = embedded.imagenet_conv()
        record |= {"source": embedded.SOURCE, "sha256": embedded.SHA256}
        record |= {"verified": True}
    elif name != "none":
        weights = whole_network(name, architecture.name, offline=offline, log=log)
        loaded, source = dict(weights.params), weights.source
        record |= {
            "source": source.url if source else os.path.abspath(name),
            "sha256": weights.sha256,
            "verified": source is not None,
            "classes": int(np.size(loaded[head]["bias"])),
        }
        record |= _fit_head(loaded, head, _class_names(weights.metadata), class_names)
        origin = "ImageNet" if source else "file"
    shapes = param_shapes(model)
    if head in loaded and loaded[head]["bias"].shape != shapes[head]["bias"].shape:
        del loaded[head]
    layers = {
        layer: origin if layer in loaded else "fresh" for layer in architecture.children
    }

    fresh = tuple(layer for layer in layers if layer not in loaded)
    params = _fresh_program(model, fresh)(key) | loaded
    return {layer: params[layer] for layer in layers}, {**record, "layers": layers}


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
    """Return the compiled `key -> params` of some layers.

    The others are not even compiled, which would take seconds.
    """

    @jax.jit
    def fresh(key):
        params = _init(model, key)
        return {layer: params[layer] for layer in layers}

    return fresh


@functools.cache  # a run calls this twice
def param_shapes(model: nn.Module) -> Any:
    """Return the shapes and dtypes of a network's params, without computing them."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def _init(model: nn.Module, key: jax.Array) -> Any:
    images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
    return model.init(key, images, train=False)["params"]


def whole_network(
    name: str, network: str | None = None, *, offline: bool = False, log: bool = True
) -> Weights:
    """Return the weights of all layers; `name` is a key of SOURCES, or a file's path.

    `network` is the network that they must belong to; by default it is detected from
    their names and shapes. `offline` and `log` are those of `open_published`. Raises
    WeightsError, DownloadError or IntegrityError.
    """
    if name in SOURCES:
        with open_published(SOURCES[name], offline=offline, log=log) as file:
            weights = read_weights(file, network)
        if weights.source is None:
            raise IntegrityError(
                f"{name}: the file changed while it was read; try again"
            )
        return weights
    return read_weights(name, network)


def describe(record: dict[str, Any]) -> str:
    """Return the lines that describe the initial weights; "" if all are fresh."""
    if "sha256" not in record:
        return ""
    trust = "as published" if record["verified"] else "unverified: not a published file"
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
