"""python -m tests.stress fuzz: read thousands of damaged and hostile .pth files.

Pickle operations, archive members or bytes of files that torch wrote are changed. Most
of these mutants get valid checksums, so that they reach the parser. Each mutant must be
read, or refused with a WeightsError, within five seconds and without a side effect.

For each mutant the script checks the events of Python's audit hooks (reading bytes in
memory causes none), a canary file that the planted commands would create, the type of
the exception, and the time. For each chunk it checks the memory of the process.

It is one file because the mutations are used only by the reader loop at its end.
"""

import argparse
import collections
import concurrent.futures
import io
import os
import pickle
import pickletools
import random
import re
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pretrained import WeightsError, read_torch_file
from tests.stress import publish

TIME_LIMIT = 5  # seconds per mutant
MEMORY_LIMIT = 64e6  # bytes, in addition to the largest mutant
CHUNK = 2_000  # mutants per task of a worker process

Mutator = Callable[[random.Random, bytearray], None]


def seeds() -> list[bytes]:
    """Return small files written by torch, of each kind that the reader must accept."""
    import torch

    base = torch.arange(24.0)
    shared = {"a": base[:12].reshape(3, 4), "b": base[8:], "c": torch.tensor(3)}
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.BatchNorm2d(2))
    half = {"h": torch.ones(5).half(), "g": torch.ones(2, 2).bfloat16()}
    double = {"d": torch.ones(3).double(), "p": torch.nn.Parameter(torch.ones(2))}
    files = []
    for value in (shared, model.state_dict(), {**half, **double}, {}):
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
            files.append(buffer.getvalue())
    return files


# Mutations of the pickle programs.

NUMBERS = [-1, 0, 1, 2, 4, 255, 256, 65535, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63]
NUMBERS += [-(2**63), 2**64, 2**126]
NAMES = [
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch LongStorage",
    "torch ByteStorage",
    "torch load",
    "collections OrderedDict.fromkeys",
    "posix system",
    "os system",
    "builtins eval",
    "builtins getattr",
    "numpy load",
    "pretrained.torchfile read_torch_file",
]


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    encoded = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + encoded


def _name(value: str) -> bytes:
    return b"c" + value.replace(" ", "\n").encode() + b"\n"


def attacks(canary: str) -> list[bytes]:
    """Return hostile programs; most of them create the canary file if executed."""
    command = f"touch {canary}"
    call = b"(" + _text(command) + b"tR"
    python = _text(f"open({canary!r}, 'w').close()")
    return [
        _name("posix system") + call,
        _name("os system") + call,
        _name("builtins exec") + b"(" + python + b"tR",
        _name("builtins eval") + b"(" + python + b"tR",
        b"(" + _text(command) + b"iposix\nsystem\n",
        b"(" + _name("posix system") + _text(command) + b"o",
        _text("posix") + _text("system") + b"\x93" + call,
        _name("posix system") + b"(" + _text(command) + b"t\x81",
        _name("posix system") + b"(" + _text(command) + b"t}\x92",
        _name("collections OrderedDict") + b")R}" + _text("__class__") + b"Nsb",
    ]


def _operations(program: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(program)]
    ends = [*starts[1:], len(program)]
    return [program[start:end] for start, end in zip(starts, ends, strict=True)]


def _any_operation(rng: random.Random, canary: str) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(attacks(canary))
    if kind == 1:
        return _name(rng.choice(NAMES))
    if kind == 2:
        return _number(rng.choice(NUMBERS))
    if kind == 3:
        return _text(rng.choice(["", "a", "storage", "module", "0", "\x1b[2J", "\0"]))
    if kind == 4:
        index = rng.choice([0, 1, 255, 9_999, 10_000, 2**31, 2**32 - 1])
        return rng.choice(b"rj").to_bytes() + struct.pack("<I", index)
    if kind == 5:  # a length beyond the end of the data
        code = rng.choice([b"X", b"\x8b", b"B", b"T", b"\x8d", b"\x8e"])
        return code + struct.pack("<I", rng.choice([2**31, 2**32 - 1, 100]))
    if kind == 6:
        return rng.choice([b"(", b")", b"]", b"}", b"N", b"t", b"u", b"s", b"e", b"R"])
    return bytes([rng.randrange(256)])


def mutate_program(rng: random.Random, program: bytes, canary: str) -> bytes:
    """Apply one to three random changes to a pickle program."""
    operations = _operations(program)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(operations)) if operations else 0
        kind = rng.randrange(10)
        if not operations or kind == 0:
            operations.insert(at, _any_operation(rng, canary))
        elif kind == 1:
            operations[at] = _any_operation(rng, canary)
        elif kind == 2:
            del operations[at : at + rng.choice([1, 1, 2, 5])]
        elif kind == 3:
            other = rng.randrange(len(operations))
            operations[at], operations[other] = operations[other], operations[at]
        elif kind == 4:  # repeat a part, sometimes often enough to nest deeply
            part = operations[at : at + rng.choice([1, 2, 5])]
            operations[at:at] = part * rng.choice([1, 2, 10, 2_000])
        elif kind == 5:
            _change_argument(rng, operations, at)
        elif kind == 6:
            operations = operations[:at]
        elif kind == 7:
            operations[at] = bytes(
                byte ^ (1 << rng.randrange(8)) if rng.random() < 0.3 else byte
                for byte in operations[at]
            )
        elif kind == 8:  # an attack instead of a value
            operations[at] = rng.choice(attacks(canary))
        else:
            numbers = [i for i, op in enumerate(operations) if op[:1] in b"JKM\x8a"]
            if numbers:
                operations[rng.choice(numbers)] = _number(rng.choice(NUMBERS))
    return b"".join(operations)


