"""TensorFlow Datasets' image-classification sets, prepared once and then read as files.

Preparing (download, checksums, conversion to ArrayRecord) runs in a process of its own:
TensorFlow is imported there alone, without a GPU, and its chatter ends there. Reading
needs neither TensorFlow nor a network.
"""

import contextlib
import importlib.util
import io
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import numpy as np

from jaxlab.data.dataset import (
    Dataset,
    Progress,
    Split,
    balanced_order,
    checked_size,
    content_order,
    no_progress,
    stratified_split,
)
from jaxlab.errors import InputError, NetworkError, UsageError

SPLIT_SEED = 0
PROBE_SECONDS = 5.0  # for all hosts together
MAX_BYTES = 4 << 30  # of a split's pixels; all of them are held in memory
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt): ")
_NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.+-]+)?(:\d+\.\d+\.\d+)?")


def load_tfds(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    offline: bool = False,
    val_fraction: float = 0.2,
    train_size: int | None = None,
    test_size: int | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Return a set's images, uint8[n, h, w, c], in a fixed class-balanced order.

    It is prepared under `data_dir` (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)
    when it is not yet, from the original files in `manual_dir` or else downloaded,
    checksums verified. The test images are the split "test", else "validation", else
    `val_fraction` of "train".

    Raises UsageError for a name or a set that does not fit, InputError for damaged
    files or a missing package, NetworkError within seconds where a download is needed
    and no network is there.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features or ()):
        raise UsageError(
            f"--dataset: {name} is no image-classification set: its features are "
            f"{', '.join(features or ['none'])}; pass one with image and label"
        )
    shape, class_names = features["image"].shape, tuple(features["label"].names)
    if None in shape or shape[-1] not in (1, 3):
        raise UsageError(
            f"--dataset: {name} has images of shape {shape}; pass a set whose images "
            "have one size, or write it as a folder of class folders"
        )
    if not _is_prepared(builder):
        _prepare(builder, name, manual_dir, offline, progress, say)
        builder = _builder(name, data_dir)
    splits = builder.info.splits
    if "train" not in splits:
        raise UsageError(f"--dataset: {name} has no split train; pass another set")
    train = _read(builder, "train")
    test = next((split for split in ("test", "validation") if split in splits), None)
    if test:
        parts = {"train": train, "test": _read(builder, test)}
    else:
        held_out = stratified_split(train.labels, val_fraction, SPLIT_SEED)
        parts = {
            part: Split(train.images[members], train.labels[members])
            for part, members in (("train", ~held_out), ("test", held_out))
        }
    sizes = {"train": train_size, "test": test_size}
    for part, split in parts.items():
        size = checked_size(sizes[part], len(split), f"--{part}-size")
        # Which ones, a balanced order says; then they stand in content's order again,
        # so that the same choice is the same data set wherever it is stored.
        order = np.sort(balanced_order(split.labels, SPLIT_SEED)[:size])
        parts[part] = Split(split.images[order], split.labels[order])
    return Dataset(name, parts["train"], parts["test"], class_names)


def known_names() -> list[str]:
    """Return the names of all sets, or none where the package is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return []
    return _tfds().list_builders(with_community_datasets=False)


def _tfds() -> Any:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise InputError(
            "tensorflow-datasets: not installed; pip install 'jaxlab[tfds]', or pass "
            "--dataset mnist5k or a folder of class folders"
        )
    # Its warnings, of an absent OpenCV for instance, are not the user's.
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    import tensorflow_datasets

    return tensorflow_datasets


def _builder(name: str, data_dir: str | None) -> Any:
    tfds = _tfds()
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--dataset: {name!r} is neither mnist5k, nor a folder, nor a name of "
            "TensorFlow Datasets'; see --help"
        )
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UsageError(f"--dataset: no set has the name {name!r}") from error
    except (ValueError, AssertionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: cannot be opened: {reason}; check the name and --data-dir"
        ) from error


def _is_prepared(builder: Any) -> bool:
    return Path(builder.data_dir, "dataset_info.json").exists()


def _prepare(
    builder: Any,
    name: str,
    manual_dir: str | None,
    offline: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Download and convert in another process, one at a time for a set."""
    target = Path(builder.data_dir)
    files = {info.filename: url for url, info in builder.url_infos.items()}
    at_hand = (
        manual_dir is not None
        and bool(files)
        and all(Path(manual_dir, file).is_file() for file in files)
    )
    if not at_hand:
        _require_network(name, target, manual_dir, files, offline)
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name}: not prepared, and that needs TensorFlow; "
            "pip install 'jaxlab[tfds]'"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        root = Path(builder._data_dir_root)
        lock = filelock.FileLock(root / f".{builder.name}.lock")
        with lock:
            if _is_prepared(builder):
                return  # another process was first
            # What killed preparations left; the lock says that none is at work.
            for orphan in target.parent.glob(f"incomplete.*_{target.name}"):
                shutil.rmtree(orphan, ignore_errors=True)
            say(f"{name}: preparing it under {target}, once")
            _run_child(builder, name, manual_dir, progress)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written: {error.strerror or error}; check the folder "
            "and the free space, or pass --data-dir"
        ) from error


