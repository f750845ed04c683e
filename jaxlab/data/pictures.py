"""Decode picture files to pixels, with one list of formats and one rule for each mode.

Nothing is guessed or substituted: a file is either decoded, or a `BadPicture` states
why it cannot be used.

It is one file because every format and mode has its rule here and nowhere else.
"""

import dataclasses
import hashlib
import io
import logging
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pretrained.disk import NotRegular, open_regular
from pretrained.errors import one_line

if TYPE_CHECKING:  # Reading digits must not wait for the import of JAX.
    from jaxlab.data.preprocess import Preprocess

# Pillow also logs the errors that it raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# Without this list Pillow would also try EPS, for which it runs Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".mpo", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm")
)
MAX_PIXELS = 50_000_000
# Resized pictures of at most this total size are kept in memory. If they are larger,
# the files are decoded again in every epoch.
IN_MEMORY_BYTES = 1 << 30
LONGEST = 100  # maximum ratio of the long side to the short side
_LITTER = frozenset(("thumbs.db", "desktop.ini"))
# The exceptions that Pillow raised for a third of a million damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error),
    *(TypeError, ArithmeticError, LookupError),
)


class BadPicture(Exception):
    """Raised for an unusable picture file; `kind` groups such files in a report."""

    def __init__(self, kind: str, detail: str = ""):
        """Store the kind of problem; `detail` describes it for this file."""
        super().__init__(f"{kind} ({detail})" if detail else kind)
        self.kind = kind


class Record(Protocol):
    """A picture that is not stored in a file of its own; `str` returns its name."""

    def read_bytes(self) -> bytes:
        """Return the encoded picture."""


def read(path: Path | Record) -> bytes:
    """Return the bytes of a regular file or a record.

    Raises BadPicture if the file is not a regular file or cannot be read.
    """
    if not isinstance(path, Path):
        return path.read_bytes()
    try:
        with open_regular(path) as file:
            return file.read()
    except (NotRegular, IsADirectoryError):
        raise BadPicture("non-regular file") from None
    except OSError as error:
        raise BadPicture("unreadable file", error.strerror or "") from None


def decode(content: bytes) -> Image.Image:
    """Return the first frame of a picture, upright, in mode "L" or "RGB".

    The EXIF orientation is applied. Transparency is composited on white. 16-bit grey is
    scaled to 8 bits. Palettes, CMYK and other colour spaces are converted to RGB.
    `info["animated"]` of the result is True if a file other than an MPO has further
    frames.

    Raises BadPicture for an empty or damaged file, an unknown format, more than 50
    million pixels (according to the header, before anything is decoded), a long side of
    more than 100 times the short side, and pixels in floating point or outside 16 bits.
    """
    if not content:
        raise BadPicture("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadPicture("over 50 million pixels", f"{width}×{height}")
            # Resizing the short side of a longer picture could exhaust the memory.
            if max(width, height) > LONGEST * min(width, height):
                raise BadPicture(f"over {LONGEST} times as long as wide")
            # Further frames of an MPO are previews and depth maps of the same photo.
            animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            image.seek(0)
            image.load()
            plain = upright(image)
            plain.info = {"animated": animated}
            return plain
    except UnidentifiedImageError:
        raise BadPicture("unknown image format") from None
    except Image.DecompressionBombError:
        raise BadPicture("over 50 million pixels") from None
    except _DAMAGE as error:
        raise BadPicture("damaged", one_line(str(error))[:100]) from None


def upright(image: Image.Image) -> Image.Image:
    """Return an image in mode "L" or "RGB", upright by its EXIF orientation.

    Raises BadPicture for pixels in floating point or outside 16 bits.
    """
    return _plain(ImageOps.exif_transpose(image))


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth, except hidden files and system files.

    Hidden folders are not searched. Links to folders are yielded, but not followed.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = (Path(place, name) for name in folders)
        yield from (path for path in inside if path.is_symlink())
        for name in names:
            if not is_litter(name):
                yield Path(place, name)


def is_litter(name: str) -> bool:
    """Return whether a file is hidden or was created by the operating system."""
    return name.startswith(".") or name.lower() in _LITTER


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (
        "transparency" in image.info
    ):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F":
        raise BadPicture("floating-point pixels; save the file with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips values above 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadPicture("pixel values outside 0 to 65,535")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """An ordered collection of pictures of any size that are not decoded yet.

    `digests` contains the SHA-256 of each file's bytes, in hexadecimal.
    """

    paths: tuple[Path | Record, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def take(self, indices: np.ndarray) -> "Pictures":
        """Return the pictures at these indices, int[k], in this order."""
        return Pictures(
            tuple(self.paths[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return the SHA-256 of an image's pixels, whatever file they were stored in."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


class Checked(NamedTuple):
    """The result of reading and decoding a picture once."""

    digest: str = ""  # SHA-256 of the file, in hexadecimal
    content: bytes = b""  # `pixel_digest` of the decoded picture
    animated: bool = False
    pixels: np.ndarray | None = None  # resized; None if they are not kept
    problem: BadPicture | None = None


def are_kept(count: int, preprocess: "Preprocess") -> bool:
    """Return whether `count` resized pictures are kept in memory, not streamed."""
    return count * preprocess.image_size**2 * 3 <= IN_MEMORY_BYTES


def images_of(
    paths: Sequence[Path | Record],
    checked: Sequence[Checked],
    indices: Sequence[int] | np.ndarray,
) -> np.ndarray | Pictures:
    """Return the pictures at these indices: the pixels if kept, otherwise the files."""
    kept = [checked[i].pixels for i in indices]
    arrays = [pixels for pixels in kept if pixels is not None]
    if len(arrays) == len(kept):
        return np.stack(arrays)
    return Pictures(
        tuple(paths[i] for i in indices),
        tuple(checked[i].digest for i in indices),
    )


def check_pictures(
    paths: Sequence[Path | Record],
    preprocess: "Preprocess",
    keep: bool,
    on_picture: Callable[[int], object],
) -> list[Checked]:
    """Decode every picture, in threads; if `keep`, resize and keep the pixels.

    Returns one result for each path, in order; an unusable picture has a `problem`.
    `on_picture` is called with 1 after each picture.
    """

    def check(path: Path | Record) -> Checked:
        try:
            content = read(path)
            picture = decode(content)
            return Checked(
                digest=hashlib.sha256(content).hexdigest(),
                content=pixel_digest(np.asarray(picture)),
                animated=picture.info["animated"],
                pixels=preprocess.resize(picture) if keep else None,
            )
        except BadPicture as problem:
            return Checked(problem=problem)

    checked = []
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        # Pillow warns about unusual metadata in pictures that it can decode.
        warnings.simplefilter("ignore")
        for result in pool.map(check, paths):
            checked.append(result)
            on_picture(1)
    return checked
