"""Checkpoints: all that decides the rest of a run, on disk, whole or not at all.

A saved step is a folder named by its number: one file of arrays, and a manifest that is
compared before anything is restored. A folder gets its name when all that is in it is
written, and loses it before the first file is deleted: the death of the process, at any
moment, leaves whole steps only. (The death of the machine may not: files and folders
are not forced to the disk.)
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
    """A step as it was saved: its number, its arrays by name, and what came with it."""

    step: int
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


class CheckpointManager:
    """The steps of one run in `folder`, the last `keep` of them.

    Writing goes on in a thread while the run does; a `with` block waits for it at its
    end. `log` gets a line for each step that is saved, and for what is wrong with
    others.
    """

    def __init__(self, folder: Path, keep: int, log: Callable[[str], None]):
        """Nothing is touched before the first use."""
        self.folder = folder
        self.keep = keep
        self.log = log
        self.last: int | None = None  # the newest step that is whole
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._copy: list[np.ndarray] | None = None  # of the leaves of a state
        self._frozen: str | None = None  # the manifest's hash of what never changes
        self._done: tuple[int, str] | None = None  # what was saved last

    def recover(self) -> None:
        """Remove what a process that died was writing or deleting.

        What it had written to the end gets its name. Raises CheckpointError when the
        folder cannot be written to.
        """
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"{self.folder}: cannot be written to; make it writable, or go on with "
                "a copy of the run"
            )
        for partial in self.folder.glob(f"*{disk.PARTIAL}"):
            if _is_whole(partial) and not partial.with_suffix("").exists():
                partial.rename(partial.with_suffix(""))
            else:
                disk.remove(partial)
        for to_delete in self.folder.glob(f"*{disk.DELETED}"):
            disk.remove(to_delete)

    def steps(self) -> list[int]:
        """Return the numbers of the steps that are there, the newest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(n) for n in names if re.fullmatch(r"0|[1-9]\d*", n))[::-1]

    def save(self, state: Any, trainable: Any, about: Mapping[str, Any]) -> None:
        """Save a step, after the one before is saved; returns when it is copied.

        `state` is a tree of arrays with `params` and `step`. Parameters that
        `trainable` leaves frozen are stored with the first step only; `about` is JSON.
        Raises CheckpointError when the step before could not be written.
        """
        self.wait()
        # A copy: the next training step writes to the very memory of this state. The
        # copy's memory is kept for the next one: new pages take twenty times as long.
        leaves, shape = jax.tree.flatten(jax.device_get(state))
        if self._copy is None:
            self._copy = [np.empty(np.shape(leaf), leaf.dtype) for leaf in leaves]
        for copy, leaf in zip(self._copy, leaves, strict=True):
            np.copyto(copy, leaf)
        state = jax.tree.unflatten(shape, self._copy)
        self._pending = self._writer.submit(self._save, state, trainable, dict(about))

    def wait(self) -> None:
        """Return when nothing is being written; raises CheckpointError if it failed.

        A signal meanwhile raises Stopped afterwards: Python on its way out would not
        let a save finish.
        """
        with signals.deferred():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.result()

    def __enter__(self) -> "CheckpointManager":
        """Wait at the end, whatever ends the block."""
        return self

    def __exit__(self, *_) -> None:
        """Wait."""
        self.wait()

    def keep_newest(self) -> None:
        """Delete all steps but the newest, at the end of a run."""
        for step in self.steps()[1:]:
            disk.remove_folder(self.folder / str(step))

    def restore(self, step: int | None = None) -> Checkpoint:
        """Read a step, by default the newest that is whole; what is not is said.

        Raises CheckpointError when there is none, or the one that is asked for is not
        there or not whole.
        """
        existing = self.steps()
        if step is not None and step not in existing:
            known = ", ".join(map(str, existing)) or "none"
            raise CheckpointError(
                f"{self.folder}: has no step {step}; pass one of those it has: {known}"
            )
        for number in existing if step is None else [step]:
            try:
                saved = self._read(number)
            except CorruptionError as error:
                if step is not None:
                    raise CheckpointError(
                        f"step {step}: {error}; pass another step, or none for the "
                        "last that is whole"
                    ) from error
                self.log(f"warning: step {number}: {error}; skipped")
                continue
            self.last = number
            return saved
        raise CheckpointError(
            f"{self.folder}: no step is whole; start anew, with --overwrite"
        )

    def _read(self, step: int) -> Checkpoint:
        """Read a step; CorruptionError unless it is there, and as it was saved."""
        folder, frozen = self.folder / str(step), self.folder / FROZEN
        about = manifest.verify_manifest(folder)
        if about["step"] != step:
            raise CorruptionError(f"{folder}: holds step {about['step']}")
        arrays = load_file(folder / STATE)
        if about["frozen"]:
            if manifest.digest(manifest.verify_manifest(frozen)) != about["frozen"]:
                raise CorruptionError(f"{frozen}: is of another run")
            arrays |= load_file(frozen / STATE)
            self._frozen = about["frozen"]
        return Checkpoint(step, arrays, about)

    # Writing, in the thread.

    def _save(self, state, trainable, about) -> None:
        folder, step, arrays = self.folder, int(state.step), flatten_with_names(state)
        frozen = {name: arrays.pop(name) for name in _frozen_names(trainable)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if frozen and self._frozen is None:
                self._frozen = self._write(FROZEN, frozen, {})
            asked = step, manifest.digest(about)
            if asked == self._done:
                return  # asked for by the end of an epoch, and by a signal
            self._done = asked
            about = {"step": step, "frozen": self._frozen, **about}
            self._write(str(step), arrays, about)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{folder}: step {step} could not be saved: {reason}; check the free "
                f"space; the last step saved is {self.last}"
            ) from error
        self.last = step
        with contextlib.suppress(OSError):  # who prints next meets it as well
            self.log(f"saved step {step}")
        # Later steps are there when the run goes on from an earlier one, or from before
        # a damaged one. It may not come to them again.
        existing = self.steps()
        kept = [number for number in existing if number <= step][: self.keep]
        for old in existing:
            if old not in kept:
                disk.remove_folder(folder / str(old))

    def _write(
        self, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
    ) -> str:
        """Write a folder of arrays and its manifest; return the manifest's digest."""
        for key, array in arrays.items():
            if not _is_finite(array):
                raise CheckpointError(
                    f"step {name}: {key} is not finite, and not saved; lower --lr; the "
                    f"last step saved is {self.last}"
                )
        with disk.atomic_folder(self.folder / name) as partial:
            for step in (*map(str, self.steps()), FROZEN):
                _forget(self.folder / step / STATE)
            disk.write_tensors(partial / STATE, arrays)
            return manifest.write_manifest(partial, about)