def _require_network(
    name: str,
    target: Path,
    manual_dir: str | None,
    files: dict[str, str],
    offline: bool,
) -> None:
    """Raise NetworkError with the three ways out, unless a host answers."""
    hosts = {}
    for url in files.values():
        parts = urlsplit(url)
        hosts[parts.hostname] = parts.port or (443 if parts.scheme == "https" else 80)
    reason = "--offline forbids the download"
    if not offline:
        if not hosts:
            return  # the set names no files beforehand
        unreachable = _unreachable(hosts)
        if unreachable is None:
            return
        reason = f"no connection to {unreachable}"
    missing = ""
    if manual_dir is not None:
        absent = [file for file in files if not Path(manual_dir, file).is_file()]
        missing = f" ({manual_dir} lacks {', '.join(absent[:4])})"
    raise NetworkError(
        f"{name}: not prepared in {target}, and {reason}; run once with a network, or "
        f"put its original files ({', '.join(list(files)[:4]) or 'see its page'}) into "
        f"a folder and pass --manual-dir{missing}, or copy a prepared set there from "
        "another machine"
    )


def _unreachable(hosts: dict[str, int]) -> str | None:
    """Return the first host without an answer, or None; asks all at once."""

    def ask(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), PROBE_SECONDS).close()
            answers.put((host, True))
        except OSError:
            answers.put((host, False))

    # A thread each, not waited for: looking a name up has no time-out of its own.
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
    progress: Progress,
) -> None:
    data_dir = str(builder._data_dir_root)
    arguments = [name, data_dir, manual_dir or ""]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",  # TensorFlow would take the whole GPU
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    expected = sum(int(info.size) for info in builder.url_infos.values())
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlab.data.tfds", *arguments],
        stdin=subprocess.PIPE,  # its end tells the child that this process is gone
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

    with ThreadPoolExecutor(1) as pool, progress(100, f"preparing {name}", "%") as bar:
        listener = pool.submit(listen)
        shown = 0
        try:
            while process.poll() is None:
                # Bytes on the disk per byte of the originals: well enough for a bar.
                written = _bytes_under(Path(builder.data_dir).parent)
                reached = min(99, 100 * written // max(expected, 1))
                bar.update(max(0, reached - shown))
                shown = max(shown, reached)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
            listener.result()
            process.stderr.close()
            process.stdin.close()
    if process.returncode != 0:
        said = (
            [line for line in tail if _EXCEPTION.match(line)] or tail or ["no reason"]
        )
        reason = _EXCEPTION.sub("", said[-1])
        raise InputError(
            f"{name}: cannot be prepared: {reason[:300]}; check the network or the "
            "files in --manual-dir, and run again"
        )


def _bytes_under(folder: Path) -> int:
    total = 0
    for place in folder.glob("incomplete.*/*"):
        with contextlib.suppress(OSError):
            total += place.stat().st_size
    return total


def _read(builder: Any, name: str) -> Split:
    """Return a split, in an order of its content; refuse files that were damaged."""
    tfds = _tfds()
    remedy = f"remove {builder.data_dir} and run again, it is prepared anew"
    expected = builder.info.splits[name].num_examples
    features = builder.info.features
    shape, classes = features["image"].shape, features["label"].num_classes
    if expected * math.prod(shape) > MAX_BYTES:
        raise UsageError(
            f"--dataset: {builder.name} has {expected:,} images in its split {name}, "
            f"more than {MAX_BYTES / 1e9:.0f} GB; write those you need as a folder of "
            "class folders, which is streamed"
        )
    try:
        source = builder.as_data_source(
            split=name, decoders={"image": tfds.decode.SkipDecoding()}
        )
        # Counted in the files themselves: a cut file opens, with nothing in it.
        found = len(source.data_source)
        if found != expected:
            raise InputError(
                f"{builder.data_dir}: the split {name} has {found:,} records, "
                f"dataset_info.json says {expected:,}; {remedy}"
            )
        examples = source.__getitems__(list(range(expected)))
        labels = np.array([example["label"] for example in examples], np.int64)
        images = _decoded([example["image"] for example in examples], shape)
    except (OSError, SyntaxError, ValueError, IndexError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{builder.data_dir}: the split {name} cannot be read: {reason[:200]}; "
            f"{remedy}"
        ) from error
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{builder.data_dir}: the split {name} has labels from {labels.min()} to "
            f"{labels.max()}, but {classes} classes; {remedy}"
        )
    order = content_order(images)
    return Split(images[order], labels[order].astype(np.int32))


def _decoded(encoded: Sequence[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    images = np.empty((len(encoded), *shape), np.uint8)

    def decode(place: int) -> None:
        with Image.open(io.BytesIO(encoded[place])) as image:
            images[place] = np.asarray(image).reshape(shape)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(encoded))):
            pass
    return images


def _prepare_here(name: str, data_dir: str, manual_dir: str) -> None:
    """Prepare a set in this process: what the child of `_run_child` does."""

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
            # Checksums are TFDS' own, where a set has registered any.
            force_checksums_validation=bool(builder.url_infos),
            try_download_gcs=False,
        )
    )


if __name__ == "__main__":
    _prepare_here(*sys.argv[1:])
