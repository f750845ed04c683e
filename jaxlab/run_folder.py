"""The folder of one run: refused where it would overwrite, then filled file by file."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxlab.errors import UsageError

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
_PACKAGES = ("jaxlab", "jax", "flax", "optax", "numpy")
CURVES, CONFUSION = "curves.png", "confusion.png"


def choose(out: str | None, overwrite: bool) -> Path:
    """Return the folder to use; by default `runs/` and the time. Creates nothing.

    Raises UsageError when `out` is a file, cannot be written, or holds something and
    `overwrite` is not asked for.
    """
    if out is None:
        stem = Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
        folder, count = stem, 1
        while folder.exists():
            count += 1
            folder = stem.with_name(f"{stem.name}-{count}")
    else:
        folder = Path(out)
    above = folder
    while not (above.exists() or above.is_symlink()):
        above = above.parent
    if not above.is_dir():
        raise UsageError(f"--out: {above} is a file; pass the name of a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {above} cannot be written to; pass another folder")
    if above == folder and any(folder.iterdir()) and not overwrite:
        raise UsageError(
            f"--out: {folder} is not empty; pass another folder, or --overwrite"
        )
    return folder


def create(folder: Path) -> None:
    """Create the folder, or clear an earlier run's files from it and nothing else.

    Raises UsageError when the file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, METRICS, MODEL, CURVES, CONFUSION):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out: {folder} cannot be written to: {error.strerror}; "
            "pass another folder"
        ) from error


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all, with the versions it ran with."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["python"] = platform.python_version()
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps({**config, "versions": versions}, indent=2) + "\n")
    partial.replace(folder / CONFIG)


def append_metrics(folder: Path, epoch: Mapping[str, float]) -> None:
    """Add one line to metrics.jsonl."""
    with open(folder / METRICS, "a") as file:
        file.write(json.dumps(epoch) + "\n")


def write_model(folder: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write model.safetensors, whole or not at all; the same arrays, the same bytes."""
    path = folder / MODEL
    # One metadata key: several would be written in no fixed order.
    save_file(dict(state_dict), path, metadata={"format": "pt"})
    # The library creates the file for its owner only; give it the user's usual mode.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
