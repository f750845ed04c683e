"""Run `jaxlab.finetune` with a narrow network, so that hundreds of runs take minutes.

    python -m tests.stress.narrow [--die POINT:N[:SECONDS]] [--tell] FLAGS

Only the widths of the layers differ from the command. `--die` kills the process at a
point of its writing, the Nth time it is reached, by SIGKILL, or SECONDS after that, by
SIGALRM. `--tell` prints a line to stderr whenever a phase begins, for the number of
images trained on, and for the seconds that a save or a deletion took.
"""

import functools
import operator
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = (
    "before the folder",
    "amid the arrays",
    "before the manifest",
    "amid the manifest",
    "before the rename",
    "after the rename",
    "amid a deletion",
    "amid metrics.jsonl",
)
# The widths of AlexNet's convolutions and of its hidden fully connected layers.
NARROW = {"channels": (8, 12, 16, 12, 12), "hidden": 32}
NARROW_RESNET = {"depths": (1, 1, 1, 1), "channels": (4, 8, 8, 12)}
# The beginning of a save and of a deletion; SECONDS may follow only these points.
SAVE, DELETION = "in a save", "in a deletion"
# Points that are reached once per run.
EXPORT, PICTURE = "amid model.safetensors", "before a picture is there"
FLAGS = ("--weights", "none", "--image-size", "63", "--train-size", "70")
FLAGS += ("--test-size", "20", "--batch-size", "10", "--epochs", "3")


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    arguments = [*FLAGS, *argv]
    point, occurrence, delay = None, 0, 0.0
    if "--die" in arguments:
        place = arguments.index("--die")
        point, number, *seconds = arguments[place + 1].split(":")
        occurrence, delay = int(number), float(*seconds)
        del arguments[place : place + 2]
    tell = "--tell" in arguments
    arguments = [word for word in arguments if word != "--tell"]

    from jaxlab import runtime

    runtime.set_up()
    narrow()
    watch(point, occurrence, delay, tell)
    from jaxlab import finetune
    from jaxlab.cli import terminal

    sys.argv[1:] = arguments
    code = terminal.run(finetune.main)
    if tell and code == 0:
        os.write(2, b"done\n")
    return code


def narrow(put: Callable = operator.setitem, **widths: Any) -> None:
    """Make the commands use AlexNet and ResNet-18 with other widths.

    Those of AlexNet are by default NARROW. `put(mapping, name, value)` sets an item of
    the architectures and of the key tables.
    """
    from jaxlab.models.architecture import ARCHITECTURES
    from pretrained import tables

    widths = widths or NARROW
    put(ARCHITECTURES, "alexnet", ARCHITECTURES["alexnet"]._replace(fields=widths))
    put(tables.TABLES, "alexnet", tables.alexnet(**widths))
    resnet = ARCHITECTURES["resnet18"]._replace(fields=NARROW_RESNET)
    put(ARCHITECTURES, "resnet18", resnet)
    put(tables.TABLES, "resnet18", tuple(tables.resnet(**NARROW_RESNET)))


def watch(point: str | None, occurrence: int, delay: float, tell: bool) -> None:
    """Kill the process at a point or after it, and print when a phase begins."""
    from jaxlab.training import fit, inputs, step
    from pretrained import disk, download

    watcher = Watcher(point, occurrence, delay, tell)
    disk.moment = watcher.moment
    before(download, "_transfer", watcher.told("downloading"))
    before(inputs, "feature_loader", watcher.told("features"))
    before(step, "make_train_step", watcher.told("compiling"))
    before(
        fit,
        "_update_bar",
        lambda bar, rate, score, images: watcher.log(f"trained {images}"),
    )
    before(fit, "_evaluate", watcher.told("testing"))


def before(owner: Any, name: str, act: Callable) -> None:
    """Call `act` with the arguments before each call of a function."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def watched(*args, **kwargs):
        act(*args, **kwargs)
        return function(*args, **kwargs)

    setattr(owner, name, watched)


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_written(path: Path) -> None:
    """Truncate a file to half of its size and kill this process."""
    os.truncate(path, path.stat().st_size // 2)
    die()


class Watcher:
    """Counts the points of writing that are reached, and kills at one of them."""

    def __init__(self, point: str | None, occurrence: int, delay: float, tell: bool):
        self.point, self.occurrence = point, occurrence
        self.delay, self.tell = delay, tell
        self.seen: dict[str, int] = {}
        self.began: dict[str, float] = {}

    def reached(self, name: str) -> bool:
        """Count a point; return whether the process shall die there."""
        self.seen[name] = self.seen.get(name, 0) + 1
        return name == self.point and self.seen[name] == self.occurrence

    def log(self, line: str) -> None:
        """Print a line to stderr, in one write, because two threads print."""
        if self.tell:
            os.write(2, f"{line}\n".encode())

    def told(self, phase: str) -> Callable:
        """Return a function that prints the phase, whatever its arguments are."""
        return lambda *_, **__: self.log(phase)

    def die_later(self, phase: str) -> None:
        """Start a phase; if it is the point, set a timer that kills the process."""
        self.began[phase] = time.perf_counter()
        if self.reached(phase):
            # The system sends the signal, whatever Python is doing at that moment.
            signal.setitimer(signal.ITIMER_REAL, self.delay)

    def log_seconds(self, phase: str) -> None:
        """Print the seconds that a phase took."""
        self.log(f"{phase}: {time.perf_counter() - self.began[phase]:.6f}")

    def moment(self, name: str, path: Path) -> None:
        """Take the place of `pretrained.disk.moment`."""
        from jaxlab.runs import folder as run_folder
        from jaxlab.runs.checkpoint import STATE
        from jaxlab.runs.manifest import MANIFEST

        if path.parent.name == run_folder.CHECKPOINTS:
            self._moment_of_a_checkpoint(name, path)
        match name, path.name:
            case "written", file if file == STATE:
                if self.reached("amid the arrays"):
                    die_half_written(path)
                if self.reached("before the manifest"):
                    die()
            case "written", file if file == MANIFEST:
                if self.reached("amid the manifest"):
                    die_half_written(path)
            case "whole", run_folder.METRICS:
                if self.reached("amid metrics.jsonl"):
                    die()
            case "begin", run_folder.MODEL:
                self.log("exporting")
            case "written", run_folder.MODEL:
                if self.reached(EXPORT):
                    die_half_written(path)
            case "whole", run_folder.CURVES if path.with_name(
                run_folder.MODEL
            ).exists():
                if self.reached(PICTURE):
                    die()

    def _moment_of_a_checkpoint(self, name: str, path: Path) -> None:
        if name == "begin":
            self.log("saving")
            self.die_later(SAVE)
        if name == "named":
            self.log_seconds(SAVE)
        if name == "delete":
            self.log("deleting")
            self.die_later(DELETION)
            if self.reached("amid a deletion"):
                min(path.iterdir()).unlink()
                die()
        if name == "deleted":
            self.log_seconds(DELETION)
        points = {"begin": "before the folder", "whole": "before the rename"}
        points |= {"named": "after the rename"}
        if name in points and self.reached(points[name]):
            die()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
