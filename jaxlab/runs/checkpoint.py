"""Checkpoints: everything that determines the rest of a run, written atomically.

The checkpoint of a step is a folder that is named after the step's number. It contains
a file of arrays, and a manifest that is verified before anything is restored. A folder
gets its name when all of its files are written, and is renamed before the first one is
deleted. If the process dies at any moment, only complete checkpoints remain. (If the
machine dies, this is not guaranteed: files and folders are not synced to the disk.)

It is one file because saving, reading and deleting rely on the same order of writes.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxlab.cli import signals
from jaxlab.errors import CheckpointError, CorruptionError, InputError
from jaxlab.runs import manifest
from pretrained import disk

STATE, FROZEN = "state.safetensors", "frozen"


class Checkpoint(NamedTuple):
    """A checkpoint that was read: its step, its arrays by name, and its metadata."""

    step: int
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


class CheckpointManager:
    """The checkpoints of one run in `folder`, of which the latest `keep` are kept.

    They are written in a thread while the run continues; a `with` block waits for it at
    its end. `log` is called with a line for each checkpoint that is saved, and for each
    damaged one that is skipped.
    """

    def __init__(self, folder: Path, keep: int, log: Callable[[str], None]):
        """Store the arguments; no file is accessed before the first use."""
        self.folder = folder
        self.keep = keep
        self.log = log
        self.last: int | None = None  # the latest intact step
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._copy: list[np.ndarray] | None = None  # of a state's leaves
        self._frozen: str | None = None  # the digest of FROZEN's manifest
        self._done: tuple[int, str] | None = None  # latest step and digest

    def recover(self) -> None:
        """Remove checkpoints that a process that died had not finished or was deleting.

        A checkpoint that was complete, but not renamed yet, is renamed. Raises
        CheckpointError if the folder cannot be written to.
        """
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{self.folder}: cannot be written to; make it writable, or resume a "
                "copy of the run"
            )
        for partial in self.folder.glob(f"*{disk.PARTIAL}"):
            if _is_whole(partial) and not partial.with_suffix("").exists():
                partial.rename(partial.with_suffix(""))
            else:
                disk.remove(partial)
        for to_delete in self.folder.glob(f"*{disk.DELETED}"):
            disk.remove(to_delete)

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, the latest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(n) for n in names if re.fullmatch(r"0|[1-9]\d*", n))[::-1]

    def save(self, state: Any, trainable: Any, about: Mapping[str, Any]) -> None:
        """Wait for the previous checkpoint, copy the state and save it in a thread.

        `state` is a tree of arrays with `params` and `step`, `about` is metadata for
        JSON. Parameters that are frozen according to `trainable` are stored only once.
        Raises CheckpointError if the previous checkpoint could not be written.
        """
        self.wait()
        # The state is copied, because the next training step overwrites its memory. The
        # copy's memory is used again: new pages take twenty times as long.
        leaves, shape = jax.tree.flatten(jax.device_get(state))
        if self._copy is None:
            self._copy = [np.empty(np.shape(leaf), leaf.dtype) for leaf in leaves]
        for copy, leaf in zip(self._copy, leaves, strict=True):
            np.copyto(copy, leaf)
        state = jax.tree.unflatten(shape, self._copy)
        self._pending = self._writer.submit(self._save, state, trainable, dict(about))

    def wait(self) -> None:
        """Wait until nothing is being written; raises CheckpointError if that failed.

        A signal that arrives during this time raises Stopped afterwards, because an
        interpreter that exits would not let the thread finish.
        """
        with signals.deferred():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.result()

    def __enter__(self) -> "CheckpointManager":
        """Return the manager; the end of the block waits, also after an error."""
        return self

    def __exit__(self, *_) -> None:
        """Wait until nothing is being written."""
        self.wait()

    def keep_newest(self) -> None:
        """Delete all checkpoints but the latest, at the end of a run."""
        for step in self.steps()[1:]:
            disk.remove_folder(self.folder / str(step))

    def restore(self, step: int | None = None) -> Checkpoint:
        """Read the checkpoint of a step, by default the latest intact one.

        If `step` is None, a warning is logged for each damaged one. Raises
        CheckpointError if none is intact, or if the given step is missing or damaged.
        """
        existing = self.steps()
        if step is not None and step not in existing:
            known = ", ".join(map(str, existing)) or "none"
            raise CheckpointError(
                f"{self.folder}: has no step {step}; pass one of its steps: {known}"
            )
        for number in existing if step is None else [step]:
            try:
                saved = self._read(number)
            except CorruptionError as error:
                if step is not None:
                    raise CheckpointError(
                        f"step {step}: {error}; pass another step, or --resume "
                        "without a step for the latest intact one"
                    ) from error
                self.log(f"warning: step {number}: {error}; this checkpoint is skipped")
                continue
            self.last = number
            return saved
        raise CheckpointError(
            f"{self.folder}: contains no intact checkpoint; pass --overwrite instead "
            "of --resume to start from the beginning"
        )

    def _read(self, step: int) -> Checkpoint:
        """Read a checkpoint; raise CorruptionError if it is missing or damaged."""
        folder, frozen = self.folder / str(step), self.folder / FROZEN
        about = manifest.verify_manifest(folder)
        if about["step"] != step:
            raise CorruptionError(f"{folder}: contains step {about['step']}")
        arrays = load_file(folder / STATE)
        if about["frozen"]:
            if manifest.digest(manifest.verify_manifest(frozen)) != about["frozen"]:
                raise CorruptionError(f"{frozen}: belongs to another run")
            arrays |= load_file(frozen / STATE)
            self._frozen = about["frozen"]
        return Checkpoint(step, arrays, about)

    # The methods below write, in the thread.

    def _save(self, state, trainable, about) -> None:
        folder, step, arrays = self.folder, int(state.step), flatten_with_names(state)
        frozen = {name: arrays.pop(name) for name in _frozen_names(trainable)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if frozen and self._frozen is None:
                self._frozen = self._write(FROZEN, frozen, {})
            asked = step, manifest.digest(about)
            if asked == self._done:
                return  # a signal arrived after this step was saved
            self._done = asked
            about = {"step": step, "frozen": self._frozen, **about}
            self._write(str(step), arrays, about)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{folder}: step {step} could not be saved: {reason}; check the free "
                f"space; the latest checkpoint is step {self.last}"
            ) from error
        self.last = step
        with contextlib.suppress(OSError):  # the next print raises it again
            self.log(f"saved step {step}")
        # Later checkpoints exist if the run was resumed from an earlier step. They are
        # deleted, because the run may never reach their steps again.
        existing = self.steps()
        kept = [number for number in existing if number <= step][: self.keep]
        for old in existing:
            if old not in kept:
                disk.remove_folder(folder / str(old))

    def _write(
        self, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
    ) -> str:
        """Write a folder of arrays with its manifest; return the manifest's digest."""
        for key, array in arrays.items():
            if not _is_finite(array):
                raise CheckpointError(
                    f"step {name}: {key} is not finite, so nothing is saved; lower "
                    f"--lr; the latest checkpoint is step {self.last}"
                )
        with disk.atomic_folder(self.folder / name) as partial:
            for step in (*map(str, self.steps()), FROZEN):
                _forget(self.folder / step / STATE)
            disk.write_tensors(partial / STATE, arrays)
            return manifest.write_manifest(partial, about)


