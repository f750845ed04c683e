"""`jaxlab.fit`: train any Linen module on a dataset, without a folder.

It is one file because most of it is what `fit` checks and documents.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxlab import runtime
from jaxlab.cli import flags
from jaxlab.cli.flags import flag
from jaxlab.cli.terminal import PYTHON, SILENT, Console
from jaxlab.data.dataset import Dataset
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError, help_of
from jaxlab.models.chain import Network, children, takes
from jaxlab.training import inputs, module, optim
from jaxlab.training.fit import Job, NoWriter, Progress, ValidatedState, run_epochs
from jaxlab.training.initial_weights import keys
from jaxlab.training.job import (
    eval_steps_of,
    leaves_of,
    optimizer_of,
    train_step_of,
)
from jaxlab.training.step import init_state
from pretrained.errors import counted


@dataclass(frozen=True)
class Settings:
    """The settings of `fit` that are numbers or names, checked when it is created."""

    epochs: int = flag(
        40, "passes over the training images", at_least=1, synonyms=("num-epochs",)
    )
    batch_size: int = flag(10, "images per step", at_least=1, synonyms=("batch", "bs"))
    optimizer: str = flag("adam", "update rule", choices=("adam", "sgd"))
    lr: float = flag(1e-4, "learning rate", above=0, synonyms=("learning-rate",))
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    l2: float = flag(0.0, "L2", at_least=0, synonyms=("weight-decay", "wd"))
    l1: float = flag(0.0, "factor of the sum of |w| in the loss", at_least=0)
    lr_step: int | None = flag(
        None, "epochs between decays", at_least=1, synonyms=("step-size",)
    )
    lr_gamma: float = flag(
        0.1, "factor of each decay", above=0, at_most=1, synonyms=("gamma",)
    )
    seed: int = flag(0, "seed", at_least=0, below=2**32, synonyms=("random-state",))

    def __post_init__(self):
        """Check every setting."""
        flags.validate(self)


class History(NamedTuple):
    """The result of `fit`: a row of metrics for each epoch, and the trained variables.

    A row has `epoch`, `train_loss`, `train_accuracy`, `test_loss` and `test_accuracy`
    (or `validation_loss` and `validation_accuracy`, see `fit`), measured in evaluation
    mode after the epoch, `learning_rate` (but with an optimizer of Optax),
    `examples_per_second` and `seconds`. `variables` are `{"params": …}`, and
    `batch_stats` where the module has them.
    """

    rows: list[dict[str, float]]
    variables: dict[str, Any]

    @property
    def test_accuracy(self) -> float:
        """The test accuracy of the variables, in [0, 1]."""
        return self.rows[-1]["test_accuracy"]

    def __repr__(self) -> str:
        """Return one line: the number of epochs and the last accuracies."""
        last = self.rows[-1]
        return (
            f"History({counted(len(self.rows), 'epoch')}, train accuracy "
            f"{last['train_accuracy']:.4f}, test accuracy {last['test_accuracy']:.4f})"
        )


@help_of("fit")
def fit(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: int = 40,
    batch_size: int = 10,
    optimizer: str | optax.GradientTransformation = "adam",
    lr: float = 1e-4,
    momentum: float = 0.9,
    l2: float = 0.0,
    l1: float = 0.0,
    lr_step: int | None = None,
    lr_gamma: float = 0.1,
    trainable: Any = None,
    variables: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    log: bool = True,
    **unknown: Any,
) -> History:
    """Train a module on a dataset; return its metrics by epoch and its variables.

    `model` is any Linen module from images float32[b, h, w, c] to logits
    float[b, classes], with or without a keyword `train`. Images are scaled to [0, 1],
    or prepared by `preprocess`. Both splits are measured in evaluation mode after each
    epoch. If the data have a validation split, it is measured instead of the test
    split; the variables are those of the epoch with the lowest validation loss, and the
    test split is measured once, with them. The loop is that of `jaxlab.fine_tune`, and
    the defaults are the lab's: 40 epochs of Adam at a rate of 1e-4 on batches of 10.

    `optimizer` is "adam", "sgd" with `momentum`, or an Optax transformation, which
    brings its own rate and decay. `l2` is torch's weight_decay, `l1` the factor of
    Σ|w| in the loss; 1e-2 and 1e-3 are strengths to begin with. The rate is multiplied
    by `lr_gamma` every `lr_step` epochs, if given. `trainable` is a tree of bool like
    the params (see `trainable_tree`); by default all are trained. `variables` are the
    module's first variables, by default `model.init`'s. `seed` decides these, the order
    of the images and dropout. `log=False` prints nothing.

    The last batch of an epoch is filled up with examples of weight 0, unless the module
    has batch statistics and takes no `weights`: then it is shorter.

    The result has `rows`, one dict for each epoch with `epoch`, `train_loss`,
    `train_accuracy`, `test_loss`, `test_accuracy`, `learning_rate`,
    `examples_per_second` and `seconds`; and `variables`, with which
    `model.apply(history.variables, images / 255, train=False)` gives the logits of
    other images. Its `test_accuracy` is that of these variables.

    Raises UsageError for a wrong setting, and for a module that does not return logits
    for all classes of the data, has variables in other collections than `params` and
    `batch_stats`, or needs other keys than that of dropout in training; JaxlabError if
    the loss is not finite.

    >>> import jaxlab
    >>> data = jaxlab.load_data("mnist5k", train_size=20, test_size=10, log=False)
    >>> history = fit(jaxlab.MLP(features=(8, 8)), data, epochs=2, log=False)
    >>> [row["epoch"] for row in history.rows], sorted(history.variables["params"])
    ([1, 2], ['fc1', 'fc2', 'fc3'])
    """
    flags.require_known(Settings, unknown, ("trainable", "variables", "preprocess"))
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer if isinstance(optimizer, str) else "adam",
        lr=lr,
        momentum=momentum,
        l2=l2,
        l1=l1,
        lr_step=lr_step,
        lr_gamma=lr_gamma,
        seed=seed,
    )
    _check_arguments(model, data, optimizer, preprocess, settings)
    module.check_call(model)
    training = prepared(model, data, settings, trainable, variables, preprocess)
    return train(training, settings, optimizer, PYTHON if log else SILENT)


class Training(NamedTuple):
    """What `fit` trains, checked: a module on data, with its variables."""

    model: nn.Module
    data: Dataset
    variables: dict[str, Any]
    trainable: Any
    inputs: dict[str, inputs.Inputs]
    forward_batch: int


def prepared(
    model: nn.Module,
    data: Dataset,
    settings: Settings,
    trainable: Any = None,
    variables: Any = None,
    preprocess: Preprocess | None = None,
) -> Training:
    """Return the training with the module's first variables.

    Raises UsageError or ValueError for a module, variables or a `trainable` that do not
    fit the data, the loop or each other.
    """
    split_inputs = inputs.image_inputs(model, data, preprocess)
    shape = inputs.image_shape(data.train, preprocess)
    is_given = variables is not None
    if variables is None:
        init = _init_program(model, preprocess, data.resized)
        init_key, _ = keys(settings.seed)
        with module.faults_named("initialisation", ("params", "dropout")):
            variables = init(init_key, np.zeros((1, *shape), np.uint8))
    variables = module.checked_variables(variables, is_given)
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, variables["params"])
    optim.check_trainable(trainable, variables["params"])
    count = len(data.train)
    last = count % settings.batch_size or min(settings.batch_size, count)
    module.check_outputs(
        split_inputs["train"].apply_fn,
        variables,
        np.zeros((last, *shape), np.uint8),
        len(data.class_names),
    )
    # Of other modules it is not known which of their outputs exist at the same time.
    batch = inputs.FORWARD_BATCH
    if isinstance(model, Network) and preprocess is not None:
        batch = inputs.forward_batch(model, preprocess.image_size)
    return Training(model, data, variables, trainable, split_inputs, batch)


def train(
    training: Training,
    settings: Settings,
    optimizer: str | optax.GradientTransformation,
    console: Console,
    *,
    patience: int | None = None,
    also: tuple[str, ...] = ("train",),
) -> History:
    """Run the loop; `patience` and `also` are those of a Job."""
    model, data, variables, trainable, split_inputs, forward_batch = training
    apply_fn, count = split_inputs["train"].apply_fn, len(data.train)
    params, batch_stats = variables["params"], variables.get("batch_stats")
    batch_size = min(settings.batch_size, count)
    leaves = leaves_of(trainable)
    kind = "constant" if settings.lr_step is None else "step"
    step_epochs = settings.lr_step or 1
    schedule = optim.Schedule(settings.lr, kind, step_epochs, settings.lr_gamma)
    transformation = optimizer_of(
        optimizer,
        schedule,
        settings.momentum,
        settings.l2,
        math.ceil(count / batch_size),
        leaves,
    )
    step = train_step_of(
        apply_fn,
        transformation,
        leaves,
        settings.l1,
        frozen=_last_frozen(model, trainable),
    )
    with contextlib.closing(runtime.Clock()) as clock:
        job = Job(
            inputs=split_inputs,
            counts={name: len(split) for name, split in data.splits.items()},
            train_step=step,
            eval_steps=eval_steps_of(split_inputs),
            rate=schedule.rate if isinstance(optimizer, str) else None,
            trainable=trainable,
            key=keys(settings.seed)[1],
            seed=settings.seed,
            batch_size=batch_size,
            epochs=settings.epochs,
            every=0,
            clock=clock,
            console=console,
            patience=patience,
            also=also,
            pads=not batch_stats or takes(apply_fn, "weights"),
            forward_batch=forward_batch,
        )
        state = init_state(params, transformation, batch_stats)
        if data.validation is not None:
            state = ValidatedState.of(state, trainable)
        state, rows, _ = run_epochs(job, state, Progress(), NoWriter())
    return History(rows, {"params": state.params, **state.other_variables})


def _check_arguments(
    model: Any, data: Any, optimizer: Any, preprocess: Any, settings: Settings
) -> None:
    """Raise TypeError or UsageError for arguments of the wrong kind."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a Linen module, got {_kind(model)}")
    if not isinstance(data, Dataset):
        raise TypeError(
            f"data: expected a Dataset, got {_kind(data)}; make one with "
            "jaxlab.load_data"
        )
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise TypeError(
            f"preprocess: expected a Preprocess or None, got {_kind(preprocess)}"
        )
    shape = inputs.image_shape(data.train, preprocess)
    size = preprocess.image_size if preprocess is not None else None
    if size is not None and data.resized and shape[:2] != (size, size):
        raise UsageError(
            f"preprocess: has image_size {size}, but the pictures were resized to "
            f"{shape[0]} when they were loaded; pass the same image_size to load_data"
        )
    if isinstance(optimizer, str):
        return
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer: expected 'adam', 'sgd' or an Optax transformation, got "
            f"{_kind(optimizer)}"
        )
    for name in ("lr", "momentum", "l2", "lr_step", "lr_gamma"):
        if getattr(settings, name) != Settings.__dataclass_fields__[name].default:
            raise UsageError(
                f"{name}: cannot be combined with an Optax transformation; build it "
                "into the transformation"
            )


@runtime.shared
def _init_program(
    model: nn.Module, preprocess: Preprocess | None, are_resized: bool
) -> Callable:
    """Return the compiled `(key, images) -> variables` of a module."""
    train = {"train": False} if takes(model.apply, "train") else {}

    @jax.jit
    def init(key, images):
        keys = {"params": key, "dropout": key}
        return model.init(
            keys, inputs.to_input(images, preprocess, are_resized), **train
        )

    return init


def _last_frozen(model: nn.Module, trainable: Any) -> str | None:
    """Return the last child of a chain before the first that is trained, if any."""
    if not (takes(model.apply, "frozen") and hasattr(model, "links")):
        return None
    frozen = inputs.frozen_children(children(model), trainable)
    return frozen[-1] if frozen else None


def _kind(value: Any) -> str:
    return type(value).__name__
