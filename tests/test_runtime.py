"""Test the compilation cache, the memory settings and the clock of a run's process.

It is one file because jaxlab/runtime.py is one.
"""

import contextlib
import importlib.metadata
import os
import platform
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxlab
from jaxlab import environment, runtime
from jaxlab.errors import InputError
from tests.conftest import NO_CHECKPOINTS, ROOT

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Runs a command, then prints how many programs missed and hit the compilation cache.
COUNTED = """
import sys, jax
from jaxlab import {command} as command
from tests.stress.narrow import narrow
narrow()
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
command.main(sys.argv[1:])
count = lambda what: seen.count("/jax/compilation_cache/cache_" + what)
print(count("misses"), count("hits"))
"""
JOBS = {
    "finetune": ["--train-size", "20", "--test-size", "10", "--image-size", "63"]
    + ["--epochs", "1", *NO_CHECKPOINTS, "--overwrite", "--out"],
    "overfit": ["--train-size", "20", "--test-size", "10", "--epochs", "1"]
    + ["--seeds", "1", "--variants", "baseline", "--overwrite", "--out"],
}


def without_cache(environment):
    """Return the environment without the compilation cache that all tests share."""
    return {k: v for k, v in environment.items() if "CACHE" not in k}


def script(code, *arguments, **environment):
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**without_cache(os.environ), **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1], process.stderr


TUNED = """
import gc, sys
from jaxlab import runtime
runtime.set_up(owns_process=sys.argv[1] == "command")
import jax
waits = not jax.config.values["jax_cpu_enable_async_dispatch"]
print(waits, gc.get_threshold()[0] == 100_000)
"""


def test_a_command_tunes_its_process_and_a_library_does_not():
    home = {"JAX_PLATFORMS": "cpu"}
    assert script(TUNED, "command", **home)[0] == "True True"
    assert script(TUNED, "library", **home)[0] == "False False"
    chosen = script(TUNED, "command", JAX_CPU_ENABLE_ASYNC_DISPATCH="1", **home)
    assert chosen[0] == "False True"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["finetune", pytest.param("overfit", marks=pytest.mark.stress)]
)
def test_the_second_time_nothing_is_compiled(command, narrow_weights, tmp_path):
    weights = ["--weights", narrow_weights] if command == "finetune" else []
    home = tmp_path / "home"
    code = COUNTED.format(command=command)

    def counts(seed):
        # The hash seed determines the order of sets, which must not change programs.
        said, stderr = script(
            code,
            *weights,
            *JOBS[command],
            tmp_path / "run",
            JAXLAB_HOME=str(home),
            PYTHONHASHSEED=str(seed),
        )
        assert stderr == ""
        return [int(count) for count in said.split()]

    misses, hits = counts(seed=1)
    assert misses > 5 and hits < misses
    assert stat.S_IMODE((home / "compiled").stat().st_mode) == 0o700
    misses, hits = counts(seed=2)
    assert misses == 0 and hits > 5
    # Programs of partly written entries are compiled again, and the entries replaced.
    for entry in (home / "compiled").glob("*-cache"):
        os.truncate(entry, 100)
        entry.with_name(entry.name.removesuffix("cache") + "atime").unlink()
    assert counts(seed=3) == [hits, 0]
    assert counts(seed=4) == [0, hits]


