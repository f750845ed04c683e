"""Kill runs, resume them, and compare every bit with an uninterrupted run.

    python -m tests.stress chaos [--kills 50] [--model resnet18]

Runs are killed by SIGKILL, or SIGALRM where a kill is timed within a save or deletion.
First at random moments, of which enough must fall into saves, into deletions and before
the first save: a save takes milliseconds, so a timer often strikes beside it, and more
moments are drawn until they are enough. Then at each of eight named points of writing,
the first three times it is reached, in the middle of writing model.safetensors, and
before the first figure is renamed. After each kill, `--resume` runs to the end:
parameters, optimizer state, weights and metrics must equal those of the uninterrupted
run, and the folder must hold the same files.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.stress import publish
from tests.stress.narrow import DELETION, EXPORT, PICTURE, POINTS, SAVE

EVERY_POINT = [f"{point}:{time}" for point in POINTS for time in (1, 2, 3)]
EVERY_POINT += [f"{EXPORT}:1", f"{PICTURE}:1"]
TIMES = ("seconds", "examples_per_second")  # in metrics.jsonl; they differ between runs
# Enough epochs to reach every point three times, at a learning rate that learns.
JOB = ("--epochs", "6", "--lr", "0.003", "--lr-step", "6")
# The least number of fifty or more kills at random moments that must fall into each
# phase. Those of the first two are drawn again until they do.
FLOORS = {SAVE: 20, DELETION: 5, "nothing saved before": 2}
MOST = 4  # times --kills may be tried at random moments until they do


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print and return the result; raise AssertionError if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--point",
        action="append",
        metavar="NAME:TIME",
        help="kill at this point, instead of three times at every point",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="alexnet", help="alexnet or resnet18")
    options = parser.parse_args(argv)
    job = (*JOB, "--model", options.model)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        whole = finish(home / "whole", "--tell", *job)
        seconds, told = whole.pop("seconds"), whole.pop("told")
        dice = random.Random(options.seed)
        moments: list[str] = []

        def attempt(how: str, delay: float) -> None:
            out = home / str(len(moments))
            kill(out, how, delay, *job)
            moment = moment_of(out)
            again = finish(out, "--resume", *job)
            other = [part for part in whole if again[part] != whole[part]]
            assert not other, f"{how}, {moment}: changed results: {', '.join(other)}"
            moments.append(moment)
            print(f"{len(moments):>3}  {how:<28} {moment}: identical", flush=True)

        def kills(where: str) -> int:
            return sum(where in moment for moment in moments)

        saving, deleting = options.kills // 2, options.kills // 5
        for _ in range(saving):
            attempt(within(SAVE, told, dice), 0)
        for _ in range(deleting):
            attempt(within(DELETION, told, dice), 0)
        for _ in range(options.kills - saving - deleting):
            attempt("", seconds * dice.uniform(0.05, 1))
        for where, floor in FLOORS.items() if options.kills >= 50 else ():
            while where in (SAVE, DELETION) and kills(where) < floor:
                assert len(moments) < MOST * options.kills, f"{kills(where)} {where}"
                attempt(within(where, told, dice), 0)
            assert kills(where) >= floor, f"{kills(where)} {where}"
        at_random = Counter(moments)
        for point in options.point or EVERY_POINT:
            attempt(point, 0)
    result = {"name": "chaos", "resumed": len(moments), "of": len(moments)}
    return publish({**result, "moments": Counter(moments), "at_random": at_random})


def within(phase: str, told: list[str], dice: random.Random) -> str:
    """Return a value of --die for a moment within one of the first three of a phase.

    `told` holds the lines of a run with --tell: the seconds of its saves and deletions.
    """
    lines = [line for line in told if line.startswith(phase)]
    lengths = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(lengths) >= 3, told
    chosen = dice.randrange(3)
    return f"{phase}:{chosen + 1}:{dice.uniform(0, lengths[chosen]):.6f}"


def start(out: Path, *flags: str, **environment: str) -> subprocess.Popen:
    """Start a run in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stress.narrow", "--out", str(out), *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(out: Path, how: str, delay: float, *flags: str) -> None:
    """Start a run that dies at or after a named point, or kill it after a delay."""
    with start(out, *flags, *(["--die", how] if how else [])) as process:
        if not how:
            time.sleep(delay)
            process.kill()
        rest = process.stderr.read()
    ends = {-signal.SIGKILL}
    if how.count(":") == 2:
        ends = {-signal.SIGALRM}
    if not how:  # the run may have finished before it was killed
        ends.add(0)
    assert process.returncode in ends, (how, process.returncode, rest)


def moment_of(out: Path) -> str:
    """Return the phase in which a run was killed, derived from the files it left."""
    folder = out / "checkpoints"
    left = {path.suffix for path in folder.iterdir()} if folder.exists() else set()
    steps = [p for p in folder.iterdir() if p.name.isdecimal()] if left else []
    if any(out.glob("model.safetensors.*")):
        return "in the export"
    if ".deleted" in left:
        return "in a deletion"
    if ".partial" in left:
        return "in a save" if steps else "in a save, nothing saved before"
    return "elsewhere" if steps else "elsewhere, nothing saved before"


def finish(out: Path, *flags: str) -> dict[str, Any]:
    """Run to the end; return the results, file names, seconds, and lines of stderr."""
    began = time.perf_counter()
    with start(out, *flags) as process:
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    seconds = time.perf_counter() - began
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    with contextlib.redirect_stdout(sys.stderr):
        found = results(out)
    return {"files": files, **found, "seconds": seconds, "told": errors.splitlines()}


def results(out: Path) -> dict[str, Any]:
    """Return the results of a finished run that must not depend on interruptions."""
    from jaxlab.runs.checkpoint import CheckpointManager
    from jaxlab.runs.record import read_rows

    folder = out / "checkpoints"
    saved = CheckpointManager(folder, 2, print).restore()
    return {
        "arrays": {name: array.tobytes() for name, array in saved.arrays.items()},
        "model": (out / "model.safetensors").read_bytes(),
        "metrics": [
            {k: v for k, v in entry.items() if k not in TIMES}
            for entry in read_rows(out / "metrics.jsonl")
        ],
    }
