"""The process of a run: JAX's device, memory, compiled programs and clock.

It is one file because all of it is set up, or asked for, where a command begins.
"""

import contextlib
import ctypes
import errno
import functools
import gc
import os
import platform
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxlab.environment import import_jax, warn_of_misspelt_variables
from jaxlab.errors import JaxlabError, UsageError, did_you_mean
from pretrained.disk import cache_folder, cosmetic
from pretrained.errors import install, one_line

COMPILED_BYTES = 1 << 30  # limit of the compilation cache; a run adds about 1 MB
CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
# JAX's warnings of its cache are noise: without an entry a program is compiled again,
# and if the disk is full, the code that writes the results reports it. Without flock,
# filelock warns and uses the existence of a file.
_OWN_FILTERS = (
    re.compile("Error .*ing persistent compilation cache entry", re.I),
    re.compile("flock not supported", re.I),
)

_OBJECTS_PER_COLLECTION = 100_000  # new ones before a garbage collection; Python: 700
_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu", "metal")
_MEMORY_UNKNOWN = 8 << 30  # bytes, assumed on a system without sysconf

# Parameter numbers of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def set_up(
    log: Callable[[str], None] = _to_stderr, *, owns_process: bool = True
) -> str:
    """Configure JAX for a command; return the name of the device it computes on.

    Compiled programs are stored in the cache folder; `log` is called with a warning if
    that is impossible. The process is also tuned for a command (freed memory is kept,
    for instance), which cannot be undone, so `owns_process` is False where jaxlab is a
    library in the process of another program (see `settings_restored`). Call this
    before JAX is imported, because JAX's threads set up their memory arenas then.
    Raises JaxlabError if the device that JAX_PLATFORMS names is not available,
    UsageError if a variable of JAX's has a value that JAX does not know.
    """
    if owns_process:
        _keep_freed_memory()
        # Tracing a program makes a million objects, few of them garbage, and Python
        # would look through all of them again and again.
        gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    import_jax()
    if owns_process:
        _compute_in_the_calling_thread()
    warn_of_misspelt_variables(log)
    try:
        device = device_name()
    # JAX raises AssertionError without a message if the platform's plugin is missing.
    except (RuntimeError, AssertionError) as error:
        name = "JAX_PLATFORMS"
        if name not in os.environ and "JAX_PLATFORM_NAME" in os.environ:
            name = "JAX_PLATFORM_NAME"
        asked = os.environ.get(name, "")
        unknown = [one for one in asked.split(",") if one.lower() not in _PLATFORMS]
        if asked and unknown:
            raise UsageError(
                f"{name}: {unknown[0]!r} is not one of {', '.join(_PLATFORMS)}"
                f"{did_you_mean(unknown[0], _PLATFORMS)}"
            ) from error
        raise JaxlabError(
            f"JAX: found no device for {name}={asked}: "
            f"{str(error) or 'its plugin is not installed'}; unset it, or "
            f"for an NVIDIA GPU {install('cuda')}"
        ) from error
    _keep_compiled_programs(log)
    return device


@contextlib.contextmanager
def settings_restored() -> Iterator[None]:
    """Undo at the end of the block what `set_up` has changed, for a program of others.

    Otherwise, the programs that it compiles afterwards would be stored in the cache
    folder, too. Of several threads, the last one to leave its block undoes it.
    """
    import_jax()
    import jax

    global _before
    with _LOCK:
        if not _blocks:
            settings = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
            _before = settings, list(warnings.filters)
        _blocks.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _blocks.pop()
            if not _blocks:
                _restore(*_before)


_LOCK = threading.Lock()
_blocks: list[None] = []  # one entry for each block that a thread is in
_before: tuple[dict[str, Any], list[Any]]


def _restore(settings: dict[str, Any], filters: list[Any]) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if any(getattr(jax.config, name) != value for name, value in settings.items()):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX opens its cache once
    now: Any = warnings.filters  # a list, which its type hides
    for each in list(now):
        if each[1] in _OWN_FILTERS and each not in filters:
            now.remove(each)


def device_name() -> str:
    """Return the name of JAX's device; for a CPU, with the processor's model.

    The last bits of a result depend on the processor's model.
    """
    import jax

    kind = jax.devices()[0].device_kind
    return f"{kind} ({processor()})" if jax.default_backend() == "cpu" else kind


@functools.cache  # reading is slow: the kernel queries every core
def processor() -> str:
    """Return the CPU's model and widest vector instructions, from /proc/cpuinfo.

    On a system without that file, return Python's name of the processor.
    """
    if not os.path.exists("/proc/cpuinfo"):
        return platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    # The names of the fields are padded with tabs.
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    sets = {"avx512f": "AVX-512", "avx2": "AVX2"}
    flags = fields.get("flags", "").split()
    widest = next((f" with {sets[flag]}" for flag in sets if flag in flags), "")
    return fields.get("model name", platform.machine()) + widest


def memory_bytes() -> int:
    """Return the bytes of memory of JAX's device; for a CPU, those of this process.

    They are the machine's, or the limit of the process's container, if it is lower.
    """
    import jax

    # JAX has no memory statistics for a CPU.
    own = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in own:
        return own["bytes_limit"]
    whole = _MEMORY_UNKNOWN
    if hasattr(os, "sysconf"):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *container_limits()])


