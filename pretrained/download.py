"""Download published files to the cache, and check their SHA-256 on every use.

The bytes are written to a `.partial` file, from which an interrupted download can
continue. A file gets its final name only if it has the published size and SHA-256. On
each later use the entire file is hashed again.

It is one file because each failure of a transfer has its message here.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import filelock

from pretrained.disk import PARTIAL, acquire, cache_folder, cosmetic, write_text
from pretrained.errors import DownloadError, IntegrityError, one_line, printable
from pretrained.sources import DataFile, Source

if TYPE_CHECKING:
    import requests

ATTEMPTS = 5
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte
BACKOFF = 1.0  # seconds before the second attempt, doubled before each further one
_CHUNK = 1 << 16  # bytes; at most this many are lost if the connection breaks


def cached_path(source: Source | DataFile) -> Path:
    """Return the path of a published file in the cache; it need not exist yet."""
    return cache_folder() / source.folder / source.file_name


def open_published(
    source: Source | DataFile, *, offline: bool = False, log: bool = True
) -> BinaryIO:
    """Open a published file in the cache after checking its SHA-256.

    If the file is missing or damaged, it is first downloaded, with messages and a
    progress bar on stderr unless `log` is False. If several processes do this at once,
    only one of them downloads. With `offline`, no connection is opened.

    Raises DownloadError if the file cannot be downloaded or the cache cannot be used,
    and IntegrityError if the received file, or with `offline` the cached file, is not
    the published one.
    """
    with _cache_errors(Path(source.file_name)):
        path = cached_path(source)
    with _cache_errors(path):
        say = _to_stderr if log else _to_nobody
        if file := _open_good(path, source, say):
            return file
        if offline:
            if path.exists():
                first = f", or not that of {_record(path)}" if _kept(path) else ""
                raise IntegrityError(
                    f"{path}: is not the published file{first}, and it cannot be "
                    "downloaded offline; run once with a network, or get it from "
                    f"{source.url}"
                )
            raise DownloadError(
                f"{source.title}: not in the cache, and it cannot be downloaded "
                f"offline; run once with a network, or save {source.url} as {path}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, say):
            if file := _open_good(path, source, say):
                return file  # another process has downloaded it
            if path.exists():
                say(f"{path}: is damaged; downloading it again")
            partial = path.with_name(path.name + PARTIAL)
            say(
                f"downloading {source.title}: {_size_text(_sizes(source)[1])} from "
                f"{urlsplit(source.url).hostname} to {path}"
            )
            _download(source, partial, path, log)
            os.replace(partial, path)
        if len(source.sha256) == 64:
            say(f"{path}: complete, {_checked_by(source)}")
    return open_published(source, offline=True, log=log)


def _sizes(source: Source | DataFile) -> tuple[int, int]:
    """Return the smallest and the largest size that the published file can have."""
    size = source.bytes
    return size if isinstance(size, tuple) else (size, size)


def _record(path: Path) -> Path:
    """Return the file with the SHA-256 of a download whose full one is unpublished."""
    return path.with_name(f"{path.name}.sha256")


def _is_published(sha256: str, source: Source | DataFile, path: Path) -> bool:
    """Return whether a hash is the published one, or else that of the first use."""
    parts = source.sha256, _expected(source, path)
    return all(sha256.startswith(part) for part in parts)


def _expected(source: Source | DataFile, path: Path) -> str:
    """Return the hash that a file must have, or the first digits of it."""
    return source.sha256 if len(source.sha256) == 64 else _kept(path) or source.sha256


def _kept(path: Path) -> str | None:
    """Return the hash of a file's first use, or None if it is not known."""
    record = _record(path)
    text = record.read_text("utf-8", "replace") if record.exists() else ""
    return text.strip() if re.fullmatch(r"[0-9a-f]{64}\s*", text) else None


def _keep(
    sha256: str, source: Source | DataFile, path: Path, say: Callable[[str], None]
) -> None:
    """Keep the hash of a file of which only the first digits are published.

    The file is checked by its size and these digits once, and by its own hash later.
    """
    if len(source.sha256) < len(sha256) and _kept(path) is None:
        with cosmetic():
            write_text(_record(path), f"{sha256}\n")
        say(f"{path}: complete, {_checked_by(source)}")


def _checked_by(source: Source | DataFile) -> str:
    """Return by what a file was checked."""
    if len(source.sha256) == 64:
        return "with the published SHA-256"
    return (
        f"with the published first digits of its SHA-256, {source.sha256}; no full one "
        "is published in two places, so that of this file is compared from now on"
    )


