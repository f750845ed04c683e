"""What a run's steps are fed: images, or the stored outputs of frozen layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxlab import run_folder
from jaxlab.data.dataset import Dataset, Progress, Split
from jaxlab.data.pictures import Pictures
from jaxlab.features import Images, feature_loader
from jaxlab.models.alexnet import AlexNet
from jaxlab.preprocess import Preprocess
from jaxlab.runtime import Clock
from jaxlab.store import ArrayStore, NoRoom
from jaxlab.train import Loader, Resident

# Images a batch where nothing is learnt: a compromise of speed and memory, no result.
FORWARD_BATCH = 100


class Inputs(NamedTuple):
    """Batches of a split, and the function from them to logits, a model's `apply`."""

    load: Loader
    apply_fn: Callable


def images(
    model: AlexNet, data: Dataset, preprocess: Preprocess, workers: int
) -> dict[str, Inputs]:
    """Return each split's images, for the whole network; `workers` of `streamed`."""
    to_input = preprocess.normalize if data.fitted else preprocess

    def apply_fn(variables, batch, **kwargs):
        return model.apply(variables, to_input(batch), **kwargs)

    def load(split):
        if isinstance(split.images, Pictures):
            from jaxlab.data.stream import streamed  # Grain takes a second to import

            return streamed(split.images, split.labels, preprocess, workers)
        return Resident(jnp.asarray(split.images), jnp.asarray(split.labels))

    return {name: Inputs(load(split), apply_fn) for name, split in data.splits.items()}


def features(
    of_images: dict[str, Inputs],
    model: AlexNet,
    params: Any,
    data: Dataset,
    preprocess: Preprocess,
    freeze: str,
    store: ArrayStore,
    *,
    clock: Clock,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, Inputs]:
    """Return each split's frozen outputs, for the rest of the network.

    Those of the convolutions; and, where only the head learns, those of fc7 for the
    test images, which no dropout changes. A split whose outputs have no place keeps its
    images, and that is said.
    """
    parts = dict.fromkeys(data.splits, _CONVOLUTIONS)
    if freeze == "backbone":
        parts["test"] = _ALL_BUT_HEAD
    found, counts, seconds = {}, {True: 0, False: 0}, {True: 0.0, False: 0.0}
    with progress(sum(map(len, data.splits.values())), "features", "image") as bar:
        for name, split in data.splits.items():
            load, whole = of_images[name]
            frozen, rest, layers = parts[name]
            started = clock()
            try:
                load, stored = feature_loader(
                    functools.partial(frozen, model, whole),
                    {"params": {layer: params[layer] for layer in layers}},
                    Images(
                        load,
                        _shape(split, preprocess),
                        split.labels,
                        split.images_sha256(),
                    ),
                    store,
                    batch_size=FORWARD_BATCH,
                    facts={
                        "preprocessing": dataclasses.asdict(preprocess),
                        "versions": run_folder.versions(),
                    },
                    on_batch=bar.update,
                    say=say,
                )
            except (NoRoom, OSError) as error:
                say(
                    f"warning: {store.folder}: no place for the features of "
                    f"{len(split):,} images: {error}; the frozen layers run anew for "
                    "them in every epoch; see --feature-cache-size"
                )
                found[name] = of_images[name]
                continue
            found[name] = Inputs(load, functools.partial(model.apply, method=rest))
            counts[stored] += len(split)
            seconds[stored] += clock() - started
    ways = {True: f"from {store.folder}", False: "through the frozen layers"}
    for stored, way in ways.items():
        if counts[stored]:
            say(f"features: {counts[stored]:,} images {way}, {seconds[stored]:.1f} s")
    return found


def _shape(split: Split, preprocess: Preprocess) -> tuple[int, ...]:
    if isinstance(split.images, Pictures):
        return (preprocess.image_size, preprocess.image_size, 3)
    return split.images.shape[1:]


def _features(model, whole, variables, batch):
    return whole(variables, batch, method="features")


def _hidden(model, whole, variables, batch):
    outputs = _features(model, whole, variables, batch)
    return model.apply(variables, outputs, train=False, method="hidden")


# What is run once, the method for the rest, and the layers that run once.
_CONV_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_CONVOLUTIONS = (_features, "classify", _CONV_LAYERS)
_ALL_BUT_HEAD = (_hidden, "head", (*_CONV_LAYERS, "fc6", "fc7"))
