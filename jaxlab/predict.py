"""python -m jaxlab.predict: classify pictures with a trained network.

Pictures are files, folders (searched recursively, but for what systems and programs
leave there) or patterns such as "*.jpg". They are preprocessed exactly as in the run,
and the predictions use the run's class names. With --weights imagenet, torchvision's
published weights are used instead of a run, with ImageNet's 1,000 class names. With
--test-index, the run's own test images are classified, beside their true classes.
"""
# It is one file so that the command can be read from its arguments to its answers.

import csv
import functools
import glob
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab import runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import InputError, UsageError, shown
from jaxlab.models.architecture import DEFAULT, FINE_TUNED
from jaxlab.runs import folder as run_folder
from pretrained import stages
from pretrained.errors import one_line, printable
from pretrained.sources import PUBLISHED

BAR_FROM = 33  # pictures for which a progress bar is shown


@dataclass(frozen=True)
class Config:
    """The arguments of the command and their defaults."""

    inputs: tuple[str, ...] = flag(
        (),
        "the folder of a run or the file of its model, then the pictures; with "
        "--weights, only the pictures",
        group="network and pictures",
        positional=True,
        metavar="RUN|FILE PICTURE…",
    )
    weights: str | None = flag(
        None,
        "published weights to use instead of a run",
        choices=PUBLISHED,
        default_help="the run's",
    )
    model: str | None = flag(
        None,
        "network, one of those of jaxlab.finetune --help, such as resnet50",
        metavar="NAME",
        choices=FINE_TUNED,
        default_help=f"the run's; with --weights {DEFAULT}",
        synonyms=("arch", "architecture", "network"),
    )
    test_index: str | None = flag(
        None,
        "test images of the run to classify instead of pictures: their places in its "
        "test split, counted from 0, separated by commas",
        metavar="N,…",
        default_help="none",
        synonyms=("index", "test-image", "test-images"),
    )
    top: int = flag(
        3,
        "number of classes to print for each picture",
        group="output",
        at_least=1,
    )
    json: bool = flag(False, "print one JSON object per line")
    csv: bool = flag(False, "print comma-separated values")
    offline: bool = flag(False, "open no network connection", group="run")
    debug: bool = flag(False, "show tracebacks")

    def __post_init__(self):
        """Check every argument."""
        flags.validate(self)


def main(argv: Sequence[str] | None = None) -> None:
    """Classify the pictures and print the predictions.

    Raises InputError at the end if some pictures could not be read.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.predict", about=__doc__)
    config = Config(**given)
    if config.json and config.csv:
        raise UsageError("--csv: cannot be combined with --json; pass one of them")
    inputs = [flags.expanded("inputs", path) for path in config.inputs]
    source, patterns = config.weights, inputs
    if source is None:
        if not inputs:
            raise UsageError("RUN: missing; pass the folder of a run, then pictures")
        source, *patterns = inputs
    if config.weights is None and _holds_pictures(source):
        raise UsageError(
            f"RUN: missing before {source}; pass the folder of a run first, or "
            "--weights imagenet"
        )
    if config.test_index is not None:
        indices = _indices(config.test_index)
        if patterns or config.weights is not None:
            other = "--weights" if config.weights is not None else "pictures"
            raise UsageError(
                f"--test-index: cannot be combined with {other}; pass one of them"
            )
        return _predict_tested(config, source, indices)
    if not patterns:
        raise UsageError(
            "pictures: missing; pass files, folders or patterns, or --test-index"
        )
    stages.begin("starting JAX")
    runtime.set_up()
    bad: list[str] = []
    unusual: list[str] = []
    stages.begin("looking for the pictures")
    paths = _paths(patterns, bad.append, unusual.append)
    total = len(paths) + len(bad)
    from jaxlab.classifier import Classifier

    stages.begin("reading the network")
    classifier = Classifier.load(source, model=config.model, offline=config.offline)

    write = _writer(config, ("file",))
    total_shown = len(paths) if len(paths) >= BAR_FROM else 0
    stages.begin("predicting")
    stages.describe_saved(
        lambda: "what is printed is complete; pass the other pictures"
    )
    with terminal.progress_bar(total_shown, "pictures", "picture") as bar:
        for path, probabilities in predict(
            classifier, paths, bad.append, unusual.append
        ):
            write((path,), _best(classifier, probabilities, config.top))
            bar.update()
    for line in [*unusual, *bad]:
        warning = one_line(line.removeprefix("warning: "))
        print(f"warning: {warning}", file=sys.stderr)
    if bad:
        others = "" if len(bad) == total else ", the others were classified"
        raise InputError(
            f"pictures: {len(bad):,} of {total:,} could not be read{others}; check the "
            "files and folders named above"
        )


def _indices(text: str) -> list[int]:
    """Return the numbers in a text such as "0,17"; raise UsageError for others."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdecimal() and len(part) < 19):
            raise UsageError(
                f"--test-index: {shown(part)} is not a place in the test split; pass "
                "whole numbers from 0 on, separated by commas, such as 0,17"
            )
    return [int(part) for part in parts]


