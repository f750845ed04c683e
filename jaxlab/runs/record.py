"""The record of a run: config.json, all that decides it; metrics.jsonl, its epochs."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """What config.json holds.

    `settings` are the command's flags, `dataset` the name, the fingerprint and the
    numbers of images, `weights` what the run started from. `device` and `versions` are
    those of the process that began it; each of `resumptions` has them too, with the
    `step` from which another process went on.
    """

    settings: dict[str, Any]
    dataset: dict[str, Any]
    class_names: list[str]
    weights: dict[str, Any]
    preprocessing: dict[str, Any]
    device: str
    versions: dict[str, str]
    resumptions: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        config: Any,
        data: Any,
        preprocess: Any,
        weights: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> "Record":
        """Return the record of a run that begins, in an environment (see below)."""
        return cls(
            settings=dataclasses.asdict(config),
            dataset={
                "name": data.name,
                "sha256": data.fingerprint(),
                "train_images": len(data.train),
                "test_images": len(data.test),
            },
            class_names=list(data.class_names),
            weights=dict(weights),
            preprocessing={
                "channels": "RGB, grey repeated",
                "resize": "Pillow's bilinear",
                "image_size": preprocess.image_size,
                "crop": preprocess.crop,
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
            },
            **environment,
        )

    def resumed(
        self, config: Any, step: int, environment: Mapping[str, Any]
    ) -> "Record":
        """Return the record of the run when it goes on from a step."""
        return dataclasses.replace(
            self,
            settings=dataclasses.asdict(config),
            resumptions=[*self.resumptions, {"step": step, **environment}],
        )

    @property
    def sha256(self) -> str | None:
        """The fingerprint of the data."""
        return self.dataset.get("sha256")

    @property
    def model(self) -> str:
        """The name of the network; the only one there was, where none is told."""
        return self.settings.get("model", "alexnet")

    @property
    def precision(self) -> str:
        """The network's arithmetic."""
        return self.settings["precision"]

    def preprocess_arguments(self) -> dict[str, Any]:
        """Return the arguments of the Preprocess that the run had."""
        said = self.preprocessing
        return {
            "image_size": said["image_size"],
            "crop": said["crop"],
            "mean": tuple(said["mean"]),
            "std": tuple(said["std"]),
        }

    def environments(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield since when a process had what device and versions, the first first."""
        yield "began", {**self.versions, "device": self.device}
        for each in self.resumptions:
            since = f"went on at step {each['step']}"
            yield since, {**each["versions"], "device": each["device"]}


def parse_record(text: str) -> Record:
    """Return the record that config.json's text holds; ValueError if it is no run's."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}")
    kinds = {"device": str, "class_names": list, "resumptions": list}
    values = {}
    for name in Record.__dataclass_fields__:
        value = content.get(name, [] if name == "resumptions" else None)
        if not isinstance(value, kinds.get(name, dict)):
            raise ValueError(f"has no {name!r}, or an odd one")
        values[name] = value
    if "jaxlab" not in values["versions"]:
        raise ValueError("was written by something else")
    return Record(**values)


def read_record(path: Path) -> Record | None:
    """Return what a config.json holds; None where no run has begun."""
    try:
        return parse_record(path.read_text())
    except (OSError, ValueError):
        return None


def is_of_the_lab(path: Path) -> bool:
    """Return whether a results.json is one that the lab has written."""
    try:
        return "jaxlab" in json.loads(path.read_text())["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def rows_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Return metrics.jsonl's text, a line an epoch."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the epochs in a metrics.jsonl; none where there is no such file."""
    return [*map(json.loads, path.read_text().splitlines())] if path.exists() else []


def final_accuracy(path: Path, epochs: int) -> float | None:
    """Return the test accuracy of the last of so many epochs, if all are there."""
    try:
        rows = read_rows(path)
        accuracy = float(rows[-1]["test_accuracy"])
    except (ValueError, LookupError, TypeError):
        return None  # damaged; the last step knows what it held
    return accuracy if len(rows) >= epochs else None
