"""All that a run writes to its folder, in the order that loses nothing.

First what the run is, then an epoch at a time what it has reached; at the end one saved
step, then the model, which makes the run a finished one; then pictures.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.runs import folder as run_folder
from jaxlab.runs.checkpoint import CheckpointManager
from jaxlab.runs.record import Record, rows_text
from pretrained.disk import atomic_write, write_text
from pretrained.errors import one_line
from pretrained.files import write_safetensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunWriter:
    """The writer of one run, whose folder this process holds.

    Without `checkpoints` no step is saved. Used as a context, it waits at its end for
    what is being saved. `log` gets a line for what is unusual.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: CheckpointManager | None,
        log: Callable[[str], None],
    ):
        """Write nothing yet."""
        self.folder = folder
        self.checkpoints = checkpoints
        self.log = log

    def begin(
        self, record: Record, rows: Sequence[Mapping[str, float]], files: Any = None
    ) -> None:
        """Write what the run is, the epochs it has behind it, and its data's files.

        Of a run that begins, what an earlier one left in the folder is removed; of one
        that goes on, the end of a shorter one.
        """
        if record.resumptions:
            (self.folder / run_folder.MODEL).unlink(missing_ok=True)
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
        """Write metrics.jsonl, a line an epoch."""
        self._write(run_folder.METRICS, rows_text(rows))

    def save(self, state: Any, trainable: Any, progress: Mapping[str, Any]) -> None:
        """Save a step, in a thread; see `CheckpointManager.save`."""
        if self.checkpoints is not None:
            self.checkpoints.save(state, trainable, progress)

    def wait(self) -> None:
        """Return when nothing is being saved; CheckpointError if that failed."""
        if self.checkpoints is not None:
            self.checkpoints.wait()

    @property
    def last_step(self) -> int | None:
        """The newest step that is saved, if one is."""
        return self.checkpoints and self.checkpoints.last

    def write_model(
        self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
    ) -> None:
        """Write the network, when the last step is saved, and alone.

        After all but the pictures: it makes a run a finished one.
        """
        self.wait()
        if self.checkpoints is not None:
            self.checkpoints.keep_newest()
        write_safetensors(self.folder / run_folder.MODEL, tensors, metadata)

    def draw(self, name: str, draw: Callable[[], "Figure"]) -> None:
        """Write a picture; that it cannot be drawn or written is a warning."""
        path = self.folder / name
        try:
            with atomic_write(path) as partial:
                draw().savefig(partial, dpi=150, format="png")
        # Whatever a drawing library raises must not cost a trained network its end.
        except Exception as error:
            reason = getattr(error, "strerror", None) or one_line(str(error))[:200]
            self.log(
                f"warning: {path}: not drawn: {type(error).__name__}: {reason}; the "
                "run is finished without it, and --resume draws it"
            )

    def __enter__(self) -> "RunWriter":
        """Wait at the end, whatever ends the block."""
        return self

    def __exit__(self, *_) -> None:
        """Wait."""
        self.wait()

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as partial:
            write_text(partial, text)


class SilentWriter:
    """A writer of nothing: that of every process of a run but the first."""

    last_step: int | None = None

    def begin(self, record: Record, rows: Any, files: Any = None) -> None:
        """Do nothing."""

    def write_json(self, name: str, content: Any) -> None:
        """Do nothing."""

    def write_rows(self, rows: Any) -> None:
        """Do nothing."""

    def save(self, state: Any, trainable: Any, progress: Any) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Return at once."""

    def write_model(self, tensors: Any, metadata: Any) -> None:
        """Do nothing."""

    def draw(self, name: str, draw: Any) -> None:
        """Do nothing, not even draw."""

    def __enter__(self) -> "SilentWriter":
        """Return itself."""
        return self

    def __exit__(self, *_) -> None:
        """Do nothing."""
