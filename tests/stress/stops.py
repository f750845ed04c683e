"""Stop runs by SIGTERM in every phase, resume them, and compare every bit.

    python -m tests.stress stops [--times 10]

Each phase is met at random moments of its length. A stopped run must end with exit code
143, within 30 seconds, and have every step saved that it told; `--resume` must end with
the bits of a run in one piece. A stopped download must go on where it was.
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

SECONDS = 30  # to end in
BATCH = 10
SHORTEST = 0.03  # seconds that a phase is taken to last, at least
# With the convolutions frozen, so that there are features to compute, and with enough
# images for phases that last.
JOB = (*chaos.JOB, "--freeze", "features", "--train-size", "1000", "--test-size", "500")
# What the run tells when a phase begins.
PHASES = ("features", "compiling", "trained", "testing", "saving", "exporting")
DOWNLOADING = "downloading"
# And nothing else, on stderr.
TOLD = {*PHASES, "deleting", "in", "done", "interrupted"}
SAME = ("arrays", "model", "metrics")  # of a run, however it got there


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print, and return the result; raises AssertionError for what is lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="each phase is stopped")
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
            # What is trained and tested is also saved: to the step under way.
            assert saved >= trained, f"{phase}: {trained} steps told, {saved} saved"
            again = chaos.finish(out, "--resume", *JOB)
            # Which steps are kept differs: the one of the stop is among them.
            other = [part for part in SAME if again[part] != whole[part]]
            assert not other, f"{phase}: resumed to other {', '.join(other)}"
            print(
                f"{phase:<12} step {trained:>2} told, {saved:>2} saved, exit after "
                f"{taken:.2f} s: same bits",
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
    """Return where a run has its cache: an empty one where that makes the phase."""
    new = phase in ("features", "compiling")
    return home / (f"cache {number}" if new else "cache")


def lengths_of_phases(out: Path) -> dict[str, list[float]]:
    """Return how long each phase lasts each time; the run computes and compiles all."""
    moments = []
    cache = str(out.parent / "first cache")
    with chaos.start(out, "--tell", *JOB, JAXLAB_HOME=cache) as process:
        for line in process.stderr:
            moments.append((line.split()[0], time.perf_counter()))
    lengths: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for (phase, began), (_, ended) in itertools.pairwise(moments):
        if phase in lengths:
            # What is told next may be another thread's.
            lengths[phase].append(max(ended - began, SHORTEST))
    assert all(lengths.values()), lengths
    return lengths


def stop(
    out: Path, phase: str, earlier: int, delay: float, cache: Path
) -> tuple[float, int]:
    """Stop a run in a phase that was met so often earlier, and a delay after it began.

    Returns the seconds to its end, and the steps it told.
    """
    images, times = 0, 0
    with chaos.start(out, "--tell", *JOB, JAXLAB_HOME=str(cache)) as process:
        for line in process.stderr:
            word, *counts = line.split()
            images += int(counts[0]) if word == "trained" else 0
            times += word == phase
            if times > earlier:
                break
        assert times > earlier, f"{phase}: told {times} times"
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
    # When all is done the signal finds Python on its way out.
    codes = (0, -signal.SIGTERM) if ["done"] in told else (143,)
    assert process.returncode in codes, (phase, process.returncode, rest)
    assert seconds < SECONDS, (phase, seconds)
    return seconds, images // BATCH


def newest(out: Path) -> int:
    """Return the newest step that is saved; 0 for none."""
    from jaxlab.runs.checkpoint import CheckpointManager

    return next(iter(CheckpointManager(out / "checkpoints", 2, print).steps()), 0)


SLOW_SOURCE = """
import sys
from tests.stress import narrow
from pretrained import sources
source = sources.SOURCES["imagenet"]._replace(url=sys.argv.pop(1))
sources.SOURCES["imagenet"] = source
sys.exit(narrow.main(sys.argv[1:]))
"""


def stop_download(home: Path, delay: float) -> float:
    """Stop a download twice, the second going on; return how long the longer took."""
    from pretrained.sources import SOURCES

    (home / "weights").mkdir(parents=True)
    partial = home / "weights" / (SOURCES["imagenet"].file_name + ".partial")
    seconds = []
    with slow_server(SOURCES["imagenet"].bytes) as (url, asked):
        for _ in range(2):
            size = partial.stat().st_size if partial.exists() else 0
            with subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    SLOW_SOURCE,
                    f"{url}/{SOURCES['imagenet'].file_name}",
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
            assert not (home / "run").exists(), "a run that never began left a folder"
    # The second one asked for what the first one lacked.
    assert asked[0] is None and asked[1] == f"bytes={size}-" and size > 0, asked
    print(f"{DOWNLOADING:<12} {size:>9,} bytes, and on from there", flush=True)
    return max(seconds)


@contextmanager
def slow_server(size: int) -> Iterator[tuple[str, list[str | None]]]:
    """Serve a file of zeros at 3 MB/s; yield the URL and the ranges asked for."""
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
