"""The inputs of a run's steps: images, or the stored outputs of frozen layers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxlab import runtime
from jaxlab.data.dataset import Dataset, ProgressBar, Split
from jaxlab.data.loaders import InMemory, Loader, Streamed
from jaxlab.data.pictures import Pictures
from jaxlab.data.preprocess import Preprocess
from jaxlab.models.alexnet import AlexNet
from jaxlab.training.feature_store import ArrayStore, StoreFullError
from jaxlab.training.features import Images, feature_loader

# Images a batch where nothing is learnt: a compromise of speed and memory, no result.
FORWARD_BATCH = 100


class Inputs(NamedTuple):
    """Batches of a split, and the function from them to logits, a model's `apply`."""

    load: Loader
    apply_fn: Callable


def image_inputs(
    model: AlexNet, data: Dataset, preprocess: Preprocess, workers: int
) -> dict[str, Inputs]:
    """Return each split's images, for the whole network; `workers` of `Streamed`."""
    to_input = preprocess.normalize if data.resized else preprocess

    def apply_fn(variables, batch, **kwargs):
        return model.apply(variables, to_input(batch), **kwargs)

    def load(split):
        if isinstance(split.images, Pictures):
            return Streamed(split.images, split.labels, preprocess, workers)
        return InMemory(jnp.asarray(split.images), jnp.asarray(split.labels))

    return {name: Inputs(load(split), apply_fn) for name, split in data.splits.items()}


def feature_inputs(
    of_images: dict[str, Inputs],
    model: AlexNet,
    params: Any,
    data: Dataset,
    preprocess: Preprocess,
    trainable: Any,
    store: ArrayStore,
    *,
    clock: runtime.Clock,
    progress: ProgressBar,
    log: Callable[[str], None],
) -> dict[str, Inputs]:
    """Return each split's frozen outputs, for the rest of the network.

    Which layers are frozen is read from `trainable`, a tree of bool like `params`, and
    nowhere else. Stored are the outputs of the last cut behind which all is frozen: in
    training before the first dropout, for the test split behind it too, since dropout
    is off there. A split without such a cut keeps its images; so does one whose outputs
    have no place, and that is said.
    """
    cuts = {
        name: _last_frozen(_CUTS[:1] if name == "train" else _CUTS, trainable)
        for name in data.splits
    }
    found = dict(of_images)
    counts, seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    to_store = {name: data.splits[name] for name, cut in cuts.items() if cut}
    if not to_store:
        return found
    with progress(sum(map(len, to_store.values())), "features", "image") as bar:
        for name, split in to_store.items():
            load, whole = of_images[name]
            cut = cuts[name]
            started = clock()
            try:
                load, stored = feature_loader(
                    functools.partial(cut.run, model, whole),
                    {"params": frozen_layers(params, trainable, cut.layers)},
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
                        "versions": runtime.versions(),
                    },
                    on_batch=bar.update,
                    log=log,
                )
            except (StoreFullError, OSError) as error:
                log(
                    f"warning: {store.folder}: no place for the features of "
                    f"{len(split):,} images: {error}; the frozen layers run anew for "
                    "them in every epoch; see --feature-cache-size"
                )
                continue
            found[name] = Inputs(load, functools.partial(model.apply, method=cut.rest))
            counts[stored] += len(split)
            seconds[stored] += clock() - started
    ways = {True: f"from {store.folder}", False: "through the frozen layers"}
    for stored, way in ways.items():
        if counts[stored]:
            log(f"features: {counts[stored]:,} images {way}, {seconds[stored]:.1f} s")
    return found


def _shape(split: Split, preprocess: Preprocess) -> tuple[int, ...]:
    if isinstance(split.images, Pictures):
        return (preprocess.image_size, preprocess.image_size, 3)
    return split.images.shape[1:]


def _features(model, whole, variables, batch):
    return whole(variables, batch, method="features")


def _hidden(model, whole, variables, batch):
    outputs = _features(model, whole, variables, batch)
    return model.apply(variables, outputs, train=False, method="before_head")


class Cut(NamedTuple):
    """Where stored outputs end: what runs once, the method for the rest, and layers.

    `run(model, whole, variables, images)` computes the outputs of `layers`, the names
    of all layers that it passes through.
    """

    run: Callable
    rest: str
    layers: tuple[str, ...]


_CONV_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
# In the order of the network. Only the first stands before dropout.
_CUTS = (
    Cut(_features, "classify", _CONV_LAYERS),
    Cut(_hidden, "head", (*_CONV_LAYERS, "fc6", "fc7")),
)


def _last_frozen(cuts: Sequence[Cut], trainable: Any) -> Cut | None:
    frozen = {layer for layer, leaves in trainable.items() if not any(leaves.values())}
    return next((cut for cut in reversed(cuts) if frozen.issuperset(cut.layers)), None)


def frozen_layers(params: Any, trainable: Any, layers: Sequence[str]) -> Any:
    """Return the named layers' params, which no step changes.

    Raises ValueError naming each leaf of them that `trainable` says is trained: its
    gradient would be zero and its stored outputs those of other weights.
    """
    trained = [
        f"{layer}/{leaf}"
        for layer in layers
        for leaf, is_trained in trainable[layer].items()
        if is_trained
    ]
    if trained:
        raise ValueError(
            f"stored outputs: {', '.join(trained)} are trained, so what they give "
            "changes from step to step; store the outputs of frozen layers only"
        )
    return {layer: params[layer] for layer in layers}
