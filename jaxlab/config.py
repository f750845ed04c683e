"""The settings of a fine-tuning run: flags of the command, arguments of `fine_tune`.

A Config validates itself, so that the command and Python have the same checks. It is
one long file because each setting is declared once, with its help, bounds and names.
"""

import dataclasses
import numbers
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from jaxlab.cli import flags
from jaxlab.cli.flags import flag
from jaxlab.errors import UsageError, did_you_mean, shown
from jaxlab.models.architecture import ARCHITECTURES, DEFAULT, FINE_TUNED, FREEZE
from pretrained import embedded
from pretrained.errors import counted
from pretrained.sources import PUBLISHED, SOURCES

WEIGHTS = ("imagenet-conv", *PUBLISHED, "none")
_WEIGHTS_MEANT = (
    dict.fromkeys(
        (
            *("imagenet1k_v1", "default", "pretrained", "true", "yes", "imagenet1k"),
            *("torchvision", "imagenet-v1"),
        ),
        "imagenet",
    )
    | {"imagenet1k_v2": "imagenet-v2"}
    # torchvision's names; its default is the last one of a network.
    | {
        f"{network}_weights.{version}": name
        for network, found in SOURCES.items()
        for name in found
        for version in (f"imagenet1k_v{2 if name == 'imagenet-v2' else 1}", "default")
    }
    | dict.fromkeys(("false", "no", "random", "scratch"), "none")
)
CLASS_WEIGHTS = ("none", "balanced")
SCHEDULES = ("step", "cosine", "constant")
LR_GAMMA = 0.1
OPTIMIZERS = ("adam", "sgd")
MIN_IMAGE_SIZE = min(ARCHITECTURES[name].min_image_size for name in FINE_TUNED)
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
# Its content must equal the run's, by SHA-256. The path to it may be another.
BY_CONTENT = "by content"


