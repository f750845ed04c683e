"""The environment that results depend on: JAX's settings, variables and versions.

What can be set for the duration of a command is pinned to JAX's own values, so that the
environment cannot change results; what cannot is recorded.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxlab.errors import UsageError, closest, shown
from pretrained.errors import one_line

# The packages whose versions can change a result.
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
# JAX's defaults of settings that change results and that no context manager sets.
_OWN_VALUES = {
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_check_tracer_leaks": False,
}
# They are read when the compiler or a library of the device is loaded.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def import_jax() -> None:
    """Import JAX; raises UsageError if it or XLA refuses the value of a variable."""
    if flags := os.environ.get("XLA_FLAGS"):
        _check_xla(flags)
    try:
        import jax  # noqa: F401
    except ValueError as error:
        # JAX reads its variables when it is imported. The message names the variable,
        # or the setting of the same name.
        named = re.search(r"jax_[a-z0-9_]+", str(error), re.IGNORECASE)
        name = named[0].upper() if named else ""
        if name not in os.environ:
            raise
        raise UsageError(
            f"{name}: JAX does not accept {os.environ[name]!r}; unset it, or set it to "
            "a value that JAX's documentation names"
        ) from error


def warn_of_misspelt_variables(log: Callable[[str], None]) -> None:
    """Log a warning for each variable whose name is almost that of one of JAX's."""
    import jax

    known = [setting.upper() for setting in jax.config.values]
    for name in os.environ:
        if not name.startswith("JAX_") or name in known:
            continue
        # JAX has variables that are no settings, so only what looks misspelt is named.
        if meant := closest(name, known):
            log(
                f"warning: {name}: JAX has no such variable and ignores it; did you "
                f"mean {meant}?"
            )


@functools.cache
def _check_xla(flags: str) -> None:
    """Raise UsageError for flags that XLA refuses; it would end this process.

    XLA reads them once, when its first options are created, here in another process.
    """
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if process.returncode:
        # The line of a fatal error: "F1126 04:42:01.798728 4109 file.cc:171] Message".
        fatal = re.search(r"^F\d{4} .*?\] (.*)", process.stderr, re.MULTILINE)
        why = fatal[1] if fatal else f"exit code {process.returncode}"
        raise UsageError(
            f"XLA_FLAGS: XLA does not accept {shown(flags)}: {one_line(why)[:200]}; "
            "unset it, or correct it"
        )


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Use JAX's own values of the settings that change results, in this thread.

    The environment or the caller may have set others, with which the same config would
    give another model, or none. They are in effect again after the block.
    """
    import jax

    now = jax.config.values
    globally = {name: own for name, own in _OWN_VALUES.items() if now[name] != own}
    before = {name: now[name] for name in globally}
    with contextlib.ExitStack() as stack:
        stack.callback(_update, before)
        _update(globally)
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.default_prng_impl("threefry2x32"))
        stack.enter_context(jax.threefry_partitionable(True))
        stack.enter_context(jax.default_matmul_precision(None))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.disable_jit(False))
        stack.enter_context(jax.softmax_custom_jvp(False))
        stack.enter_context(jax.enable_custom_prng(False))
        stack.enter_context(jax.legacy_prng_key("allow"))
        # These stop or slow down a program, as its own checks need not.
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.debug_key_reuse(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield


def _update(settings: Mapping[str, Any]) -> None:
    import jax

    for name, value in settings.items():
        jax.config.update(name, value)


def recorded(device: str) -> dict[str, Any]:
    """Return what results depend on besides a config: for the record of a run."""
    return {"device": device, "versions": versions(), "variables": variables()}


def variables() -> dict[str, str]:
    """Return the variables that change results and cannot be pinned; "" if unset."""
    return {name: os.environ.get(name, "") for name in _VARIABLES}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **installed}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a copy of its source is run
        return getattr(sys.modules.get(package), "__version__", "unknown")