def check_disk_space(
    folder: Path, state: Any, trainable: Any, keep: int
) -> tuple[int, int]:
    """Return the bytes of a run's checkpoints, and those it will still write at most.

    `folder` is that of the steps, `state` may be of shapes. Raises InputError when the
    disk has less.
    """
    params = jax.tree.leaves(state.params)
    frozen = sum(
        _size(leaf)
        for leaf, is_trainable in zip(params, jax.tree.leaves(trainable), strict=True)
        if not is_trainable
    )
    changing = sum(map(_size, jax.tree.leaves(state))) - frozen
    kept = keep * changing + frozen
    # While a step is written it is there besides; at the end so is the model.
    needed = kept + changing + sum(map(_size, params))
    # What an earlier run, or this one before, has written goes or is there already.
    needed -= sum(path.lstat().st_size for path in folder.rglob("*"))
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise InputError(
            f"{folder.parent}: checkpoints need {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; free some, pass another --out, or "
            "--checkpoint-every 0"
        )
    return kept, max(needed, 0)


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _forget(file: Path) -> None:
    """Tell the system that nobody reads this file, so that it reuses its memory.

    It would take new pages for what is written next, and clear them first; on a virtual
    machine that is most of what a save costs.
    """
    if hasattr(os, "posix_fadvise") and file.is_file():
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_finite(array: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        # A sum is tested faster, but may be too large itself.
        return bool(np.isfinite(np.sum(array)) or np.isfinite(array).all())


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """Return the leaves of a state, or tree, by name, such as `params.fc6.kernel`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _frozen_names(trainable: Any) -> set[str]:
    named = flatten_with_names({"params": trainable})
    return {name for name, is_trainable in named.items() if not is_trainable}


def unflatten_like(template: Any, saved: Checkpoint) -> Any:
    """Return the saved arrays as a tree like `template`, of arrays or their shapes.

    Raises CheckpointError naming every array that is of another network or optimiser.
    """
    expected = flatten_with_names(template)
    problems = [f"{name} is not of this run" for name in saved.arrays.keys() - expected]
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
            f"step {saved.step}: is of another network or optimiser: "
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
