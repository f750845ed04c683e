"""Build the network of a run, and the `Job` of its training loop, from its settings."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import runtime
from jaxlab.cli.terminal import Console
from jaxlab.config import Resolved
from jaxlab.data.dataset import Dataset
from jaxlab.data.files import listed
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.training import inputs, optim, step
from jaxlab.training.feature_store import ArrayStore
from jaxlab.training.fit import Job
from jaxlab.training.initial_weights import keys, variable_shapes
from jaxlab.training.inputs import Inputs
from jaxlab.training.step import TrainState

IMBALANCE = 10  # warn if the largest class is more than this times the smallest


class Network(NamedTuple):
    """A model, its variables' shapes, which params are trained, and its optimizer."""

    model: nn.Module
    shapes: Any
    trainable: Any
    optimizer: optax.GradientTransformation
    rate: Callable[[int], float]  # of an epoch, counted from 0
    init_key: jax.Array
    dropout_key: jax.Array


def network_of(config: Resolved, data: Dataset) -> Network:
    """Return the network of a config, with one output for each class of the data."""
    architecture = ARCHITECTURES[config.model]
    dtype = jnp.dtype(config.precision)
    model = architecture.build(len(data.class_names), dtype=dtype)
    shapes = variable_shapes(model)
    trainable = optim.trainable_tree(
        shapes["params"], architecture.freezing_patterns(config.freeze)
    )
    steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
    schedule = schedule_of(config)
    optimizer = optimizer_of(
        config.optimizer,
        schedule,
        config.momentum,
        config.l2,
        steps_per_epoch,
        leaves_of(trainable),
    )
    return Network(
        model, shapes, trainable, optimizer, schedule.rate, *keys(config.seed)
    )


def schedule_of(config: Resolved) -> optim.Schedule:
    """Return the learning rate schedule of a config."""
    return optim.Schedule(
        config.lr,
        config.schedule,
        config.lr_step or 1,
        config.lr_gamma,
        config.warmup_epochs,
        config.epochs,
    )


def leaves_of(trainable: Any) -> tuple[tuple[str, bool], ...]:
    """Return a tree of bool as (path, bool) pairs, which have a hash."""
    leaves = flax.traverse_util.flatten_dict(trainable, sep="/")
    return tuple((path, bool(is_trained)) for path, is_trained in leaves.items())


def tree_of(leaves: tuple[tuple[str, bool], ...]) -> Any:
    """Return the tree of bool that `leaves_of` was given."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


@runtime.shared
def optimizer_of(
    name: str | optax.GradientTransformation,
    schedule: optim.Schedule,
    momentum: float,
    l2: float,
    steps_per_epoch: int,
    trainable: tuple[tuple[str, bool], ...],
) -> optax.GradientTransformation:
    """Return an optimizer; to an Optax transformation only `trainable` applies."""
    if not isinstance(name, str):
        return optim.only_trainable(name, tree_of(trainable))
    rate = schedule.of_steps(steps_per_epoch)
    return optim.make_optimizer(
        name, rate, trainable=tree_of(trainable), momentum=momentum, l2=l2
    )


@runtime.shared
def train_step_of(
    apply_fn: Callable,
    optimizer: optax.GradientTransformation,
    trainable: tuple[tuple[str, bool], ...],
    l1: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
    frozen: str | None = None,
) -> Callable:
    """Return `make_train_step`'s step, which is compiled once for equal arguments."""
    weights = None if class_weights is None else np.array(class_weights, np.float32)
    return step.make_train_step(
        apply_fn,
        optimizer,
        tree_of(trainable),
        penalty=functools.partial(optim.penalty, l1=l1),
        class_weights=weights,
        frozen=frozen,
    )


@runtime.shared
def eval_step_of(apply_fn: Callable) -> Callable:
    """Return `make_prediction_step`'s step, compiled once for each function."""
    return step.make_prediction_step(apply_fn)


def eval_steps_of(split_inputs: Mapping[str, Inputs]) -> dict[str, Callable]:
    """Return the evaluation step of each split; equal functions have the same one."""
    return {name: eval_step_of(each.apply_fn) for name, each in split_inputs.items()}


