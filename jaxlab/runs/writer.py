"""Write the files of a run, in an order in which an interruption loses nothing.

First the record of the run is written, then the metrics after each epoch, and the
curves every few seconds. At the end only one checkpoint is kept, then the model is
written, which marks the run as finished, and then the figures.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.runs import folder as run_folder
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.runs.record import Record, rows_text
from pretrained import stages
from pretrained.console import ERROR_LOG
from pretrained.disk import atomic_write, write_text
from pretrained.errors import one_line
from pretrained.files import write_safetensors

if TYPE_CHECKING:
    from jaxlab.figures.figure import Figure


# Training waits while the curves are renewed, so that they take a small share of its
# time: at most one drawing in so many seconds, and in so many times its own length.
_SECONDS_BETWEEN, _TIMES_BETWEEN = 5.0, 20


class RunWriter:
    """The writer of one run, whose folder this process has locked.

    If `checkpoints` is None, no checkpoints are saved. At the end of a `with` block it
    waits for the checkpoint that is being written. `log` is called with each warning.
    `curves` draws the figure of a run's rows; without it there is none until the end.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: CheckpointManager | None,
        log: Callable[[str], None],
        curves: Callable[[Sequence[Mapping[str, float]]], "Figure"] | None = None,
    ):
        """Store the arguments; nothing is written yet."""
        self.folder = folder
        self.checkpoints = checkpoints
        self.log = log
        self._curves = curves
        self._drawn_rows = 0
        self._next_drawing = time.monotonic() + _SECONDS_BETWEEN

    def begin(
        self, record: Record, rows: Sequence[Mapping[str, float]], files: Any = None
    ) -> None:
        """Write the record of the run, the rows so far, and the paths of its images.

        For a new run, the files of an earlier run in the folder are removed. For a
        resumed run, the model is removed, since the run is no longer finished, and the
        details of an earlier process's error.
        """
        if record.resumptions:
            (self.folder / run_folder.MODEL).unlink(missing_ok=True)
            (self.folder / ERROR_LOG).unlink(missing_ok=True)
        else:
            run_folder.remove_run(self.folder)
        self.write_json(run_folder.CONFIG, dataclasses.asdict(record))
        if files:
            self.write_json(run_folder.SPLIT, files)
        if rows:
            self.write_rows(rows)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._write(name, json.dumps(content, indent=2) + "\n")

    def write_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.jsonl, one line per epoch."""
        self._write(run_folder.METRICS, rows_text(rows))

    def renew_curves(
        self, rows: Sequence[Mapping[str, float]], *, stopping: bool = False
    ) -> None:
        """Draw the curves so far, unless they were drawn a few seconds ago.

        With `stopping`, only curves that are complete are not drawn again. If drawing
        fails, a warning is logged, and it is not tried again before the end of the run.
        """
        began = time.monotonic()
        if self._curves is None or len(rows) == self._drawn_rows:
            return
        if began < self._next_drawing and not stopping:
            return
        path, draw = self.folder / run_folder.CURVES, self._curves
        with stages.stage(f"drawing {path.name}"):
            figure, reason = _write_figure(path, lambda: draw(rows))
        if figure is None:
            self.log(f"warning: {path}: not renewed: {reason}; the run goes on")
            self._curves = None
        self._drawn_rows = len(rows)
        now = time.monotonic()
        pause = max(_SECONDS_BETWEEN, _TIMES_BETWEEN * (now - began))
        self._next_drawing = now + pause

    def save(self, state: Any, trainable: Any, progress: Mapping[str, Any]) -> None:
        """Save a checkpoint in a thread; see `CheckpointManager.save`."""
        if self.checkpoints is not None:
            with stages.stage("saving a checkpoint"):
                self.checkpoints.save(state, trainable, progress)

    def wait(self) -> None:
        """Wait until nothing is being saved; raise CheckpointError if that failed."""
        if self.checkpoints is not None:
            with stages.stage("saving a checkpoint"):
                self.checkpoints.wait()

    @property
    def last_step(self) -> int | None:
        """The step of the latest checkpoint, or None if nothing was saved."""
        return None if self.checkpoints is None else self.checkpoints.last

    def write_model(
        self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
    ) -> None:
        """Wait for the last checkpoint, delete the others and write the model.

        Call this after everything except `draw`, because it marks the run as finished.
        Pictures of before are removed: those of a finished run are of all its epochs.
        """
        self.wait()
        if self.checkpoints is not None:
            self.checkpoints.keep_newest()
        for name in run_folder.PICTURES:
            (self.folder / name).unlink(missing_ok=True)
        write_safetensors(self.folder / run_folder.MODEL, tensors, metadata)

    def write_variant(
        self,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
    ) -> None:
        """Write the model of a variant of the lab."""
        folder = self.folder / run_folder.MODELS
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}{run_folder.WEIGHTS}"
        write_safetensors(path, tensors, metadata)

    def draw(
        self,
        name: str,
        draw: Callable[[], "Figure"],
        remedy: str | None = None,
    ) -> None:
        """Draw and write a figure; log a warning, with the remedy, if that fails.

        By default, resuming the run draws it.
        """
        if remedy is None:
            folder = shlex.quote(str(self.folder))
            remedy = f"to draw it, pass --resume --out {folder}"
        with stages.stage(f"drawing {name}"):
            self._draw(self.folder / name, draw, remedy)

    def _draw(self, path: Path, draw: Callable[[], "Figure"], remedy: str) -> None:
        figure, reason = _write_figure(path, draw)
        if figure is None:
            self.log(
                f"warning: {path}: not drawn: {reason}; the run is finished "
                f"without it; {remedy}"
            )
            return
        if figure.missing:
            self.log(
                f"warning: {path}: no installed font has {figure.missing[:50]}; "
                "install one that has, such as Noto, and delete the picture; "
                f"{remedy}"
            )

    def __enter__(self) -> "RunWriter":
        """Return the writer; the end of the block waits, also after an error."""
        return self

    def __exit__(self, *_) -> None:
        """Wait until nothing is being saved."""
        self.wait()

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as partial:
            write_text(partial, text)


def _write_figure(
    path: Path, draw: Callable[[], "Figure"]
) -> tuple["Figure | None", str]:
    """Draw and write a figure; return it, or None and why it was not drawn."""
    try:
        with atomic_write(path) as partial:
            figure = draw()
            figure.savefig(partial, dpi=150, format="png")
    # An error in a drawing library must not make a training run fail.
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(str(error))[:200]
        return None, f"{type(error).__name__}: {reason}"
    return figure, ""


class SilentWriter:
    """A writer that writes nothing, for all processes of a run except the first."""

    last_step: int | None = None

    def begin(self, record: Record, rows: Any, files: Any = None) -> None:
        """Do nothing."""

    def write_json(self, name: str, content: Any) -> None:
        """Do nothing."""

    def write_rows(self, rows: Any) -> None:
        """Do nothing."""

    def renew_curves(self, rows: Any, *, stopping: bool = False) -> None:
        """Do nothing."""

    def save(self, state: Any, trainable: Any, progress: Any) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Return immediately."""

    def write_model(self, tensors: Any, metadata: Any) -> None:
        """Do nothing."""

    def write_variant(self, name: str, tensors: Any, metadata: Any) -> None:
        """Do nothing."""

    def draw(self, name: str, draw: Any, remedy: str | None = None) -> None:
        """Do nothing; `draw` is not called."""

    def __enter__(self) -> "SilentWriter":
        """Return itself."""
        return self

    def __exit__(self, *_) -> None:
        """Do nothing."""
