"""A published file in the cache, fetched when it is not there, its hash always checked.

The bytes arrive in a `.partial` file, which a broken transfer leaves to continue from;
only what has the published size and SHA-256 gets the final name. On each later use the
whole file is hashed again.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import filelock

from pretrained.disk import PARTIAL, cache_folder
from pretrained.errors import DownloadError, IntegrityError, one_line
from pretrained.sources import Source

if TYPE_CHECKING:
    import requests

ATTEMPTS = 5
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte
BACKOFF = 1.0  # seconds before the second attempt, doubled before each further one
_CHUNK = 1 << 16  # bytes; what a cut connection can lose


def cached_path(source: Source) -> Path:
    """Return where a published file is kept, whether it is there or not."""
    return cache_folder() / "weights" / source.file_name


def open_published(source: Source, *, offline: bool = False) -> BinaryIO:
    """Open a published file whose bytes were just found to be the published ones.

    Takes it from the cache, else downloads it there, saying so on stderr; several
    processes may do so at once, and one of them downloads. With `offline` no connection
    is opened.

    Raises DownloadError when the file cannot be had, IntegrityError when what was
    received, or with `offline` what is cached, is not the published file.
    """
    path = cached_path(source)
    with _cache_errors(path):
        if file := _open_good(path, source):
            return file
        if offline:
            if path.exists():
                raise IntegrityError(
                    f"{path}: is not the published file, and offline it cannot be "
                    f"fetched; run once with a network, or get it from {source.url}"
                )
            raise DownloadError(
                f"{source.title}: not in the cache, and offline it cannot be fetched; "
                f"run once with a network, or put {source.url} at {path}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if file := _open_good(path, source):
                return file  # another process was first
            if path.exists():
                print(f"{path}: is damaged; getting it again", file=sys.stderr)
            partial = path.with_name(path.name + PARTIAL)
            _download(source, partial, path)
            os.replace(partial, path)
        print(f"{path}: complete, SHA-256 as published", file=sys.stderr)
    return open_published(source, offline=True)


def _locked(path: Path):
    lock = filelock.FileLock(f"{path}.lock")
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"{path}: waiting for the process that downloads it", file=sys.stderr)
        return lock.acquire()


@contextlib.contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a request's errors do not come here
        raise DownloadError(
            f"{path}: cannot be written or read: {error.strerror or error}; check the "
            "folder and the free space, or set JAXLAB_HOME to another folder"
        ) from error


def _open_good(path: Path, source: Source) -> BinaryIO | None:
    """Return the file opened, when it is there and is the published one."""
    if not path.is_file():
        return None
    file = open(path, "rb")
    if _sha256(file) == source.sha256:
        return file
    file.close()
    return None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _download(source: Source, partial: Path, path: Path) -> None:
    """Fill `partial` with the published bytes, in a bounded number of attempts."""
    # Imported here: who has the file, or is offline, needs no HTTP.
    import requests
    from urllib3.exceptions import HTTPError

    host = urlsplit(source.url).hostname
    print(
        f"downloading {source.title}: {source.bytes / 1e6:,.0f} MB from {host} to "
        f"{path}",
        file=sys.stderr,
    )
    reason = ""
    pieced = restarted = False
    for attempt in range(ATTEMPTS):
        pieced = pieced or _size(partial) > 0
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            _transfer(source, partial)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ) as error:
            reason = _root_cause(error)
            continue
        except _Again as error:
            reason = str(error)
            continue
        # Redirects to what is no address fail in odd places, and as odd exceptions.
        except (requests.RequestException, HTTPError, ValueError) as error:
            said = one_line(str(error))[:200]
            raise DownloadError(f"{source.url}: {said}; {_ELSEWHERE}") from error
        with open(partial, "rb") as file:
            found = _sha256(file)
        if found == source.sha256:
            return
        partial.unlink()
        if restarted or not pieced:
            raise IntegrityError(
                f"{source.url}: has SHA-256 {found}, published is {source.sha256}; "
                "nothing was kept. Try again elsewhere; if it stays so, report it"
            )
        # One of the pieces was of something else: once more, in one.
        pieced, restarted, reason = False, True, "the pieces did not fit together"
    held = _size(partial)
    again = "run again, it continues from there" if held else "run again"
    raise DownloadError(
        f"{source.url}: {reason}; {held:,} of {source.bytes:,} bytes after {ATTEMPTS} "
        f"attempts. Check the network and {again}; or get the file elsewhere and put "
        f"it at {path}"
    )


class _Again(Exception):
    """A fault that another attempt may not meet."""


_ELSEWHERE = "try another network: a login page may stand in between"


def _transfer(source: Source, partial: Path) -> None:
    """Append to `partial` what it lacks; returns when it has the published size."""
    import requests
    from tqdm import tqdm

    held = _size(partial)
    if held == source.bytes:
        return
    free = shutil.disk_usage(partial.parent).free
    if free < source.bytes - held:
        raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free")
    headers = {"Accept-Encoding": "identity"}
    if 0 < held < source.bytes:
        headers["Range"] = f"bytes={held}-"
    timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
    # Of a redirect whose address cannot be read, requests leaves the response open.
    with contextlib.ExitStack() as opened:
        response = requests.get(
            source.url,
            headers=headers,
            stream=True,
            timeout=timeout,
            hooks={"response": lambda each, **_: opened.enter_context(each)},
        )
        held = _start_of_body(response, source, held, partial)
        with (
            open(partial, "r+b" if held else "wb") as file,
            tqdm(
                desc=source.file_name,
                total=source.bytes,
                initial=held,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,  # but on a terminal
            ) as bar,
        ):
            file.seek(held)
            for chunk in response.iter_content(_CHUNK):
                if held + len(chunk) > source.bytes:
                    file.truncate(0)
                    raise DownloadError(
                        f"{source.url}: sends more than the published "
                        f"{source.bytes:,} bytes; {_ELSEWHERE}"
                    )
                file.write(chunk)
                held += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if held < source.bytes:
        raise _Again("the connection closed early")


def _start_of_body(
    response: "requests.Response", source: Source, held: int, partial: Path
) -> int:
    """Return the byte of the file at which the body starts, or raise: it is no use."""
    answer = f"{response.status_code} {str(response.reason)[:80]}"
    if response.status_code == 206:
        expected = f"bytes {held}-{source.bytes - 1}/"
        if response.headers.get("Content-Range") in (
            f"{expected}{source.bytes}",
            f"{expected}*",
        ):
            return held
    if response.status_code in (206, 416):
        partial.unlink(missing_ok=True)
        raise _Again(f"the server cannot continue at byte {held:,} ({answer})")
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _Again(f"the server answers {answer}")
    if response.status_code != 200:
        raise DownloadError(f"{source.url}: the server answers {answer}; {_ELSEWHERE}")
    # Before a byte of what was held is given up: is this the file at all?
    length = response.headers.get("Content-Length", "an unknown number of")
    if length != str(source.bytes):
        kind = response.headers.get("Content-Type", "no type given")[:80]
        raise DownloadError(
            f"{source.url}: the server offers {length[:20]} bytes ({kind}), published "
            f"are {source.bytes:,}; {_ELSEWHERE}"
        )
    return 0  # the whole file, whether it was asked to continue or not


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _root_cause(error: "requests.RequestException") -> str:
    """Say what lies under the layers of an HTTP library's exception."""
    import requests

    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection closed early"
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return one_line(words)
