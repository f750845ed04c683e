"""Prepare a TensorFlow Datasets (TFDS) dataset once: download, verify and convert it.

This runs in a separate process, so that TensorFlow is imported only there, without a
GPU, and its output is not shown. A dataset's folder gets its final name only when the
dataset is complete. It is one file because both ends of that process belong together.
"""

import contextlib
import importlib.util
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import filelock

from jaxlab.data.dataset import ProgressBar
from jaxlab.data.tfds_builder import short
from jaxlab.errors import InputError, NetworkError
from pretrained.errors import install

FORBIDDEN = "--offline forbids a connection"
PROBE_SECONDS = 5.0  # time limit for all hosts together
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt): ")


def is_prepared(builder: Any) -> bool:
    """Return whether the dataset's files are complete."""
    return Path(builder.data_dir, "dataset_info.json").exists()


def prepare(
    builder: Any,
    name: str,
    manual_dir: str | None,
    offline: bool,
    progress: ProgressBar,
    log: Callable[[str], None],
) -> None:
    """Download and convert a dataset in another process, unless that is done already.

    Only one process prepares a dataset at a time; others wait for it. Raises
    NetworkError within seconds if a download is needed, but `offline` forbids it or a
    host is unreachable. Raises InputError if TensorFlow is not installed, the
    preparation fails (for example its checksums), or the folder cannot be written.
    """
    target = Path(builder.data_dir)
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if by_hand:
        _require_files(name, manual_dir, by_hand)
    # TFDS finds a file in `manual_dir` if it knows the file's name. It also lists files
    # to get by hand, without names.
    downloads = [
        (url, info.filename)
        for url, info in (builder.url_infos or {}).items()
        if info.filename or not by_hand
    ]
    absent = [
        (url, file)
        for url, file in downloads
        if manual_dir is None or file is None or not Path(manual_dir, file).is_file()
    ]
    if absent or not (downloads or by_hand):
        _require_network(name, target, manual_dir, downloads, absent, offline)
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name}: not prepared, and the preparation needs TensorFlow; "
            f"{install('tfds')}"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        root = Path(builder._data_dir_root)
        lock = filelock.FileLock(root / f".{builder.name}.lock")
        with lock:
            if is_prepared(builder):
                return  # Another process has prepared it.
            # Remove what killed preparations left. No other preparation is running,
            # because this process holds the lock.
            for orphan in target.parent.glob(f"incomplete.*_{target.name}"):
                shutil.rmtree(orphan, ignore_errors=True)
            log(f"{name}: preparing it under {target}; this is done only once")
            with tempfile.TemporaryDirectory() as temporary:
                _run_child(builder, name, manual_dir, offline, progress, temporary)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written: {error.strerror or error}; check the folder "
            "and the free space, or pass --data-dir"
        ) from error


def _require_network(
    name: str,
    target: Path,
    manual_dir: str | None,
    downloads: list[tuple[str, str | None]],
    absent: list[tuple[str, str | None]],
    offline: bool,
) -> None:
    """Raise NetworkError, which names the remedies, if a host is unreachable.

    It is also raised if `offline` forbids the download. `downloads` and `absent` list
    addresses with the names of files, None if TFDS does not know the name.
    """
    hosts: dict[str, int] = {}
    for url, _ in downloads:
        parts = urlsplit(url)
        # If a proxy is configured, the proxy must be reachable instead of the host.
        proxy = getproxies().get(parts.scheme)
        if proxy and not proxy_bypass(parts.hostname or ""):
            parts = urlsplit(proxy)
        if parts.hostname is not None:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            hosts[parts.hostname] = port
    reason = "--offline forbids the download"
    if not offline:
        if not hosts:
            return  # TFDS does not list the URLs of this dataset.
        unreachable = _unreachable(hosts)
        if unreachable is None:
            return
        reason = f"no connection to {unreachable}"
    files = list(dict.fromkeys(file for _, file in downloads if file is not None))
    by_hand = ""
    if files and all(file is not None for _, file in absent):
        missing = ""
        if manual_dir is not None:
            lacking = [file for _, file in absent if file is not None]
            missing = f" ({manual_dir} lacks {', '.join(lacking[:4])})"
        by_hand = (
            f", or put the original files ({', '.join(files[:4])}) into a folder and "
            f"pass --manual-dir{missing}"
        )
    raise NetworkError(
        f"{name}: not prepared in {target}, and {reason}; run once with a network"
        f"{by_hand}, or copy the prepared dataset from another machine into --data-dir"
    )


