"""The inputs of a run's steps: images, or the stored outputs of frozen layers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab import runtime
from jaxlab.data.dataset import Dataset, ProgressBar, Split
from jaxlab.data.loaders import InMemory, Loader, Streamed
from jaxlab.data.pictures import Pictures
from jaxlab.data.preprocess import Preprocess
from jaxlab.models.architecture import Architecture
from jaxlab.training.feature_store import ArrayStore, StoreFullError
from jaxlab.training.features import Images, feature_loader

# Images per batch where no gradients are computed: a compromise between speed and
# memory that does not affect the results.
FORWARD_BATCH = 100


class Inputs(NamedTuple):
    """A split's loader, and a function like a model's `apply` from batch to logits."""

    load: Loader
    apply_fn: Callable


def image_inputs(
    model: nn.Module, data: Dataset, preprocess: Preprocess, workers: int
) -> dict[str, Inputs]:
    """Return each split's images for the whole network; `workers` is for `Streamed`."""
    to_input = preprocess.normalize if data.resized else preprocess

    @functools.wraps(model.apply)  # `takes` inspects model.apply
    def apply_fn(variables, batch, **kwargs):
        return model.apply(variables, to_input(batch), **kwargs)

    def load(split):
        if isinstance(split.images, Pictures):
            return Streamed(split.images, split.labels, preprocess, workers)
        return InMemory(jnp.asarray(split.images), jnp.asarray(split.labels))

    return {name: Inputs(load(split), apply_fn) for name, split in data.splits.items()}


def feature_inputs(
    of_images: dict[str, Inputs],
    architecture: Architecture,
    model: nn.Module,
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
    nowhere else: the children from the first on of which nothing is trained. Stored are
    the outputs of the last of them; in training of the last before the first dropout,
    whose outputs differ from step to step. A split without such a child keeps its
    images; so does one whose outputs have no place, and that is said.
    """
    frozen = frozen_children(architecture.children, trainable)
    cuts = {name: architecture.stored(frozen, name) for name in data.splits}
    found = dict(of_images)
    counts, seconds = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    to_store = {name: data.splits[name] for name, cut in cuts.items() if cut}
    if not to_store:
        return found
    with progress(sum(map(len, to_store.values())), "features", "image") as bar:
        for name, split in to_store.items():
            load, whole = of_images[name]
            layers = cuts[name]
            started = clock()
            try:
                load, stored = feature_loader(
                    functools.partial(whole, train=False, until=layers[-1]),
                    {"params": frozen_layers(params, trainable, layers)},
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
            found[name] = Inputs(load, functools.partial(model.apply, after=layers[-1]))
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


def frozen_children(children: Sequence[str], trainable: Any) -> list[str]:
    """Return the children before the first one that has a trainable parameter."""
    trained = [name for name in children if any(jax.tree.leaves(trainable[name]))]
    return list(children[: children.index(trained[0])] if trained else children)


def frozen_layers(params: Any, trainable: Any, layers: Sequence[str]) -> Any:
    """Return the params of the named layers, which must be frozen.

    Raises ValueError, which names each of their leaves that is True in `trainable`: its
    gradient would be zero, and the stored outputs would not be those of its new values.
    """
    trained = [
        f"{layer}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        for layer in layers
        for path, is_trained in jax.tree.leaves_with_path(trainable[layer])
        if is_trained
    ]
    if trained:
        raise ValueError(
            f"stored outputs: {', '.join(trained)} are trained, so the outputs of "
            "their layers change in each step; store the outputs of frozen layers only"
        )
    return {layer: params[layer] for layer in layers}
