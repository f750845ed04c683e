"""Decode picture files to pixels, with one list of formats and one rule for each mode.

Nothing is guessed or substituted: a file is either decoded, or a `BadPicture` states
why it cannot be used.

It is one file because every format and mode has its rule here and nowhere else.
"""

import dataclasses
import errno
import hashlib
import importlib.util
import io
import logging
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import (
    GifImagePlugin,
    Image,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from pretrained.disk import NotRegular, open_regular
from pretrained.errors import install, one_line

if TYPE_CHECKING:  # Reading digits must not wait for the import of JAX.
    from jaxlab.data.preprocess import Preprocess

# Pillow also logs the errors that it raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# Without this list Pillow would also try EPS, for which it runs Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF")
# The endings that Pillow knows for them, and those of HEIC.
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp")
    + (".bmp", ".dib", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm")
    + (".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif")
)
MAX_PIXELS = 50_000_000
# Resized pictures of at most this total size are kept in memory. If they are larger,
# the files are decoded again in every epoch.
IN_MEMORY_BYTES = 1 << 30
LONGEST = 100  # maximum ratio of the long side to the short side
_REMEDY = "save it as PNG or JPEG with 8 bits"
_PNG = b"\x89PNG\r\n\x1a\n"
# Of the chunks whose names begin in lower case, which a reader may ignore, those that
# change the pixels: transparency, orientation and animation.
_PNG_KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        if error.errno == errno.ENXIO:  # a socket
            raise BadPicture("non-regular file") from None
        raise BadPicture("unreadable file", error.strerror or "") from None


def decode(content: bytes) -> np.ndarray:
    """Return the pixels of an encoded picture, uint8[h, w, c]; c is 1 for grey, else 3.

    They are those of the first frame, upright by its EXIF orientation. Transparency is
    composited on white, as is what the first frame of a GIF leaves open. Grey of 12 or
    16 bits is scaled to 8 and rounded; colour of 16 bits keeps its high byte. Palettes,
    CMYK and YCbCr are converted to RGB. Metadata that cannot be read is ignored, as are
    colour profiles.

    Raises BadPicture, which says what the file is, for everything that cannot be
    decoded so: an empty or damaged file, an unknown format, more than 50 million pixels
    (according to the header, before anything is decoded), a long side of more than 100
    times the short side, and samples that are signed, in floating point or of over 16
    bits.

    >>> decode(b"P2 3 1 255 0 128 255")[0, :, 0].tolist()
    [0, 128, 255]
    """
    pixels = np.array(read_image(content))
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def read_image(content: bytes) -> Image.Image:
    """Return an encoded picture in mode "L" or "RGB"; see `decode`.

    `info["animated"]` of the result is True if a file other than an MPO has further
    frames.
    """
    if not content:
        raise BadPicture("empty file")
    try:
        with _opened(content) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadPicture("over 50 million pixels", f"{width}×{height}")
            # Resizing the short side of a longer picture could exhaust the memory.
            if max(width, height) > LONGEST * min(width, height):
                raise BadPicture(f"over {LONGEST} times as long as wide")
            # Further frames of an MPO are previews and depth maps of the same photo.
            animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            image.seek(0)
            sample = _Sample.of(image)  # of what load() forgets
            drawn = None
            if isinstance(image, GifImagePlugin.GifImageFile) and image.tile:
                drawn = image.tile[0].extents
            image.load()
            plain = _plain(_turned(image), sample)
            if drawn not in (None, (0, 0, *plain.size)):
                # Pillow fills what a GIF's first frame leaves open with any colour.
                white = Image.new(plain.mode, plain.size, "white")
                white.paste(plain.crop(drawn), drawn)
                plain = white
            plain.info = {"animated": animated}
            return plain
    except UnidentifiedImageError:
        if content[:4] in (b"II*\0", b"MM\0*"):
            raise BadPicture(
                "unsupported kind of TIFF", f"{_kind_of_tiff(content)}; {_REMEDY}"
            ) from None
        if content.startswith((_PNG, b"\xff\xd8\xff")):
            raise BadPicture("damaged", "its beginning cannot be read") from None
        raise BadPicture("unknown image format") from None
    except Image.DecompressionBombError:
        raise BadPicture("over 50 million pixels") from None
    except _DAMAGE as error:
        raise BadPicture("damaged", one_line(str(error))[:100]) from None


def upright(image: Image.Image) -> Image.Image:
    """Return an image in mode "L" or "RGB", upright by its EXIF orientation.

    Raises BadPicture for pixels in floating point or outside 16 bits.
    """
    return _plain(_turned(image), _Sample())


def _opened(content: bytes) -> Image.Image:
    """Open a picture; HEIC needs a package of its own."""
    file = io.BytesIO(_without_text(content))
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIC_BRANDS:
        return Image.open(file, formats=FORMATS)
    if importlib.util.find_spec("pillow_heif") is None:
        raise BadPicture(f"HEIC, which needs a package: {install('heif')}")
    import pillow_heif

    pillow_heif.register_heif_opener()
    return Image.open(file, formats=(*FORMATS, "HEIF"))


def _kind_of_tiff(content: bytes) -> str:
    """Return the tags that decide whether Pillow can decode a TIFF."""
    file = io.BytesIO(content)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits = "+".join(map(str, tags.get(258, (1,))))
        sample_format = tags.get(339, (1,))[0]
    except _DAMAGE:
        return "its tags cannot be read"
    return (
        f"samples of {bits} bits, SampleFormat {sample_format}, "
        f"PhotometricInterpretation {tags.get(262)}"
    )


def _without_text(content: bytes) -> bytes:
    """Return a PNG without texts, colour profile and other notes; others unchanged.

    Pillow refuses a good picture for long or wrong ones. XMP and EXIF are kept, because
    they may say how the picture is turned.
    """
    if not content.startswith(_PNG):
        return content
    kept, start = [content[: len(_PNG)]], len(_PNG)
    while start + 8 <= len(content):
        length = int.from_bytes(content[start : start + 4])
        kind, end = content[start + 4 : start + 8], start + 12 + length
        body = content[start + 8 : end - 4]
        is_xmp = body.startswith(b"XML:com.adobe.xmp\0\0") and length < 500_000
        is_note = kind[:1].islower() and kind not in _PNG_KEPT
        if not is_note or is_xmp:
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])


