"""Count the near-duplicates that are found, and those that are reported wrongly.

    python -m tests.stress duplicates [FOLDER]

Pictures like photographs are planted a second time after each of CHANGES; of the digits
of mnist5k, and of Fashion-MNIST if its four files are in FOLDER, no copies are known.
"""

import gzip
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from jaxlab.data.digits import mnist5k
from jaxlab.data.duplicates import Look, look, nearly_identical

FASHION_MNIST = Path(__file__).parents[3] / "shared" / "data" / "fashion_mnist"
SIZE = (640, 480)
MOST = 5  # pairs that may be reported in a data set without known copies


def main(flags: list[str]) -> None:
    """Print a line for each kind of copy and each data set; fail beyond the bars."""
    originals = [photograph(i) for i in range(200)]
    looks = [look(image) for image in originals]
    for name, change in CHANGES.items():
        copies = [look(change(image)) for image in originals]
        pairs = _pairs(looks, copies)
        right = sum(i == j for i, j in pairs.items())
        print(f"{name}: {right} of {len(looks)} found, {len(pairs) - right} others")
        assert right >= 0.9 * len(looks) and len(pairs) == right
    data = mnist5k()
    _count("mnist5k", data.train.images[..., 0], data.test.images[..., 0])
    folder = Path(*flags) if flags else FASHION_MNIST
    if folder.is_dir():
        _count("Fashion-MNIST", *(_images(folder, part) for part in ("train", "t10k")))


def _count(name: str, train: np.ndarray, test: np.ndarray) -> None:
    before = time.perf_counter()
    looks = [[look(Image.fromarray(image)) for image in each] for each in (train, test)]
    between = time.perf_counter()
    pairs = _pairs(*looks)
    print(
        f"{name}: {len(pairs)} of {len(test):,} reported beside {len(train):,}; "
        f"{between - before:.1f} s for thumbnails, {time.perf_counter() - between:.1f} "
        "s for pairs"
    )
    assert len(pairs) <= MOST


def _pairs(first: list[Look], second: list[Look]) -> dict[int, int]:
    count = len(first)
    indices = range(count), range(count, count + len(second))
    found = nearly_identical(first + second, *indices)
    return {i - count: j for i, j in found.items()}


def _images(folder: Path, part: str) -> np.ndarray:
    content = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def photograph(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return random colours with the spectrum of photographs, 1 / frequency."""
    random = np.random.default_rng(seed)
    width, height = size
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    )
    frequency[0, 0] = 1
    channels = [
        np.fft.ifft2(np.fft.fft2(random.standard_normal((height, width))) / frequency)
        for _ in range(4)
    ]
    grey, *colours = (each.real / each.real.std() for each in channels)
    values = np.stack([120 + 50 * grey + 15 * colour for colour in colours], -1)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def _resized(image: Image.Image, scale: float, quality: int) -> Image.Image:
    width, height = image.size
    size = round(scale * width), round(scale * height)
    return _encoded(image.resize(size, Image.Resampling.LANCZOS), quality)


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    x, y = width // 100, height // 100
    return image.crop((x, y, width - x, height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: _encoded(image, 50),
    "JPEG of quality 75": lambda image: _encoded(image, 75),
    "JPEG of quality 90": lambda image: _encoded(image, 90),
    "half the size, quality 75": lambda image: _resized(image, 0.5, 75),
    "0.7 of the size, quality 90": lambda image: _resized(image, 0.7, 90),
    "0.9 of the size, quality 75": lambda image: _resized(image, 0.9, 75),
    "a hundredth cut off each side": _cropped,
    "brighter by a fifth": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker by a fifth": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
}
