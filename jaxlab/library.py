"""The public functions that belong to no command: data and networks from Python."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

from jaxlab.cli import flags, terminal
from jaxlab.config import Config, resolved
from jaxlab.data.dataset import Dataset
from jaxlab.errors import UsageError, did_you_mean, help_of
from jaxlab.models.architecture import ARCHITECTURES, FINE_TUNED


@help_of("load_data")
def load_data(
    source: str | os.PathLike | tuple[Any, Any] = "mnist5k",
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    order: str = "balanced",
    group: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    crop: bool | None = None,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
    offline: bool = False,
    exclude: str | os.PathLike | None = None,
    check: bool = False,
    log: bool = True,
    **unknown: Any,
) -> Dataset:
    """Return images with labels: `data.train`, `data.test` and `data.class_names`.

    `source` is "mnist5k" (5,000 embedded digits), "mnist" or "fashion_mnist" (from the
    original files in `data_dir`, else downloaded once), a folder with the four IDX
    files of a data set like them, a folder with one subfolder of pictures per class,
    the name of a TensorFlow Datasets dataset, or arrays:
    `(images, labels)` or `((images, labels), (test images, test labels))`, with images
    uint8[n, h, w], [n, h, w, 1] or [n, h, w, 3], labels int[n] counted from 0, and the
    `class_names` in that order. A split has `images` uint8[n, h, w, c] and `labels`
    int32[n].

    Without a test split, `test_fraction` of each class is held out, always the same
    examples; then `validation_fraction` of the training examples, if it is not 0, or if
    the data have such a split: `data.validation`. Pictures of a folder in whose paths
    the regular expression `group` finds the same text stay together. `train_size` and
    `test_size` choose a fixed part, which is class-balanced, or with `order="file"` the
    first images in the source's own order; then the last ones are held out. `data.note`
    says what was chosen. The pictures of a folder are resized to `image_size`, by
    default 224, after a centre crop with `crop`; images of one size, as arrays and
    mnist5k are, keep it, and are refused with these arguments.
    `data_dir`, `manual_dir` and `offline` are those of the command, as are `exclude`, a
    file that lists pictures to leave out of a folder, and `check`, which prints such a
    list of all unusable pictures before the error.

    Raises UsageError for a wrong argument, InputError for unusable data, NetworkError
    if a download is needed and impossible.

    >>> load_data("mnist5k", train_size=200)
    mnist5k: training images: a class-balanced choice of 200 of 4,000, 20 of each class
    Dataset(mnist5k: 200 training, 1,000 test images, uint8[28, 28, 1], 10 classes)
    >>> import numpy as np
    >>> images, labels = np.zeros((10, 8, 8), np.uint8), np.arange(10) % 2
    >>> load_data((images, labels), class_names=["cat", "dog"]).class_names
    ('cat', 'dog')
    """
    own = inspect.signature(load_data).parameters
    flags.require_known(Config, unknown, ("class-names",), only=own)
    is_name = isinstance(source, (str, os.PathLike))
    given: dict[str, Any] = {  # whose types are checked by Config
        "dataset": source if is_name else "mnist5k",
        "train_size": train_size,
        "test_size": test_size,
        "order": order,
        "test_fraction": test_fraction,
        "validation_fraction": validation_fraction,
        "group": group,
        "crop": False if crop is None else crop,
        "data_dir": data_dir,
        "manual_dir": manual_dir,
        "offline": offline,
        "exclude": exclude,
        "check": check,
    }
    config = Config(**given)
    if not is_name:
        _refuse_a_size("arrays", image_size, crop)
        _refuse_for_arrays(
            group=group,
            data_dir=data_dir,
            manual_dir=manual_dir,
            exclude=exclude,
        )
        return _load_pair(source, config, class_names)
    if class_names is not None:
        raise UsageError(
            "class_names: only arrays need them; a dataset or a folder has its own"
        )
    from jaxlab.data.preprocess import Preprocess

    console = terminal.PYTHON if log else terminal.SILENT
    size = Preprocess.image_size if image_size is None else image_size
    data = load_of(config, Preprocess(size, config.crop), console)
    if not data.resized:
        _refuse_a_size(data.name, image_size, crop)
    if data.note:
        console.log(f"{data.name}: {data.note}")
    return data


def load_of(config: Config, preprocess: Any, console: terminal.Console) -> Dataset:
    """Return the dataset of a config, whose pictures `preprocess` resizes."""
    from jaxlab.data.load import load

    return load(
        config.dataset,
        preprocess,
        train_size=config.train_size,
        test_size=config.test_size,
        order=config.order,
        test_fraction=config.test_fraction,
        validation_fraction=config.validation_fraction,
        group=config.group,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        offline=config.offline,
        exclude=config.exclude,
        check=config.check,
        progress=console.progress,
        log=console.log,
        shown=console.shown,
    )


def _refuse_for_arrays(**given: str | os.PathLike | None) -> None:
    """Raise UsageError for an argument that applies to folders and datasets only."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name}: cannot be combined with arrays; leave it out")