def _size_text(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _to_nobody(line: str) -> None:
    pass


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = filelock.FileLock(f"{path}.lock")
    try:
        acquire(lock, blocking=False)
    except filelock.Timeout:
        say(f"{path}: waiting for another process to download it")
        acquire(lock, blocking=True)
    try:
        yield  # without locks, the SHA-256 finds what two processes have mixed
    finally:
        lock.release()


@contextlib.contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # errors of requests are handled in `_download`
        raise DownloadError(
            f"{path}: cannot be written or read: {error.strerror or error}; check the "
            "folder and the free space, or set JAXLAB_HOME to another folder"
        ) from error


def _open_good(
    path: Path, source: Source | DataFile, say: Callable[[str], None]
) -> BufferedReader | None:
    """Return the open file, or None if it is missing or is not the published one."""
    if not path.is_file():
        return None
    file = open(path, "rb")
    least, most = _sizes(source)
    if least <= path.stat().st_size <= most:
        if _is_published(found := _sha256(file), source, path):
            _keep(found, source, path, say)
            return file
    file.close()
    return None


def _sha256(file: BufferedReader) -> str:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _download(
    source: Source | DataFile, partial: Path, path: Path, shown: bool
) -> None:
    """Download the published bytes to `partial`, in at most `ATTEMPTS` attempts.

    A progress bar is displayed if it is `shown` and stderr is a terminal.
    """
    # These are imported here because a file in the cache needs no HTTP library.
    import requests
    from urllib3.exceptions import HTTPError

    reason = ""
    pieced = restarted = False
    for attempt in range(ATTEMPTS):
        pieced = pieced or _size(partial) > 0
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        try:
            _transfer(source, partial, shown)
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
        # A redirect to an invalid address can raise any of these exceptions.
        except (requests.RequestException, HTTPError, ValueError) as error:
            said = one_line(str(error))[:200]
            raise DownloadError(f"{source.url}: {said}; {_ELSEWHERE}") from error
        with open(partial, "rb") as file:
            found = _sha256(file)
        if _is_published(found, source, path):
            return
        partial.unlink()
        if restarted or not pieced:
            first = f", as in {_record(path)}" if _kept(path) else ""
            raise IntegrityError(
                f"{source.url}: SHA-256 checksum mismatch: received {found}, expected "
                f"{_expected(source, path)}{first}; the received file was deleted. Try "
                "another network; if the mismatch remains, report it"
            )
        # One of the pieces came from a different file: download all of it at once.
        pieced, restarted, reason = False, True, "the pieces did not fit together"
    held = _size(partial)
    again = "run again to continue from there" if held else "run again"
    raise DownloadError(
        f"{source.url}: {reason}; {held:,} of {_of(source)} bytes are downloaded "
        f"after {ATTEMPTS} attempts. Check the network and {again}, or get the file "
        f"elsewhere and save it as {path}"
    )


class _Again(Exception):
    """Raised for a failure that may not recur in another attempt."""


_ELSEWHERE = "try another network, because a login page may have replaced the file"


def _transfer(source: Source | DataFile, partial: Path, shown: bool) -> None:
    """Append the missing bytes to `partial`, until it has the published size.

    If that is not known exactly, it is the one within its bounds that the server names.
    """
    import requests
    from tqdm import tqdm

    held, (least, most) = _size(partial), _sizes(source)
    if held == least == most:
        return
    free = shutil.disk_usage(partial.parent).free
    if free < most - held:
        raise OSError(errno.ENOSPC, f"only {free / 1e6:,.0f} MB are free")
    headers = {"Accept-Encoding": "identity"}
    if 0 < held < most:
        headers["Range"] = f"bytes={held}-"
    timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
    # For a redirect to an invalid address, requests does not close the response.
    with contextlib.ExitStack() as opened:
        response = requests.get(
            source.url,
            headers=headers,
            stream=True,
            timeout=timeout,
            hooks={"response": lambda each, **_: opened.enter_context(each)},
        )
        held, size = _start_of_body(response, source, held, partial)
        if held == size:
            return
        with (
            open(partial, "r+b" if held else "wb") as file,
            tqdm(
                desc=source.file_name,
                total=size,
                initial=held,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None if shown else True,  # None: shown on a terminal
            ) as bar,
        ):
            file.seek(held)
            for chunk in response.iter_content(_CHUNK):
                if held + len(chunk) > size:
                    file.truncate(0)
                    raise DownloadError(
                        f"{source.url}: the server sends more than the published "
                        f"{size:,} bytes; {_ELSEWHERE}"
                    )
                file.write(chunk)
                held += len(chunk)
                bar.update(len(chunk))
            file.flush()
            with cosmetic():
                os.fsync(file.fileno())
    if held < size:
        raise _Again("the connection was closed early")


def _of(source: Source | DataFile) -> str:
    """Return the published size in words."""
    least, most = _sizes(source)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _start_of_body(
    response: "requests.Response", source: Source | DataFile, held: int, partial: Path
) -> tuple[int, int]:
    """Return the file offset at which the body starts, and the size of the file.

    Raises if the response is unusable.
    """
    least, most = _sizes(source)
    answer = f"{response.status_code} {str(response.reason)[:80]}"
    ranges = response.headers.get("Content-Range", "")
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", ranges)
        if found is not None and int(found[1]) == held:
            size = int(found[2]) + 1
            if least <= size <= most and found[3] in ("*", str(size)):
                return held, size
    if response.status_code == 416 and ranges == f"bytes */{held}" and held >= least:
        return held, held  # nothing is missing
    if response.status_code in (206, 416):
        partial.unlink(missing_ok=True)
        raise _Again(f"the server cannot continue at byte {held:,} ({answer})")
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _Again(f"the server answers {answer}")
    if response.status_code != 200:
        raise DownloadError(f"{source.url}: the server answers {answer}; {_ELSEWHERE}")
    # Check that this can be the published file before the partial file is overwritten.
    length = response.headers.get("Content-Length", "an unknown number of")
    if not (length.isdecimal() and least <= int(length) <= most):
        kind = response.headers.get("Content-Type", "no content type")[:80]
        raise DownloadError(
            f"{source.url}: the server offers {length[:20]} bytes ({kind}), expected "
            f"{_of(source)}; {_ELSEWHERE}"
        )
    # A response with status 200 has the entire file, even after a Range.
    return 0, int(length)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _root_cause(error: "requests.RequestException") -> str:
    """Return the message of the innermost cause of an HTTP library's exception."""
    import requests

    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was closed early"
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return one_line(words)
