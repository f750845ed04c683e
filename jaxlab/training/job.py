"""Build the network of a run, and the `Job` of its training loop, from its settings."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import runtime
from jaxlab.cli import terminal
from jaxlab.config import Config
from jaxlab.data.dataset import Dataset
from jaxlab.data.preprocess import Preprocess
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.training import inputs, optim, step
from jaxlab.training.feature_store import ArrayStore
from jaxlab.training.fit import Job
from jaxlab.training.initial_weights import param_shapes
from jaxlab.training.step import TrainState


class Network(NamedTuple):
    """A model, its params' shapes, which of them are trained, and its optimizer."""

    model: nn.Module
    shapes: Any
    trainable: Any
    optimizer: optax.GradientTransformation
    rate: Callable[[int], float]  # of an epoch, counted from 0
    init_key: jax.Array
    dropout_key: jax.Array


def network_of(config: Config, data: Dataset) -> Network:
    """Return the network of a config, with one output for each class of the data."""
    architecture = ARCHITECTURES[config.model]
    dtype = jnp.dtype(config.precision)
    model = architecture.build(len(data.class_names), dtype=dtype)
    shapes = param_shapes(model)
    patterns = architecture.freezing_patterns(config.freeze)
    trainable = optim.trainable_tree(shapes, patterns)
    steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
    schedule = optim.step_decay(
        config.lr, config.lr_step, config.lr_gamma, steps_per_epoch
    )
    optimizer = optim.make_optimizer(
        config.optimizer,
        schedule,
        trainable=trainable,
        momentum=config.momentum,
        l2=config.l2,
    )
    return Network(
        model,
        shapes,
        trainable,
        optimizer,
        lambda epoch: schedule(epoch * steps_per_epoch),
        *jax.random.split(jax.random.key(config.seed)),
    )


def job_of(
    config: Config,
    data: Dataset,
    preprocess: Preprocess,
    network: Network,
    state: TrainState,
    class_weights: np.ndarray | None = None,
    store: ArrayStore | None = None,
) -> Job:
    """Return the job that `fit` runs from `state`.

    With a `store`, the outputs of frozen layers are computed once and kept there.
    `class_weights` is passed to `make_train_step`.
    """
    architecture = ARCHITECTURES[config.model]
    clock = runtime.Clock()
    split_inputs = inputs.image_inputs(network.model, data, preprocess, config.workers)
    if store is not None:
        split_inputs = inputs.feature_inputs(
            split_inputs,
            architecture,
            network.model,
            state.params,
            data,
            preprocess,
            network.trainable,
            store,
            clock=clock,
            progress=terminal.progress_bar,
            log=terminal.log,
        )
    frozen = inputs.frozen_children(architecture.children, network.trainable)
    return Job(
        inputs=split_inputs,
        counts={name: len(split) for name, split in data.splits.items()},
        train_step=step.make_train_step(
            split_inputs["train"].apply_fn,
            network.optimizer,
            network.trainable,
            class_weights=class_weights,
            frozen=frozen[-1] if frozen else None,
        ),
        eval_step=step.make_eval_step(split_inputs["test"].apply_fn),
        rate=network.rate,
        trainable=network.trainable,
        key=network.dropout_key,
        seed=config.seed,
        batch_size=config.batch_size,
        epochs=config.epochs,
        every=config.checkpoint_every,
        clock=clock,
    )
