"""Load a Dataset by its name or folder: the single entry point to all sources."""

import os
from collections.abc import Callable
from pathlib import Path

from jaxlab.data.dataset import Dataset, ProgressBar, no_progress
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import UsageError, did_you_mean

EMBEDDED = "mnist5k"


def load(
    name: str,
    preprocess: Preprocess | None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    offline: bool = False,
    progress: ProgressBar = no_progress,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Return the dataset that `name` stands for: mnist5k, a folder, or a TFDS dataset.

    The pictures of a folder are resized by `preprocess`; a folder is refused when it is
    None. All other arguments are those of `load_folder` and `load_tfds`, whose
    docstrings also list what is raised.
    """
    # Imported only when needed: each source depends on packages of its own.
    if name == EMBEDDED:
        from jaxlab.data.digits import mnist5k

        return mnist5k(validation_fraction).first(train_size, test_size)
    if os.path.isdir(name) or name.startswith((".", "~", os.sep)):
        from jaxlab.data.image_folder import load_folder

        if preprocess is None:
            raise UsageError(
                f"--dataset: {name} is a folder, and the lab needs images of one small "
                f"size; pass {EMBEDDED} or the name of a TFDS dataset"
            )
        return load_folder(
            Path(name).expanduser(),
            preprocess,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            train_size=train_size,
            test_size=test_size,
            progress=progress,
            log=log,
        )
    from jaxlab.data import tfds

    known = tfds.known_names()
    base = name.partition("/")[0].partition(":")[0]
    if known and base not in known:
        guess = did_you_mean(base, [EMBEDDED, *known])
        raise UsageError(
            f"--dataset: {name!r} is neither {EMBEDDED}, nor a folder, nor the name of "
            f"a TensorFlow Datasets (TFDS) dataset{guess}"
        )
    return tfds.load_tfds(
        name,
        preprocess,
        data_dir=data_dir,
        manual_dir=manual_dir,
        offline=offline,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        train_size=train_size,
        test_size=test_size,
        progress=progress,
        log=log,
    )