SET_UP = """
import jax
from jaxlab import runtime
runtime.set_up()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_the_users_own_cache_of_compiled_programs_is_left_alone(tmp_path):
    own, home = str(tmp_path / "own"), tmp_path / "home"
    environment = dict(JAXLAB_HOME=str(home))
    assert script(SET_UP, **environment)[0] == str(home / "compiled")  # the control
    assert script(SET_UP, JAX_COMPILATION_CACHE_DIR=own, **environment)[0] == own


def test_a_cache_that_cannot_be_written_is_said_and_does_without(tmp_path):
    (tmp_path / "file").touch()
    said, stderr = script(SET_UP, JAXLAB_HOME=str(tmp_path / "file"))
    assert said == "None"
    (line,) = stderr.splitlines()
    assert line.startswith(f"warning: {tmp_path}/file/compiled: Not a directory; ")
    said, stderr = script(SET_UP, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file/own"))
    (line,) = stderr.splitlines()
    assert line == (
        f"warning: {tmp_path}/file/own: Not a directory; compiled programs are not "
        "saved for the next run; set JAX_COMPILATION_CACHE_DIR to a writable folder"
    )


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return what `fine_tune` might change in its process, which caches no programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runtime, "_keep_freed_memory", lambda: pytest.fail("mallopt"))

    def state():
        return {
            "filters": list(warnings.filters),
            "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
            "hook": sys.unraisablehook,
            **{name: getattr(jax.config, name) for name in runtime.CACHE_SETTINGS},
        }

    yield state
    jax.config.update("jax_compilation_cache_dir", before)


def fine_tune_until_its_data(monkeypatch, state, **settings):
    """Call `fine_tune`, stop it where it loads its data, and return the state there."""
    during = {}

    def load(*_):
        during.update(state())
        raise InputError("data: missing")

    monkeypatch.setattr("jaxlab.library.load_of", load)
    with pytest.raises(InputError, match="data: missing"):
        jaxlab.fine_tune(**settings)
    return during


def test_fine_tune_leaves_its_process_as_it_was(host, monkeypatch, tmp_path):
    before, folder = host(), tmp_path / "home" / "compiled"
    during = fine_tune_until_its_data(monkeypatch, host)
    assert during["jax_compilation_cache_dir"] == str(folder)
    assert during["filters"] != before["filters"]
    assert host() == before
    # A program of the host's own is not written to the folder of jaxlab's programs.
    jax.block_until_ready(jax.jit(lambda x: x * 3 + 7)(jnp.ones(5)))
    assert list(folder.glob("*-cache")) == []


def test_calls_that_overlap_leave_their_process_as_it_was(host):
    before = host()
    with contextlib.ExitStack() as second:
        with runtime.settings_restored():
            runtime.set_up(owns_process=False)
            during = host()
            second.enter_context(runtime.settings_restored())
        assert host() == during != before  # the second call still needs it
    assert host() == before


def test_a_cache_that_cannot_be_written_is_logged(host, monkeypatch, tmp_path, capfd):
    (tmp_path / "home").touch()
    fine_tune_until_its_data(monkeypatch, host, log=False)
    assert capfd.readouterr() == ("", "")
    fine_tune_until_its_data(monkeypatch, host)
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith(f"warning: {tmp_path}/home/compiled:")


# Allocates and frees memory three times; prints how many pages the system had to clear.
FAULTS = """
import resource, sys
import numpy as np
from jaxlab import runtime
how, size = sys.argv[1], int(sys.argv[2]) << 20
if how == "kept":
    runtime._keep_freed_memory()
np.ones(size, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(size, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")
@pytest.mark.parametrize(  # the size of one result, and of all results of a step
    "megabytes", [100, pytest.param(2500, marks=pytest.mark.stress)]
)
def test_freed_memory_is_used_again(megabytes):
    pages = 3 * (megabytes << 20) // os.sysconf("SC_PAGE_SIZE")

    def cleared(how):
        # The pages have the usual size, as XLA's have; by default NumPy asks for huge
        # pages.
        return int(script(FAULTS, how, megabytes, NUMPY_MADVISE_HUGEPAGE="0")[0])

    assert cleared("kept") < pages / 100
    if not HUGE_PAGES.exists() or "[always]" not in HUGE_PAGES.read_text():
        assert cleared("given back") > pages / 2  # the control


def test_the_clock_stands_still_while_jax_compiles():
    clock = runtime.Clock()
    wall, told = time.perf_counter(), clock()

    def slow_to_trace(x):
        time.sleep(0.3)
        return x + 1

    jax.block_until_ready(jax.jit(slow_to_trace)(jnp.ones(3)))
    told, wall = clock() - told, time.perf_counter() - wall
    assert clock.compile_seconds >= 0.3
    assert told == pytest.approx(wall - clock.compile_seconds, abs=0.1)

    told, compiled = clock(), clock.compile_seconds
    time.sleep(0.3)
    assert clock() - told >= 0.3 and clock.compile_seconds == compiled


GIB = 1 << 30
GROUPS = {
    "version 2": (
        "0::/kubepods/pod1/a\n",
        {
            "sys/fs/cgroup/kubepods/memory.max": "max",
            "sys/fs/cgroup/kubepods/pod1/memory.max": f"{2 * GIB}",
            "sys/fs/cgroup/kubepods/pod1/a/memory.max": f"{3 * GIB}",
        },
        [3 * GIB, 2 * GIB],
    ),
    "version 2, in a container": (
        "0::/docker/a\n",
        {"sys/fs/cgroup/memory.max": f"{GIB}\n"},
        [GIB],
    ),
    "version 1": (
        "9:cpu,cpuacct:/a\n7:memory:/docker/a\n",
        {
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        [GIB, 9223372036854771712],
    ),
    "no limit": ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}, []),
    "no groups": ("", {}, []),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_the_memory_of_a_container_is_its_limit(kind, tmp_path, monkeypatch):
    groups, files, limits = GROUPS[kind]
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = runtime.container_limits(tmp_path)
    assert found == limits
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(runtime, "container_limits", lambda: found)
    assert runtime.memory_bytes() == min([machine, *limits])


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert runtime.container_limits(tmp_path) == []


def test_a_folder_that_others_can_write_to_holds_no_programs(tmp_path):
    folder = tmp_path / "compiled"
    folder.mkdir()
    for mode, own in ((0o700, True), (0o755, True), (0o777, False), (0o720, False)):
        folder.chmod(mode)
        assert runtime._is_own(folder) is own


def test_a_package_without_metadata_has_a_version_or_none(monkeypatch):
    """As where the source is run without having been installed."""

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    whole = environment.versions()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    versions = environment.versions()
    assert versions["jaxlab"] == "unknown" and versions.keys() == whole.keys()
    assert versions["jax"] == whole["jax"]
