"""Named arrays in a folder, as Orbax writes them: a file each.

Orbax takes a second to import, so this module is loaded by those who save or restore.
"""

import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import type_handlers

# It warns of a kind of checkpoint that is not asked for, and logs what it raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a folder that is not there yet; OSError when it cannot be done.

    They are read while they are written, not copied.
    """
    try:
        _checkpointer().save(folder.absolute(), dict(arrays))
    except ValueError as error:  # what the file system said, from below Orbax
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def read(folder: Path, part: str = "") -> dict[str, np.ndarray]:
    """Return the arrays that `write` wrote, those whose names begin with `part`.

    What has been damaged since may go unnoticed, or raise any of Orbax's errors: see
    `jaxlab.runs.manifest`, which is to be asked before.
    """
    existing = _checkpointer().metadata(folder.absolute()).item_metadata.tree
    expected = {n: leaf for n, leaf in existing.items() if n.startswith(part)}
    if not expected:
        return {}
    return _checkpointer().restore(
        folder.absolute(), item=expected, partial_restore=True
    )


class _Handler(type_handlers.NumpyHandler):
    """Orbax's own, but that it waits for every array, whatever becomes of the others.

    Orbax's writes all of them in one event loop and closes it at the first error. The
    others then fail on their own, with tracebacks, or go on writing into a folder that
    is being removed.
    """

    async def serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        started = []
        for i in range(len(values)):
            single = slice(i, i + 1)
            started += await super().serialize(
                values[single], infos[single], args and args[single]
            )
        return [_All(started)]


class _All(ocp.future.Future):
    """Several futures as one."""

    def __init__(self, parts: Sequence[ocp.future.Future]):
        self.parts = parts

    def result(self, timeout: float | None = None) -> None:
        with contextlib.ExitStack() as stack:  # calls all, and raises after the last
            for part in self.parts:
                stack.callback(part.result, timeout)


def _checkpointer() -> ocp.Checkpointer:
    """Return one of its own for each use: one thread may write while another reads."""
    registry = type_handlers.create_type_handler_registry(
        (np.ndarray, _Handler(deepcopy_host_arrays=False))
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,  # a file an array
            use_compression=False,  # trained weights do not get smaller
            type_handler_registry=registry,
        )
    )
