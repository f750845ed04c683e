"""The folder of one run: refused where it would overwrite, then filled file by file."""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.errors import UsageError
from pretrained.files import write_safetensors

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
CURVES, CONFUSION, SPLIT = "curves.png", "confusion.png", "split.json"
RESULTS, OVERFIT = "results.json", "overfit.png"
_FILES = (CONFIG, METRICS, MODEL, CURVES, CONFUSION, SPLIT, RESULTS, OVERFIT)
_PACKAGES = (
    "jaxlab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "pillow",
    "safetensors",
)


def choose(out: str | None, overwrite: bool) -> Path:
    """Return the folder to use; by default `runs/` and the time. Creates nothing.

    Raises UsageError when `out` is a file, cannot be written, or holds something and
    `overwrite` is not asked for.
    """
    if out == "":
        raise UsageError("--out: is empty; pass the name of a folder")
    if out is None:
        # The process's number keeps runs apart that start in the same second.
        now = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        folder = Path("runs") / f"{now}-{os.getpid()}"
    else:
        folder = Path(out)
    with _refusals_named(folder):
        above = folder
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            raise UsageError(f"--out: {above} is no folder; pass the name of a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if above == folder and any(folder.iterdir()):
            if not overwrite:
                raise UsageError(
                    f"--out: {folder} is not empty; pass another folder, or --overwrite"
                )
            if not any(_is_ours(folder / name) for name in (CONFIG, RESULTS)):
                raise UsageError(
                    f"--out: {folder} holds no run to overwrite; pass another folder"
                )
    return folder


def create(folder: Path) -> None:
    """Create the folder, or clear an earlier run's files from it and nothing else.

    Raises UsageError when the file system refuses.
    """
    with _refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out: {folder} cannot be written to: {error.strerror}; "
            "pass another folder"
        ) from error


def _is_ours(path: Path) -> bool:
    try:
        return "jaxlab" in json.loads(path.read_text())["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **installed}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def append_metrics(folder: Path, epoch: Mapping[str, float]) -> None:
    """Add one line to metrics.jsonl."""
    with open(folder / METRICS, "a") as file:
        file.write(json.dumps(epoch, allow_nan=False) + "\n")


def write_model(folder: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write model.safetensors, whole or not at all; the same arrays, the same bytes.

    Raises WeightsError when it cannot be written.
    """
    write_safetensors(folder / MODEL, state_dict, {"format": "pt"})
