"""The process under a run: JAX's device, its memory, its compiled programs."""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import filelock

from jaxlab.errors import JaxlabError
from pretrained.disk import cache_folder
from pretrained.errors import one_line

# Whose versions a result may depend on.
_PACKAGES = (
    "jaxlab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "pillow",
    "safetensors",
)
COMPILED_BYTES = 1 << 30  # of compiled programs kept; a run leaves about 1 MB

_MEMORY_UNKNOWN = 8 << 30  # bytes: what a system without sysconf is taken to have

# glibc's numbers for mallopt, of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def set_up() -> str:
    """Make JAX ready for a command; return the name of the device it computes on.

    Programs compiled once are kept in the cache folder and memory once used in the
    process. To be called before JAX is imported, whose threads take their share of
    memory then. Raises JaxlabError when the device that JAX_PLATFORMS asks for is not
    there.
    """
    _keep_freed_memory()

    try:
        device = device_name()
    # JAX asserts, without a word, where the platform asked for has no plugin installed.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise JaxlabError(
            f"JAX: found no device for JAX_PLATFORMS={asked}: "
            f"{str(error) or 'its plugin is not installed'}; unset it, or for an "
            "NVIDIA GPU pip install 'jaxlab[cuda]'"
        ) from error
    _keep_compiled_programs()
    return device


def device_name() -> str:
    """Return what JAX computes on; of a CPU also the model, which decides last bits."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{kind} ({processor()})" if jax.default_backend() == "cpu" else kind


@functools.cache  # the system asks every core for each line
def processor() -> str:
    """Return the CPU's model and its widest instructions, where the system tells."""
    if not os.path.exists("/proc/cpuinfo"):
        return platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    # Fields are padded with tabs.
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    sets = {"avx512f": "AVX-512", "avx2": "AVX2"}
    flags = fields.get("flags", "").split()
    widest = next((f" with {sets[flag]}" for flag in sets if flag in flags), "")
    return fields.get("model name", platform.machine()) + widest


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **installed}


def memory_bytes() -> int:
    """Return the memory of JAX's device: its own, or on a CPU the machine's."""
    import jax

    # A CPU has no statistics.
    own = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in own:
        return own["bytes_limit"]
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _MEMORY_UNKNOWN


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, instead of giving it back each time.

    XLA allocates the intermediate results of every call anew; glibc maps and unmaps
    blocks of such sizes, and the system clears each page again. That was a fourth of
    the time of a step. The peak grows by a few hundred MB, and stays.
    """
    if os.name != "posix":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, with its own ways
        return
    mallopt(_M_ARENA_MAX, 1)  # the others map and unmap whatever is set below
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never; the largest number would mean 2 GB


def _keep_compiled_programs() -> None:
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return  # the user's own
    folder = cache_folder() / "compiled"
    try:
        # For the owner only: what lies here is run.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        _remove_unfinished(folder)
    except OSError as error:
        print(
            one_line(
                f"warning: {folder}: {error.strerror}; compiled programs are not kept "
                "for the next run; set JAXLAB_HOME to a folder that can be written"
            ),
            file=sys.stderr,
        )
        return
    # A full disk is said by whoever must write; a program is compiled again.
    warnings.filterwarnings("ignore", "Error .*ing persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _remove_unfinished(folder: Path) -> None:
    """Remove compiled programs whose writing broke off: JAX never replaces an entry.

    It writes `KEY-cache` and then `KEY-atime`, holding `.lockfile`. (One that a process
    reads which is running already gets its `-atime` by that, and stays.)
    """
    with (
        contextlib.suppress(filelock.Timeout),
        filelock.FileLock(folder / ".lockfile", timeout=10),
    ):
        for entry in folder.glob("*-cache"):
            if not folder.joinpath(f"{entry.name.removesuffix('cache')}atime").exists():
                entry.unlink()


class Clock:
    """A clock, in seconds, that stands still while JAX compiles.

    `compile_seconds` is how long it stood so far: tracing, compiling, or taking a
    program from the cache.
    """

    def __init__(self):
        """Start to listen to JAX."""
        import jax

        self.compile_seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def __call__(self) -> float:
        """Return the time; only differences have a meaning."""
        return time.perf_counter() - self.compile_seconds

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compile_seconds += seconds
