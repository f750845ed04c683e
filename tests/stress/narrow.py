"""`jaxlab.finetune` with a narrow network, so that hundreds of runs take minutes.

    python -m tests.stress.narrow [--die POINT:N] [--tell] FLAGS

All is the command's but the widths of the layers. `--die` kills the process, as
SIGKILL does, at a point of its writing, the Nth time it gets there; `--tell` prints a
line to stderr whenever a phase begins, and how many images were trained on.
"""

import functools
import os
import shutil
import signal
import sys
import threading
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
# Of AlexNet's convolutions and fully connected layers.
NARROW = {"channels": (8, 12, 16, 12, 12), "hidden": 32}
EXPORT = "amid model.safetensors"  # reached once a run
FLAGS = ("--weights", "none", "--image-size", "63", "--train-size", "70")
FLAGS += ("--test-size", "20", "--batch-size", "10", "--epochs", "3")


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    arguments = [*FLAGS, *argv]
    point, occurrence = None, 0
    if "--die" in arguments:
        place = arguments.index("--die")
        point, _, number = arguments[place + 1].partition(":")
        occurrence = int(number)
        del arguments[place : place + 2]
    tell = "--tell" in arguments
    arguments = [word for word in arguments if word != "--tell"]

    from jaxlab import runtime

    runtime.set_up()
    narrow()
    watch(point, occurrence, tell)
    from jaxlab import finetune
    from jaxlab.cli import terminal

    sys.argv[1:] = arguments
    code = terminal.run(finetune.main)
    if tell and code == 0:
        os.write(2, b"done\n")
    return code


def narrow(put: Callable = setattr, **widths: Any) -> None:
    """Let the commands build, read and write AlexNet with other widths: NARROW's.

    `put(owner, name, value)` sets an attribute.
    """
    import pretrained
    from jaxlab.models import alexnet
    from jaxlab.training import initial_weights
    from pretrained import files, layout, tables

    widths = widths or NARROW
    rows = tables.alexnet(**widths)

    def narrowed(function: Callable) -> Callable:
        return lambda value, table=rows: function(value, table)

    put(alexnet, "AlexNet", functools.partial(alexnet.AlexNet, **widths))
    for name, owners in {
        "to_torch": (pretrained, layout),
        "flat_params": (layout,),
        "read_weights": (files, initial_weights),
    }.items():
        function = narrowed(getattr(owners[-1], name))
        for owner in owners:
            put(owner, name, function)


def watch(point: str | None, occurrence: int, tell: bool) -> None:
    """Make the process die at a point, and tell when it saves or deletes."""
    from jaxlab import fit
    from jaxlab.figures import curves
    from jaxlab.runs import arrays, checkpoint, manifest
    from jaxlab.runs import folder as run_folder
    from jaxlab.training import inputs, step
    from pretrained import download, files

    seen: dict[str, int] = {}

    def reached(name: str) -> bool:
        seen[name] = seen.get(name, 0) + 1
        return name == point and seen[name] == occurrence

    def log(line: str) -> None:
        if tell:
            os.write(2, f"{line}\n".encode())  # in one piece: two threads tell

    def told(phase: str) -> Callable:
        return lambda *_, **__: log(phase)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, act: Callable) -> None:
        """Call `act` with the arguments before each call of a function."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            act(*args, **kwargs)
            return function(*args, **kwargs)

        setattr(owner, name, watched)

    def at(name: str) -> Callable:
        return lambda *_, **__: reached(name) and die()

    def amid_arrays(folder: Path, *_):
        def wait():
            while not any(path.is_file() for path in folder.parent.rglob("*/0*")):
                time.sleep(0)
            die()

        if reached("amid the arrays"):
            threading.Thread(target=wait, daemon=True).start()

    def amid_partial(folder: Path):
        if folder.name.endswith(checkpoint._PARTIAL) and reached("before the manifest"):
            die()

    def amid_deletion(path: Path, *_):
        if path.name.endswith(checkpoint._DELETED) and path.is_dir():
            log("deleting")
            if reached("amid a deletion"):
                shutil.rmtree(min(each for each in path.iterdir() if each.is_dir()))
                die()

    save_file = files.save_file

    def watched_save_file(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if path.name == run_folder.MODEL and reached(EXPORT):
            os.truncate(path, path.stat().st_size // 2)
            die()

    files.save_file = watched_save_file
    before(download, "_transfer", told("downloading"))
    before(inputs, "feature_loader", told("features"))
    before(step, "make_train_step", told("compiling"))
    before(
        fit, "_update_bar", lambda bar, rate, score, images: log(f"trained {images}")
    )
    before(fit, "_test", told("testing"))
    before(curves, "write_curves", told("exporting"))
    before(arrays, "write", told("saving"))
    before(arrays, "write", amid_arrays)
    before(checkpoint.CheckpointManager, "_write", at("before the folder"))
    before(manifest, "_files", amid_partial)
    before(checkpoint, "_remove", amid_deletion)
    rename = Path.rename

    def watched_rename(self, target):
        is_save = self.name.endswith(checkpoint._PARTIAL)
        if is_save and reached("before the rename"):
            die()
        done = rename(self, target)
        if is_save and reached("after the rename"):
            die()
        return done

    Path.rename = watched_rename
    write_text = Path.write_text

    def watched_write_text(self, text):
        if self.name == manifest.MANIFEST and reached("amid the manifest"):
            write_text(self, text[: len(text) // 2])
            die()
        return write_text(self, text)

    Path.write_text = watched_write_text
    replace = Path.replace

    def watched_replace(self, target):
        if self.name.startswith(run_folder.METRICS) and reached("amid metrics.jsonl"):
            die()
        return replace(self, target)

    Path.replace = watched_replace


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
