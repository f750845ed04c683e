"""Kill runs, resume them, and compare every bit with an uninterrupted run.

    python -m tests.stress chaos [--kills 50]

Runs are killed by SIGKILL, or SIGALRM where a kill is timed within a save or deletion:
at random moments, chosen so that enough of them fall into saves, into deletions and
before the first save; then at each of eight named points of writing, the first three
times it is reached, in the middle of writing model.safetensors, and before the first
figure is renamed. After each kill, `--resume` runs to the end: parameters, optimizer
state, weights and metrics must equal those of the uninterrupted run, and the folder
must hold the same files.
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
# The least number of fifty kills at random moments that must fall into each phase.
FLOORS = {"in a save": 20, "in a deletion": 5, "nothing saved before": 2}


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
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        whole = finish(home / "whole", "--tell", *JOB)
        seconds, told = whole.pop("seconds"), whole.pop("told")
        moments: list[str] = []
        plan = plan_of(options.kills, options.seed, seconds, told)
        plan += [(point, 0) for point in options.point or EVERY_POINT]
        for number, (how, delay) in enumerate(plan, start=1):
            out = home / str(number)
            kill(out, how, delay, *JOB)
            moment = moment_of(out)
            moments.append(moment)
            again = finish(out, "--resume", *JOB)
            other = [part for part in whole if again[part] != whole[part]]
            assert not other, f"{how}, {moment}: changed results: {', '.join(other)}"
            print(f"{number:>3}/{len(plan)}  {how:<28} {moment}: identical", flush=True)
    at_random = Counter(moments[: options.kills])
    for where, floor in FLOORS.items() if options.kills >= 50 else ():
        kills = sum(n for moment, n in at_random.items() if where in moment)
        assert kills >= floor, f"{kills} kills {where}, expected at least {floor}"
    result = {"name": "chaos", "resumed": len(plan), "of": len(plan)}
    return publish({**result, "moments": Counter(moments), "at_random": at_random})


def plan_of(
    kills: int, seed: int, seconds: float, told: list[str]
) -> list[tuple[str, float]]:
    """Return how to kill each run: a value of --die, or "" and the seconds to wait.

    `told` holds the lines of a run with --tell: the seconds of its saves and deletions.
    """
    dice = random.Random(seed)

    def within(phase: str, count: int) -> list[tuple[str, float]]:
        lines = [line for line in told if line.startswith(phase)]
        lengths = [float(line.rpartition(" ")[2]) for line in lines]
        assert len(lengths) >= 3, told
        chosen = [dice.randrange(3) for _ in range(count)]
        return [
            (f"{phase}:{i + 1}:{dice.uniform(0, lengths[i]):.6f}", 0) for i in chosen
        ]

    saving, deleting = within(SAVE, kills // 2), within(DELETION, kills // 5)
    rest = kills - len(saving) - len(deleting)
    any_time = [("", seconds * dice.uniform(0.05, 1)) for _ in range(rest)]
    return saving + deleting + any_time


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
