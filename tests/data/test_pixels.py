"""Test that every kind of picture has the right pixels, or is refused by its name.

The references are values that are computed from the samples by hand. It is one file
because all kinds are held against the same rules.
"""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxlab.data import pictures
from jaxlab.data.pictures import ENDINGS, FORMATS, BadPicture, decode
from tests.data.test_pictures import encoded, pixels

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)
GREY16 = RANDOM.integers(0, 65536, (6, 8), np.uint16)
COLOUR16 = RANDOM.integers(0, 65536, (6, 8, 3), np.uint16)


def scaled(samples, most):
    """Return samples from 0 to `most` as uint8, rounded to the nearest."""
    return ((samples.astype(int) * 255 + most // 2) // most).astype(np.uint8)


def on_white(colour, alpha):
    return np.round(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)


def packed(samples, bits):
    """Return rows of samples of so many bits each, as bytes."""
    every_bit = (samples[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(every_bit.reshape(len(samples), -1).astype(np.uint8), axis=1)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(samples, depth, colour_type, *chunks):
    """Return a PNG; `chunks` stand before the pixels."""
    height, width = samples.shape[:2]
    rows = packed(samples.reshape(height, -1), depth)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def transparent(*samples):
    return chunk(b"tRNS", struct.pack(f">{len(samples)}H", *map(int, samples)))


def tiff(samples, bits, photometric=1, kind=1, planes=1):
    """Return a TIFF without compression; samples of 16 bits and more are "<"."""
    height, width = samples.shape[:2]
    count = samples.shape[2] if samples.ndim == 3 and planes == 1 else planes
    if bits in (8, 16, 32):
        data = samples.tobytes()
    else:
        data = packed(samples, bits).tobytes()
    bits_at = 8 + len(data) + len(data) % 2
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: count, 278: height, 279: len(data), 339: kind}
    if planes > 1:
        tags[284] = 2
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag == 258 and count > 1:
            entries += struct.pack("<HHII", tag, 3, count, bits_at)
        elif planes > 1 and tag in (273, 279):
            each = len(data) // planes
            place = bits_at + 2 * count + (4 * planes if tag == 279 else 0)
            entries += struct.pack("<HHII", tag, 4, planes, place)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    content = (
        data + b"\0" * (len(data) % 2) + struct.pack(f"<{count}H", *[bits] * count)
    )
    if planes > 1:
        content += struct.pack(f"<{planes}I", *(8 + each * i for i in range(planes)))
        content += struct.pack(f"<{planes}I", *[each] * planes)
    ifd = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + ifd


def bitmap(bgra, masks=True):
    """Return a BMP of 32 bits a pixel, with or without a mask for alpha."""
    height, width = bgra.shape[:2]
    data = bgra[::-1].tobytes()
    size, kind = (56, 3) if masks else (40, 0)
    header = struct.pack(
        "<IiiHHIIiiII", size, width, height, 1, 32, kind, len(data), 2835, 2835, 0, 0
    )
    if masks:
        header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + data


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_each_depth_and_its_transparent_sample(depth):
    most = 2**depth - 1
    samples = RANDOM.integers(0, most + 1, (6, 8))
    grey = scaled(samples, most)
    np.testing.assert_array_equal(pixels(png(samples, depth, 0)), grey)
    for key in {0, most, int(samples[0, 0])}:
        expected = np.where(samples == key, 255, grey)
        found = pixels(png(samples, depth, 0, transparent(key)))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_of_each_depth_and_its_transparency(depth):
    samples = RANDOM.integers(0, 2**depth, (6, 8))
    palette = RANDOM.integers(0, 256, (2**depth, 3), np.uint8)
    plain = chunk(b"PLTE", palette.tobytes())
    np.testing.assert_array_equal(
        pixels(png(samples, depth, 3, plain)), palette[samples]
    )
    alpha = RANDOM.integers(0, 256, 2**depth, np.uint8)
    content = png(samples, depth, 3, plain, chunk(b"tRNS", alpha.tobytes()))
    expected = on_white(palette[samples], alpha[samples][..., None] / 255)
    np.testing.assert_array_equal(pixels(content), expected)


def test_colour_of_sixteen_bits_keeps_its_high_byte():
    np.testing.assert_array_equal(pixels(png(COLOUR16, 16, 2)), COLOUR16 >> 8)
    np.testing.assert_array_equal(pixels(tiff(COLOUR16, 16, 2)), COLOUR16 >> 8)
    assert (
        np.abs(pixels(png(COLOUR16, 16, 2)) - scaled(COLOUR16, 65535).astype(int)).max()
        <= 1
    )
    alpha = RANDOM.integers(0, 65536, (6, 8, 1), np.uint16)
    found = pixels(png(np.concatenate([COLOUR16, alpha], -1), 16, 6))
    expected = on_white(COLOUR16 >> 8, (alpha >> 8) / 255)
    np.testing.assert_array_equal(found, expected)


def test_a_transparent_colour_becomes_white():
    key = COLOUR[0, 0]
    expected = np.where((COLOUR == key).all(-1, keepdims=True), 255, COLOUR)
    found = pixels(png(COLOUR, 8, 2, transparent(*key)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiffs_of_grey(bits, white_is_zero):
    most = 2**bits - 1
    kind = np.uint16 if bits == 16 else np.uint8 if bits == 8 else int
    samples = RANDOM.integers(0, most + 1, (6, 8)).astype(kind)
    content = tiff(samples, bits, 0 if white_is_zero else 1)
    if bits == 12 and white_is_zero:
        with pytest.raises(BadPicture, match="unsupported kind of TIFF"):
            decode(content)
        return
    grey = scaled(samples, most)
    np.testing.assert_array_equal(
        pixels(content), 255 - grey if white_is_zero else grey
    )


def test_a_bitmap_whose_alpha_is_zero_everywhere_has_none():
    bgra = RANDOM.integers(0, 256, (6, 8, 4), np.uint8)
    alpha = bgra[..., 3:] / 255
    colour = bgra[..., 2::-1]
    np.testing.assert_array_equal(pixels(bitmap(bgra)), on_white(colour, alpha))
    bgra[..., 3] = 0
    np.testing.assert_array_equal(pixels(bitmap(bgra)), colour)
    np.testing.assert_array_equal(pixels(bitmap(bgra, masks=False)), colour)
    # Negative control: a PNG whose alpha is 0 everywhere is white.
    assert (pixels(encoded(Image.fromarray(bgra))) == 255).all()


@pytest.mark.parametrize("most", [15, 255, 1023, 65535])
def test_portable_maps_of_each_depth(most):
    kind = ">u2" if most > 255 else np.uint8
    grey = (GREY16.astype(int) % (most + 1)).astype(kind)
    header = b"8 6 %d\n" % most
    expected = np.round(grey / most * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels(b"P5 " + header + grey.tobytes()), expected)
    colour = (COLOUR16.astype(int) % (most + 1)).astype(kind)
    expected = np.round(colour / most * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels(b"P6 " + header + colour.tobytes()), expected)


@pytest.mark.parametrize("transparent_index", [None, 0])
def test_what_the_first_frame_of_a_gif_leaves_open_is_white(transparent_index):
    palette = bytes([255, 0, 0, 0, 255, 0])
    inside = Image.fromarray(np.ones((3, 4), np.uint8))
    inside.putpalette(palette)
    place = struct.pack("<HHHH", 0, 0, 4, 3)
    data = encoded(inside, "GIF", optimize=False).partition(b"\x2c" + place)[2][1:]
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 6, 0x80, 0, 0) + palette
    if transparent_index is not None:
        head += b"\x21\xf9\x04" + struct.pack("<BHBB", 1, 0, transparent_index, 0)
    frame = b"\x2c" + struct.pack("<HHHHB", 2, 1, 4, 3, 0) + data
    expected = np.full((6, 8, 3), 255, np.uint8)
    expected[1:4, 2:6] = 0, 255, 0
    np.testing.assert_array_equal(pixels(head + frame), expected)


REFUSED = {
    "16-bit colour with a transparent one": png(COLOUR16, 16, 2, transparent(1, 2, 3)),
    "signed samples": tiff(
        RANDOM.integers(0, 100, (6, 8)).astype(np.int16), 16, kind=2
    ),
    "signed samples ": tiff(RANDOM.integers(0, 99, (6, 8)).astype(np.int8), 8, kind=2),
    "samples of 32 bits": tiff(GREY16.astype(np.uint32), 32),
    "floating-point pixels": tiff(RANDOM.random((6, 8)).astype(np.float32), 32, kind=3),
    "colours in Lab": tiff(COLOUR, 8, 8),
    "separate planes of 16 bits": tiff(
        COLOUR16.transpose(2, 0, 1).reshape(6, 8, 3), 16, 2, planes=3
    ),
    "damaged .its beginning cannot be read": b"\xff\xd8\xff" + bytes(99),
    "unsupported kind of TIFF .samples of 10 bits, SampleFormat 1": tiff(
        GREY16 % 1024, 10
    ),
    "samples of 16 bits, SampleFormat 3": tiff(GREY16, 16, kind=3),
    "samples of 8 bits, SampleFormat 4": tiff(GREY16.astype(np.uint8), 8, kind=4),
    "16.16.16 bits, SampleFormat 3, Photo.* 2": tiff(COLOUR16, 16, 2, kind=3),
    "unsupported kind of TIFF .its tags cannot be read": b"II*\0",
    "unknown image format": encoded(Image.fromarray(COLOUR), "TGA"),
    "floating-point pixels ": b"Pf\n8 6\n-1.0\n" + bytes(4 * 48),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(name):
    with pytest.raises(BadPicture, match=name.strip()):
        decode(REFUSED[name])


def exif(orientation, denominator):
    """Return EXIF data with an orientation and a resolution of 72 / denominator."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack("<HHII", 0x011A, 5, 1, 8 + 2 + 24 + 4)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    return head + entries + bytes(4) + struct.pack("<II", 72, denominator)


def long_texts():
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "x" * 2_000_000)
    info.add_text("compressed", "x" * 2_000_000, zip=True)
    info.add_itxt("international", "x" * 2_000_000, zip=True)
    return info


def odd_chunks():
    """Return notes that are wrong in a PNG, before its pixels."""
    wrong = bytearray(chunk(b"tIME", bytes(7)))
    wrong[-1] ^= 1  # its checksum
    short = [chunk(name, b"\0") for name in (b"pHYs", b"gAMA", b"cHRM", b"sBIT")]
    return [bytes(wrong), *short]


def odd_metadata():
    image = Image.fromarray(COLOUR)
    jpeg = encoded(image, "JPEG")
    as_jpeg = np.asarray(Image.open(io.BytesIO(jpeg)))
    return {
        "wrong notes": (png(COLOUR, 8, 2, *odd_chunks()), COLOUR),
        "long texts": (encoded(image, pnginfo=long_texts()), COLOUR),
        "a large profile": (encoded(image, icc_profile=bytes(2_000_000)), COLOUR),
        "no EXIF at all": (encoded(image, exif=b"Exif\0\0garbage"), COLOUR),
        "EXIF of noise": (encoded(image, exif=RANDOM.bytes(99)), COLOUR),
        "no such orientation": (encoded(image, exif=exif(77, 1)), COLOUR),
        "behind the end": (encoded(image) + b"garbage", COLOUR),
        "JPEG, n / 0": (encoded(image, "JPEG", exif=exif(1, 0)), as_jpeg),
        "JPEG, n / 0, turned": (
            encoded(image, "JPEG", exif=exif(6, 0)),
            np.rot90(as_jpeg, -1),
        ),
        "JPEG, profile": (encoded(image, "JPEG", icc_profile=b"broken"), as_jpeg),
        "JPEG, behind the end": (jpeg + b"garbage" * 100, as_jpeg),
    }


@pytest.mark.parametrize("name", odd_metadata())
def test_odd_metadata_do_not_make_a_good_picture_bad(name):
    content, expected = odd_metadata()[name]
    np.testing.assert_array_equal(pixels(content), expected)


def test_cut_pixels_behind_long_texts_are_damage():
    content = encoded(Image.fromarray(COLOUR), pnginfo=long_texts())
    with pytest.raises(BadPicture, match="damaged"):
        decode(content[:-30])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_each_orientation_in_each_format(form):
    turned = {
        2: np.fliplr(COLOUR),
        3: np.rot90(COLOUR, 2),
        4: np.flipud(COLOUR),
        5: COLOUR.transpose(1, 0, 2),
        6: np.rot90(COLOUR, -1),
        7: np.rot90(COLOUR, 2).transpose(1, 0, 2),
        8: np.rot90(COLOUR),
    }
    for orientation, expected in turned.items():
        how = {"exif": exif(orientation, 1)}
        if form == "TIFF":
            how = {"tiffinfo": {274: orientation}}
        if form == "WEBP":
            how["lossless"] = True
        content = encoded(Image.fromarray(COLOUR), form, **how)
        np.testing.assert_array_equal(pixels(content), expected)


def smooth():
    ramp = np.arange(64, dtype=np.uint8) * 4
    return np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(99)), -1)


def test_avif_is_read():
    content = encoded(Image.fromarray(smooth()), "AVIF", quality=100)
    assert np.abs(pixels(content).astype(int) - smooth()).max() <= 4


def test_heic_is_read_with_its_package_and_without_it_says_so(monkeypatch):
    import pillow_heif

    pillow_heif.register_heif_opener()
    content = encoded(Image.fromarray(smooth()), "HEIF", quality=95)
    assert content[4:12] == b"ftypheic"
    assert np.abs(pixels(content).astype(int) - smooth()).max() <= 6
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadPicture, match=r"HEIC, .*pip install -e '\.\[heif\]'"):
        decode(content)


def test_the_endings_are_those_of_the_formats():
    Image.init()
    known = {
        e for e, f in Image.registered_extensions().items() if f in (*FORMATS, "MPO")
    }
    heic = {".heic", ".heics", ".heif", ".heifs", ".hif"}
    assert known | heic == ENDINGS


def test_the_pixels_have_three_axes_and_can_be_written_to():
    for image, channels in ((Image.new("L", (3, 2)), 1), (Image.new("RGB", (3, 2)), 3)):
        found = pictures.decode(encoded(image))
        assert found.shape == (2, 3, channels) and found.dtype == np.uint8
        found[:] = 1
