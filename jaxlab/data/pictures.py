"""Picture files to pixels: one list of formats, one meaning for every odd mode.

Nothing is guessed and nothing substituted: a file either is the picture it says, or a
`BadPicture` that says why not.
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

if TYPE_CHECKING:  # so that reading digits does not wait for JAX
    from jaxlab.data.preprocess import Preprocess

# Pillow also logs what it raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# Named, because Pillow would otherwise try EPS too, which runs Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".mpo", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm")
)
MAX_PIXELS = 50_000_000
# Fitted pictures up to this size are kept; more are decoded anew in every epoch.
IN_MEMORY_BYTES = 1 << 30
LONGEST = 100  # times the short side
_LITTER = frozenset(("thumbs.db", "desktop.ini"))
# What Pillow's readers were seen to raise for a third of a million damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_DAMAGE += (TypeError, ArithmeticError, LookupError)


class BadPicture(Exception):
    """A file that is no usable picture; `kind` groups such files in a report."""

    def __init__(self, kind: str, detail: str = ""):
        """Name the kind of fault, and what is particular to this file."""
        super().__init__(f"{kind} ({detail})" if detail else kind)
        self.kind = kind


class Record(Protocol):
    """What stands for a file where there is none; `str` names it."""

    def read_bytes(self) -> bytes:
        """Return the encoded picture."""


def read(path: Path | Record) -> bytes:
    """Return a regular file's bytes; raises BadPicture for what cannot be read."""
    if not isinstance(path, Path):
        return path.read_bytes()
    try:
        with open_regular(path) as file:
            return file.read()
    except (NotRegular, IsADirectoryError):
        raise BadPicture("no regular file") from None
    except OSError as error:
        raise BadPicture("unreadable file", error.strerror or "") from None


def decode(content: bytes) -> Image.Image:
    """Return a picture in mode "L" or "RGB", upright, its first frame.

    EXIF's orientation is applied; transparency is composited on white; 16-bit grey is
    scaled to 8 bits; palettes, CMYK and other colour spaces become RGB. `info` of the
    result tells under "animated" whether there are further frames.

    Raises BadPicture for another format, more than 50 million pixels (from the header,
    before anything is unpacked), floating-point pixels, more than 100 times as long as
    wide, and damaged files.
    """
    if not content:
        raise BadPicture("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadPicture("over 50 million pixels", f"{width}×{height}")
            # Resized by its short side, a longer one could fill the memory.
            if max(width, height) > LONGEST * min(width, height):
                raise BadPicture(f"over {LONGEST} times as long as wide")
            # An MPO's further frames are previews and depth maps of the same shot.
            animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            image.seek(0)
            image.load()
            plain = _plain(ImageOps.exif_transpose(image))
            plain.info = {"animated": animated}
            return plain
    except UnidentifiedImageError:
        raise BadPicture("no picture in a known format") from None
    except Image.DecompressionBombError:
        raise BadPicture("over 50 million pixels") from None
    except _DAMAGE as error:
        raise BadPicture("damaged", one_line(str(error))[:100]) from None


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth but hidden ones and what systems leave there.

    Links to folders are yielded too, and not followed.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = (Path(place, name) for name in folders)
        yield from (path for path in inside if path.is_symlink())
        for name in names:
            if not is_litter(name):
                yield Path(place, name)


def is_litter(name: str) -> bool:
    """Return whether a file is hidden or one that systems leave beside pictures."""
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
        raise BadPicture("floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts everything above 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadPicture("pixels of more than 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Picture files of any size, in order, not yet decoded.

    `digests` are the SHA-256 of the files' bytes.
    """

    paths: tuple[Path | Record, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> "Pictures":
        """Return the pictures at these indices, in this order."""
        return Pictures(
            tuple(self.paths[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return a digest of an image's pixels, the same in whatever file they were."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).digest()


class Checked(NamedTuple):
    """What reading a picture once has shown."""

    digest: str = ""  # of the file
    content: bytes = b""  # the pixel_digest of what is in the file
    animated: bool = False
    pixels: np.ndarray | None = None  # resized, where they are kept
    problem: BadPicture | None = None


def are_kept(count: int, preprocess: "Preprocess") -> bool:
    """Return whether so many resized pictures are kept in memory, not streamed."""
    return count * preprocess.image_size**2 * 3 <= IN_MEMORY_BYTES


def images_of(
    paths: Sequence[Path | Record], checked: Sequence[Checked], indices: Sequence[int]
) -> np.ndarray | Pictures:
    """Return the good pictures at these indices: the pixels if kept, else the files."""
    if all(checked[i].pixels is not None for i in indices):
        return np.stack([checked[i].pixels for i in indices])
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
    """Decode every picture, in threads, and fit and keep the pixels if asked to."""

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
        # Pillow warns of odd metadata in pictures that decode.
        warnings.simplefilter("ignore")
        for result in pool.map(check, paths):
            checked.append(result)
            on_picture(1)
    return checked
