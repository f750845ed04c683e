"""Load MNIST and data sets like it from their original files, without TensorFlow.

Four IDX files hold the images and labels of a training and a test split. They lie in a
folder of the user, or are downloaded once, by URL and SHA-256.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.data import idx
from jaxlab.data.dataset import Dataset, Split
from jaxlab.data.mnist_files import (
    COUNTS,
    NAMES,
    PUBLISHED,
    folder_of,
    identity,
    read,
    sha256,
)
from jaxlab.data.pictures import pixel_digest
from jaxlab.data.selection import BALANCED, FILE, content_order
from jaxlab.errors import InputError, NetworkError
from pretrained.download import cached_path, open_published
from pretrained.errors import WeightsError, counted


def load_files(
    files: Mapping[str, Path], *, name: str, order: str = BALANCED, **how: Any
) -> Dataset:
    """Return the images of four IDX files, uint8[n, h, w, 1], with their labels.

    `files` are those of `mnist_files.find`. `name` is that of a published data set, or
    any other; then the classes are numbered, unless the labels are those of a published
    one. With `order` "balanced" the examples are in `content_order`, so that the same
    images from another source are the same dataset; with "file" they are in the order
    of the files. `how` is for `split_examples`.

    Raises InputError for a file that is damaged, that does not fit the others, or that
    differs from the published one but has as many examples. The `note` of the result
    says it if the files have fewer or more examples than those of `name`.
    """
    contents = {file: read(file, path) for file, path in files.items()}
    notes = []
    if name in PUBLISHED and _are_changed(name, files, contents):
        notes.append(f"not the published files of {PUBLISHED[name].title}")
    published = name if name in PUBLISHED else identity(contents)
    class_names = None if published is None else PUBLISHED[published].class_names
    source = _splits(files, contents)
    return _dataset(name, files, source, class_names, order, notes, how)


def load_published(
    name: str,
    *,
    offline: bool = False,
    shown: bool = True,
    order: str = BALANCED,
    **how: Any,
) -> Dataset:
    """Return a data set of PUBLISHED, downloaded to the cache by URL and SHA-256.

    The messages of a download go to stderr if it is `shown`; with `offline`, nothing is
    downloaded. The rest is as for `load_files`. Raises NetworkError, which names the
    addresses and where to put the files, if a download is needed and impossible, and
    for files in the cache that are not the published ones.
    """
    sources, contents = PUBLISHED[name].sources(name), {}
    try:
        paths = {file: cached_path(source) for file, source in sources.items()}
        absent = [path.name for path in paths.values() if not path.exists()]
        if offline and absent:
            raise NetworkError(
                f"{name}: not in the cache, and --offline forbids the download; run "
                f"once with a network, or save {', '.join(absent)} from "
                f"{PUBLISHED[name].url} in {folder_of(paths)}, or in a folder that you "
                "pass as --data-dir"
            )
        for file, original in sources.items():
            with open_published(original, offline=offline, log=shown) as opened:
                contents[file] = read(file, paths[file], opened)
    except (WeightsError, OSError) as error:
        raise NetworkError(str(error)) from error
    class_names = PUBLISHED[name].class_names
    source = _splits(paths, contents)
    return _dataset(name, paths, source, class_names, order, [], how)


def _are_changed(
    name: str, files: Mapping[str, Path], contents: Mapping[str, bytes]
) -> bool:
    """Return whether some files are not the published ones.

    Raises InputError if one has as many examples as the published one, since it is
    damaged then.
    """
    changed = [
        file
        for file, about in PUBLISHED[name].files.items()
        if sha256(contents[file]) != about.content
    ]
    for split, names in NAMES.items():
        for file in names:
            is_whole = len(idx.array_of(contents[file])) == COUNTS[split]
            if file in changed and is_whole:
                raise InputError(
                    f"{files[file]}: is not the published file of "
                    f"{PUBLISHED[name].title}, but has as many examples; {idx.AGAIN}, "
                    f"or pass --dataset {folder_of(files)} to use other images"
                )
    return bool(changed)


def _splits(
    paths: Mapping[str, Path], contents: Mapping[str, bytes]
) -> dict[str, Split]:
    """Return the splits in the files' order; raise InputError if they disagree."""
    splits, sizes = {}, {}
    for split, (image_file, label_file) in NAMES.items():
        images = idx.array_of(contents[image_file])
        labels = idx.array_of(contents[label_file])
        if len(images) != len(labels):
            raise InputError(
                f"{paths[image_file]}: has {counted(len(images), 'image')}, but "
                f"{paths[label_file].name} has {counted(len(labels), 'label')}; "
                "replace the one that is damaged, or of another data set"
            )
        splits[split] = Split(images[..., None], labels.astype(np.int32))
        sizes[split] = "{}×{}".format(*images.shape[1:])
    if sizes["train"] != sizes["test"]:
        raise InputError(
            f"{folder_of(paths)}: the training images have {sizes['train']} pixels, "
            f"but the test images {sizes['test']}; replace those of another data set"
        )
    return splits


def _dataset(
    name: str,
    paths: Mapping[str, Path],
    source: dict[str, Split],
    class_names: Sequence[str] | None,
    order: str,
    notes: list[str],
    how: Mapping[str, Any],
) -> Dataset:
    """Return the dataset; without `class_names`, the classes are numbered.

    Raises InputError for a label without a name.
    """
    if class_names is None:
        last = max(part.labels.max() for part in source.values())
        class_names = [str(i) for i in range(last + 1)]
    for split, part in source.items():
        if part.labels.max() >= len(class_names):
            raise InputError(
                f"{paths[NAMES[split][1]]}: has the label {part.labels.max()}, but "
                f"{name} has {len(class_names)} classes; {idx.AGAIN}"
            )
    if order != FILE:
        source = {
            split: part.take(content_order(map(pixel_digest, np.asarray(part.images))))
            for split, part in source.items()
        }
    return Dataset.of_source(name, source, class_names, notes=notes, order=order, **how)
