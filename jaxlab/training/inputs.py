"""The inputs of a run's steps: images, or the stored outputs of frozen layers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab import environment, runtime
from jaxlab.data.dataset import Dataset, ProgressBar, Split
from jaxlab.data.loaders import InMemory, Loader, Streamed
from jaxlab.data.pictures import Pictures
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError
from jaxlab.models.architecture import Architecture
from jaxlab.models.chain import takes, variables_of
from jaxlab.models.describe import largest_outputs
from jaxlab.training.feature_store import ArrayStore, StoreFullError
from jaxlab.training.features import Images, feature_loader
from jaxlab.training.initial_weights import variable_shapes
from pretrained import stages
from pretrained.errors import counted

# Images per batch where no gradients are computed: a compromise between speed and
# memory that does not affect the results. Fewer, if a layer's output for them would
# take more bytes than this: the first one of a VGG takes 13 MB for one image.
FORWARD_BATCH = 100
FORWARD_BYTES = 160_000_000


class Inputs(NamedTuple):
    """A split's loader, and a function like a model's `apply` from batch to logits."""

    load: Loader
    apply_fn: Callable


def forward_batch(model: nn.Module, image_size: int, after: str | None = None) -> int:
    """Return the images per batch of a network where no gradients are computed.

    Only the children behind child `after` run, by default all.
    """
    sizes = list(_largest_outputs(model, image_size).items())
    behind = 0 if after is None else [child for child, _ in sizes].index(after) + 1
    size = max(size for _, size in sizes[behind:])
    return min(FORWARD_BATCH, max(1, FORWARD_BYTES // (4 * size)))  # float32


@functools.cache  # a run asks for all children, and for those behind the frozen ones
def _largest_outputs(model: nn.Module, image_size: int) -> dict[str, int]:
    return largest_outputs(model, variable_shapes(model), (image_size, image_size, 3))


def image_inputs(
    model: nn.Module, data: Dataset, preprocess: Preprocess | None, workers: int = 0
) -> dict[str, Inputs]:
    """Return the images of each split, for the whole network.

    Images are prepared by `preprocess`, or scaled to [0, 1] if it is None. `workers`
    are those of `Streamed`.
    """
    apply_fn = apply_to_images(model, preprocess, data.resized)

    def load(split):
        if isinstance(split.images, Pictures):
            return Streamed(split.images, split.labels, preprocess, workers)
        return InMemory(jnp.asarray(split.images), jnp.asarray(split.labels))

    return {name: Inputs(load(split), apply_fn) for name, split in data.splits.items()}


@runtime.shared
def apply_to_images(
    model: nn.Module, preprocess: Preprocess | None, are_resized: bool
) -> Callable:
    """Return `(variables, uint8[b, h, w, c], *, train, ...) -> logits` of a module.

    A module without a keyword `train` is called without it.
    """
    takes_train = takes(model.apply, "train")

    @functools.wraps(model.apply)  # it accepts the keywords of the module
    def apply_fn(variables, images, *, train, **keywords):
        if takes_train:
            keywords["train"] = train
        x = to_input(images, preprocess, are_resized)
        return model.apply(variables, x, **keywords)

    return apply_fn


@runtime.shared
def outputs_of(apply_fn: Callable, layer: str) -> Callable:
    """Return `(variables, images) -> outputs` of a network up to and with a layer."""
    return functools.partial(apply_fn, train=False, until=layer)


@runtime.shared
def rest_of(model: nn.Module, layer: str) -> Callable:
    """Return `model.apply` of the layers behind a layer."""
    return functools.partial(model.apply, after=layer)


def to_input(
    images: jax.Array, preprocess: Preprocess | None, are_resized: bool
) -> jax.Array:
    """Return images uint8[b, h, w, c] as a network's input, float32[b, h', w', c']."""
    if preprocess is None:
        return images.astype(jnp.float32) / 255
    return preprocess.normalize(images) if are_resized else preprocess(images)


def feature_inputs(
    of_images: dict[str, Inputs],
    architecture: Architecture,
    model: nn.Module,
    variables: Any,
    data: Dataset,
    preprocess: Preprocess,
    trainable: Any,
    store: ArrayStore,
    *,
    clock: runtime.Clock,
    progress: ProgressBar,
    log: Callable[[str], None],
    wait: Callable[[str, str], None] = lambda stage, line: stages.begin(stage),
) -> dict[str, Inputs]:
    """Return the stored outputs of each split, for the rest of the network.

    The frozen layers are read from `trainable`, a tree of bool like the params in
    `variables`, and from nowhere else: they are the children before the first one that
    has a trained leaf. The test split stores the output of the last of them. The
    training split stores that of the last one before the first dropout, because the
    output of dropout differs from step to step. A split without such a child keeps its
    images; so does a split whose outputs do not fit into the store, and a warning is
    logged. `wait` is that of a Console.
    """
    frozen = frozen_children(architecture.children, trainable)
    cuts = {name: architecture.stored(frozen, name) for name in data.splits}
    to_store = {name: data.splits[name] for name, cut in cuts.items() if cut}
    found = dict(of_images)
    if not to_store:
        return found
    done: list[tuple[bool, int, float]] = []
    facts = {
        "preprocessing": preprocess.facts(),
        "versions": environment.versions(),
    }
    count = sum(map(len, to_store.values()))
    wait("computing features", f"features: {counted(count, 'image')}")
    with progress(count, "features", "image") as bar:
        for name, split in to_store.items():
            started, layers = clock(), cuts[name]
            load, whole = of_images[name]
            try:
                load, is_stored = feature_loader(
                    outputs_of(whole, layers[-1]),
                    frozen_layers(variables, trainable, layers),
                    _images(load, split, preprocess),
                    store,
                    batch_size=forward_batch(model, preprocess.image_size),
                    facts=facts,
                    on_batch=bar.update,
                    log=log,
                )
            except (StoreFullError, OSError) as error:
                log(
                    f"warning: {store.folder}: not enough space for the features of "
                    f"{counted(len(split), 'image')}: {error}; the frozen layers run "
                    "again for them in every epoch; see --feature-cache-size"
                )
                continue
            found[name] = Inputs(load, rest_of(model, layers[-1]))
            done.append((is_stored, len(split), clock() - started))
    _log_done(done, store, log)
    return found


def _log_done(
    done: Sequence[tuple[bool, int, float]],
    store: ArrayStore,
    log: Callable[[str], None],
) -> None:
    """Log how many images were read from the store and how many were computed."""
    ways = {True: f"from {store.folder}", False: "through the frozen layers"}
    for from_store, way in ways.items():
        count = sum(images for is_stored, images, _ in done if is_stored == from_store)
        seconds = sum(each for is_stored, _, each in done if is_stored == from_store)
        if count:
            log(f"features: {counted(count, 'image')} {way}, {seconds:.1f} s")


def _images(load: Loader, split: Split, preprocess: Preprocess) -> Images:
    shape = image_shape(split, preprocess)
    return Images(load, shape, split.labels, split.images_sha256())


def image_shape(split: Split, preprocess: Preprocess | None) -> tuple[int, ...]:
    """Return the shape of one image as a loader gives it: uint8[h, w, c].

    Raises UsageError for pictures without the `preprocess` that resizes them.
    """
    if not isinstance(split.images, Pictures):
        return split.images.shape[1:]
    if preprocess is None:
        raise UsageError(
            "preprocess: missing, but the pictures are resized as they are read; pass "
            "preprocess=jaxlab.Preprocess()"
        )
    return (preprocess.image_size, preprocess.image_size, 3)


def frozen_children(children: Sequence[str], trainable: Any) -> list[str]:
    """Return the children before the first one that has a trainable parameter."""
    trained = [name for name in children if any(jax.tree.leaves(trainable[name]))]
    return list(children[: children.index(trained[0])] if trained else children)


def frozen_layers(variables: Any, trainable: Any, layers: Sequence[str]) -> Any:
    """Return the variables of the named layers, which must be frozen.

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
    return variables_of(variables, layers)