def container_limits(root: Path = Path("/")) -> list[int]:
    """Return the limits of memory of the control groups of this process, in bytes.

    They are those of its group and of each group around it, in Linux's version 2 or 1.
    In a container, the mounted folder may begin at the process's own group, so that its
    path is not found in it; then the limit of the mounted folder counts.
    """
    limits = []
    try:
        groups = root.joinpath("proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mounted, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mounted, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = mounted / path.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # "max", or no such file
                limits.append(int((folder / file).read_text("utf-8")))
            if folder == mounted:
                break
    return [limit for limit in limits if limit > 0]


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system each time.

    XLA allocates intermediate results again in every call. By default glibc maps and
    unmaps blocks of that size, and the system clears each page again, which took a
    quarter of the time of a training step. The process keeps its peak memory, which
    is a few hundred MB higher.
    """
    if os.name != "posix":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_M_ARENA_MAX, 1)  # other arenas ignore the two settings below
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never trim; the largest value means only 2 GB


def _compute_in_the_calling_thread() -> None:
    """Make a CPU run each program in the thread that calls it, before it returns.

    Otherwise another thread runs it, and a training step takes 5 to 10 % longer. A host
    that reads or decodes images in the meantime does so in threads of its own.
    """
    import jax

    name = "jax_cpu_enable_async_dispatch"
    if name.upper() not in os.environ:
        jax.config.update(name, False)


def _keep_compiled_programs(log: Callable[[str], None]) -> None:
    import jax

    for pattern in _OWN_FILTERS:
        warnings.filterwarnings("ignore", pattern.pattern)
    # JAX adds its options to the config at run time, so the config's type lacks them.
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    try:
        if chosen is None:
            values = str(_own_folder()), COMPILED_BYTES, 0.0
            for name, value in zip(CACHE_SETTINGS, values, strict=True):
                jax.config.update(name, value)
        elif "://" not in chosen:  # else a folder of a cloud, which JAX can write to
            Path(chosen).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=chosen):  # is it writable?
                pass
    except OSError as error:
        variable = "JAXLAB_HOME" if chosen is None else "JAX_COMPILATION_CACHE_DIR"
        where = chosen or error.filename or "the cache folder"
        log(
            one_line(
                f"warning: {where}: {error.strerror}; compiled programs are not saved "
                f"for the next run; set {variable} to a writable folder"
            )
        )


def _own_folder() -> Path:
    """Return the folder of compiled programs in the cache folder, ready for use."""
    folder = cache_folder() / "compiled"
    # Only the owner may write here, because the programs are executed.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with cosmetic():
        folder.chmod(0o700)
    if not _is_own(folder):
        raise PermissionError(errno.EPERM, "others can write to it", str(folder))
    remove_unfinished(folder)
    return folder


def _is_own(folder: Path) -> bool:
    """Return whether nobody else can write to a folder, also without permissions."""
    found = folder.stat()
    return os.name != "posix" or (
        found.st_uid == os.getuid() and not found.st_mode & 0o022
    )


def remove_unfinished(folder: Path) -> None:
    """Remove partly written cache entries, because JAX never replaces an entry.

    JAX writes `KEY-cache` and then `KEY-atime` while it holds `.lockfile`. (If another
    process reads a partial entry first, JAX writes its `-atime`, and the entry is not
    recognised as partial.)
    """
    with (
        contextlib.suppress(filelock.Timeout),
        filelock.FileLock(folder / ".lockfile", timeout=10),
    ):
        for entry in folder.glob("*-cache"):
            if not folder.joinpath(f"{entry.name.removesuffix('cache')}atime").exists():
                entry.unlink()


@contextlib.contextmanager
def memory_errors_explained(message: str) -> Iterator[None]:
    """Raise JaxlabError with this message where the device has too little memory."""
    import jax

    try:
        yield
    except MemoryError as error:
        raise JaxlabError(f"memory: {message}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise JaxlabError(f"memory: {message}") from error


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function return the very same object for equal arguments.

    What it returns is a function to be compiled, or holds some: JAX compiles a function
    once for each shape, but does not know that two functions do the same. Arguments
    that have no hash, such as a module with a list among its fields, are not shared,
    nor are modules that are not jaxlab's: what they compute may depend on variables
    that have changed since.
    """
    cached = functools.lru_cache(maxsize=32)(function)

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            hash((args, *keywords.values()))
        except TypeError:
            return function(*args, **keywords)
        if any(map(_is_foreign_module, args)):
            return function(*args, **keywords)
        return cached(*args, **keywords)

    return call


def _is_foreign_module(argument: Any) -> bool:
    kind = type(argument)
    is_module = hasattr(kind, "apply") and hasattr(kind, "init")
    return is_module and kind.__module__.partition(".")[0] != "jaxlab"


class Clock:
    """A clock, in seconds, that is stopped while JAX compiles.

    `compile_seconds` is the total time for which it was stopped: JAX traced a function,
    compiled it, or loaded a program from the cache.
    """

    def __init__(self):
        """Start to listen to JAX's compilation events."""
        import jax

        self.compile_seconds = 0.0
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def __call__(self) -> float:
        """Return the time; only the difference of two times is meaningful."""
        return time.perf_counter() - self.compile_seconds

    def close(self) -> None:
        """Stop listening; the time no longer stands still."""
        import jax

        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        own = threading.get_ident() == self._thread
        if own and event.startswith("/jax/core/compile/"):
            self.compile_seconds += duration_secs
