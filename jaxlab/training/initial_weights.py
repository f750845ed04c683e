"""The parameters a run starts from: fresh, or with pretrained layers put in."""

import functools
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models.architecture import Architecture
from pretrained import embedded
from pretrained.download import open_published
from pretrained.errors import IntegrityError
from pretrained.files import Weights, read_weights
from pretrained.sources import SOURCES

IMAGE_SIZE = 64  # of a first call; no parameter's shape depends on it


def initial_params(
    architecture: Architecture,
    model: nn.Module,
    key: jax.Array,
    name: str,
    *,
    offline: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Return a network's first params, and the record of where they come from.

    `name` is "none" (all layers fresh, as torch initialises them), "imagenet-conv" (the
    embedded convolutions of torchvision's AlexNet, the rest fresh), "imagenet" (the
    whole of it, from the cache or else, unless `offline`, downloaded), or the path of a
    weights file. A head of another number of classes than the model's is left out, and
    fresh. The record holds the source, its hash, whether that is a published file's,
    and for each layer where it is from.

    Raises WeightsError, DownloadError or IntegrityError for weights that are absent,
    damaged or of another network.
    """
    head = architecture.head
    # First what may be refused; fresh layers take seconds.
    loaded: dict[str, Any] = {}
    record: dict[str, Any] = {"name": name}
    origin = "ImageNet"
    if name == "imagenet-conv":
        loaded = embedded.imagenet_conv()
        record |= {"source": embedded.SOURCE, "sha256": embedded.SHA256}
        record |= {"verified": True}
    elif name != "none":
        weights = whole_network(name, architecture.name, offline=offline)
        loaded, source = dict(weights.params), weights.source
        record |= {
            "source": source.url if source else os.path.abspath(name),
            "sha256": weights.sha256,
            "verified": source is not None,
            "classes": int(np.size(loaded[head]["bias"])),
        }
        origin = "ImageNet" if source else "file"
    shapes = param_shapes(model)
    if head in loaded and loaded[head]["bias"].shape != shapes[head]["bias"].shape:
        del loaded[head]
    layers = {
        layer: origin if layer in loaded else "fresh" for layer in architecture.children
    }

    @jax.jit
    def fresh(key):  # what is not asked for is not even compiled, which takes seconds
        params = _init(model, key)
        return {layer: params[layer] for layer in layers if layer not in loaded}

    params = fresh(key) | loaded
    return {layer: params[layer] for layer in layers}, {**record, "layers": layers}


@functools.cache  # a run asks twice
def param_shapes(model: nn.Module) -> Any:
    """Return a network's params as shapes and dtypes, without computing any."""
    return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))


def _init(model: nn.Module, key: jax.Array) -> Any:
    images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
    return model.init(key, images, train=False)["params"]


def whole_network(
    name: str, network: str | None = None, *, offline: bool = False
) -> Weights:
    """Return all layers: of published weights by their name, or of a file.

    `network` is the one that they must be of; by default the one whose keys they have.
    """
    if name in SOURCES:
        with open_published(SOURCES[name], offline=offline) as file:
            weights = read_weights(file, network)
        if weights.source is None:
            raise IntegrityError(
                f"{name}: the file changed while it was read; try again"
            )
        return weights
    return read_weights(name, network)


def describe(record: dict[str, Any]) -> str:
    """Return the lines that say what a run starts from; "" when it is all fresh."""
    if "sha256" not in record:
        return ""
    trust = "as published" if record["verified"] else "unverified: no published file"
    digest = record["sha256"][:16]
    words = f"weights: {record['source']}, SHA-256 {digest}… ({trust})"
    head = list(record["layers"])[-1]
    if "classes" in record and record["layers"][head] == "fresh":
        count = record["classes"]
        words += f"\n{head} is fresh: the weights' own has {count:,} classes"
    return words
