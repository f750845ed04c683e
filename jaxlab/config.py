"""Every flag of the fine-tuning command, and what they may not mean together."""

import dataclasses
import os
import sys
from dataclasses import dataclass

from jaxlab.cli import flags
from jaxlab.cli.flags import flag
from jaxlab.errors import UsageError, did_you_mean
from jaxlab.models.architecture import ARCHITECTURES, FREEZE, Architecture

WEIGHTS = ("imagenet-conv", "imagenet", "none")
CLASS_WEIGHTS = ("none", "balanced")
LEARNING_RATE = {"adam": 1e-4, "sgd": 0.01}
MIN_IMAGE_SIZE = min(each.min_image_size for each in ARCHITECTURES.values())
MAX_IMAGE_SIZE = 2048  # beyond, one batch of the first layer alone takes 10 GB

LAST = "last"  # what --resume without a step stands for

# What a setting may do when a run goes on; one that says nothing must be the run's.
# A process's own, which the next one does not take over.
PER_PROCESS = "per process"
# Taken over unless it is given: it decides nothing of what a run computes, or how far
# it goes. (With too little room for features, layers run anew and round otherwise;
# that is said.)
NOT_COMPARED = "not compared"
# Must be the run's when it is settled, which is when the data is there.
RESOLVED_FROM_DATA = "resolved from data"


