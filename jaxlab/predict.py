"""python -m jaxlab.predict: classify pictures with a trained network.

Pictures are files, folders (searched recursively) or patterns such as "*.jpg". They are
preprocessed exactly as in the run, and the predictions use the run's class names. With
--weights imagenet, torchvision's published weights are used instead of a run, with
ImageNet's 1,000 class names.
"""

import csv
import functools
import glob
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import InputError, UsageError
from jaxlab.models.architecture import ARCHITECTURES, Architecture
from jaxlab.runs import folder as run_folder
from jaxlab.runs.record import parse_record
from pretrained.errors import one_line

BATCH = 32  # pictures per call; with a fixed shape, only one program is compiled


@dataclass(frozen=True)
class Config:
    """The arguments of the command and their defaults."""

    inputs: tuple[str, ...] = flag(
        (),
        "the folder of a run, then the pictures; with --weights, only the pictures",
        positional=True,
    )
    weights: str | None = flag(
        None,
        "published weights to use instead of a run",
        choices=("imagenet",),
        default_help="the run's",
    )
    top: int = flag(3, "number of classes to print for each picture", at_least=1)
    json: bool = flag(False, "print one JSON object per line")
    csv: bool = flag(False, "print comma-separated values")
    offline: bool = flag(False, "do not use the network")
    debug: bool = flag(False, "show tracebacks")


class Network(NamedTuple):
    """A network's parameters, with the preprocessing and class names that they need."""

    params: Any
    preprocess: Any
    class_names: Sequence[str]
    architecture: Architecture
    precision: str = "float32"


