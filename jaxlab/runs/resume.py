"""Checks and settings for resuming a run in another process."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.config import (
    LAST,
    PER_PROCESS,
    RESOLVED_FROM_DATA,
    Config,
    Resolved,
    fields_that,
    resolved,
)
from jaxlab.errors import CheckpointError, UsageError
from jaxlab.runs import folder as run_folder
from jaxlab.runs import record
from jaxlab.runs.record import Record
from pretrained.disk import open_regular

if TYPE_CHECKING:  # --help must not wait for the import of JAX
    from jaxlab.runs.checkpoint import Checkpoint, CheckpointManager


def complete(given: Mapping[str, Any]) -> Resolved:
    """Return the whole config: what is given, then a resumed run's, then defaults.

    Raises UsageError for settings that are wrong, contradict each other, or differ from
    those of the run to resume.
    """
    config = Config(**given)
    if config.resume is None or config.out is None:  # --resume needs --out
        return resolved(config)
    record_file = Path(config.out) / run_folder.CONFIG
    found = record.read_record(record_file)
    then = settings_of(found)
    try:
        complete_config = resolved(Config(**{**then, **given}))
    except UsageError as error:
        raise UsageError(f"--resume: {record_file}: {error.text}") from error
    check_settings(complete_config, then, None)
    if found is not None:
        check_weights(complete_config, found)
    began_with, epochs = then.get("epochs"), complete_config.epochs
    if complete_config.schedule == "cosine" and began_with not in (None, epochs):
        raise UsageError(
            f"--epochs: the run in {config.out} lowers its learning rate to almost 0 "
            f"over {began_with} epochs, by --schedule cosine, and cannot have "
            f"{epochs}; start another run, or begin one with --schedule step or "
            "constant, which can be given more epochs later"
        )
    return complete_config


def settings_of(found: Record | None) -> dict[str, Any]:
    """Return the settings that a resumed run restores; none if nothing has begun."""
    then = {"model": found.model, **found.settings} if found else {}
    restored = {field.name for field in fields(Config)} - fields_that(PER_PROCESS)
    return {name: value for name, value in then.items() if name in restored}


def open_record(config: Config, folder: Path, data: Any) -> Record | None:
    """Return the record of the run in the locked folder; None to start a new run.

    Raises UsageError if the folder cannot be used or the settings differ from the
    run's, CheckpointError if the data differ or if no run contains the given step.
    """
    resuming = config.resume is not None
    # Checked again, because another process may have used the folder before the lock.
    run_folder.resolve_folder(str(folder), config.overwrite, resuming)
    then = record.read_record(folder / run_folder.CONFIG) if resuming else None
    if then is None and config.resume not in (None, LAST):
        raise CheckpointError(
            f"{folder}: contains no run, so there is no step {config.resume}; pass "
            "another --out, or pass --resume without a step to start a run"
        )
    if then is not None:
        check_settings(config, then.settings, RESOLVED_FROM_DATA)
        check_weights(config, then)
        check_data(then, data)
        run_folder.remove_partial_files(folder)
    return then


def check_settings(
    config: Config, then: Mapping[str, Any], on_resume: str | None
) -> None:
    """Raise UsageError if settings that must equal the run's differ from them.

    Only settings with this value of `on_resume` are compared: None, or
    RESOLVED_FROM_DATA. `then` contains the settings of the run.
    """
    now, names = dataclasses.asdict(config), fields_that(on_resume)
    _refuse(
        config,
        [
            f"--{name.replace('_', '-')} was {then[name]}, is now {now[name]}"
            for name in sorted(names)
            if name in then and now[name] != then[name]
        ],
    )


def check_weights(config: Config, then: Record) -> None:
    """Raise UsageError unless the weights are the run's, wherever the file is now."""
    now, before = config.weights, then.settings.get("weights", config.weights)
    sha256 = then.weights.get("sha256")
    if now == before or (now is not None and sha256 and _sha256(now) == sha256):
        return
    _refuse(config, [f"--weights was {before}, is now {now}"])


def _sha256(path: str) -> str | None:
    """Return the SHA-256 of a file, in hexadecimal; None if it cannot be read."""
    try:
        with open_regular(path) as file:
            # typing's BinaryIO lacks `readinto`, which every binary file has.
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            return digest.hexdigest()
    except (OSError, ValueError):
        return None


def _refuse(config: Config, differences: list[str]) -> None:
    if differences:
        raise UsageError(
            f"--resume: the run in {config.out} has different settings: "
            f"{', '.join(differences)}; pass the run's settings, or start another run"
        )


def checkpoint_to_resume(
    checkpoints: "CheckpointManager", asked: str, log: Callable[[str], None]
) -> "Checkpoint | None":
    """Return the checkpoint to resume from; None if no checkpoint was saved yet.

    `asked` is a step, or LAST. Raises CheckpointError if no usable one exists.
    """
    checkpoints.recover()
    folder = checkpoints.folder.parent
    if asked == LAST and not checkpoints.steps():
        if (folder / run_folder.MODEL).exists():
            raise CheckpointError(
                f"{folder}: the run is finished, but has no checkpoint to resume from; "
                "pass another --out, or --overwrite instead of --resume"
            )
        log("no checkpoint was saved yet: the run starts from the beginning")
        return None
    return checkpoints.restore(None if asked == LAST else int(asked))


def check_data(then: Record, data: Any) -> None:
    """Raise CheckpointError if images or classes differ from the run's."""
    difference = then.mismatch(data)
    if difference is not None:
        raise CheckpointError(
            f"--resume: {difference}; restore them, or start another run"
        )


def warn_if_environment_changed(
    then: Record, environment: Mapping[str, Any], log: Callable[[str], None]
) -> None:
    """Log a warning if the device, versions or variables changed: so may rounding.

    `environment` is that of this process; see `jaxlab.environment.recorded`.
    """
    variables = environment["variables"]
    now = {**environment["versions"], "device": environment["device"], **variables}
    for since, earlier in then.environments():
        unknown = dict.fromkeys(variables, "")  # older versions did not store them
        earlier = {**unknown, **earlier}
        if changes := [
            f"{k} {earlier.get(k) or 'unset'} → {v or 'unset'}"
            for k, v in now.items()
            if v != earlier.get(k)
        ]:
            log(
                f"warning: {', '.join(changes)} since the run {since}: its results may "
                "differ in the last bits from those of an uninterrupted run"
            )
            return


def finished_rows(folder: Path, config: Config) -> list[dict[str, float]]:
    """Return the rows of a run that is finished, but for its pictures; else none."""
    if not (folder / run_folder.MODEL).exists():
        return []
    metrics = folder / run_folder.METRICS
    return record.finished_rows(metrics, config.epochs, config.patience)


def is_of_other_data(folder: Path, config: Config) -> bool:
    """Return whether the data are named otherwise than in the record of a run.

    They may be the same; only `check_data` shows it.
    """
    then = record.read_record(folder / run_folder.CONFIG)
    return then is not None and then.settings.get("dataset") != config.dataset


def missing_pictures(folder: Path) -> list[str]:
    """Return the names of the figures that are missing in the folder of a run."""
    return [name for name in run_folder.PICTURES if not (folder / name).exists()]
