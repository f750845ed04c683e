"""The record of a run: its settings in config.json, its epochs in metrics.jsonl."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlab.data.files import nfc
from jaxlab.metrics import patience_ended
from pretrained.tables import DEFAULT


class Rows(list[dict[str, float]]):
    """The rows of a run's metrics.jsonl; a slice has the same type.

    The type tells a figure that their training loss and accuracy were measured during
    the epoch, in contrast to those of `jaxlab.fit`; `dropout` says whether the network
    had dropout then.
    """

    def __init__(self, rows: Iterable[dict[str, float]] = (), dropout: bool = False):
        """Copy the rows."""
        super().__init__(rows)
        self.dropout = dropout

    def __getitem__(self, index: Any) -> Any:
        """Return a row, or for a slice the rows."""
        found = super().__getitem__(index)
        return Rows(found, self.dropout) if isinstance(index, slice) else found


@dataclass(frozen=True)
class Record:
    """The content of config.json.

    `settings` contains the command's flags, `dataset` the name, the fingerprint and the
    numbers of images, `weights` the origin of the initial weights. `device`, `versions`
    and `variables` (of the environment, "" if unset) are those of the process that
    started the run. Each of `resumptions` contains those of a process that resumed it,
    and the `step` from which it resumed.
    """

    settings: dict[str, Any]
    dataset: dict[str, Any]
    class_names: list[str]
    weights: dict[str, Any]
    preprocessing: dict[str, Any]
    device: str
    versions: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
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
        """Return the record of a new run; `environment` is the runtime's."""
        return cls(
            settings=dataclasses.asdict(config),
            dataset={
                "name": data.name,
                "sha256": data.fingerprint(),
                **{f"{name}_images": len(s) for name, s in data.splits.items()},
            },
            class_names=list(data.class_names),
            weights=dict(weights),
            preprocessing={
                "channels": "RGB, grey repeated",
                "resize": "Pillow's bilinear",
                **preprocess.facts(),
            },
            **environment,
        )

    def resumed(
        self, config: Any, step: int, environment: Mapping[str, Any]
    ) -> "Record":
        """Return the record of the run after it is resumed from a step."""
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
        """The name of the network; older versions had only one and did not store it."""
        return self.settings.get("model", DEFAULT)

    @property
    def precision(self) -> str:
        """The dtype of the network's computation."""
        return self.settings["precision"]

    def preprocess_arguments(self) -> dict[str, Any]:
        """Return the arguments of the Preprocess that the run used."""
        said = self.preprocessing
        found = {
            "image_size": said["image_size"],
            "crop": said["crop"],
            "mean": tuple(said["mean"]),
            "std": tuple(said["std"]),
        }
        if "resize_to" in said:
            found["resize_to"] = said["resize_to"]
        return found

    def mismatch(self, data: Any) -> str | None:
        """Return how a dataset differs from the run's; None if it is the same."""
        names = [nfc(name) for name in self.class_names]
        if names != list(data.class_names):
            return (
                f"the classes are {', '.join(data.class_names)}, but the run has "
                f"{', '.join(self.class_names)}"
            )
        if self.sha256 != data.fingerprint():
            return f"the images of {data.name} differ from those of the run"
        return None

    def environments(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield an event and an environment for each process of the run, in order.

        The event is "began" or "was resumed at step …". The environment contains the
        versions, the device and the variables of the process.
        """
        yield "began", {**self.versions, "device": self.device, **self.variables}
        for each in self.resumptions:
            since = f"was resumed at step {each['step']}"
            own = each.get("variables", {})  # older versions did not store them
            yield since, {**each["versions"], "device": each["device"], **own}


def parse_record(text: str) -> Record:
    """Return the record in the text of config.json; raise ValueError if invalid."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"contains a {type(content).__name__}, expected an object")
    kinds = {"device": str, "class_names": list, "resumptions": list}
    # Older versions lack these.
    later: dict[str, Any] = {"resumptions": [], "variables": {}}
    values: dict[str, Any] = {}
    for name in Record.__dataclass_fields__:
        value = content.get(name, later.get(name))
        if not isinstance(value, kinds.get(name, dict)):
            raise ValueError(f"{name!r} is missing or has the wrong type")
        values[name] = value
    if "jaxlab" not in values["versions"]:
        raise ValueError("was not written by jaxlab")
    return Record(**values)


def read_record(path: Path) -> Record | None:
    """Return the record in a config.json; None if it is missing or not a run's."""
    try:
        return parse_record(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def rows_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the text of metrics.jsonl, one line per epoch."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the epochs in a metrics.jsonl; none if the file does not exist."""
    if not path.exists():
        return []
    return [*map(json.loads, path.read_text("utf-8").splitlines())]


def finished_rows(
    path: Path, epochs: int, patience: int | None
) -> list[dict[str, float]]:
    """Return the rows of a metrics.jsonl if its training has ended, else none.

    It has ended if so many epochs are in it, or if its `patience` ended before.
    """
    try:
        rows = read_rows(path)
        float(rows[-1]["test_accuracy"])
        ended = len(rows) >= epochs or patience_ended(rows, patience)
    except (ValueError, LookupError, TypeError):
        return []  # damaged; the checkpoint contains the epochs as well
    return rows if ended else []