def _change_argument(rng: random.Random, operations: list[bytes], at: int) -> None:
    operation = operations[at]
    if operation[:1] == b"c":
        operations[at] = _name(rng.choice(NAMES))
    elif operation[:1] == b"X":
        operations[at] = _text(rng.choice(["", "0", "1", "storage", "é" * 600, "a\nb"]))
    elif operation[:1] in b"qh" and len(operation) == 2:
        operations[at] = operation[:1] + bytes([rng.randrange(256)])
    elif len(operation) > 1:
        cut = rng.randrange(1, len(operation))
        operations[at] = operation[:cut] + bytes([rng.randrange(256)]) * len(
            operation[cut:]
        )


# Mutations of the two file formats.


def mutate_zip(rng: random.Random, content: bytes, canary: str) -> bytes:
    """Change a program, a member or the headers of a zip file.

    The checksums are valid, unless the headers were changed.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    kind = rng.randrange(14)
    if kind == 13:
        return mutate_headers(rng, content)
    if kind < 8:
        members = [
            (name, mutate_program(rng, data, canary) if "pkl" in name else data)
            for name, data in members
        ]
    elif kind == 8:
        del members[at]
    elif kind == 9:
        folder, _, last = name.rpartition("/")
        names = [name, f"{folder}/../{last}", f"/{name}", name.upper(), f"{name}/"]
        names += [f"{folder}/7", f"{folder}/٧", "x/data.pkl", name + "\0", ""]
        new = rng.choice(names)
        members.insert(at, (new, data)) if rng.random() < 0.5 else None
        members[at] = (new, data)
    elif kind == 10:
        size = rng.choice([0, 1, len(data) - 1, len(data) + 1, len(data) * 9])
        members[at] = (name, (data * 10)[: max(0, size)])
    elif kind == 11:
        members[at] = (name, bytes(b ^ rng.choice([0, 0, 1, 255]) for b in data))
    compression = zipfile.ZIP_DEFLATED if kind == 12 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names are intended
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def mutate_headers(rng: random.Random, content: bytes) -> bytes:
    """Set fields of the zip archive's records to wrong values."""
    out = bytearray(content)
    signatures = rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)"
    records = [match.start() for match in re.finditer(signatures, content)]
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.choice(records) + rng.randrange(4, 46)
        layout, largest = rng.choice([("<B", 255), ("<H", 65535), ("<L", 2**32 - 1)])
        value = rng.choice([0, 1, 8, len(content), largest, rng.randrange(largest)])
        if at + 4 <= len(out):
            struct.pack_into(layout, out, at, min(value, largest))
    return bytes(out)


def mutate_legacy(rng: random.Random, content: bytes, canary: str) -> bytes:
    """Change one of the five pickles of a legacy file, or a number in the data."""
    stream = io.BytesIO(content)
    parts = []
    for _ in range(5):
        start = stream.tell()
        collections.deque(pickletools.genops(stream), maxlen=0)
        parts.append(content[start : stream.tell()])
    data = bytearray(stream.read())
    kind = rng.randrange(10)
    if kind < 7:
        at = rng.choice([0, 1, 2, 3, 3, 3, 3, 3, 3, 4])
        parts[at] = mutate_program(rng, parts[at], canary)
    elif kind == 7:
        at = rng.randrange(5)
        parts[at : at + 1] = rng.choice([[], parts[at : at + 1] * 2, parts[::-1]])
    elif len(data) >= 8:
        value = rng.choice([number for number in NUMBERS if abs(number) < 2**63])
        at = rng.choice([0, 0, rng.randrange(len(data) - 7)])
        struct.pack_into("<q", data, at, value)
    return b"".join(parts) + bytes(data)


def mutate(rng: random.Random, content: bytes, canary: str) -> bytes:
    """Return one mutant of a file."""
    if rng.random() < 0.1:  # change bytes regardless of their meaning
        kind = rng.randrange(4)
        at = rng.randrange(len(content))
        if kind == 0:
            return content[:at]
        if kind == 1:
            return content + rng.randbytes(rng.choice([1, 22, 98]))
        if kind == 2:
            return rng.randbytes(rng.choice([1, 30])) + content
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    is_zip = content.startswith(b"PK")
    return (mutate_zip if is_zip else mutate_legacy)(rng, content, canary)


# Running the mutants.


class _Hang(BaseException):
    """Raised when reading a mutant takes longer than TIME_LIMIT."""


