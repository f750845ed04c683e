"""Find pictures that are in training and in testing, as copies or nearly so.

A picture that is resized, saved again as a JPEG, brightened, or cropped by a hundredth
of its sides is another file with other pixels, but it is no test. Each picture is
reduced to a grey thumbnail while it is decoded. Two pictures are nearly identical if
the thumbnails' pixels correlate, and the differences of neighbouring pixels do so too:
differences tell apart pictures of one kind of object on one background, whose pixels
correlate as well. Both are normalised, so that brightness and contrast do not count.

The comparison is one product of matrices: n · m pairs take about 10 ns each, 10,000
pictures a second or less, in blocks of constant memory; a thumbnail takes 256 bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxlab.data.files import listed
from pretrained.errors import counted, one_line

SIDE = 16  # of a thumbnail, in pixels
# The differences of a picture and of its crop by a hundredth on each side correlate by
# about 0.982, those of a JPEG of quality 50 or of half the size by 0.999. Those of two
# other pictures of Fashion-MNIST, in which all look alike, exceed 0.98 twice in a
# million pairs.
CORRELATION = 0.98
# A picture with a shorter side than SMALL shows little more than its thumbnail. Such
# pictures must agree in all of it, for many digits and garments differ in few pixels.
SMALL = 64
CORRELATION_OF_SMALL = 0.9995
MAX_PAIRS = 2_000_000_000  # about half a minute
_BLOCK = 2048  # pictures on either side of a product, which then takes 16 MB
_LEAST_NORM = float(SIDE)  # a contrast of one grey level, below which all is noise


class Look(NamedTuple):
    """What a picture looks like: a grey thumbnail, and whether the picture is small."""

    thumbnail: np.ndarray  # uint8[SIDE, SIDE]
    is_small: bool


def look(picture: Any) -> Look:
    """Return the look of a decoded picture, an image of Pillow in mode L or RGB.

    >>> from PIL import Image
    >>> look(Image.new("L", (640, 480))).thumbnail.shape
    (16, 16)
    """
    # Pillow's bilinear resize averages the whole area, so that size does not matter.
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return Look(np.asarray(small), min(picture.size) < SMALL)


def identical(contents: Sequence[bytes], first: Any, second: Any) -> dict[int, int]:
    """Return for each of the pictures `second` an equal one of `first`, if any.

    `contents` are the digests of all pictures' pixels, and `first` and `second` indices
    into them, int[n] and int[m]. The result maps the latter to the former.
    """
    known = {contents[i]: int(i) for i in reversed(first)}
    return {int(i): known[contents[i]] for i in second if contents[i] in known}


def nearly_identical(looks: Sequence[Look], first: Any, second: Any) -> dict[int, int]:
    """Return for each of the pictures `second` the most similar one of `first`, if any.

    `first` and `second` are indices into `looks`, int[n] and int[m]. The result maps
    the latter to the former, only where the pictures are nearly identical.
    """
    first, second = np.asarray(first), np.asarray(second)
    if not len(first):
        return {}
    thumbnails = np.stack([each.thumbnail for each in looks]).astype(np.uint8)
    is_small = np.array([each.is_small for each in looks])
    found: dict[int, int] = {}
    for rows in _blocks(second):
        ours = _unit(thumbnails[rows])
        best = np.full(len(rows), -1.0, np.float32)
        partner = np.zeros(len(rows), np.int64)
        for columns in _blocks(first):
            correlation = ours @ _unit(thumbnails[columns]).T
            nearest = correlation.argmax(1)
            value = correlation[np.arange(len(rows)), nearest]
            better = value > best
            best[better], partner[better] = value[better], columns[nearest[better]]
        differences = [_unit(_differences(thumbnails[i])) for i in (rows, partner)]
        least = np.where(
            is_small[rows] | is_small[partner], CORRELATION_OF_SMALL, CORRELATION
        )
        near = (best > least) & ((differences[0] * differences[1]).sum(1) > least)
        found.update(zip(rows[near].tolist(), partner[near].tolist(), strict=True))
    return found


def in_two_classes(contents: Sequence[bytes], labels: np.ndarray) -> dict[int, int]:
    """Return the pictures that equal an earlier picture of another class.

    `labels` is int[n]. The result maps their indices to the earlier picture's.
    """
    known: dict[bytes, int] = {}
    earlier = [known.setdefault(content, i) for i, content in enumerate(contents)]
    return {i: j for i, j in enumerate(earlier) if labels[i] != labels[j]}


def log_duplicates(
    names: Sequence[str],
    labels: np.ndarray,
    contents: Sequence[bytes],
    looks: Sequence[Look],
    splits: dict[str, np.ndarray],
    log: Callable[[str], None],
) -> None:
    """Log a warning for pictures in two classes, and for those in two splits.

    `splits` are indices into the names, labels, contents and looks of all pictures. A
    split is compared with all before it, since those are trained on or choose the
    epoch.
    """
    twice = in_two_classes(contents, labels)
    if twice:
        log(
            f"warning: one label is wrong for {counted(len(twice), 'picture')} "
            f"identical to one of another class: {_pairs(names, twice)}"
        )
    before, kinds = splits["train"], "training"
    for split in [name for name in ("validation", "test") if name in splits]:
        equal = identical(contents, before, splits[split])
        if equal:
            log(
                f"warning: the {split} accuracy is inflated by "
                f"{counted(len(equal), f'{split} picture')} identical to {kinds} "
                f"pictures: {_pairs(names, equal)}"
            )
        others = np.array([i for i in splits[split] if i not in equal], np.int64)
        if len(before) * len(others) > MAX_PAIRS:
            log(
                f"warning: {len(before):,} and {len(others):,} pictures are too many "
                f"to look for {split} pictures that are nearly identical to others"
            )
        elif near := nearly_identical(looks, before, others):
            log(
                f"warning: the {split} accuracy may be inflated by "
                f"{counted(len(near), f'{split} picture')} nearly identical to {kinds} "
                f"pictures, such as other copies or the next of a series: "
                f"{_pairs(names, near)}"
            )
        before = np.concatenate([before, splits[split]])
        kinds += f" or {split}"


def _pairs(names: Sequence[str], pairs: dict[int, int]) -> str:
    return listed(
        one_line(text)
        for text in sorted(f"{names[i]} and {names[j]}" for i, j in pairs.items())
    )


def _blocks(indices: np.ndarray) -> Iterable[np.ndarray]:
    return (indices[i : i + _BLOCK] for i in range(0, len(indices), _BLOCK))


def _unit(values: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and length 1, float32[n, k], of values[n, …]."""
    rows = values.reshape(len(values), -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST_NORM)


def _differences(thumbnails: np.ndarray) -> np.ndarray:
    """Return the differences of neighbours, float32[n, 480], of uint8[n, 16, 16]."""
    values = thumbnails.astype(np.float32)
    return np.concatenate(
        [np.diff(values, axis=axis).reshape(len(values), -1) for axis in (1, 2)], 1
    )
