"""Measure how much writing a checkpoint slows down training, compared with Orbax.

    python -m benchmarks.saving

The default job saves a checkpoint after every second epoch. The program's own writer
and one that writes the arrays with Orbax are used in turn. Each epoch during which a
checkpoint is written is compared with the epoch before it, during which none is. An
epoch's seconds are those in metrics.jsonl: they begin before the state is copied and
end after the test. The first checkpoint of each kind is a warm-up, because its memory
is newly allocated.
"""

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.pairs import published

KINDS = ("ours", "orbax")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, and print and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(argv)
    from jaxlab import finetune
    from jaxlab.runs.record import read_rows
    from pretrained import disk

    # One epoch to warm up, then two for each checkpoint: before and during writing.
    epochs = 1 + 2 * len(KINDS) * (1 + options.pairs)
    disk.write_tensors = in_turn(disk.write_tensors, write_by_orbax())
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--out", f"{folder}/run", "--checkpoint-every", "2"]
        with contextlib.redirect_stdout(sys.stderr):
            finetune.main([*flags, "--epochs", str(epochs)])
        rows = read_rows(Path(folder) / "run" / "metrics.jsonl")
    seconds = [row["seconds"] for row in rows[1:]]
    result: dict[str, Any] = {"name": "saving", "unit": "s", "pairs": options.pairs}
    medians = {}
    for turn, kind in enumerate(KINDS):
        first, step = 2 * (len(KINDS) + turn), 2 * len(KINDS)
        without, beside = seconds[first::step], seconds[first + 1 :: step]
        shares = [slow / fast - 1 for fast, slow in zip(without, beside, strict=True)]
        medians[kind] = statistics.median(beside)
        longer = medians[kind] / statistics.median(without) - 1
        result[kind] = {
            "without": round(statistics.median(without), 3),
            "beside": round(medians[kind], 3),
            "longer": round(longer, 4),
            "range": [round(min(shares), 4), round(max(shares), 4)],
        }
    result["ratio"] = round(medians["orbax"] / medians["ours"], 4)
    return published(result)


def in_turn(*writers: Callable) -> Callable:
    """Return a writer that uses the given writers in turn for the checkpoints' states.

    It writes all other files with the first one.
    """
    from jaxlab.runs.checkpoint import FROZEN, STATE

    count = 0

    def write(path: Path, *arguments: Any) -> None:
        nonlocal count
        writer = writers[0]
        if path.name == STATE and path.parent.stem != FROZEN:
            writer = writers[count % len(writers)]
            count += 1
            forget(path.parent.parent)
        writer(path, *arguments)

    return write


def forget(folder: Path) -> None:
    """Release the cached pages of a folder's files, as the program does for its own."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_by_orbax() -> Callable:
    """Return a writer that writes a folder in Orbax's format instead of a file."""
    from orbax import checkpoint as ocp
    from orbax.checkpoint import type_handlers

    # Orbax warns about a kind of checkpoint that is not used here.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arrays = type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,  # one file per array
        use_compression=False,  # it does not make trained weights smaller
        type_handler_registry=type_handlers.create_type_handler_registry(
            (np.ndarray, arrays)
        ),
    )

    def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
        folder = path.with_suffix(".orbax").absolute()
        ocp.Checkpointer(handler).save(folder, dict(tensors))

    return write


if __name__ == "__main__":
    main()