def check_disk_space(
    folder: Path, state: Any, trainable: Any, keep: int
) -> tuple[int, int]:
    """Return the size of a run's kept checkpoints, and the free space that it needs.

    Both are in bytes; the second includes the model, but not what `folder`, which
    contains the checkpoints, uses already. The leaves of `state` may be shapes. Raises
    InputError if the disk does not have the space.
    """
    params = jax.tree.leaves(state.params)
    frozen = sum(
        _size(leaf)
        for leaf, is_trainable in zip(params, jax.tree.leaves(trainable), strict=True)
        if not is_trainable
    )
    changing = sum(map(_size, jax.tree.leaves(state))) - frozen
    kept = keep * changing + frozen
    # A checkpoint that is being written exists in addition, and so does the model.
    needed = kept + changing + sum(map(_size, params))
    # Files of an earlier run are removed, and those of this run exist already.
    needed -= sum(path.lstat().st_size for path in folder.rglob("*"))
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise InputError(
            f"{folder.parent}: checkpoints and model need {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; free some space, pass another --out, or "
            "pass --checkpoint-every 0"
        )
    return kept, max(needed, 0)


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _forget(file: Path) -> None:
    """Remove a file from the system's page cache, so that the memory is reused.

    Otherwise the next file is written to new pages, which the system clears first. On a
    virtual machine, that takes most of the time of saving.
    """
    if not hasattr(os, "posix_fadvise") or not file.is_file():
        return
    with contextlib.suppress(OSError):  # it is only slower
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_finite(array: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        # Testing the sum is faster, but the sum of finite values may overflow.
        return bool(np.isfinite(np.sum(array)) or np.isfinite(array).all())


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by name, such as `params.conv1.kernel`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _frozen_names(trainable: Any) -> set[str]:
    named = flatten_with_names({"params": trainable})
    return {name for name, is_trainable in named.items() if not is_trainable}


def unflatten_like(template: Any, saved: Checkpoint) -> Any:
    """Return the saved arrays as a tree like `template`, whose leaves may be shapes.

    Raises CheckpointError, which names every array that is missing, unexpected, or of a
    different shape or dtype.
    """
    expected = flatten_with_names(template)
    problems = [f"{name} is unexpected" for name in saved.arrays.keys() - expected]
    for name, leaf in expected.items():
        found = saved.arrays.get(name)
        if found is None:
            problems.append(f"{name} is missing")
        elif (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            problems.append(
                f"{name} is {found.dtype}{list(found.shape)}, expected "
                f"{leaf.dtype}{list(leaf.shape)}"
            )
    if problems:
        raise CheckpointError(
            f"step {saved.step}: was saved for a different network or optimizer: "
            f"{'; '.join(sorted(problems))}; resume with the settings it was saved with"
        )
    leaves = [saved.arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _is_whole(partial: Path) -> bool:
    try:
        about = manifest.verify_manifest(partial)
    except CorruptionError:
        return False
    return str(about.get("step", FROZEN)) == partial.stem
