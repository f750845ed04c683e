"""Find a TensorFlow Datasets (TFDS) dataset by name, and say why it cannot be used.

Nothing here opens a network connection.
"""

import contextlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxlab.errors import InputError, UsageError
from pretrained.errors import install, one_line

_NAME = re.compile(r"([a-z][a-z0-9_]*)(/[A-Za-z0-9_.+-]+)?(:\d+\.\d+\.\d+)?")
# TFDS's classes for robots and for reinforcement learning name their place so. Many of
# them read their description from there when they are created, which needs TensorFlow
# and a network, and tries for minutes.
_CLOUD = ("_GCS_BUCKET", "_INPUT_FILE_PREFIX")
# What TFDS and the code of its datasets raise when one is created: for instance for an
# unknown configuration or version, for unreadable files, and for packages that a
# dataset needs.
_REFUSALS = (ValueError, AssertionError, OSError, RuntimeError, ImportError)
_PREFIX = re.compile(r"""^.*?Failed to construct dataset "[^"]*", [^"]*"\{.*?\}": """)
_SHOWN = 6  # features in a message
_LONGEST = 250  # characters of another program's text in a message


def tfds() -> Any:
    """Return the module tensorflow_datasets; raises InputError without the package."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise InputError(
            f"tensorflow-datasets: not installed; {install('tfds')}, or pass "
            "--dataset mnist5k or a folder of class folders"
        )
    # Its warnings, for instance about missing OpenCV, do not concern the user.
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    import tensorflow_datasets

    return tensorflow_datasets


def known_names() -> list[str]:
    """Return the names of all TFDS datasets, or [] if the package is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return []
    return tfds().list_builders(with_community_datasets=False)


def open_builder(name: str, data_dir: str | None) -> Any:
    """Return TFDS's builder of a dataset, which may not be prepared yet.

    Raises UsageError for an unknown name, and for a dataset that is described only in
    cloud storage or that TFDS refuses; InputError if what is prepared under `data_dir`
    cannot be opened.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"--dataset: {name!r} is neither mnist5k, nor a folder, nor the name of a "
            "TensorFlow Datasets (TFDS) dataset; see --help"
        )
    library = tfds()
    # TFDS has imported this module and raises its error for a damaged description.
    from google.protobuf.json_format import ParseError

    try:
        kind = library.builder_cls(match[1])
        for attribute in _CLOUD:
            if hasattr(kind, attribute):
                place = getattr(kind, attribute)
                raise _unsuitable(name, f"TFDS reads it from cloud storage, {place}")
        with _temporary_files_removed():
            return library.builder(name, data_dir=data_dir, file_format="array_record")
    except library.core.DatasetNotFoundError as error:
        raise UsageError(f"--dataset: unknown dataset {name!r}; see --help") from error
    except ParseError as error:
        raise InputError(
            f"{name}: dataset_info.json under --data-dir is damaged; remove the "
            "dataset's folder and run again to prepare it again"
        ) from error
    except _REFUSALS as error:
        raise _refusal(name, match[1], error) from error


def _refusal(name: str, base: str, error: Exception) -> InputError | UsageError:
    """Return the error for what TFDS raised when it created a builder."""
    reason = _PREFIX.sub("", one_line(str(error)))
    if "File format is already set" in reason:
        return InputError(
            f"{name}: was prepared in a file format other than ArrayRecord; pass "
            "another --data-dir to prepare it there"
        )
    own = os.path.dirname(tfds().__file__)
    if isinstance(error, FileNotFoundError) and own in reason:
        file = os.path.basename(reason.rstrip("'"))
        return _unsuitable(name, f"the installed package of TFDS lacks its file {file}")
    is_damage = isinstance(error.__cause__ or error, json.JSONDecodeError)
    if name == base and isinstance(error, ValueError) and not is_damage:
        return _unsuitable(name, f"TFDS cannot open it by its name: {short(reason)}")
    return InputError(
        f"{name}: cannot be opened: {short(reason)}; check the name and --data-dir"
    )


def short(text: str) -> str:
    """Return the beginning of a text of another program, on one line."""
    text = one_line(text).rstrip(". ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _unsuitable(name: str, reason: str) -> UsageError:
    return UsageError(
        f"--dataset: {name} is not an image-classification dataset that can be used: "
        f"{reason}; pass another dataset"
    )


@contextlib.contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Remove the temporary files that are created inside the `with` block.

    TFDS creates an empty temporary folder for each dataset that is not prepared, and
    does not remove it.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def shape_and_classes(
    name: str, builder: Any
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """Return the shape of an image, None where sizes differ, and the class names.

    Raises UsageError if an example is not one 8-bit image with one class.
    """
    features = builder.info.features
    problem = _problem(features)
    if problem is not None:
        raise _unsuitable(name, problem)
    return features["image"].shape, tuple(features["label"].names)


def _problem(features: Any) -> str | None:
    """Return why the features of an example are not one image and one class."""
    kinds = tfds().features
    if not isinstance(features, kinds.FeaturesDict):
        kind = "none" if features is None else type(features).__name__
        return f"its examples have no names for their parts, but are of kind {kind}"
    if "image" not in features:
        found = [
            noun
            for noun, kind in (("video", kinds.Video), ("audio", kinds.Audio))
            if any(isinstance(feature, kind) for feature in features.values())
        ]
        return f"it has no image, but {', '.join(found or _names(features))}"
    if "label" not in features:
        labels = [key for key in features if "label" in key]
        if labels:
            return f"it has no single label, but {', '.join(_names(labels))}"
        rest = [key for key in features if key != "image"]
        return f"it has no label, but image{''.join(f', {n}' for n in _names(rest))}"
    image, label = features["image"], features["label"]
    if isinstance(label, kinds.Sequence):
        return "it has several labels for an image"
    if not isinstance(label, kinds.ClassLabel):
        return f"its label is not a class, but of kind {type(label).__name__}"
    if not isinstance(image, kinds.Image) or np.dtype(image.np_dtype) != np.uint8:
        return f"its image is {type(image).__name__} of {np.dtype(image.np_dtype)}"
    return None


def _names(features: Iterable[str]) -> list[str]:
    names = list(features)
    return [*names[:_SHOWN], "…"] if len(names) > _SHOWN else names
