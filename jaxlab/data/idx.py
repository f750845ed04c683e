"""Read files in the IDX format of MNIST: bytes of 1 (labels) or 3 (images) dimensions.

A file may be compressed by gzip, which is known by its first bytes, not by its name.
Nothing is guessed: each damage is an error that names the file.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlab.errors import InputError
from pretrained.disk import mistaken_for, open_regular
from pretrained.errors import one_line

MAX_BYTES = 4 << 30  # of a file's values, which are all kept in memory
AGAIN = "replace it by an undamaged copy"


_HEAD = 64  # bytes; enough to recognise what a file is instead
_CHUNK = 1 << 20  # bytes; a header that is wrong must not reserve memory


def array_of(content: bytes) -> np.ndarray:
    """Return the values of the content of an IDX file, uint8[n] or uint8[n, h, w]."""
    shape = _shape(content)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _shape(content: bytes) -> tuple[int, ...]:
    return struct.unpack_from(f">{content[3]}I", content, 4)


def read(path: Path, dimensions: int) -> bytes:
    """Return the unpacked content of a file; raise InputError if it is damaged."""
    try:
        with open_regular(path) as file:
            return unpacked(file, path, dimensions)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}; check the file "
            "and its folder"
        ) from error


def unpacked(file: BinaryIO, path: Path, dimensions: int) -> bytes:
    """Return the content of an open IDX file, whose size fits its header.

    Raises InputError if it is damaged, or if it is not an IDX file of bytes with these
    `dimensions`, and OSError if it cannot be read.
    """
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_packed:
        return _content(file, path, dimensions)
    try:
        with gzip.GzipFile(fileobj=file) as inside:
            return _content(inside, path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = one_line(str(error)).rstrip(".")
        raise InputError(f"{path}: is damaged: {reason}; {AGAIN}") from error


def _content(file: Any, path: Path, dimensions: int) -> bytes:
    head, header = file.read(_HEAD), 4 + 4 * dimensions
    _check_magic(head, path, dimensions)
    if len(head) < header:
        raise InputError(f"{path}: ends within its header; {AGAIN}")
    shape = _shape(head)
    expected = math.prod(shape)
    text = "×".join(f"{size:,}" for size in shape)
    if not expected:
        raise InputError(f"{path}: is empty ({text} values); {AGAIN}")
    if expected > MAX_BYTES:
        raise InputError(
            f"{path}: its header says {text} values, more than {MAX_BYTES >> 30} GiB; "
            f"{AGAIN}, or pass a folder of pictures"
        )
    chunks, held = [head], len(head)
    # One byte more is asked for: gzip's checksum is behind the last one.
    while held <= header + expected and (
        chunk := file.read(min(_CHUNK, header + expected + 1 - held))
    ):
        chunks.append(chunk)
        held += len(chunk)
    if held != header + expected:
        found = "more" if held > header + expected else f"only {held - header:,}"
        raise InputError(
            f"{path}: has {found} bytes of values where its header says {expected:,} "
            f"({text}); {AGAIN}"
        )
    return b"".join(chunks)


def _check_magic(header: bytes, path: Path, dimensions: int) -> None:
    """Raise InputError unless a file begins as bytes with these dimensions do."""
    expected, found = bytes([0, 0, 8, dimensions]), header[:4]
    if found == expected:
        return
    if (mistaken := mistaken_for(header, AGAIN)) is not None:
        raise InputError(f"{path}: {mistaken}")
    kinds = {1: "labels", 3: "images"}
    what = f"has the magic number 0x{found.hex()}"
    if found[:3] == expected[:3] and found[3] in kinds:
        what = f"contains {kinds[found[3]]}"
    raise InputError(
        f"{path}: {what}, expected {kinds[dimensions]} (0x{expected.hex()}); {AGAIN}"
    )
