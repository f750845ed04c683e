"""What a run takes over from the process that began it."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.config import LAST, PER_PROCESS, Config
from jaxlab.errors import CheckpointError, UsageError
from jaxlab.runs import folder as run_folder

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
    record = run_folder.read_record(Path(config.out)) or {"settings": {}}
    kept = {field.name for field in dataclasses.fields(config)} - PER_PROCESS
    return {k: v for k, v in record["settings"].items() if k in kept}


def check_settings(
    config: Config, then: Mapping[str, Any], names: Iterable[str]
) -> None:
    """Refuse, with UsageError, named settings that differ from those of the run."""
    now = dataclasses.asdict(config)
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
    checkpoints: "CheckpointManager",
    asked: str,
    epochs: int,
    log: Callable[[str], None],
) -> "Checkpoint | None":
    """Return the step to go on from, to `epochs`; None where none was saved yet.

    Raises CheckpointError when those that were saved cannot be used, UsageError for
    one behind the last epoch.
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
    saved = checkpoints.restore(None if asked == LAST else int(asked))
    begun = len(saved.about["history"]) + bool(saved.about["step_metrics"])
    if epochs < begun:
        raise UsageError(
            f"--epochs: step {saved.step} is of epoch {begun}; pass {begun} or more, "
            "or an earlier step to --resume"
        )
    log(f"resumed from step {saved.step}")
    return saved


def check_data(record: Mapping[str, Any], data: Any) -> None:
    """Refuse, with CheckpointError, images or classes that are not the run's."""
    if list(record["class_names"]) != list(data.class_names):
        raise CheckpointError(
            f"--resume: the classes are {', '.join(data.class_names)}, the run's "
            f"{', '.join(record['class_names'])}; start another run"
        )
    if record["dataset"].get("sha256") != data.fingerprint():
        raise CheckpointError(
            f"--resume: the images of {data.name} are not those of the run; put them "
            "back, or start another run"
        )


def warn_if_environment_changed(
    record: Mapping[str, Any],
    environment: Mapping[str, Any],
    log: Callable[[str], None],
) -> None:
    """Say where other software or another device may round differently.

    `environment` holds this process's `device` and `versions`, as the record holds
    those of the process that began the run, and of each that went on with it.
    """

    def parts(of):
        return {**of["versions"], "device": of["device"]}

    now = parts(environment)
    for earlier in (record, *record.get("resumptions", ())):
        then = parts(earlier)
        if changes := [
            f"{k} {then.get(k)} → {v}" for k, v in now.items() if v != then.get(k)
        ]:
            since = (
                f"went on at step {earlier['step']}" if "step" in earlier else "began"
            )
            log(
                f"warning: {', '.join(changes)} since the run {since}: its last bits "
                "may differ from those of a run in one piece"
            )
            return


def final_accuracy(folder: Path, epochs: int) -> float | None:
    """Return a run's last test accuracy if nothing of it is left to do."""
    files = (run_folder.MODEL, run_folder.CURVES, run_folder.CONFUSION)
    if not all(os.path.exists(folder / name) for name in files):
        return None
    try:
        history = run_folder.read_metrics(folder)
        accuracy = float(history[-1]["test_accuracy"])
    except (ValueError, LookupError, TypeError):
        return None  # damaged; the last step knows what it held
    return accuracy if len(history) >= epochs else None
