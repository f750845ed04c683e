"""Picture files to pixels: one list of formats, one meaning for every odd mode.

Nothing is guessed and nothing substituted: a file either is the picture it says, or a
`BadPicture` that says why not.
"""

import dataclasses
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Named, because Pillow would otherwise try EPS too, which runs Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".mpo", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm")
)
MAX_PIXELS = 50_000_000
# What Pillow's readers were seen to raise for a third of a million damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_DAMAGE += (TypeError, ArithmeticError, LookupError)


class BadPicture(Exception):
    """A file that is no usable picture; `kind` groups such files in a report."""

    def __init__(self, kind: str, detail: str = ""):
        """Name the kind of fault, and what is particular to this file."""
        super().__init__(f"{kind} ({detail})" if detail else kind)
        self.kind = kind


def decode(content: bytes) -> Image.Image:
    """Return a picture in mode "L" or "RGB", upright, its first frame.

    EXIF's orientation is applied; transparency is composited on white; 16-bit grey is
    scaled to 8 bits; palettes, CMYK and other colour spaces become RGB. Raises
    BadPicture for another format, more than 50 million pixels (from the header, before
    anything is unpacked), floating-point pixels, and damaged files.
    """
    if not content:
        raise BadPicture("empty file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadPicture("over 50 million pixels", f"{width}×{height}")
            image.load()
            return _plain(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadPicture("no picture in a known format") from None
    except Image.DecompressionBombError:
        raise BadPicture("over 50 million pixels") from None
    except _DAMAGE as error:
        raise BadPicture("damaged", str(error)) from None


def is_animated(content: bytes) -> bool:
    """Return whether a picture that decodes holds further frames."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        # An MPO's further frames are previews and depth maps of the same shot.
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


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

    paths: tuple[Path, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> "Pictures":
        """Return the pictures at these places, in this order."""
        return Pictures(
            tuple(self.paths[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )
