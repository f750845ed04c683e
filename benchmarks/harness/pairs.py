"""Time ours and PyTorch's in turn, each in its own process, and summarise the pairs.

The sides take turns, so that changes of the machine's speed affect both alike. They run
in two processes, so that memory, threads and settings of one do not affect the other.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxlab import runtime

Measure = Callable[[], float]


@contextmanager
def worker(module: str, **options: Any) -> Iterator[Measure]:
    """Start `python -m module --worker OPTIONS`; yield a function that measures.

    The process must call `serve`; it is idle between two measurements. With `gpu=True`
    it can use a GPU, otherwise none is visible to it. `home` is its cache folder. The
    function raises RuntimeError if the process has ended.
    """
    # The two sides share a GPU, so neither may allocate all of its memory in advance.
    device = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if not options.pop("gpu", False):
        device = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if home := options.pop("home", None):
        device["JAXLAB_HOME"] = home
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--worker", json.dumps(options)],
        env={**os.environ, **device},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def measure() -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{module} {options}: ended with code {process.wait()}")
        return json.loads(line)

    try:
        yield measure
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def serve(build: Callable[[], Measure]) -> None:
    """Build a measure; call it for each line of stdin, and print its result as JSON.

    Everything else that is printed goes to stderr.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    measure = build()
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


def compare(
    name: str,
    ours: Measure,
    theirs: Measure,
    *,
    pairs: int,
    images: int = 0,
    floor: float | None = None,
    **about: Any,
) -> dict[str, Any]:
    """Measure both sides in turn after a warm-up; print pairs and return the summary.

    The measures return seconds. With `images`, images per second are shown. Ratios
    above 1 mean that ours is faster. `floor` is the roofline: the seconds that the work
    would take at the device's measured rates. `about` is added to the summary.
    """
    ours(), theirs()
    rows = []
    for pair in range(pairs):
        # Each side is measured first in every second pair.
        if pair % 2:
            their_seconds, our_seconds = theirs(), ours()
        else:
            our_seconds, their_seconds = ours(), theirs()
        rows.append((our_seconds, their_seconds))
        print(f"{name:<34}{pair:>3}  {_shown(*rows[-1], images)}", flush=True)
    if floor:
        about["of_roofline"] = round(floor / statistics.median(o for o, _ in rows), 3)
    return summary(name, rows, images=images, **about)


def summary(
    name: str, rows: list[tuple[float, float]], *, images: int = 0, **about: Any
) -> dict[str, Any]:
    """Print and return the medians, their ratio and the range of the pairs' ratios."""
    ratios = [theirs / ours for ours, theirs in rows]
    ours, theirs = (statistics.median(column) for column in zip(*rows, strict=True))
    shown = (images / ours, images / theirs) if images else (ours, theirs)
    result = {
        "name": name,
        "unit": "images/s" if images else "s",
        "ours": round(shown[0], 2),
        "torch": round(shown[1], 2),
        "ratio": round(theirs / ours, 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "pairs": len(rows),
        **about,
    }
    return published(result)


def published(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result as a JSON line with its date and machine, and return it."""
    result = {**result, "date": f"{datetime.date.today()}"}
    result.setdefault("machine", machine())
    print(json.dumps(result), flush=True)
    return result


def machine() -> str:
    """Return the processor's model, widest vector instructions and number of cores."""
    return f"{runtime.processor()}, {os.cpu_count()} cores"


def _shown(ours: float, theirs: float, images: int) -> str:
    ratio = f"{theirs / ours:>7.2f}×"
    if images:
        return f"{images / ours:>9.1f}/s{images / theirs:>9.1f}/s{ratio}"
    return f"{ours:>9.2f} s{theirs:>9.2f} s{ratio}"
