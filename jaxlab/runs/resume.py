"""What a run takes over from the process that began it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.config import LAST, PER_PROCESS, Config, fields_that
from jaxlab.errors import CheckpointError, UsageError
from jaxlab.runs import folder as run_folder
from jaxlab.runs import record
from jaxlab.runs.record import Record

if TYPE_CHECKING:  # so that --help does not wait for JAX
    from jaxlab.runs.checkpoint import Checkpoint, CheckpointManager


def settings(config: Config) -> dict[str, Any]:
    """Return the settings that a run to be resumed has, for flags that are not given.

    None of them where nothing has begun. Raises UsageError for flags that make no
    sense together.
    """
    if config.overwrite:
        raise UsageError("--resume: not together with --overwrite; pass one of them")
    if config.out is None:
        raise UsageError("--resume: which run? pass its folder as --out")
    if config.resume != LAST and not config.resume.isdecimal():
        raise UsageError(
            f"--resume: {config.resume!r} is no step; pass a step's number, or nothing "
            "for the last"
        )
    found = record.read_record(Path(config.out) / run_folder.CONFIG)
    then = found.settings if found else {}
    own = fields_that(PER_PROCESS)
    return {name: value for name, value in then.items() if name not in own}


def check_settings(
    config: Config, then: Mapping[str, Any], on_resume: str | None
) -> None:
    """Refuse, with UsageError, settings that must be the run's and are not.

    Of them those of a kind: None, or RESOLVED_FROM_DATA.
    """
    now, names = dataclasses.asdict(config), fields_that(on_resume)
    differences = [
        f"--{name.replace('_', '-')} {then[name]} there, {now[name]} here"
        for name in sorted(names)
        if name in then and now[name] != then[name]
    ]
    if differences:
        raise UsageError(
            f"--resume: the run in {config.out} has other settings: "
            f"{', '.join(differences)}; resume with its own, or start another run"
        )


def checkpoint_to_resume(
    checkpoints: "CheckpointManager", asked: str, log: Callable[[str], None]
) -> "Checkpoint | None":
    """Return the step to go on from; None where none was saved yet.

    Raises CheckpointError when those that were saved cannot be used.
    """
    checkpoints.recover()
    folder = checkpoints.folder.parent
    if asked == LAST and not checkpoints.steps():
        if (folder / run_folder.MODEL).exists():
            raise CheckpointError(
                f"{folder}: the run is finished, and no step is left to go on from; "
                "pass another --out, or --overwrite instead of --resume"
            )
        log("no step was saved yet: the run begins anew")
        return None
    return checkpoints.restore(None if asked == LAST else int(asked))


def check_data(then: Record, data: Any) -> None:
    """Refuse, with CheckpointError, images or classes that are not the run's."""
    if then.class_names != list(data.class_names):
        raise CheckpointError(
            f"--resume: the classes are {', '.join(data.class_names)}, the run's "
            f"{', '.join(then.class_names)}; start another run"
        )
    if then.sha256 != data.fingerprint():
        raise CheckpointError(
            f"--resume: the images of {data.name} are not those of the run; put them "
            "back, or start another run"
        )


def warn_if_environment_changed(
    then: Record, environment: Mapping[str, Any], log: Callable[[str], None]
) -> None:
    """Say where other software or another device may round differently.

    `environment` holds this process's `device` and `versions`.
    """
    now = {**environment["versions"], "device": environment["device"]}
    for since, earlier in then.environments():
        if changes := [
            f"{k} {earlier.get(k)} → {v}" for k, v in now.items() if v != earlier.get(k)
        ]:
            log(
                f"warning: {', '.join(changes)} since the run {since}: its last bits "
                "may differ from those of a run in one piece"
            )
            return


def final_accuracy(folder: Path, epochs: int) -> float | None:
    """Return a run's last test accuracy if it is finished, but for its pictures."""
    if not (folder / run_folder.MODEL).exists():
        return None
    return record.final_accuracy(folder / run_folder.METRICS, epochs)


def missing_pictures(folder: Path) -> list[str]:
    """Return the names of the pictures that a finished run lacks."""
    names = (run_folder.CURVES, run_folder.CONFUSION)
    return [name for name in names if not (folder / name).exists()]
