"""Load a Dataset by its name or folder: the single entry point to all sources."""

import os
from collections.abc import Callable
from pathlib import Path

from jaxlab.data.dataset import Dataset, ProgressBar, no_progress
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import TEST_FRACTION, check_fractions
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
) -> Dataset:
    """Return the dataset that `name` stands for: mnist5k, a folder, or a TFDS dataset.

    The pictures of a folder are resized by `preprocess`; a folder is refused when it is
    None, and `exclude` for everything else. All other arguments are those of
    `load_folder` and `load_tfds`, whose docstrings also list what is raised.
    """
    is_folder = name != EMBEDDED and (
        os.path.isdir(name) or name.startswith((".", "~", os.sep))
    )
    if exclude is not None and not is_folder:
        raise UsageError(
            f"--exclude: {name} is not a folder, and has no files to leave out; pass "
            "it with a folder only"
        )
    if group is not None and not is_folder:
        raise UsageError(
            f"--group: {name} is not a folder, whose paths could name groups; leave it "
            "out"
        )
    # Imported only when needed: each source depends on packages of its own.
    if name == EMBEDDED:
        from jaxlab.data.digits import mnist5k

        check_fractions({"test"}, test_fraction, validation_fraction)
        return mnist5k(validation_fraction).first(train_size, test_size)
    if is_folder:
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
            group=group,
            train_size=train_size,
            test_size=test_size,
            exclude=exclude,
            check=check,
            progress=progress,
            log=log,
        )
    from jaxlab.data import tfds, tfds_builder

    known = tfds_builder.known_names()
    base = name.partition("/")[0].partition(":")[0]
    if known and base not in known:
        meant = {name: to for name, to in _MEANT.items() if to in known}
        guess = did_you_mean(base, [EMBEDDED, *known], meant)
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