@dataclass(frozen=True)
class Config:
    """The settings of a run and their defaults: the flags of `jaxlab.finetune`.

    Every value and every combination is checked when it is created; files are looked
    for when the run begins. `jaxlab.fine_tune` takes the same names as arguments, and
    `python -m jaxlab.finetune --help` says what each is and which values it takes.
    Raises UsageError with the setting, its value and what to pass.

    >>> Config(epochs=2, freeze="none").epochs
    2
    >>> Config(lr=-1)
    Traceback (most recent call last):
    jaxlab.errors.UsageError: lr: -1 is out of range; pass a number that is above 0
    """

    dataset: str = flag(
        "mnist5k",
        "mnist5k (embedded), mnist or fashion_mnist (downloaded once), the name of a "
        "TensorFlow Datasets (TFDS) dataset, a folder with one subfolder per class, or "
        "a folder with the four IDX files of a data set like MNIST",
        group="data",
        synonyms=("data", "data-path", "path", "images", "folder", "ds", "root")
        + ("dataset-name", "data-root", "image-dir", "img-dir", "image-folder")
        + ("input-dir",),
        on_resume=BY_CONTENT,
    )
    data_dir: str | None = flags.data_dir(on_resume=NOT_COMPARED)
    manual_dir: str | None = flags.manual_dir(on_resume=NOT_COMPARED)
    test_fraction: float = flag(
        0.2,
        "fraction to test with if there is no test split",
        above=0,
        below=1,
        synonyms=("test-split",),
    )
    validation_fraction: float = flag(
        0,
        "fraction of the training images that chooses the best epoch, which is then "
        "tested once; 0: none, if the data have no validation split",
        at_least=0,
        below=1,
        synonyms=("val-fraction", "validation-split", "val-split", "valid-fraction")
        + ("val-size", "valid-size"),
    )
    group: str | None = flag(
        None,
        "regular expression; pictures in whose paths it, or its first group, matches "
        "the same text are on one side of the split: of one patient, scene or video",
        metavar="REGEX",
        default_help="each picture on its own",
        synonyms=("groups", "group-by", "group-regex"),
    )
    exclude: str | None = flag(
        None,
        "text file with the names of pictures to leave out, relative to the folder of "
        "--dataset, one on each line, as --check prints them",
        metavar="FILE",
        default_help="none",
        synonyms=("ignore",),
        # What is left out is compared: the images that remain.
        on_resume=NOT_COMPARED,
    )
    check: bool = flag(
        False,
        "list every file of the folder that cannot be used, and do not train",
        synonyms=("dry-run",),
        on_resume=PER_PROCESS,
    )
    train_size: int | None = flag(
        None,
        "images to train on; always the same, chosen by --order",
        at_least=1,
        synonyms=("num-train", "n-train", "train-num-samples", "max-train-samples"),
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    test_size: int | None = flag(
        None,
        "images to test on; always the same, chosen by --order",
        at_least=1,
        synonyms=("num-test", "max-test-samples"),
        default_help="all",
        on_resume=RESOLVED_FROM_DATA,
    )
    order: str = flags.order()
    image_size: int = flag(
        224,
        "side of the square input images in pixels",
        at_least=MIN_IMAGE_SIZE,
        at_most=MAX_IMAGE_SIZE,
        synonyms=("img-size", "imgsz", "input-size", "resize", "img-dim")
        + ("train-crop-size", "val-crop-size"),
    )
    crop: bool = flag(
        False, "resize the shorter side and crop the centre; keeps the aspect ratio"
    )
    workers: int = flag(
        0,
        "processes that decode images; 0: use threads",
        at_least=0,
        at_most=64,
        synonyms=("num-workers", "j", "n-workers", "dataloader-num-workers"),
        on_resume=NOT_COMPARED,
    )
    model: str | None = flag(
        None,
        f"network, one of {', '.join(FINE_TUNED)}",
        group="network",
        metavar="NAME",
        choices=FINE_TUNED,
        default_help=f"that of the weights, if they are a file, else {DEFAULT}",
        synonyms=("arch", "architecture", "network", "backbone", "model-name")
        + ("model-name-or-path",),
        value_synonyms={
            f"{prefix}{name}": name
            for name in FINE_TUNED
            for prefix in ("torchvision.models.", "models.", "torchvision/")
        },
    )
    weights: str | None = flag(
        None,
        "imagenet-conv: embedded ImageNet convolutions, all other layers randomly "
        "initialised; imagenet, imagenet-v2: all layers of torchvision's network, "
        "downloaded once; none: all layers randomly initialised; or a .pth or "
        ".safetensors file, or the folder of a run",
        metavar="NAME|FILE",
        default_help=f"imagenet-conv for {' and '.join(embedded.SOURCES)}, else "
        "imagenet",
        synonyms=("pretrained", "checkpoint", "init", "ckpt", "load")
        + ("pretrained-path", "initial-checkpoint", "pretrained-weights")
        + ("pretrained-model", "from-pretrained", "model-path", "weights-path"),
        on_resume=BY_CONTENT,
    )
    freeze: str | None = flag(
        None,
        "layers to freeze: features (all convolutions), backbone (all layers but the "
        "head), none, or a layer's name, which freezes it and all layers before it",
        default_help="features; none with --weights none",
        synonyms=("freeze-layers", "frozen-layers", "freeze-backbone", "freeze-until")
        + ("freeze-at", "freeze-features"),
    )
    layers: str = flag(
        "children",
        "lines of the printed table: one for each child of the network, or all layers",
        choices=("children", "all"),
        on_resume=PER_PROCESS,
    )
    precision: str = flag(
        "float32",
        "dtype of the computation",
        choices=("float32", "bfloat16"),
        synonyms=("dtype", "amp", "amp-dtype", "model-dtype", "fp16", "bf16", "half")
        + ("mixed-precision",),
        value_synonyms=dict.fromkeys(
            ("fp16", "bf16", "float16", "half", "16", "16-mixed", "bf16-mixed"),
            "bfloat16",
        )
        | dict.fromkeys(
            ("fp32", "f32", "single", "32", "full", "32-true", "float64", "double"),
            "float32",
        ),
    )
    epochs: int = flag(
        5,
        "passes over the training images",
        group="training",
        at_least=1,
        synonyms=("num-epochs", "n-epochs", "num-train-epochs", "max-epochs"),
        on_resume=NOT_COMPARED,
    )
    batch_size: int = flag(
        64,
        "images per step",
        at_least=1,
        synonyms=("batch", "bs", "b", "train-batch-size", "minibatch-size")
        + ("per-device-train-batch-size",),
        on_resume=RESOLVED_FROM_DATA,
    )
    optimizer: str = flag(
        "adam",
        "update rule",
        choices=OPTIMIZERS,
        synonyms=("opt", "optim", "optimiser"),
        value_synonyms={"adamw": "adam", "nadam": "adam", "momentum": "sgd"}
        | {
            f"{prefix}{name}": name
            for name in OPTIMIZERS
            for prefix in ("torch.optim.", "optim.", "optax.", "keras.optimizers.")
        },
    )
    lr: float | None = flag(
        None,
        "learning rate",
        above=0,
        default_help="for adam 0.02 if only the head is trained (SqueezeNet 0.0003), "
        "else 0.001 (ResNet, ResNeXt, MobileNet, DenseNet) or 0.0001; for sgd 0.1 "
        "(SqueezeNet 0.001), else 0.01",
        synonyms=("learning-rate", "lr0", "rate", "base-lr", "lr-base", "alpha"),
    )
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    l2: float = flag(
        5e-4,
        "L2 penalty, as weight_decay of torch.optim",
        at_least=0,
        synonyms=("weight-decay", "wd", "l2-penalty", "l2-reg", "weight-decay-rate"),
    )
    class_weights: str = flag(
        "none",
        "class weights of the loss; balanced: rare classes have larger weights",
        choices=CLASS_WEIGHTS,
        synonyms=("class-weight",),
        value_synonyms={"balance": "balanced", "auto": "balanced", "true": "balanced"},
    )
    schedule: str = flag(
        "step",
        "learning rate by epoch: step (lowered every --lr-step epochs), cosine "
        "(lowered to almost 0 over all epochs) or constant",
        choices=SCHEDULES,
        synonyms=("scheduler", "lr-scheduler", "lr-schedule", "sched", "cos-lr")
        + ("lr-scheduler-type", "lr-policy"),
        value_synonyms={
            "steplr": "step",
            "multistep": "step",
            "exponential": "step",
            "exponentiallr": "step",
            "cosineannealinglr": "cosine",
            "cosineannealing": "cosine",
            "cos": "cosine",
            "constantlr": "constant",
            "none": "constant",
            "fixed": "constant",
        },
    )
    lr_step: int | None = flag(
        None,
        "epochs between learning rate decays",
        at_least=1,
        default_help="three fifths of the epochs, rounded up",
        synonyms=("step-size", "lr-step-size", "decay-epochs", "lr-decay-epochs")
        + ("lr-decay-step",),
    )
    lr_gamma: float = flag(
        LR_GAMMA,
        "factor of each decay",
        above=0,
        at_most=1,
        synonyms=("gamma", "decay-rate", "lr-decay", "lr-decay-rate"),
    )
    warmup_epochs: int = flag(
        0,
        "first epochs, in which the learning rate rises to --lr",
        at_least=0,
        synonyms=("warmup", "lr-warmup-epochs"),
    )
    patience: int | None = flag(
        None,
        "stop after this many epochs without a lower validation loss",
        at_least=1,
        default_help="train all epochs",
        synonyms=("early-stopping", "early-stopping-patience", "early-stop")
        + ("early-stopping-rounds",),
        on_resume=NOT_COMPARED,
    )
    seed: int = flag(
        0,
        "seed of initial weights, data order and dropout",
        at_least=0,
        below=2**32,
        synonyms=("random-seed", "random-state", "manual-seed"),
    )
    out: str | None = flag(
        None,
        "folder of the run",
        group="run",
        metavar="FOLDER",
        default_help="a new folder in runs/",
        synonyms=("output", "output-dir", "save-dir", "project", "name", "experiment")
        + ("save-path", "log-dir", "run-dir", "outdir", "output-folder"),
        on_resume=PER_PROCESS,
    )
    overwrite: bool = flag(
        False,
        "replace an earlier run in --out",
        synonyms=("exist-ok", "force", "overwrite-output-dir"),
        on_resume=PER_PROCESS,
    )
    resume: str | None = flag(
        None,
        "resume the run in --out from its latest checkpoint, or from the checkpoint of "
        "the given step; the settings of the run are restored",
        metavar="STEP",
        default_help="start a new run",
        const=LAST,
        synonyms=("resume-from", "resume-from-checkpoint", "resume-checkpoint"),
        on_resume=PER_PROCESS,
    )
    checkpoint_every: int = flag(
        1,
        "epochs between checkpoints; 0: none",
        at_least=0,
        synonyms=("save-period", "save-freq", "save-every"),
        on_resume=NOT_COMPARED,
    )
    keep: int = flag(
        2,
        "latest checkpoints to keep during a run; only the last is kept at its end",
        at_least=1,
        synonyms=("checkpoint-hist", "save-total-limit", "max-to-keep"),
        on_resume=NOT_COMPARED,
    )
    feature_cache: bool = flag(True, "run the frozen layers in every epoch")
    feature_cache_size: float = flag(
        5,
        "maximum GB of frozen layers' outputs to keep for later runs",
        at_least=0,
        at_most=1e6,
        on_resume=NOT_COMPARED,
    )
    offline: bool = flag(False, "open no network connection", on_resume=PER_PROCESS)
    debug: bool = flag(False, "show tracebacks", on_resume=PER_PROCESS)

    def __post_init__(self):
        """Check every setting, then their combination."""
        if self.resume is not None:
            object.__setattr__(self, "resume", _step_text(self.resume))
        flags.validate(self)
        # The settings of a run that is resumed are known only when its record is read.
        if self.resume is None:
            _check_combination(self)
        else:
            _check_resume(self)


Config.__init__ = flags.names_checked(Config.__init__)  # type: ignore[method-assign]


class Resolved(Config):
    """A Config of which `model`, `weights`, `freeze` and `lr` are known.

    See `resolved`.
    """

    if TYPE_CHECKING:  # the fields are Config's, whose default is None
        model: str
        weights: str
        freeze: str
        lr: float


def fields_that(on_resume: str | None) -> frozenset[str]:
    """Return the names of the settings that have this value of `on_resume`."""
    return frozenset(
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata["on_resume"] == on_resume
    )


def resolved(config: Config) -> Resolved:
    """Return the config with the defaults that depend on other settings filled in.

    Without `model` the network is that of the `weights`, if they are a file. Raises
    UsageError if `weights` is a file that does not exist, and for settings of a resumed
    run that contradict each other; WeightsError if the file cannot be read.
    """
    if config.model is None:
        model, file = DEFAULT, config.weights
        if _is_file(file) and os.path.lexists(file):
            from pretrained.files import network_of

            model = network_of(file)
        config = dataclasses.replace(config, model=model)
    _check_combination(config)
    weights = _weights(config)
    # A resumed run has its weights in the checkpoint and does not need the file.
    known = weights in WEIGHTS or config.resume is not None
    if not known and not os.path.lexists(weights):
        raise UsageError(
            f"--weights: {weights!r} is neither a file nor one of "
            f"{', '.join(WEIGHTS)}{did_you_mean(weights, WEIGHTS, _WEIGHTS_MEANT)}"
        )
    lr = _learning_rate(config) if config.lr is None else config.lr
    lr_step = config.lr_step
    if config.schedule == "step" and lr_step is None:
        lr_step = -(-3 * config.epochs // 5)
    filled_in = {
        "weights": weights,
        "freeze": _freeze(config),
        "lr": lr,
        "lr_step": lr_step,
    }
    return Resolved(**{**vars(config), **filled_in})


def warn_of_random_frozen_layers(config: Config, log: Callable[[str], None]) -> None:
    """Log a warning if layers with random weights are frozen."""
    if config.weights == "none" and config.freeze != "none":
        log(
            f"warning: --freeze {config.freeze} with --weights none: the frozen layers "
            "are randomly initialised and not trained; pass --freeze none to train them"
        )


def _is_file(weights: str | None) -> TypeGuard[str]:
    return weights is not None and weights not in WEIGHTS


def _weights(config: Config) -> str:
    if config.weights is not None:
        return config.weights
    return ARCHITECTURES[config.model or DEFAULT].weights


def _freeze(config: Config) -> str:
    if config.freeze is not None:
        return config.freeze
    return "none" if _weights(config) == "none" else "features"


def _learning_rate(config: Config) -> float:
    architecture = ARCHITECTURES[config.model or DEFAULT]
    trained = len(architecture.children) - len(architecture.frozen(_freeze(config)))
    is_head_alone = trained == 1
    rates = architecture.head_rates if is_head_alone else architecture.learning_rates
    return rates[config.optimizer]


def _check_combination(config: Config) -> None:
    """Raise UsageError if settings contradict the network or each other.

    The network is not known yet if a file of weights shall say which one it is.
    """
    _check_schedule(config)
    _check_group(config)
    if config.model is None and _is_file(config.weights):
        return
    architecture = ARCHITECTURES[config.model or DEFAULT]
    if config.image_size < architecture.min_image_size:
        raise UsageError(
            f"--image-size: {config.image_size} is out of range; pass a number that is "
            f"at least {architecture.min_image_size} and at most {MAX_IMAGE_SIZE}"
        )
    freeze, weights = _freeze(config), _weights(config)
    if weights in WEIGHTS and weights not in _available(architecture.name):
        raise UsageError(
            f"--weights: {weights} is not published for {architecture.name}; pass one "
            f"of {', '.join(_available(architecture.name))}, or a file"
        )
    known = (*FREEZE, *architecture.children[:-1])
    if freeze not in known:
        raise UsageError(
            f"--freeze: {freeze!r} is not one of {', '.join(known)}"
            f"{did_you_mean(freeze, known)}"
        )
    convolutions = architecture.frozen("features")
    random = [name for name in architecture.frozen(freeze) if name not in convolutions]
    if random and weights in ("imagenet-conv", "none"):
        raise UsageError(
            f"--freeze {freeze}: with --weights {weights}, {' and '.join(random)} "
            f"{'are' if len(random) > 1 else 'is'} randomly initialised and would not "
            "be trained; pass --freeze features, or --weights imagenet"
        )


def _available(network: str) -> list[str]:
    """Return the names of weights that exist for a network."""
    first = ["imagenet-conv"] if network in embedded.SOURCES else []
    return [*first, *SOURCES.get(network, {}), "none"]


def _check_group(config: Config) -> None:
    try:
        re.compile(config.group or "")
    except re.error as error:
        raise UsageError(
            f"--group: {config.group!r} is not a regular expression: {error}; pass one "
            "such as 'patient\\d+'"
        ) from error


def _check_schedule(config: Config) -> None:
    """Raise UsageError if settings of the learning rate contradict each other."""
    of_step = {"--lr-step": config.lr_step is not None}
    of_step["--lr-gamma"] = config.lr_gamma != LR_GAMMA
    for name, is_given in of_step.items():
        if is_given and config.schedule != "step":
            raise UsageError(
                f"{name}: has no effect with --schedule {config.schedule}; pass "
                "--schedule step, or leave it out"
            )
    if config.warmup_epochs >= config.epochs:
        raise UsageError(
            f"--warmup-epochs: {config.warmup_epochs} leaves none of "
            f"{counted(config.epochs, 'epoch')} at the full learning rate; pass a "
            "number below --epochs"
        )


def _step_text(resume: Any) -> str:
    """Return a step, a number or its digits, or LAST as the text of the flag."""
    is_number = isinstance(resume, numbers.Integral) and not isinstance(resume, bool)
    if is_number and 0 <= resume <= sys.maxsize:
        return str(resume)
    if isinstance(resume, str) and (resume == LAST or resume.isdecimal()):
        return resume
    raise UsageError(
        f"--resume: {shown(resume)} is not a step; pass the number of a step, or "
        "--resume without a step for the latest checkpoint"
    )


def _check_resume(config: Config) -> None:
    """Raise UsageError if --resume does not fit the other settings."""
    if config.overwrite:
        raise UsageError(
            "--resume: cannot be combined with --overwrite; pass one of them"
        )
    if config.out is None:
        raise UsageError("--resume: no run is given; pass its folder as --out")