def job_of(
    config: Resolved,
    data: Dataset,
    preprocess: Preprocess,
    network: Network,
    state: TrainState,
    clock: runtime.Clock,
    console: Console,
    *,
    class_weights: np.ndarray | None = None,
    store: ArrayStore | None = None,
) -> Job:
    """Return the job that `fit` runs from `state`.

    With a `store`, the outputs of frozen layers are computed once and kept there.
    `class_weights` is passed to `make_train_step`.
    """
    architecture = ARCHITECTURES[config.model]
    images = inputs.image_inputs(network.model, data, preprocess, config.workers)
    split_inputs = images
    if store is not None:
        split_inputs = inputs.feature_inputs(
            images,
            architecture,
            network.model,
            {"params": state.params, **state.other_variables},
            data,
            preprocess,
            network.trainable,
            store,
            clock=clock,
            progress=console.progress,
            log=console.log,
            wait=console.wait,
        )
    frozen = inputs.frozen_children(architecture.children, network.trainable)
    evaluated = data.splits.keys() - {"train"}
    are_stored = all(split_inputs[name] is not images[name] for name in evaluated)
    return Job(
        inputs=split_inputs,
        counts={name: len(split) for name, split in data.splits.items()},
        train_step=train_step_of(
            split_inputs["train"].apply_fn,
            network.optimizer,
            leaves_of(network.trainable),
            class_weights=None if class_weights is None else tuple(class_weights),
            frozen=frozen[-1] if frozen else None,
        ),
        eval_steps=eval_steps_of(split_inputs),
        rate=network.rate,
        trainable=network.trainable,
        key=network.dropout_key,
        seed=config.seed,
        batch_size=config.batch_size,
        epochs=config.epochs,
        every=config.checkpoint_every,
        patience=config.patience,
        # Where outputs are stored the frozen children do not run.
        forward_batch=inputs.forward_batch(
            network.model, config.image_size, frozen[-1] if are_stored else None
        ),
        clock=clock,
        console=console,
    )


def check_last_batch(config: Resolved, network: Network, count: int) -> None:
    """Raise UsageError if batch normalisation cannot train on the last batch.

    `count` is the number of training images. A batch of one image has no variance where
    the network has shrunk it to one pixel; torch raises an error there, too.
    """
    last = count % config.batch_size or config.batch_size
    if "batch_stats" not in network.shapes or last > 1:
        return
    children = ARCHITECTURES[config.model].children
    frozen = inputs.frozen_children(children, network.trainable)
    size = config.image_size
    train = functools.partial(
        network.model.apply,
        train=True,
        frozen=frozen[-1] if frozen else None,
        rngs={"dropout": jax.random.key(0)},
        mutable=["batch_stats"],
    )
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    try:
        jax.eval_shape(train, network.shapes, image)
    except ValueError as error:
        raise UsageError(
            f"--batch-size: {config.batch_size} leaves one of {count:,} images for the "
            "last batch, for which batch normalisation has no variance; pass another "
            "--batch-size, or a larger --image-size"
        ) from error


def class_weights(
    data: Dataset, kind: str, log: Callable[[str], None]
) -> np.ndarray | None:
    """Return class weights float32[classes] for the loss; None for equal weights.

    Of n training images in k classes, a class of m images gets the weight n / (k · m);
    classes without images do not count and get 0. Logs a warning if the classes are
    imbalanced and `kind` is not "balanced".
    """
    counts = np.bincount(data.train.labels, minlength=len(data.class_names))
    present = counts[counts > 0]
    if len(present) < len(counts):
        absent = [
            name for name, n in zip(data.class_names, counts, strict=True) if not n
        ]
        log(
            "warning: classes without a training image, which are never predicted "
            f"({len(absent):,}): {listed(absent)}"
        )
    if kind == "balanced":
        weights = np.zeros(len(counts), np.float32)
        weights[counts > 0] = counts.sum() / (len(present) * present)
        return weights
    if present.max() > IMBALANCE * present.min():
        log(
            f"warning: the largest class has {present.max():,} training images and "
            f"the smallest has {present.min():,}; pass --class-weights balanced to "
            "give all classes equal weight"
        )
    return None
