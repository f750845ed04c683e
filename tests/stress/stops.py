"""Stop runs with SIGTERM in every phase, resume them, and compare every bit.

    python -m tests.stress stops [--times 10]

Each phase is interrupted at random moments. A stopped run must exit with code 143
within 30 seconds and have saved every step that it reported; `--resume` must then give
the bits of an uninterrupted run. A stopped download must continue where it stopped.
"""

import argparse
import http.server
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stress import chaos, publish

SECONDS = 30  # allowed from the signal to the exit
BATCH = 10
SHORTEST = 0.03  # seconds, the least length assumed for a phase
# The convolutions are frozen, so that there are features to compute, and there are
# enough images for each phase to take some time.
JOB = (*chaos.JOB, "--freeze", "features", "--train-size", "1000", "--test-size", "500")
# The words that a run prints to stderr when a phase begins.
PHASES = ("features", "compiling", "trained", "testing", "saving", "exporting")
DOWNLOADING = "downloading"
# The only words that may begin a line in the rest of stderr.
TOLD = {*PHASES, "deleting", "in", "done", "interrupted"}
SAME = ("arrays", "model", "metrics")  # results that must be equal


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print and return the result; raise AssertionError if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="stops of each phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    dice = random.Random(options.seed)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        lengths = lengths_of_phases(home / "told")
        whole = chaos.finish(home / "whole", *JOB)
        for number in range(options.times * len(PHASES)):
            phase = PHASES[number % len(PHASES)]
            out = home / str(number)
            earlier = dice.randrange(len(lengths[phase]))
            delay = dice.uniform(0, lengths[phase][earlier])
            taken, trained = stop(
                out, phase, earlier, delay, cache_of(home, phase, number)
            )
            seconds.append(taken)
            saved = newest(out)
            # Every step that the run reported is saved, and possibly the one under way.
            assert saved >= trained, f"{phase}: {trained} steps done, {saved} saved"
            again = chaos.finish(out, "--resume", *JOB)
            # The kept checkpoints differ, as the one of the stop is among them.
            other = [part for part in SAME if again[part] != whole[part]]
            assert not other, f"{phase}: changed results: {', '.join(other)}"
            print(
                f"{phase:<12} step {trained:>2} done, {saved:>2} saved, exit after "
                f"{taken:.2f} s: identical",
                flush=True,
            )
        seconds += [
            stop_download(home / f"download {number}", dice.uniform(0.1, 1))
            for number in range(options.times)
        ]
    return publish(
        {
            "name": "stops",
            "ended": len(seconds),
            "of": options.times * (len(PHASES) + 1),
            "median": round(statistics.median(seconds), 2),
            "longest": round(max(seconds), 2),
        }
    )


def cache_of(home: Path, phase: str, number: int) -> Path:
    """Return the cache folder of a run: an empty one for phases that fill the cache."""
    new = phase in ("features", "compiling")
    return home / (f"cache {number}" if new else "cache")


def lengths_of_phases(out: Path) -> dict[str, list[float]]:
    """Return the seconds of each occurrence of each phase, with an empty cache."""
    moments = []
    cache = str(out.parent / "first cache")
    with chaos.start(out, "--tell", *JOB, JAXLAB_HOME=cache) as process:
        for line in process.stderr:
            moments.append((line.split()[0], time.perf_counter()))
    lengths: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for (phase, began), (_, ended) in itertools.pairwise(moments):
        if phase in lengths:
            # The next line may come from another thread.
            lengths[phase].append(max(ended - began, SHORTEST))
    assert all(lengths.values()), lengths
    return lengths


def stop(
    out: Path, phase: str, earlier: int, delay: float, cache: Path
) -> tuple[float, int]:
    """Stop a run `delay` seconds into a phase that has begun `earlier` times before.

    Returns the seconds until the run ended, and the number of steps it reported.
    """
    images, times = 0, 0
    with chaos.start(out, "--tell", *JOB, JAXLAB_HOME=str(cache)) as process:
        for line in process.stderr:
            word, *counts = line.split()
            images += int(counts[0]) if word == "trained" else 0
            times += word == phase
            if times > earlier:
                break
        assert times > earlier, f"{phase}: began {times} times"
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        began = time.perf_counter()
        rest = process.stderr.read()
        process.wait()
        seconds = time.perf_counter() - began
    told = [line.split() for line in rest.splitlines()]
    unknown = [words for words in told if not words or words[0] not in TOLD]
    assert not unknown, (phase, rest)
    images += sum(int(words[1]) for words in told if words[0] == "trained")
    # If the run has finished, the signal arrives while Python exits.
    codes = (0, -signal.SIGTERM) if ["done"] in told else (143,)
    assert process.returncode in codes, (phase, process.returncode, rest)
    assert seconds < SECONDS, (phase, seconds)
    return seconds, images // BATCH


def newest(out: Path) -> int:
    """Return the newest saved step, or 0 if there is none."""
    from jaxlab.runs.checkpoint import CheckpointManager

    return next(iter(CheckpointManager(out / "checkpoints", 2, print).steps()), 0)


SLOW_SOURCE = """
import sys
from tests.stress import narrow
from pretrained import sources
source = sources.SOURCES["alexnet"]["imagenet"]._replace(url=sys.argv.pop(1))
sources.SOURCES["alexnet"]["imagenet"] = source
sys.exit(narrow.main(sys.argv[1:]))
"""


def stop_download(home: Path, delay: float) -> float:
    """Stop a download, resume it and stop it again; return the longer time to exit."""
    from pretrained.sources import SOURCES

    (home / "weights").mkdir(parents=True)
    partial = home / "weights" / (SOURCES["alexnet"]["imagenet"].file_name + ".partial")
    seconds = []
    with slow_server(SOURCES["alexnet"]["imagenet"].bytes) as (url, asked):
        for _ in range(2):
            size = partial.stat().st_size if partial.exists() else 0
            with subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    SLOW_SOURCE,
                    f"{url}/{SOURCES['alexnet']['imagenet'].file_name}",
                ]
                + ["--tell", "--out", str(home / "run"), "--weights", "imagenet"],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAXLAB_HOME": str(home)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                next(line for line in process.stderr if line.startswith(DOWNLOADING))
                while not partial.exists() or partial.stat().st_size == size:
                    time.sleep(0.01)
                time.sleep(delay)
                process.send_signal(signal.SIGTERM)
                began = time.perf_counter()
                rest = process.stderr.read()
                process.wait()
                seconds.append(time.perf_counter() - began)
            assert process.returncode == 143, (process.returncode, rest)
            assert seconds[-1] < SECONDS
            assert not (home / "run").exists(), "a run that had not begun left a folder"
    # The second request continues where the first one stopped.
    assert asked[0] is None and asked[1] == f"bytes={size}-" and size > 0, asked
    print(f"{DOWNLOADING:<12} {size:>9,} bytes, then resumed from there", flush=True)
    return max(seconds)


@contextmanager
def slow_server(size: int) -> Iterator[tuple[str, list[str | None]]]:
    """Serve a file of zeros at 3 MB/s; yield the URL and the requested ranges."""
    asked: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (the base class's name)
            wanted = self.headers["Range"]
            asked.append(wanted)
            first = (
                int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            )
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(size - first))
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            self.end_headers()
            try:
                for _ in range(first, size, 1 << 16):
                    self.wfile.write(bytes(1 << 16))
                    time.sleep(0.02)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