def _ring(*_):
    raise _Hang


def _by_pickle(file: io.BytesIO) -> dict:
    """Read a file with Python's own pickle, as a control that executes the commands."""

    class Reader(pickle.Unpickler):
        def persistent_load(self, reference):
            return reference

    content = file.read()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
            return Reader(io.BytesIO(archive.read(name))).load()
    for _ in range(4):
        value = Reader(io.BytesIO(content)).load()
    return value


_events: list[str] | None = None  # a list only while a mutant is read


def _audit(event: str, _arguments: object) -> None:
    if _events is not None:
        _events.append(event)


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def run_chunk(
    files: list[bytes], seed: int, first: int, count: int, reader: str
) -> collections.Counter:
    """Read `count` mutants from number `first` on; return the count of each outcome."""
    global _events
    read = read_torch_file if reader == "ours" else _by_pickle
    if not getattr(run_chunk, "watching", False):
        sys.addaudithook(_audit)
        signal.signal(signal.SIGALRM, _ring)
        run_chunk.watching = True
    seen: collections.Counter = collections.Counter()
    canary = Path(tempfile.gettempdir()) / f"canary-{os.getpid()}"
    # Load now what is imported on first use, such as the codec of old zip names, so
    # that the import is not reported as a side effect of a mutant.
    "".encode("cp437")
    for content in files:
        read_torch_file(io.BytesIO(content))
    before, largest = _peak_memory(), 0
    for index in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + index)
        mutant = mutate(rng, rng.choice(files), str(canary))
        largest = max(largest, len(mutant))
        file = io.BytesIO(mutant)
        started = time.perf_counter()
        problem = ""
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)
        try:
            _events = events = []
            try:
                read(file)
            finally:
                _events = None
                signal.setitimer(signal.ITIMER_REAL, 0)
            seen["read"] += 1
        except WeightsError as error:
            seen["refused"] += 1
            seen["because " + _reason(str(error))] += 1
            if type(error) is not WeightsError or not str(error).isprintable():
                problem = "another exception"
        except _Hang:
            problem = "hang"
        except Exception as error:  # noqa: BLE001 (any other type is a fault)
            problem = "another exception"
            if reader == "ours":
                print(f"mutant {index}: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        seen["slowest_us"] = max(seen["slowest_us"], int(seconds * 1e6))
        if canary.exists():
            seen["canary"] += 1
            canary.unlink()
            events.append("canary")
        if events:
            problem = "execution"
        if problem:
            seen[problem] += 1
            if reader == "ours":
                print(f"mutant {index}: {problem} {sorted(set(events))}")
    seen["memory"] = max(0, _peak_memory() - before - largest)
    return seen


def _reason(message: str) -> str:
    """Return the words of a message before its first variable part."""
    return re.split(r"[^a-zA-Z _.-]", message.partition(": ")[2])[0].strip()


def summary(
    options: argparse.Namespace, total: collections.Counter, seconds: float
) -> dict[str, Any]:
    """Return the result of a run over all mutants, for publication."""
    return {
        "name": "fuzz",
        "reader": options.reader,
        "mutants": options.mutants,
        "seed": options.seed,
        "read": total["read"],
        "refused": total["refused"],
        "executions": total["execution"],
        "canaries": total["canary"],
        "crashes": total["crash"],
        "hangs": total["hang"],
        "other_exceptions": total["another exception"],
        "slowest_seconds": total["slowest_us"] / 1e6,
        "memory_mb": round(total["memory"] / 1e6, 1),
        "seconds": round(seconds, 1),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the mutants in two processes; print and return the result.

    Raises AssertionError if a mutant had a side effect, crashed, hung, raised another
    exception, or needed too much memory.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=["ours", "pickle"], default="ours")
    options = parser.parse_args(argv)
    files = seeds()
    started = time.perf_counter()
    total: collections.Counter = collections.Counter()
    # Spawned processes do not inherit the memory of torch.
    context = concurrent.futures.process.mp.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        chunks = [
            pool.submit(
                run_chunk,
                files,
                options.seed,
                first,
                min(CHUNK, options.mutants - first),
                options.reader,
            )
            for first in range(0, options.mutants, CHUNK)
        ]
        for chunk in chunks:
            try:
                seen = chunk.result()
            except BrokenProcessPool:
                total["crash"] += 1
                continue
            for key in ("slowest_us", "memory"):
                total[key] = max(total[key], seen.pop(key))
            total += seen
    result = summary(options, total, time.perf_counter() - started)
    reasons = [(n, key) for key, n in total.items() if key.startswith("because ")]
    for count, reason in sorted(reasons, reverse=True):
        print(f"{count:>9,}  {reason.removeprefix('because ')}")
    for key, value in result.items():
        print(f"{key:<18}{value:,}" if isinstance(value, int) else f"{key:<18}{value}")
    result = publish(result)
    violations = total["execution"] + total["crash"] + total["hang"]
    violations += total["another exception"] + (total["memory"] > MEMORY_LIMIT)
    assert not violations, f"{violations} violations; see the counts above"
    return result
