"""A trained network that answers for pictures, with all that it needs for it.

It is one file because reading a classifier, preparing a picture and predicting depend
on the same description.
"""

import contextlib
import functools
import json
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxlab import environment
from jaxlab.cli.flags import expanded
from jaxlab.data.files import nfc
from jaxlab.data.pictures import BadPicture, read, read_image, upright
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import InputError, UsageError, did_you_mean
from jaxlab.models.architecture import ARCHITECTURES, DEFAULT, FINE_TUNED
from jaxlab.runs import folder as run_folder
from jaxlab.runs.record import parse_record
from jaxlab.training.initial_weights import METADATA, whole_network
from pretrained.errors import counted
from pretrained.files import Weights, read_weights
from pretrained.sources import PUBLISHED, imagenet_classes, published

# Pictures are answered in batches of this size, and what remains one by one: two
# programs answer any number of pictures, and one picture costs no more than one.
BATCH = 32

_WARNINGS = threading.Lock()

Picture = str | os.PathLike | Image.Image | np.ndarray


class Classifier:
    """A network with its preprocessing and its class names.

    `jaxlab.fine_tune` returns one in its `Run`; `Classifier.load` reads one. Pictures
    are decoded and resized on the host, as in training, and answered by two compiled
    programs for all pictures and all classifiers of the same architecture.

    >>> import numpy as np
    >>> classifier = Classifier.load(example_run)
    >>> classifier.class_names
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    >>> [(name, probability)] = classifier.predict(np.zeros((28, 28), np.uint8), top=1)
    >>> name in classifier.class_names, 0 <= probability <= 1
    (True, True)
    """

    def __init__(
        self,
        architecture: str,
        variables: Any,
        class_names: Sequence[str],
        preprocess: Preprocess,
        precision: str = "float32",
        sha256: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ):
        """Put the variables on the device.

        `architecture` is a name of ARCHITECTURES, `variables` the tree of its module
        for as many classes as there are `class_names`, `precision` the dtype of the
        computation, `sha256` that of the file that the variables were read from, and
        `fields` are arguments of the module that its architecture leaves free.
        """
        self.architecture = architecture
        self.class_names = tuple(class_names)
        self.preprocess = preprocess
        self.sha256 = sha256
        self._variables = jax.device_put(variables)
        self._model = ARCHITECTURES[architecture].build(
            len(self.class_names), dtype=jnp.dtype(precision), **(fields or {})
        )

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        *,
        model: str | None = None,
        offline: bool = False,
        log: bool = True,
    ) -> "Classifier":
        """Return the classifier of a run, of its file of weights, or of published ones.

        `source` is the folder of a finished run, a copy of its `model.safetensors`, a
        model of the lab, such as `models/dropout.safetensors` in its folder, or
        "imagenet" or "imagenet-v2": torchvision's weights of `model`, such as
        "resnet50", with the 1,000 classes of ImageNet, which are downloaded once unless
        `offline`. A file says itself which network it is; another `model` than this is
        an error. `log=False` prints nothing.

        Raises InputError if it is not a finished run or names no classes, WeightsError
        if the weights are damaged or have another shape.
        """
        if model is not None and model not in ARCHITECTURES:
            raise UsageError(
                f"model: {model!r} is not one of {', '.join(ARCHITECTURES)}"
                f"{did_you_mean(str(model), FINE_TUNED)}"
            )
        if source in PUBLISHED:
            network = model or DEFAULT
            weights = whole_network(str(source), network, offline=offline, log=log)
            # The published accuracies were measured with a centre crop.
            resize = published(network, str(source)).resize
            preprocess = Preprocess(crop=True, resize_to=resize)
            return cls(
                network,
                weights.variables,
                imagenet_classes(),
                preprocess,
                sha256=weights.sha256,
            )
        path = Path(expanded("source", os.fspath(source)))
        if path.is_dir():
            path = run_folder.model_file(path)
        weights = read_weights(path, model, functools.partial(_network, path))
        description = _description(path, weights)
        if model not in (None, description["architecture"]):
            raise InputError(
                f"{path}: is a classifier of {description['architecture']}, not of "
                f"{model}; leave the model out"
            )
        return cls(variables=weights.variables, sha256=weights.sha256, **description)

    def predict(self, pictures: Picture | Iterable[Picture], top: int = 5) -> list[Any]:
        """Return the `top` classes with their probabilities, the most probable first.

        A picture is a path, a PIL image, or an array uint8[h, w], [h, w, 1] or
        [h, w, 3], and gives [(class name, probability), …]. Several of them, in a list
        or as uint8[n, h, w, c], give a list of such lists.

        Raises InputError for a picture that cannot be read, ValueError for an array of
        another shape or dtype, and for a `top` below 1.
        """
        if top < 1:
            raise ValueError(f"top: {top} is out of range; pass a number from 1 on")
        one = _is_one(pictures)
        answers = []
        for row in self.probabilities(pictures):
            order = np.argsort(-row, kind="stable")[:top]
            answers.append([(self.class_names[i], float(row[i])) for i in order])
        return answers[0] if one else answers

    def probabilities(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Return the probability of each class for each picture, float32[n, classes].

        The pictures are those of `predict`; one picture gives one row.
        """
        many = _listed(pictures)
        # The filters of warnings belong to the process, so one thread changes them.
        with _WARNINGS, warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")  # of Pillow, about unusual metadata
            prepared = list(pool.map(self.prepare, many))
        return self.forward(prepared)

    def prepare(self, picture: Picture) -> np.ndarray:
        """Return a picture as the network's input before normalisation: uint8[s, s, c].

        `s` is the image size of the preprocessing, and c its channels, 3 or 1. Raises
        as `predict` does.
        """
        return self.preprocess.resize(_image(picture))

    def forward(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probabilities of prepared pictures, float32[n, classes].

        Each is uint8[s, s, c], as `prepare` returns it.
        """
        rows, start = [], 0
        with environment.pinned():
            while start < len(images):
                size = BATCH if len(images) - start >= BATCH else 1
                batch = np.stack(images[start : start + size])
                rows.append(
                    _probabilities(self._model, self.preprocess, self._variables, batch)
                )
                start += size
        if not rows:
            return np.empty((0, len(self.class_names)), np.float32)
        return np.concatenate(jax.device_get(rows))

    def __repr__(self) -> str:
        """Return one line: the architecture and the first class names."""
        names = ", ".join(self.class_names[:5])
        more = ", …" if len(self.class_names) > 5 else ""
        classes = counted(len(self.class_names), "class")
        return f"Classifier({self.architecture}, {classes}: {names}{more})"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _probabilities(model, preprocess, variables, images):
    logits = model.apply(variables, preprocess.normalize(images), train=False)
    return jax.nn.softmax(logits.astype(jnp.float32))


def metadata(
    architecture: str,
    class_names: Sequence[str],
    preprocess: Preprocess,
    precision: str,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the metadata with which a file of weights is a classifier by itself.

    The arguments are those of Classifier.
    """
    network: dict[str, Any] = {"name": architecture, "precision": precision}
    if fields:
        network["fields"] = dict(fields)
    about = {
        "architecture": network,
        "class_names": list(class_names),
        "preprocessing": preprocess.facts(),
    }
    return {METADATA: json.dumps(about, sort_keys=True)}


def _network(path: Path, metadata: Mapping[str, str]) -> tuple[str, Any] | None:
    """Return the name and the key table of the network that a file describes.

    None if it describes none. Raises InputError if the description is invalid.
    """
    if METADATA not in metadata:
        return None
    with _invalid_named(path):
        about = json.loads(metadata[METADATA])
        network = ARCHITECTURES[about["architecture"]["name"]]
        preprocess = _preprocess(about)
        size, channels = preprocess.image_size, preprocess.channels
        fields = about["architecture"].get("fields", {})
        return network.name, network.table((size, size, channels), **fields)


def _description(path: Path, weights: Weights) -> dict[str, Any]:
    """Return a file's architecture, class names, preprocessing, precision and fields.

    The keys are arguments of Classifier. Raises InputError if the description is
    missing, or does not fit the weights.
    """
    about = _about(path, weights)
    with _invalid_named(path):
        network = about["architecture"]
        jnp.dtype(network["precision"])
        description = {
            "architecture": ARCHITECTURES[network["name"]].name,
            "class_names": [nfc(str(name)) for name in about["class_names"]],
            "preprocess": _preprocess(about),
            "precision": network["precision"],
            "fields": network.get("fields", {}),
        }
    head = list(weights.params)[-1]
    classes = len(weights.params[head]["bias"])
    named = len(description["class_names"])
    if classes != named:
        raise InputError(
            f"{path}: the network has {counted(classes, 'class')}, but {named} are "
            "named; pass another run"
        )
    return description


def _preprocess(about: Mapping[str, Any]) -> Preprocess:
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about["preprocessing"].items()
    }
    return Preprocess(**arguments)


@contextlib.contextmanager
def _invalid_named(path: Path) -> Iterator[None]:
    """Raise InputError, which names the file, if a description is invalid."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: its description of the network is invalid: {error}; pass "
            "another run"
        ) from error


def _about(path: Path, weights: Weights) -> Any:
    """Return the description in a file's metadata, or in an older run's config.json."""
    with _invalid_named(path):
        if METADATA in weights.metadata:
            return json.loads(weights.metadata[METADATA])
        config = path.with_name(run_folder.CONFIG)
        if path.name == run_folder.MODEL and config.exists():
            record = parse_record(config.read_text("utf-8"))
            return {
                "architecture": {"name": record.model, "precision": record.precision},
                "class_names": record.class_names,
                "preprocessing": record.preprocess_arguments(),
            }
    raise InputError(
        f"{path}: contains no class names; pass the folder of a run, or its "
        f"{run_folder.MODEL}"
    )


def _is_one(pictures: Any) -> bool:
    if hasattr(pictures, "ndim"):  # an array of NumPy or JAX
        return pictures.ndim != 4
    return isinstance(pictures, (str, os.PathLike, Image.Image))


def _listed(pictures: Any) -> list[Picture]:
    return [pictures] if _is_one(pictures) else list(pictures)


def _image(picture: Picture) -> Image.Image:
    """Return a picture in mode L or RGB; see `Classifier.predict`."""
    if isinstance(picture, (str, os.PathLike)):
        try:
            return read_image(read(Path(picture)))
        except BadPicture as problem:
            raise InputError(f"{picture}: {problem}; pass another picture") from problem
    if isinstance(picture, Image.Image):
        try:
            return upright(picture)
        except BadPicture as problem:
            raise InputError(f"picture: {problem}; pass another picture") from problem
    array = np.asarray(picture)
    channels = array.shape[2:] or (1,)
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or channels not in ((1,), (3,))
    ):
        shape = ", ".join(map(str, array.shape))
        raise ValueError(
            "picture: expected a path, a PIL image, or uint8[h, w], [h, w, 1] or "
            f"[h, w, 3], got {array.dtype}[{shape}]"
        )
    return Image.fromarray(
        array[:, :, 0] if channels == (1,) and array.ndim == 3 else array
    )
