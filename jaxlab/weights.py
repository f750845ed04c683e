"""The parameters a run starts from: fresh, or with pretrained layers put in."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.alexnet import MIN_SIZE
from pretrained import embedded


def initial_params(
    model: nn.Module, key: jax.Array, name: str
) -> tuple[Any, dict[str, Any]]:
    """Return a network's first params, and the record of where they come from.

    `name` is "none" (all layers fresh, as torch initialises them) or "imagenet-conv"
    (the convolutions of torchvision's AlexNet, the rest fresh). The record holds the
    source, its hash and a word a layer: "ImageNet" or "fresh".

    Raises ValueError for another name, WeightsError or IntegrityError for weights that
    are absent or damaged.
    """
    if name not in ("none", "imagenet-conv"):
        raise ValueError(f"weights: expected 'none' or 'imagenet-conv', got {name!r}")
    # No parameter's shape depends on the image size, and the smallest is the fastest.
    images = jnp.zeros((1, MIN_SIZE, MIN_SIZE, 3))
    params = jax.jit(functools.partial(model.init, train=False))(key, images)["params"]
    layers = dict.fromkeys(params, "fresh")
    if name == "none":
        return params, {"name": name, "layers": layers}
    convolutions = embedded.imagenet_conv()
    return {**params, **convolutions}, {
        "name": name,
        "source": embedded.SOURCE,
        "sha256": embedded.SHA256,
        "layers": {**layers, **dict.fromkeys(convolutions, "ImageNet")},
    }
