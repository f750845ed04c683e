"""Load a Dataset by its name or folder: the single entry point to all sources."""

import glob
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlab.data import mnist_files
from jaxlab.data.dataset import Dataset, ProgressBar, joined, no_progress
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import (
    BALANCED,
    FILE,
    TEST_FRACTION,
    check_fractions,
    choice_note,
)
from jaxlab.errors import UsageError, did_you_mean

EMBEDDED = "mnist5k"
# Names of torchvision's classes and of other collections, in lower case; those that
# differ from the TFDS name by case and separators only are found without this.
_MEANT = {
    "svhn": "svhn_cropped",
    "flowers102": "oxford_flowers102",
    "flowers": "oxford_flowers102",
    "pets": "oxford_iiit_pet",
    "oxfordpets": "oxford_iiit_pet",
    "places365": "places365_small",
    "stanfordcars": "cars196",
    "cars": "cars196",
    "pcam": "patch_camelyon",
    "imagenet": "imagenet2012",
    "imagenet1k": "imagenet2012",
    "ilsvrc2012": "imagenet2012",
    "tinyimagenet": "imagenet_resized",
    "inaturalist": "i_naturalist2021",
    "catsanddogs": "cats_vs_dogs",
    "dogsvscats": "cats_vs_dogs",
    "fmnist": "fashion_mnist",
    "birds": "caltech_birds2011",
    "cub200": "caltech_birds2011",
    "dogs": "stanford_dogs",
}


def load(
    name: str,
    preprocess: Preprocess | None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    order: str = BALANCED,
    test_fraction: float = TEST_FRACTION,
    validation_fraction: float = 0.0,
    group: str | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    offline: bool = False,
    exclude: str | None = None,
    check: bool = False,
    progress: ProgressBar = no_progress,
    log: Callable[[str], None] = print,
    shown: bool = True,
) -> Dataset:
    """Return the dataset that `name` stands for.

    It is mnist5k, a data set of `mnist_files.PUBLISHED`, a folder of pictures or of IDX
    files, or a TFDS dataset. The pictures of a folder are resized by `preprocess`; such
    a folder is refused when it is None, and `exclude` and `group` for everything else.
    `order` "file" is refused where the source has no order of its own that it could
    mean. With `shown`, a download prints to stderr. All other arguments are those of
    `load_folder` and `load_tfds`, whose docstrings also list what is raised.
    """
    looks_so = os.path.isdir(name) or name.startswith((".", "~", os.sep))
    is_folder = looks_so and name != EMBEDDED
    files = mnist_files.find(Path(name).expanduser()) if is_folder else None
    has_pictures = is_folder and files is None
    _check_for_pictures(name, has_pictures, is_folder, exclude=exclude, group=group)
    how: dict[str, Any] = {
        "train_size": train_size,
        "test_size": test_size,
        "test_fraction": test_fraction,
        "validation_fraction": validation_fraction,
    }
    # Imported only when needed: each source depends on packages of its own.
    if name == EMBEDDED:
        _refuse_order(
            order,
            f"the table of {name} is sorted by class, so its first images would show "
            "one digit; leave it out, or pass --dataset mnist for MNIST's own order",
        )
        return _mnist5k(**how)
    if files is not None:
        from jaxlab.data.mnist import load_files

        return load_files(files, name=name, order=order, **how)
    if has_pictures:
        from jaxlab.data.image_folder import load_folder

        _refuse_order(
            order,
            f"the pictures of {name} have no order but that of their names; leave it "
            "out",
        )
        if preprocess is None:
            raise UsageError(
                f"--dataset: {name} is a folder, and the lab needs images of one small "
                f"size; pass {EMBEDDED}, the name of a TFDS dataset, or a folder with "
                "IDX files"
            )
        return load_folder(
            Path(name).expanduser(),
            preprocess,
            group=group,
            exclude=exclude,
            check=check,
            progress=progress,
            log=log,
            **how,
        )
    by_tfds: dict[str, Any] = {
        "data_dir": data_dir,
        "manual_dir": manual_dir,
        "offline": offline,
        "progress": progress,
        "log": log,
    }
    if name in mnist_files.PUBLISHED:
        return _published(name, preprocess, order, shown, by_tfds, how)
    _check_known(name)
    _refuse_order(
        order,
        f"{name} is shuffled when it is prepared by TFDS, and has lost its own order; "
        "leave it out",
    )
    from jaxlab.data.tfds import load_tfds

    return load_tfds(name, preprocess, **by_tfds, **how)