def main(argv: Sequence[str] | None = None) -> None:
    """Classify the pictures and print the predictions.

    Raises InputError at the end if some pictures could not be read.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.predict", about=__doc__)
    config = Config(**given)
    if config.json and config.csv:
        raise UsageError("--csv: cannot be combined with --json; pass one of them")
    run, patterns = None, config.inputs
    if config.weights is None:
        if not config.inputs:
            raise UsageError("RUN: missing; pass the folder of a run, then pictures")
        run, *patterns = config.inputs
    if not patterns:
        raise UsageError("pictures: missing; pass files, folders or patterns")
    runtime.set_up()
    paths = _paths(patterns)
    network = _of_run(Path(run)) if run else _published(config)

    bad: list[str] = []
    unusual: list[str] = []
    write = _writer(config)
    total = len(paths)
    with terminal.progress_bar(
        total if total > BATCH else 0, "pictures", "picture"
    ) as bar:
        for path, probabilities in predict(network, paths, bad.append, unusual.append):
            order = np.argsort(-probabilities, kind="stable")[: config.top]
            write(
                path,
                [(network.class_names[i], float(probabilities[i])) for i in order],
            )
            bar.update()
    for line in [*unusual, *bad]:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    if bad:
        raise InputError(
            f"pictures: {len(bad):,} of {total:,} could not be read, the others were "
            "classified; check the files named above"
        )


def predict(
    network: Network,
    paths: Sequence[Path],
    on_bad: Callable[[str], None],
    on_unusual: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield each path with its class probabilities, float32[classes], in order.

    `on_bad` is called with a line for each file that cannot be used as a picture, and
    the file is skipped. `on_unusual` is called, in a worker thread, with a line for
    each picture that is unusual but is classified.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab.data.pictures import BadPicture, decode, read

    dtype = jnp.dtype(network.precision)
    model = network.architecture.build(len(network.class_names), dtype=dtype)
    params = jax.device_put(network.params)

    @jax.jit
    def run(params, images):
        inputs = network.preprocess.normalize(images)
        logits = model.apply({"params": params}, inputs, train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    def prepared(path: Path) -> np.ndarray | str:
        try:
            picture = decode(read(path))
            if picture.info["animated"]:
                on_unusual(f"{path}: is animated; only its first frame is used")
            return network.preprocess.resize(picture)
        except BadPicture as problem:
            return f"{path}: {problem}"

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about unusual metadata
        for start in range(0, len(paths), BATCH):
            chunk = paths[start : start + BATCH]
            images = list(pool.map(prepared, chunk))
            good = [image for image in images if not isinstance(image, str)]
            if good:
                padding = [good[-1]] * (BATCH - len(good))
                answers = iter(np.asarray(run(params, np.stack(good + padding))))
            for path, image in zip(chunk, images, strict=True):
                if isinstance(image, str):
                    on_bad(image)
                else:
                    yield path, next(answers)


def _paths(patterns: Sequence[str]) -> list[Path]:
    """Return the files that the arguments name, in order and without duplicates.

    Raises InputError for an argument that names no file or no picture.
    """
    from jaxlab.data.pictures import ENDINGS, files_in

    found: dict[Path, None] = {}
    for pattern in patterns:
        exact = [Path(pattern)] if os.path.lexists(pattern) else []
        matches = exact or sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not matches:
            raise InputError(f"{pattern}: no such file; check the path")
        pictures: list[Path] = []
        for path in matches:
            if path.is_dir():
                inside = (file for file in files_in(path) if not file.is_dir())
                pictures += sorted(f for f in inside if f.suffix.lower() in ENDINGS)
            else:
                pictures.append(path)
        if not pictures:
            raise InputError(f"{pattern}: contains no pictures; pass another folder")
        found |= dict.fromkeys(pictures)
    return list(found)


def _of_run(folder: Path) -> Network:
    from jaxlab.data.preprocess import Preprocess
    from pretrained.files import read_weights

    try:
        record = parse_record((folder / run_folder.CONFIG).read_text())
        preprocess = Preprocess(**record.preprocess_arguments())
        architecture = ARCHITECTURES[record.model]
        precision = record.precision
    except OSError as error:
        raise InputError(
            f"{folder}: not the folder of a run: {run_folder.CONFIG} cannot be read "
            f"({error.strerror}); pass the folder of a run, then pictures"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: invalid {run_folder.CONFIG}: {error}; pass another run"
        ) from error
    model = folder / run_folder.MODEL
    if not model.exists():
        raise InputError(
            f"{folder}: contains no {run_folder.MODEL}: the run is not finished; pass "
            "another run"
        )
    params = read_weights(model, architecture.name).params
    classes = len(params[architecture.head]["bias"])
    if classes != len(record.class_names):
        raise InputError(
            f"{folder}: the model has {classes} classes, but {run_folder.CONFIG} names "
            f"{len(record.class_names)}; pass another run"
        )
    return Network(params, preprocess, record.class_names, architecture, precision)


def _published(config: Config) -> Network:
    from jaxlab.data.preprocess import Preprocess
    from jaxlab.training.initial_weights import whole_network
    from pretrained.sources import imagenet_classes

    weights = whole_network(config.weights, offline=config.offline)
    architecture = ARCHITECTURES[weights.network]
    names = imagenet_classes()
    # The published accuracies were measured with a centre crop.
    return Network(weights.params, Preprocess(crop=True), names, architecture)


def _writer(config: Config) -> Any:
    """Return a function `(path, answers)` that prints one picture's predictions."""
    if config.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["file", "rank", "class", "probability"])
        return functools.partial(_write_csv, table)
    return _write_json if config.json else _write_text


def _write_csv(table: Any, path: Path, answers: list[tuple[str, float]]) -> None:
    for rank, (name, probability) in enumerate(answers, 1):
        table.writerow([path, rank, name, f"{probability:.6f}"])


def _write_json(path: Path, answers: list[tuple[str, float]]) -> None:
    top = [{"class": name, "probability": p} for name, p in answers]
    print(json.dumps({"file": str(path), "top": top}))


def _write_text(path: Path, answers: list[tuple[str, float]]) -> None:
    answer = "  ".join(f"{name} {probability:.1%}" for name, probability in answers)
    print(f"{one_line(str(path))}  {answer}")


if __name__ == "__main__":
    sys.exit(terminal.run(main))
