"""A manifest with the size and SHA-256 of every file in a folder.

Verifying it detects damage, such as a flipped bit, that the file formats do not detect.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.errors import CorruptionError
from pretrained.disk import write_text

FORMAT = 2
MANIFEST = "manifest.json"


def write_manifest(folder: Path, about: Mapping[str, Any]) -> str:
    """Write the manifest of a folder and return its digest; `about` is added as JSON.

    Raises OSError if it cannot be written.
    """
    body = {"format": FORMAT, "files": _files(folder), **about}
    sha256 = digest(body)
    content = {"sha256": sha256, "body": body}
    write_text(folder / MANIFEST, json.dumps(content) + "\n")
    return sha256


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of the manifest; raise CorruptionError if a file differs."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
        body, sha256 = content["body"], content["sha256"]
        if body["format"] != FORMAT:
            raise CorruptionError(
                f"{path}: has format {body['format']}, expected {FORMAT}"
            )
        expected = body["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"is damaged ({error})"
        raise CorruptionError(f"{path}: {reason}") from error
    if digest(body) != sha256:
        raise CorruptionError(f"{path}: SHA-256 checksum mismatch")
    try:
        found = _files(folder)
    except OSError as error:
        raise CorruptionError(f"{error.filename}: {error.strerror}") from error
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise CorruptionError(f"{folder / name}: is missing")
        if name not in expected:
            raise CorruptionError(f"{folder / name}: is not in the manifest")
        for what, then, now in zip(
            ("size", "SHA-256"), expected[name], found[name], strict=True
        ):
            if then != now:
                raise CorruptionError(
                    f"{folder / name}: {what} is {now}, expected {then}"
                )
    return body


def digest(body: Any) -> str:
    """Return the SHA-256 of a value that is serialised as JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of each file but the manifest; reject symbolic links."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path.is_symlink():
            raise CorruptionError(f"{path}: is a symbolic link")
        if path.is_file() and path != folder / MANIFEST:
            found[path.relative_to(folder).as_posix()] = (
                path.stat().st_size,
                _sha256(path),
            )
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