def _predict_tested(config: Config, source: str, indices: Sequence[int]) -> None:
    """Classify test images of a run, and print predictions beside true classes."""
    stages.begin("starting JAX")
    runtime.set_up()
    from jaxlab.classifier import Classifier
    from jaxlab.tested import tested_images

    stages.begin("reading the network")
    classifier = Classifier.load(source, model=config.model, offline=config.offline)
    stages.begin("loading the data")
    console = terminal.SILENT._replace(progress=terminal.progress_bar, shown=True)
    images, true_classes = tested_images(
        source, classifier, indices, offline=config.offline, console=console
    )
    stages.begin("predicting")
    write = _writer(config, ("test_index", "true_class"))
    for index, true_class, row in zip(
        indices, true_classes, classifier.forward(images), strict=True
    ):
        write((index, true_class), _best(classifier, row, config.top))


def _best(
    classifier: Any, probabilities: np.ndarray, top: int
) -> list[tuple[str, float]]:
    """Return the most probable classes of a picture, and their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(classifier.class_names[i], float(probabilities[i])) for i in order]


def predict(
    classifier: Any,
    paths: Sequence[Path],
    on_bad: Callable[[str], None],
    on_unusual: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield each path with its class probabilities, float32[classes], in order.

    `on_bad` is called with a line for each file that cannot be used as a picture, and
    the file is skipped. `on_unusual` is called, in a worker thread, with a line for
    each picture that is unusual but is classified.
    """
    from jaxlab.classifier import BATCH
    from jaxlab.data.pictures import BadPicture, read, read_image

    def prepared(path: Path) -> np.ndarray | str:
        try:
            picture = read_image(read(path))
        except BadPicture as problem:
            return f"{path}: {problem}"
        if picture.info["animated"]:
            on_unusual(f"{path}: is animated; only its first frame is used")
        return classifier.prepare(picture)

    pending: list[tuple[Path, np.ndarray]] = []
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about unusual metadata
        for start in range(0, len(paths), BATCH):
            chunk = paths[start : start + BATCH]
            for path, image in zip(chunk, pool.map(prepared, chunk), strict=True):
                if isinstance(image, str):
                    on_bad(image)
                else:
                    pending.append((path, image))
            is_last = start + BATCH >= len(paths)
            count = len(pending) if is_last else len(pending) // BATCH * BATCH
            ready, pending = pending[:count], pending[count:]
            rows = classifier.forward([image for _, image in ready])
            yield from zip((path for path, _ in ready), rows, strict=True)


def _holds_pictures(path: str) -> bool:
    """Return whether a path is a picture by its name, or a folder with one in it."""
    from jaxlab.data.pictures import ENDINGS

    def is_picture(name: str) -> bool:
        return os.path.splitext(name)[1].lower() in ENDINGS

    if not os.path.isdir(path):
        return is_picture(path)
    is_run = run_folder.is_run(Path(path))
    return not is_run and any(map(is_picture, os.listdir(path)))


