"""The one entry to all sources of images: a name or a folder to a Dataset."""

import difflib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jaxlab.data.dataset import Dataset
from jaxlab.errors import UsageError
from jaxlab.preprocess import Preprocess

EMBEDDED = "mnist5k"


def load(
    name: str,
    preprocess: Preprocess | None,
    *,
    train_size: int | None,
    test_size: int | None,
    val_fraction: float,
    data_dir: str | None,
    manual_dir: str | None,
    offline: bool,
    progress: Callable[[int, str, str], AbstractContextManager[Any]],
    say: Callable[[str], None],
) -> Dataset:
    """Return the images `name` stands for: mnist5k, a folder, or a set of TFDS'.

    Pictures of a folder are fitted by `preprocess`; None refuses folders. `progress`
    makes a bar from a total, a label and a unit.
    """
    if name == EMBEDDED:
        from jaxlab.data.digits import mnist5k

        return mnist5k().first(train_size, test_size)
    if os.path.isdir(name) or name.startswith((".", "~", os.sep)):
        if preprocess is None:
            raise UsageError(
                f"--dataset: {name} is a folder, and the lab takes images of one small "
                f"size; pass {EMBEDDED} or a name of TensorFlow Datasets'"
            )
        from jaxlab.data.folder import load_folder

        bar = None

        def on_files(count: int) -> None:
            nonlocal bar
            if count > 0:
                bar = stack.enter_context(progress(count, "pictures", "picture"))
            else:
                bar.update()

        import contextlib

        with contextlib.ExitStack() as stack:
            return load_folder(
                Path(name),
                preprocess,
                val_fraction=val_fraction,
                train_size=train_size,
                test_size=test_size,
                on_files=on_files,
                say=say,
            )
    from jaxlab.data import tfds

    known = tfds.known_names()
    base = name.partition("/")[0].partition(":")[0]
    if known and base not in known:
        close = difflib.get_close_matches(base, [EMBEDDED, *known], n=1)
        hint = f"; did you mean {close[0]}?" if close else "; check the spelling"
        raise UsageError(
            f"--dataset: {name!r} is neither {EMBEDDED}, nor a folder, nor a name of "
            f"TensorFlow Datasets'{hint}"
        )
    with progress(100, f"preparing {name}", "%") as bar:

        def on_progress(fraction: float) -> None:
            bar.update(int(100 * fraction) - bar.n)

        return tfds.load_tfds(
            name,
            data_dir=data_dir,
            manual_dir=manual_dir,
            offline=offline,
            val_fraction=val_fraction,
            train_size=train_size,
            test_size=test_size,
            on_progress=on_progress,
            say=say,
        )