def _turned(image: Image.Image) -> Image.Image:
    """Return the image upright; an orientation that cannot be read does not count."""
    # ImageOps.exif_transpose also writes the EXIF data anew, which fails if any of
    # them are odd, though the pixels are good.
    try:
        orientation = image.getexif().get(0x0112, 1)
    except _DAMAGE:
        return image
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


class _Sample(NamedTuple):
    """What is known of a file's grey samples: the largest, and which one is white."""

    bits: int = 16
    white_is_zero: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> "_Sample":
        """Read it from an image that is opened, but not loaded yet.

        Raises BadPicture for samples that Pillow would read as others.
        """
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tags = image.tag_v2
            bits = max(tags.get(258, (1,)))
            kinds = set(tags.get(339, (1,)))
            if kinds & {2, 6}:
                raise BadPicture(f"signed samples; {_REMEDY}")
            if bits > 16 and 3 not in kinds:
                raise BadPicture(f"samples of {bits} bits; {_REMEDY}")
            if bits > 8 and tags.get(284) == 2 and len(tags.get(258, ())) > 1:
                raise BadPicture(f"separate planes of {bits} bits; {_REMEDY}")
            if image.mode == "P" and max(tags.get(320, (256,))) < 256:
                raise BadPicture(f"a palette of 8 bits, where TIFF has 16; {_REMEDY}")
            if image.mode == "LAB":
                raise BadPicture(f"colours in Lab; {_REMEDY}")
            return cls(bits, tags.get(262) == 0)
        if isinstance(image, PngImagePlugin.PngImageFile) and image.tile:
            _, _, depth = str(image.tile[0][3]).partition(";")
            bits = int(depth.rstrip("B") or (1 if image.mode == "1" else 8))
            if image.mode == "RGB" and bits == 16 and "transparency" in image.info:
                raise BadPicture(f"16-bit colour with a transparent one; {_REMEDY}")
            return cls(bits)
        return cls(8 if image.mode == "L" else 16)


def _plain(image: Image.Image, sample: _Sample) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return _grey(image, sample, transparent)
    if image.mode == "F":
        raise BadPicture(f"floating-point pixels; {_REMEDY}")
    # Windows writes bitmaps whose fourth byte is unused, and calls it alpha.
    if image.mode == "RGBA" and image.format in ("BMP", "DIB"):
        if not image.getchannel("A").getbbox():
            return image.convert("RGB")
    if transparent is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, sample: _Sample, transparent: object) -> Image.Image:
    """Return a grey image in 8 bits; the sample that is transparent becomes white."""
    if image.mode in ("1", "L"):
        most, values = 255, np.asarray(image.convert("L"))
        key = (1 << min(sample.bits, 8)) - 1  # the largest sample of the file
    else:
        # Pillow's own conversion clips values above 255.
        most = key = (1 << sample.bits) - 1
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > most:
            raise BadPicture(f"pixel values outside 0 to {most:,}")
    grey = ((values.astype(np.int64) * 255 + most // 2) // most).astype(np.uint8)
    if sample.white_is_zero and most > 255:  # Pillow inverts only 8 bits
        grey = 255 - grey
    if isinstance(transparent, int):
        grey[values == transparent * most // key] = 255
    return Image.fromarray(grey)


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
    look: Any = None  # see `check_pictures`
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
    look: Callable[[Image.Image], Any] | None = None,
) -> list[Checked]:
    """Decode every picture, in threads; if `keep`, resize and keep the pixels.

    If `look` is given, its result for the decoded picture is kept too.

    Returns one result for each path, in order; an unusable picture has a `problem`.
    `on_picture` is called with 1 after each picture.
    """

    def check(path: Path | Record) -> Checked:
        try:
            content = read(path)
            picture = read_image(content)
            return Checked(
                digest=hashlib.sha256(content).hexdigest(),
                content=pixel_digest(np.asarray(picture)),
                animated=picture.info["animated"],
                pixels=preprocess.resize(picture) if keep else None,
                look=look(picture) if look is not None else None,
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