def _refuse_a_size(source: str, image_size: int | None, crop: bool | None) -> None:
    """Raise UsageError for arguments that resize images which keep their size."""
    if image_size is None and crop is None:
        return
    from jaxlab.data.preprocess import Preprocess

    size = Preprocess.image_size if image_size is None else image_size
    ending = "" if crop is None else f", crop={crop}"
    raise UsageError(
        f"{'crop' if image_size is None else 'image_size'}: cannot be combined with "
        f"{source}, whose images keep their size; resize them as they are used, with "
        f"preprocess=jaxlab.Preprocess({size}{ending})"
    )


def _load_pair(
    source: Any, config: Config, class_names: Sequence[str] | None
) -> Dataset:
    from jaxlab.data.arrays import load_arrays

    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise UsageError(
            f"source: expected a name, a folder or (images, labels), got "
            f"{type(source).__name__}; pass one of them"
        )
    (images, labels), test = source, None
    if isinstance(images, (tuple, list)) and len(images) == 2:
        (images, labels), test = source
    return load_arrays(
        images,
        labels,
        class_names=class_names,
        test=test,
        test_fraction=config.test_fraction,
        validation_fraction=config.validation_fraction,
        train_size=config.train_size,
        test_size=config.test_size,
        order=config.order,
    )


@help_of("create_model")
def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    weights: str | os.PathLike = "none",
    seed: int = 0,
    offline: bool = False,
    log: bool = True,
    **fields: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return a network and its variables: `logits = model.apply(variables, x, ...)`.

    `name` is one of those of `--model`, such as "resnet18". `weights` are those of the
    command: "none" (random, as torchvision initialises them), "imagenet-conv"
    (ImageNet's convolutions, which are embedded for AlexNet and VGG-16), "imagenet" or
    "imagenet-v2" (all layers, downloaded once unless `offline`), or a file or the
    folder of a run. A head of another number of classes than `num_classes` is random.
    (So is one of other class names in `fine_tune`; here the classes have no names.)
    `fields` are those of the module, such as `dropout_rate`. `variables` are the tree
    of `pretrained.to_variables`; the random ones are those of `fine_tune` for `seed`.
    `log=False` prints nothing about a download.

    Raises UsageError for a wrong argument, WeightsError for unusable weights.

    >>> import jax.numpy as jnp
    >>> widths = {"channels": (4, 4, 4, 4, 4), "hidden": 8}
    >>> model, variables = create_model("alexnet", num_classes=10, **widths)
    >>> model.apply(variables, jnp.zeros((1, 63, 63, 3)), train=False).shape
    (1, 10)
    """
    if name not in FINE_TUNED:
        raise UsageError(
            f"name: {name!r} is not one of {', '.join(FINE_TUNED)}"
            f"{did_you_mean(str(name), FINE_TUNED)}"
        )
    given: dict[str, Any] = {"weights": weights, "seed": seed}  # checked by Config
    config = resolved(Config(model=name, freeze="none", **given))
    from jaxlab.training.initial_weights import initial_variables, keys

    architecture = ARCHITECTURES[name]
    try:
        model = architecture.build(num_classes, **fields)
    except TypeError as error:
        module = f"{architecture.module}.{architecture.class_name}"
        raise UsageError(f"{name}: {error}; see help({module})") from error
    key, _ = keys(config.seed)
    variables, _ = initial_variables(
        architecture, model, key, config.weights, offline=offline, log=log
    )
    return model, variables
