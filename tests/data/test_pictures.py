"""Test that unusual images are decoded as defined and that bad ones are refused."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.pictures import BadPicture, decode, read_image


def encoded(image, form="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def pixels(content):
    """Return the pixels without the axis of a single channel."""
    found = decode(content)
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] in (1, 3)
    return found[..., 0] if found.shape[2] == 1 else found


RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 7), np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)


def test_plain_pictures_are_what_they_were():
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(
            pixels(encoded(Image.fromarray(COLOUR), form)), COLOUR
        )
        np.testing.assert_array_equal(
            pixels(encoded(Image.fromarray(GREY), form)), GREY
        )
    webp = encoded(Image.fromarray(COLOUR), "WEBP", lossless=True)
    np.testing.assert_array_equal(pixels(webp), COLOUR)


def test_black_and_white_becomes_grey():
    image = Image.fromarray(GREY > 127)
    assert image.mode == "1"
    np.testing.assert_array_equal(pixels(encoded(image)), (GREY > 127) * np.uint8(255))


def test_transparency_is_composited_on_white():
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[2:] = 255
    image = Image.fromarray(np.concatenate([COLOUR, alpha], -1))
    found = pixels(encoded(image))
    assert (found[:2] == 255).all()
    np.testing.assert_array_equal(found[2:], COLOUR[2:])
    # Pillow's own conversion would show the colours below the transparency.
    assert (np.asarray(image.convert("RGB"))[:2] != 255).any()


def test_a_grey_picture_with_alpha_and_a_transparent_palette_too():
    grey = Image.fromarray(np.stack([GREY, np.full_like(GREY, 0)], -1))
    assert grey.mode == "LA"
    assert (pixels(encoded(grey)) == 255).all()
    palette = Image.fromarray(COLOUR).quantize(4)
    content = encoded(palette, transparency=0)
    found, inside = pixels(content), np.asarray(palette)
    assert (found[inside == 0] == 255).all()
    plain = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(found[inside != 0], plain[inside != 0])


def test_a_palette_becomes_its_colours():
    image = Image.fromarray(COLOUR).quantize(8)
    np.testing.assert_array_equal(
        pixels(encoded(image)), np.asarray(image.convert("RGB"))
    )


def test_cmyk_becomes_rgb():
    image = Image.fromarray(COLOUR).convert("CMYK")
    content = encoded(image, "TIFF")
    np.testing.assert_array_equal(pixels(content), np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_scaled_not_cut():
    values = np.array([[0, 128, 256, 257, 30_000, 65_535]], np.uint16)
    content = encoded(Image.fromarray(values))
    np.testing.assert_array_equal(pixels(content), [[0, 0, 1, 1, 117, 255]])
    cut = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert (cut[0, 2:] == 255).all()  # Pillow's own conversion clips the values


def test_exif_turns_a_picture_upright():
    image = Image.fromarray(COLOUR)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed after a counter-clockwise rotation by 270 degrees
    content = encoded(turned, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(content), COLOUR)


def test_of_an_animation_the_first_frame_is_used():
    frames = [Image.new("P", (4, 4), i) for i in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(content).info["animated"]
    assert not read_image(encoded(frames[0], "GIF")).info["animated"]
    assert (pixels(content) == [255, 0, 0]).all()


def test_one_pixel_is_a_picture():
    assert pixels(encoded(Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]


def bomb(width, height):
    """Return a PNG of a few bytes whose header claims a huge image."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = (
        chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + data


def animation(form):
    frames = [Image.fromarray(np.roll(COLOUR, i, 0)) for i in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


JPEG = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
PNG = encoded(Image.fromarray(COLOUR))
BAD = {
    "zero bytes": (b"", "empty file"),
    "a text": (b"no picture", "unknown image format"),
    "HTML": (b"<html>", "unknown image format"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unknown image format"),
    "EPS": (encoded(Image.fromarray(COLOUR), "EPS"), "unknown image format"),
    "PDF": (encoded(Image.fromarray(COLOUR), "PDF"), "unknown image format"),
    "ICO": (encoded(Image.new("RGB", (16, 16)), "ICO"), "unknown image format"),
    "a truncated JPEG": (JPEG[: len(JPEG) // 2], "damaged"),
    "a truncated PNG": (PNG[:-30], "damaged"),
    "a PNG with a flipped bit": (PNG[:45] + b"\xff" + PNG[46:], "damaged"),
    "only a signature": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "51 million pixels": (bomb(7_200, 7_100), "over 50 million pixels"),
    "100 million pixels": (bomb(10_000, 10_000), "over 50 million pixels"),
    "4 billion pixels": (bomb(65_000, 65_000), "over 50 million pixels"),
    "a GIF cut in its second frame": (animation("GIF")[:-120], "damaged"),
    "a line": (encoded(Image.new("L", (1010, 10))), "over 100 times as long as wide"),
    "floating point": (
        encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"),
        "floating-point pixels",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_is_named_for_what_it_is(name):
    content, kind = BAD[name]
    with pytest.raises(BadPicture) as raised:
        decode(content)
    assert raised.value.kind.startswith(kind)


def test_verify_would_have_passed_the_truncated_jpeg():
    Image.open(io.BytesIO(BAD["a truncated JPEG"][0])).verify()


@pytest.mark.parametrize("seed", range(5))
def test_random_damage_ends_in_a_picture_or_a_name(seed):
    random = np.random.default_rng(seed)
    good = [
        JPEG,
        PNG,
        *(encoded(Image.fromarray(COLOUR), form) for form in ("GIF", "BMP", "TIFF")),
        encoded(Image.fromarray(COLOUR), "WEBP"),
        encoded(Image.fromarray(COLOUR), "PPM"),
        *(animation(form) for form in ("GIF", "TIFF", "WEBP", "PNG")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in good * 40:
            damaged = bytearray(content)
            for _ in range(random.integers(1, 8)):
                damaged[random.integers(len(damaged))] = random.integers(256)
            try:
                decode(bytes(damaged[: random.integers(1, len(damaged) + 1)]))
            except BadPicture:
                pass
