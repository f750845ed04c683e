"""The images that a run was tested on, loaded again as its config.json says."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.cli.terminal import Console
from jaxlab.config import Config
from jaxlab.data.loaders import Streamed
from jaxlab.data.pictures import Pictures
from jaxlab.errors import InputError, JaxlabError, UsageError
from jaxlab.library import load_of
from jaxlab.runs import folder as run_folder
from jaxlab.runs.record import Record, parse_record
from jaxlab.runs.resume import settings_of
from pretrained.errors import counted

if TYPE_CHECKING:
    from jaxlab.classifier import Classifier


def tested_images(
    run: str | os.PathLike,
    classifier: "Classifier",
    indices: Sequence[int],
    *,
    offline: bool,
    console: Console,
) -> tuple[list[np.ndarray], list[str]]:
    """Return test images of a run, as its network's inputs, and their true classes.

    `run` is its folder, or its `model.safetensors`, and `classifier` its network.
    `indices` are places in its test split, counted from 0. An input is uint8[s, s, 3],
    for `Classifier.forward`. A relative path of the data is looked for in the working
    directory, as by `--resume`.

    Raises InputError if the folder has no config.json, if the data cannot be loaded
    (UsageError or NetworkError if that is the reason), or if they are not the run's;
    UsageError for an index that is out of range.
    """
    folder = Path(run) if os.path.isdir(run) else Path(run).parent
    file = folder / run_folder.CONFIG
    record = _record(file)
    preprocess = classifier.preprocess
    try:
        config = Config(**{**settings_of(record), "offline": offline})
        data = load_of(config, preprocess, console)
    except JaxlabError as error:
        raise type(error)(
            f"--test-index: the data of {folder} cannot be loaded: {error.text}"
        ) from error
    difference = record.mismatch(data)
    if difference is not None:
        raise InputError(f"--test-index: {file}: {difference}; restore them")
    for index in indices:
        if index >= len(data.test):
            raise UsageError(
                f"--test-index: {index} is out of range; the run was tested on "
                f"{counted(len(data.test), 'image')}, so pass at most "
                f"{len(data.test) - 1}"
            )
    chosen = data.test.take(np.array(indices))
    images: Any = chosen.images
    if isinstance(images, Pictures):
        load = Streamed(images, chosen.labels, preprocess)
        (batch,) = load(np.arange(len(indices)), len(indices))
        images = np.asarray(batch.inputs)
    elif not data.resized:
        images = [classifier.prepare(image) for image in images]
    return list(images), [data.class_names[label] for label in chosen.labels]


def _record(file: Path) -> Record:
    try:
        return parse_record(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--test-index: {file}: cannot be read: {reason}; pass the folder of a run"
        ) from error