def _require_files(name: str, manual_dir: str | None, instructions: str) -> None:
    """Raise InputError without a folder of files that must be downloaded by hand."""
    if manual_dir is not None and os.path.isdir(manual_dir) and os.listdir(manual_dir):
        return
    given = "" if manual_dir is None else f", and {manual_dir} is not such a folder"
    raise InputError(
        f"{name}: its files must be downloaded by hand{given}; put them into a folder "
        f"and pass --manual-dir; TFDS says: {short(instructions)}"
    )


def _unreachable(hosts: dict[str, int]) -> str | None:
    """Return the first unreachable host, or None; all hosts are tried in parallel."""

    def ask(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), PROBE_SECONDS).close()
            answers.put((host, True))
        except OSError:
            answers.put((host, False))

    # Each host has a daemon thread that is not joined: a DNS lookup has no timeout.
    answers: queue.Queue[tuple[str, bool]] = queue.Queue()
    for host, port in hosts.items():
        threading.Thread(target=ask, args=(host, port), daemon=True).start()
    silent = dict.fromkeys(hosts)
    deadline = time.monotonic() + PROBE_SECONDS
    with contextlib.suppress(queue.Empty):
        while silent:
            host, reached = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if not reached:
                return host
            del silent[host]
    return next(iter(silent), None)


def _run_child(
    builder: Any,
    name: str,
    manual_dir: str | None,
    offline: bool,
    progress: ProgressBar,
    temporary: str,
) -> None:
    data_dir = str(builder._data_dir_root)
    arguments = [name, data_dir, manual_dir or "", "offline" if offline else ""]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",  # TensorFlow would reserve the whole GPU.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TMPDIR": temporary,  # TFDS does not remove its temporary folder.
    }
    expected = sum(int(info.size) for info in (builder.url_infos or {}).values())
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlab.data.tfds_prepare", *arguments],
        stdin=subprocess.PIPE,  # The child exits when this pipe is closed.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    )
    tail: list[str] = []

    def listen():
        for line in process.stderr:
            tail.append(line.strip())
            del tail[:-200]

    with (
        process,  # its pipes are closed at the end
        ThreadPoolExecutor(1) as pool,
        progress(100, f"preparing {name}", "%") as bar,
    ):
        listener = pool.submit(listen)
        shown = 0
        try:
            while process.poll() is None:
                # Estimate the progress from the bytes written and to be downloaded.
                written = _bytes_under(Path(builder.data_dir).parent)
                reached = min(99, 100 * written // max(expected, 1))
                bar.update(max(0, reached - shown))
                shown = max(shown, reached)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
            listener.result()
    if process.returncode != 0:
        said = (
            [line for line in tail if _EXCEPTION.match(line)]
            or tail
            or ["unknown reason"]
        )
        reason = _EXCEPTION.sub("", said[-1])
        if FORBIDDEN in reason:
            raise NetworkError(
                f"{name}: cannot be prepared: {short(reason)}; run once with a network"
            )
        raise InputError(
            f"{name}: cannot be prepared: {reason[:300]}; check the network or the "
            "files in --manual-dir, and run again"
        )


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.glob("incomplete.*/*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _refuse_connections() -> None:
    """Let this process open no connection and look up no host from now on."""

    def refuse(event: str, arguments: tuple) -> None:
        if event == "socket.getaddrinfo":
            raise RuntimeError(f"{FORBIDDEN} to {arguments[0]}")
        if event == "socket.connect":
            raise RuntimeError(f"{FORBIDDEN} to {arguments[1]}")

    sys.addaudithook(refuse)


def _prepare_here(name: str, data_dir: str, manual_dir: str, offline: str) -> None:
    """Prepare a dataset in this process, which is the child of `_run_child`."""
    if offline:
        _refuse_connections()

    def end_with_parent():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir or None,
            # Verify the checksums if TFDS has registered any for this dataset.
            force_checksums_validation=bool(builder.url_infos),
            try_download_gcs=False,
        )
    )


if __name__ == "__main__":
    _prepare_here(*sys.argv[1:])
