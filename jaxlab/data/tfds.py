"""Load image-classification datasets of TensorFlow Datasets (TFDS).

A dataset is prepared once. After that its files are only read.

It is one file because every damage that TFDS may leave is explained here.
"""

import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxlab.data.dataset import Dataset, ProgressBar, Split, no_progress
from jaxlab.data.pictures import (
    are_kept,
    check_pictures,
    images_of,
    pixel_digest,
)
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import content_order
from jaxlab.data.tfds_builder import open_builder, shape_and_classes, tfds
from jaxlab.data.tfds_prepare import is_prepared, prepare
from jaxlab.errors import InputError, UsageError

MAX_BYTES = 4 << 30  # of pixels; a larger split is resized and, if needed, streamed


def load_tfds(
    name: str,
    preprocess: Preprocess | None = None,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    offline: bool = False,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    train_size: int | None = None,
    test_size: int | None = None,
    progress: ProgressBar = no_progress,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Return a dataset's images, uint8[n, h, w, c], chosen by a fixed balanced order.

    Images of different sizes, and splits of more than 4 GiB, are resized by
    `preprocess`, and streamed when they do not fit into memory. When it is None, images
    of different sizes are refused and larger splits are loaded as they are.

    A dataset that is not prepared under `data_dir` (default: TFDS_DATA_DIR, else
    ~/tensorflow_datasets) is prepared there first, from the original files in
    `manual_dir` or by a download with verified checksums. The test images are those of
    the split "test", else of "validation", else `test_fraction` of "train". A test
    split without labels (which are all -1) does not count. The validation images are
    those of "validation" if there is a test split, else `validation_fraction` of the
    training images. The `note` of the result says it if "validation" is tested on.

    Raises UsageError for an unknown name or an unsuitable dataset, InputError for
    damaged files or a missing package, and NetworkError within seconds when a download
    is needed and there is no network.
    """
    builder = open_builder(name, data_dir)
    shape, class_names = shape_and_classes(name, builder)
    resized = None in shape or shape[-1] not in (1, 3)
    if resized and preprocess is None:
        raise UsageError(
            f"--dataset: {name} has images of shape {shape}, and the lab needs images "
            "of one small size; pass another dataset"
        )
    if not is_prepared(builder):
        prepare(builder, name, manual_dir, offline, progress, log)
        builder = open_builder(name, data_dir)
    splits = builder.info.splits
    if "train" not in splits:
        raise UsageError(
            f"--dataset: {name} has no split train, but {', '.join(splits)}; pass "
            "another dataset"
        )
    names = [s for s in ("train", "validation", "test") if s in splits]
    notes = []
    if "test" in names and _has_no_labels(builder, "test"):
        notes.append("its test split has no labels")
        names.remove("test")
    if not resized:
        most = max(splits[split].num_examples for split in names)
        size = math.prod(side for side in shape if side is not None)
        resized = most * size > MAX_BYTES and preprocess is not None
    read = _pixels
    if resized and preprocess is not None:
        read = functools.partial(_pictures, preprocess=preprocess, progress=progress)
    parts = {split: _read(builder, split, read) for split in names}
    if "validation" in parts and "test" not in parts:
        notes.append("tests on its validation split")
        parts["test"] = parts.pop("validation")
    return Dataset.of_source(
        name,
        parts,
        class_names,
        resized=resized,
        notes=[", ".join(notes)],
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        train_size=train_size,
        test_size=test_size,
    )


def _has_no_labels(builder: Any, split: str) -> bool:
    """Return whether the first labels of a split are all -1, which stands for none.

    Damaged files are left to `_read`, which explains them.
    """
    try:
        source = builder.as_data_source(
            split=split, decoders={"image": tfds().decode.SkipDecoding()}
        )
        first = source.__getitems__(list(range(min(100, len(source)))))
    except (OSError, SyntaxError, ValueError, IndexError, RuntimeError):
        return False
    return bool(first) and all(example["label"] == -1 for example in first)


def _read(
    builder: Any, name: str, read: Callable[[Any, Any], tuple[Split, np.ndarray]]
) -> Split:
    """Return a split in `content_order`; raises InputError for damaged files.

    `read` returns the split of a source of examples, and its `content_order`.
    """
    remedy = f"remove {builder.data_dir} and run again to prepare it again"
    expected = builder.info.splits[name].num_examples
    classes = builder.info.features["label"].num_classes
    try:
        source = builder.as_data_source(
            split=name, decoders={"image": tfds().decode.SkipDecoding()}
        )
        found = _records_in(builder.info.splits[name].filepaths)
        if found != expected:
            raise InputError(
                f"{builder.data_dir}: the split {name} has {found:,} records, but "
                f"dataset_info.json lists {expected:,}; {remedy}"
            )
        split, order = read(builder, source)
    except (OSError, SyntaxError, ValueError, IndexError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{builder.data_dir}: the split {name} cannot be read: {reason[:200]}; "
            f"{remedy}"
        ) from error
    labels = split.labels
    if not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{builder.data_dir}: the split {name} has labels from {labels.min()} to "
            f"{labels.max()}, but {classes} classes; {remedy}"
        )
    return Split(split.images, labels.astype(np.int32)).take(order)


def _records_in(paths: Iterable[Any]) -> int:
    """Return the number of records that the files contain, read from the files.

    A truncated file may open without an error and contain no records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    found = 0
    for path in paths:
        reader = ArrayRecordReader(str(path))
        found += reader.num_records()
        reader.close()
    return found


def _chunks(source: Any) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield all indices and examples in chunks of 1,000, which need little memory."""
    for start in range(0, len(source), 1000):
        indices = list(range(start, min(start + 1000, len(source))))
        yield indices, source.__getitems__(indices)


def _pixels(builder: Any, source: Any) -> tuple[Split, np.ndarray]:
    """Return images without a resize, uint8[n, h, w, c], and their `content_order`."""
    shape = builder.info.features["image"].shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for indices, examples in _chunks(source):
        images[indices] = _decoded([example["image"] for example in examples], shape)
        labels[indices] = [example["label"] for example in examples]
    return Split(images, labels), content_order(map(pixel_digest, images))


def _pictures(
    _builder: Any, source: Any, preprocess: Preprocess, progress: ProgressBar
) -> tuple[Split, np.ndarray]:
    """Return pictures of any size, resized or to be streamed, and `content_order`.

    Raises ValueError for the first picture that cannot be decoded.
    """
    count = len(source)
    labels = np.empty(count, np.int64)
    for indices, examples in _chunks(source):
        labels[indices] = [example["label"] for example in examples]
    records = [_Record(source, i) for i in range(count)]
    with progress(count, "pictures", "picture") as bar:
        checked = check_pictures(
            records, preprocess, are_kept(count, preprocess), bar.update
        )
    for record, result in zip(records, checked, strict=True):
        if result.problem is not None:
            raise ValueError(f"{record}: {result.problem}")
    images = images_of(records, checked, range(count))
    return Split(images, labels), content_order(result.content for result in checked)


class _Record:
    """An encoded picture of a prepared dataset, which is read like a file."""

    def __init__(self, source: Any, index: int):
        self.source, self.index = source, index

    def read_bytes(self) -> bytes:
        return self.source[self.index]["image"]

    def __str__(self) -> str:
        return f"record {self.index}"


def _decoded(encoded: Sequence[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    images = np.empty((len(encoded), *shape), np.uint8)

    def decode(i: int) -> None:
        with Image.open(io.BytesIO(encoded[i])) as image:
            images[i] = np.asarray(image).reshape(shape)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(encoded))):
            pass
    return images
