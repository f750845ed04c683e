"""The flags of the fine-tuning command, and the checks of their combinations."""

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
MAX_IMAGE_SIZE = 2048  # above this, the first layer needs over 10 GB for a batch

LAST = "last"  # the value of --resume without a step

# How `--resume` treats a setting. One with none of these must equal the run's setting.
# It concerns a single process and is not restored.
PER_PROCESS = "per process"
# It is restored unless the flag is given. It may differ, since it affects at most how
# many epochs are trained. (If the features do not fit into the cache, the frozen layers
# run again in each epoch, which rounds differently; the run logs a warning.)
NOT_COMPARED = "not compared"
# It must equal the run's setting, but its final value depends on the loaded data.
RESOLVED_FROM_DATA = "resolved from data"


@dataclass(frozen=True)
class Config:
    """The flags of the command and their defaults."""

    dataset: str = flag(
        "mnist5k",
        "mnist5k (embedded), the name of a TensorFlow Datasets (TFDS) dataset such as "
        "mnist or fashion_mnist, or a folder with one subfolder per class",
    )
    data_dir: str | None = flags.data_dir(on_resume=NOT_COMPARED)
    manual_dir: str | None = flags.manual_dir(on_resume=NOT_COMPARED)
    val_fraction: float = flag(
        0.2, "fraction to test with if there is no test split", above=0, below=1
    )
    model: str = flag("alexnet", "network", choices=tuple(ARCHITECTURES))
    weights: str | None = flag(
        None,
        "imagenet-conv: embedded ImageNet convolutions, randomly initialised fc "
        "layers; imagenet: all layers of torchvision's network, downloaded once; none: "
        "all layers randomly initialised; or a .pth or .safetensors file",
        default_help=", ".join(
            f"{a.weights} for {a.name}" for a in ARCHITECTURES.values()
        ),
    )
    freeze: str | None = flag(
        None,
        "layers to freeze: features (all convolutions), backbone (all layers but the "
        "head), none, or a layer's name, which freezes it and all layers before it",
        default_help="features; none with --weights none",
    )
    epochs: int = flag(
        5, "passes over the training images", at_least=1, on_resume=NOT_COMPARED
    )
    batch_size: int = flag(
        64, "images per step", at_least=1, on_resume=RESOLVED_FROM_DATA
    )
    optimizer: str = flag("adam", "update rule", choices=tuple(LEARNING_RATE))
    lr: float | None = flag(
        None, "learning rate", above=0, default_help="0.0001 for adam, 0.01 for sgd"
    )
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    l2: float = flag(5e-4, "L2 penalty, as weight_decay of torch.optim", at_least=0)
    class_weights: str = flag(
        "none",
        "class weights of the loss; balanced: rare classes have larger weights",
        choices=CLASS_WEIGHTS,
    )
    lr_step: int = flag(3, "epochs between learning rate decays", at_least=1)
    lr_gamma: float = flag(0.1, "factor of each decay", above=0, at_most=1)
    seed: int = flag(
        0, "seed of initial weights, data order and dropout", at_least=0, below=2**32
    )
    image_size: int = flag(
        224,
        "side of the square input images in pixels",
        at_least=MIN_IMAGE_SIZE,
        at_most=MAX_IMAGE_SIZE,
    )
    crop: bool = flag(
        False, "resize the shorter side and crop the centre; keeps the aspect ratio"
    )
    train_size: int | None = flag(
        None,
        "images to train on; always the same class-balanced subset",
        at_least=1,
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    test_size: int | None = flag(
        None,
        "images to test on; always the same class-balanced subset",
        at_least=1,
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    precision: str = flag(
        "float32", "dtype of the computation", choices=("float32", "bfloat16")
    )
    workers: int = flag(
        0,
        "processes that decode images; 0: use threads",
        at_least=0,
        at_most=64,
        on_resume=NOT_COMPARED,
    )
    offline: bool = flag(False, "open no network connection", on_resume=PER_PROCESS)
    feature_cache: bool = flag(True, "run the frozen layers in every epoch")
    feature_cache_size: float = flag(
        5,
        "maximum GB of frozen layers' outputs to keep for later runs",
        at_least=0,
        at_most=1e6,
        on_resume=NOT_COMPARED,
    )
    out: str | None = flag(
        None,
        "folder of the run",
        default_help="a new folder in runs/",
        on_resume=PER_PROCESS,
    )
    overwrite: bool = flag(
        False, "replace an earlier run in --out", on_resume=PER_PROCESS
    )
    resume: str | None = flag(
        None,
        "resume the run in --out from its latest checkpoint, or from the checkpoint of "
        "the given step; the settings of the run are restored",
        default_help="start a new run",
        const=LAST,
        on_resume=PER_PROCESS,
    )
    checkpoint_every: int = flag(
        1, "epochs between checkpoints; 0: none", at_least=0, on_resume=NOT_COMPARED
    )
    keep: int = flag(
        2,
        "latest checkpoints to keep during a run; only the last is kept at its end",
        at_least=1,
        on_resume=NOT_COMPARED,
    )
    debug: bool = flag(False, "show tracebacks", on_resume=PER_PROCESS)


def fields_that(on_resume: str | None) -> frozenset[str]:
    """Return the names of the settings that have this value of `on_resume`."""
    return frozenset(
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata["on_resume"] == on_resume
    )


def resolved(config: Config) -> Config:
    """Return the config with the defaults that depend on other flags filled in.

    Raises UsageError for invalid or contradictory settings, and prints a warning to
    stderr for settings that are probably a mistake.
    """
    architecture = ARCHITECTURES[config.model]
    weights = architecture.weights if config.weights is None else config.weights
    # A resumed run has its weights in the checkpoint and does not need the file.
    known = weights in WEIGHTS or config.resume is not None
    if not known and not os.path.lexists(weights):
        raise UsageError(
            f"--weights: {weights!r} is neither a file nor one of "
            f"{', '.join(WEIGHTS)}{did_you_mean(weights, WEIGHTS)}"
        )
    if config.image_size < architecture.min_image_size:
        raise UsageError(
            f"--image-size: {config.image_size} is out of range; pass a number that is "
            f"at least {architecture.min_image_size} and at most {MAX_IMAGE_SIZE}"
        )
    freeze = config.freeze
    if freeze is None:
        freeze = "none" if weights == "none" else "features"
    _check_freeze(architecture, freeze, weights)
    lr = LEARNING_RATE[config.optimizer] if config.lr is None else config.lr
    return dataclasses.replace(config, weights=weights, freeze=freeze, lr=lr)


def _check_freeze(architecture: Architecture, freeze: str, weights: str) -> None:
    """Raise UsageError if a frozen layer is unknown, or is a fresh fc layer.

    A fresh layer has random initial weights. Prints a warning to stderr if fresh
    convolutions are frozen.
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
                f"--freeze {freeze}: with --weights {weights}, {' and '.join(fresh)} "
                f"{'are' if len(fresh) > 1 else 'is'} randomly initialised and would "
                "not be trained; pass --freeze features, or --weights imagenet"
            )
    if weights == "none" and frozen:
        print(
            f"warning: --freeze {freeze} with --weights none: the frozen layers are "
            "randomly initialised and not trained; pass --freeze none to train them",
            file=sys.stderr,
        )