@dataclass(frozen=True)
class Config:
    """Every flag of the command, and its default."""

    dataset: str = flag(
        "mnist5k",
        "mnist5k (embedded), a name of TensorFlow Datasets', such as mnist or "
        "fashion_mnist, or a folder of class folders",
    )
    data_dir: str | None = flags.data_dir(on_resume=NOT_COMPARED)
    manual_dir: str | None = flags.manual_dir(on_resume=NOT_COMPARED)
    val_fraction: float = flag(
        0.2, "part to test with, of data without a split", above=0, below=1
    )
    model: str = flag("alexnet", "network", choices=tuple(ARCHITECTURES))
    weights: str | None = flag(
        None,
        "imagenet-conv: embedded convolutions, fresh fc layers; imagenet: the whole of "
        "torchvision's network, downloaded once; none: all fresh; or a .pth or "
        ".safetensors file",
        default_help=", ".join(
            f"{a.weights} for {a.name}" for a in ARCHITECTURES.values()
        ),
    )
    freeze: str | None = flag(
        None,
        "layers kept as they are: features (all convolutions), backbone (all but the "
        "head), none, or a layer's name: it and all before it",
        default_help="features; none with --weights none",
    )
    epochs: int = flag(
        5, "passes over the training images", at_least=1, on_resume=NOT_COMPARED
    )
    batch_size: int = flag(
        64, "images a step", at_least=1, on_resume=RESOLVED_FROM_DATA
    )
    optimizer: str = flag("adam", "update rule", choices=tuple(LEARNING_RATE))
    lr: float | None = flag(
        None, "learning rate", above=0, default_help="0.0001 for adam, 0.01 for sgd"
    )
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    l2: float = flag(5e-4, "L2, as torch's weight_decay", at_least=0)
    class_weights: str = flag(
        "none", "of the loss; balanced: rare classes count more", choices=CLASS_WEIGHTS
    )
    lr_step: int = flag(3, "epochs between decays of the rate", at_least=1)
    lr_gamma: float = flag(0.1, "factor of each decay", above=0, at_most=1)
    seed: int = flag(0, "of fresh layers, order and dropout", at_least=0, below=2**32)
    image_size: int = flag(
        224, "side in pixels", at_least=MIN_IMAGE_SIZE, at_most=MAX_IMAGE_SIZE
    )
    crop: bool = flag(
        False, "resize the short side and cut the centre out, instead of squashing"
    )
    train_size: int | None = flag(
        None,
        "train on the first N images",
        at_least=1,
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    test_size: int | None = flag(
        None,
        "test on the first N images",
        at_least=1,
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    precision: str = flag(
        "float32", "of the network's arithmetic", choices=("float32", "bfloat16")
    )
    workers: int = flag(
        0,
        "processes that decode pictures; 0: threads",
        at_least=0,
        at_most=64,
        on_resume=NOT_COMPARED,
    )
    offline: bool = flag(False, "open no connection", on_resume=PER_PROCESS)
    feature_cache: bool = flag(True, "run frozen layers anew in every epoch")
    feature_cache_size: float = flag(
        5,
        "GB of frozen layers' outputs to keep for later runs",
        at_least=0,
        at_most=1e6,
        on_resume=NOT_COMPARED,
    )
    out: str | None = flag(
        None,
        "folder of the run",
        default_help="runs/ and the time",
        on_resume=PER_PROCESS,
    )
    overwrite: bool = flag(
        False, "replace an earlier run in --out", on_resume=PER_PROCESS
    )
    resume: str | None = flag(
        None,
        "go on with the run in --out, from its last step saved or from step STEP; its "
        "settings need not be given again",
        default_help="begin anew",
        const=LAST,
        on_resume=PER_PROCESS,
    )
    checkpoint_every: int = flag(
        1, "epochs between checkpoints; 0: none", at_least=0, on_resume=NOT_COMPARED
    )
    keep: int = flag(
        2,
        "checkpoints to keep while it runs, the last ones; at its end one stays",
        at_least=1,
        on_resume=NOT_COMPARED,
    )
    debug: bool = flag(False, "show tracebacks", on_resume=PER_PROCESS)


def fields_that(on_resume: str | None) -> frozenset[str]:
    """Return the names of the settings that may do something when a run goes on."""
    return frozenset(
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata["on_resume"] == on_resume
    )


def resolved(config: Config) -> Config:
    """Return it with the defaults that depend on other flags filled in.

    Raises UsageError for what cannot be meant; says on stderr what hardly can.
    """
    architecture = ARCHITECTURES[config.model]
    weights = architecture.weights if config.weights is None else config.weights
    # Of a run that is resumed, the weights are among what was saved.
    known = weights in WEIGHTS or config.resume is not None
    if not known and not os.path.lexists(weights):
        raise UsageError(
            f"--weights: {weights!r} is neither a file nor one of "
            f"{', '.join(WEIGHTS)}{did_you_mean(weights, WEIGHTS)}"
        )
    if config.image_size < architecture.min_image_size:
        raise UsageError(
            f"--image-size: {config.image_size} is out of range; pass a number at "
            f"least {architecture.min_image_size} and at most {MAX_IMAGE_SIZE}"
        )
    freeze = config.freeze
    if freeze is None:
        freeze = "none" if weights == "none" else "features"
    _check_freeze(architecture, freeze, weights)
    lr = LEARNING_RATE[config.optimizer] if config.lr is None else config.lr
    return dataclasses.replace(config, weights=weights, freeze=freeze, lr=lr)


def _check_freeze(architecture: Architecture, freeze: str, weights: str) -> None:
    """Refuse, with UsageError, to freeze what is no layer, or is fresh and connected.

    Says on stderr where fresh convolutions stay as they are.
    """
    known = (*FREEZE, *architecture.children[:-1])
    try:
        frozen = architecture.frozen(freeze)
    except ValueError:
        raise UsageError(
            f"--freeze: {freeze!r} is not one of {', '.join(known)}"
            f"{did_you_mean(freeze, known)}"
        ) from None
    convolutions = architecture.frozen("features")
    if weights in ("imagenet-conv", "none"):
        if fresh := [name for name in frozen if name not in convolutions]:
            raise UsageError(
                f"--freeze {freeze}: with --weights {weights} {' and '.join(fresh)} "
                f"{'are' if len(fresh) > 1 else 'is'} fresh and would stay random; use "
                "--freeze features, or --weights imagenet"
            )
    if weights == "none" and frozen:
        print(
            f"warning: --freeze {freeze} with --weights none: the convolutions are "
            "fresh and stay random",
            file=sys.stderr,
        )