def _published(
    name: str,
    preprocess: Preprocess | None,
    order: str,
    shown: bool,
    by_tfds: dict[str, Any],
    how: dict[str, Any],
) -> Dataset:
    """Return MNIST or Fashion-MNIST, from the first place that has it.

    These are the original files in `data_dir` or `manual_dir`, what TFDS has prepared,
    and the cache, to which they are downloaded. All give the same dataset.
    """
    from jaxlab.data.mnist import load_files, load_published

    others = None
    for folder in (by_tfds["data_dir"], by_tfds["manual_dir"]):
        try:
            files = None if folder is None else mnist_files.find(folder, name)
        except mnist_files.OtherFilesError as error:
            others = others or error
            continue
        if files is not None:
            return load_files(files, name=name, order=order, **how)
    if order != FILE and _is_prepared(name, by_tfds["data_dir"]):
        from jaxlab.data.tfds import load_tfds

        return load_tfds(name, preprocess, **by_tfds, **how)
    if others is not None:
        raise others
    offline = by_tfds["offline"]
    return load_published(name, order=order, offline=offline, shown=shown, **how)


def _is_prepared(name: str, data_dir: str | None) -> bool:
    """Return whether TFDS is installed and has prepared a dataset.

    TFDS is imported, which takes seconds, only if it has a folder for it.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = os.path.expanduser(data_dir or default)
    has_tfds = importlib.util.find_spec("tensorflow_datasets") is not None
    if not has_tfds or not glob.glob(
        "*/dataset_info.json", root_dir=f"{folder}/{name}"
    ):
        return False
    from jaxlab.data.tfds_builder import open_builder
    from jaxlab.data.tfds_prepare import is_prepared

    return is_prepared(open_builder(name, data_dir))


def _mnist5k(
    *,
    train_size: int | None,
    test_size: int | None,
    test_fraction: float,
    validation_fraction: float,
) -> Dataset:
    """Return mnist5k, whose order is balanced, with what was chosen of it in a note."""
    from jaxlab.data.digits import mnist5k

    check_fractions({"test"}, test_fraction, validation_fraction)
    whole = mnist5k(validation_fraction)
    data = whole.first(train_size, test_size)
    notes = [
        choice_note(split, whole.splits[split].labels, part.labels, BALANCED)
        for split, part in data.splits.items()
    ]
    return replace(data, note=joined(notes))


def _check_for_pictures(
    name: str, has_pictures: bool, is_folder: bool, **given: str | None
) -> None:
    """Raise UsageError for a flag that is about the pictures of a folder."""
    uses = {
        "exclude": ("has no files to leave out", "pass it with a folder of pictures"),
        "group": ("has no paths that could name groups", "leave it out"),
    }
    kind = "contains IDX files" if is_folder else "is not a folder"
    for flag, value in given.items():
        if value is not None and not has_pictures:
            why, remedy = uses[flag]
            raise UsageError(f"--{flag}: {name} {kind}, and {why}; {remedy}")


def _refuse_order(order: str, why: str) -> None:
    if order == FILE:
        raise UsageError(f"--order: {why}")


def _check_known(name: str) -> None:
    """Raise UsageError, with a guess, for a name that no dataset has."""
    from jaxlab.data import tfds_builder

    known = tfds_builder.known_names()
    base = name.partition("/")[0].partition(":")[0]
    if base in known:
        return
    names = [EMBEDDED, *mnist_files.PUBLISHED, *known]
    guess = did_you_mean(
        base, names, {n: to for n, to in _MEANT.items() if to in names}
    )
    # Without TFDS its names are not known, and loading says that it is not installed.
    if known or "did you mean" in guess:
        raise UsageError(
            f"--dataset: {name!r} is neither {EMBEDDED}, nor a folder, nor the name of "
            f"a TensorFlow Datasets (TFDS) dataset{guess}"
        )