def _paths(
    patterns: Sequence[str],
    on_bad: Callable[[str], None],
    log: Callable[[str], None],
) -> list[Path]:
    """Return the files that the arguments name, in order and without duplicates.

    `on_bad` is called with a line for each folder that cannot be searched, and `log`
    with one for what is left out, and for the files of a folder that are not pictures
    by their names. Raises InputError for an argument that names no file or no picture.
    """
    from jaxlab.data.files import find_files, log_skipped
    from jaxlab.data.pictures import ENDINGS

    found: dict[Path, None] = {}
    unusable: dict[str, None] = {}
    for pattern in patterns:
        exact = [Path(pattern)] if os.path.lexists(pattern) else []
        matches = exact or sorted(map(Path, glob.glob(pattern, recursive=True)))
        problems = [] if exact else _unlistable(pattern)
        if not matches and not problems:
            raise InputError(f"{pattern}: no such file; check the path")
        pictures: list[Path] = []
        for path in matches:
            if os.path.isdir(path):
                inside = find_files(path)
                are_pictures = [f.suffix.lower() in ENDINGS for f in inside.files]
                pictures += itertools.compress(inside.files, are_pictures)
                problems += inside.unusable
                log_skipped(path, [inside], log)
                _log_others(path, inside.files, are_pictures, log)
            else:
                pictures.append(path)
        unusable |= dict.fromkeys(f"{path}: {kind}" for path, kind in problems)
        if not pictures and not problems:
            raise InputError(f"{pattern}: contains no pictures; pass another folder")
        found |= dict.fromkeys(pictures)
    for line in unusable:
        on_bad(line)
    return list(found)


def _log_others(
    folder: Path,
    files: Sequence[Path],
    are_pictures: Sequence[bool],
    log: Callable[[str], None],
) -> None:
    from jaxlab.data.files import listed

    others = [f for f, is_one in zip(files, are_pictures, strict=True) if not is_one]
    if others:
        named = listed(str(file.relative_to(folder)) for file in others)
        log(
            f"{folder}: left out what has no picture's ending ({len(others):,}): "
            f"{named}"
        )


def _unlistable(pattern: str) -> list[Any]:
    """Return the folders in which a pattern cannot be searched, which glob ignores."""
    from jaxlab.data.files import Unusable

    found = []
    above = os.path.dirname(pattern)
    while glob.has_magic(pattern) and above not in ("", os.sep):
        for folder in filter(os.path.isdir, glob.glob(above, recursive=True)):
            try:
                os.listdir(folder)
            except OSError:
                found.append(Unusable(Path(folder), "unreadable folder"))
        pattern, above = above, os.path.dirname(above)
    return sorted(set(found))


def _writer(config: Config, columns: Sequence[str]) -> Any:
    """Return a function `(values, answers)` that prints one picture's predictions.

    `columns` are what the values are: the picture's file, or its place in the test
    split and its true class.
    """
    if config.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow([*columns, "rank", "class", "probability"])
        return functools.partial(_write_csv, table)
    return functools.partial(_write_json if config.json else _write_text, columns)


def _write_csv(
    table: Any, values: Sequence[Any], answers: list[tuple[str, float]]
) -> None:
    for rank, (name, probability) in enumerate(answers, 1):
        table.writerow([*values, rank, name, f"{probability:.6f}"])


def _write_json(
    columns: Sequence[str], values: Sequence[Any], answers: list[tuple[str, float]]
) -> None:
    about = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in zip(columns, values, strict=True)
    }
    top = [{"class": name, "probability": p} for name, p in answers]
    print(json.dumps({**about, "top": top}))


def _write_text(
    columns: Sequence[str], values: Sequence[Any], answers: list[tuple[str, float]]
) -> None:
    answer = "  ".join(f"{name} {probability:.1%}" for name, probability in answers)
    what = str(values[0])
    if columns[0] == "test_index":
        what = f"test image {values[0]} (true class {values[1]})"
    print(f"{printable(what)}  {printable(answer)}")


if __name__ == "__main__":
    sys.exit(terminal.run(main))
