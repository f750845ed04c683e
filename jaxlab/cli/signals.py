"""Handling of SIGINT and SIGTERM so that a stopped run loses no training step.

The first signal immediately interrupts work that can be repeated. During training it is
deferred until the current step is finished and saved. The second signal ends the
process immediately.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised when a signal stops the process; `exit_code` is 128 + signal number."""

    def __init__(self, number: int):
        """Store the exit code for the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_received: int | None = None
_next_handlers: dict[int, Any] = {}  # of the second signal; by default the system's
_deferred = False


@contextlib.contextmanager
def installed(*, second_ends: bool = True) -> Iterator[None]:
    """Raise Stopped in the main thread when a signal arrives in the `with` block.

    Python prints and ignores exceptions that are raised in a destructor or a callback
    of the garbage collector. A Stopped that is ignored there is not printed, but raised
    again at the end of the block.

    A second signal ends the process, unless `second_ends` is False: then it is handled
    as before the block, so that it does not end a notebook's kernel.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only
        return
    global _received, _next_handlers
    _received = None
    print_unraisable, dropped = sys.unraisablehook, []

    def keep(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            dropped.append(unraisable.exc_value.exit_code)
        else:
            print_unraisable(unraisable)

    sys.unraisablehook = keep
    # An ignored signal stays ignored, as SIGINT in a shell's background jobs.
    before: dict[int, Any] = {n: signal.getsignal(n) for n in _SIGNALS}
    _next_handlers = {} if second_ends else before
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
        if dropped:
            check()
    finally:
        _received = None
        sys.unraisablehook = print_unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defer a signal in the `with` block and raise Stopped at the end of the block.

    The yielded function returns whether a signal was received. If blocks are nested,
    Stopped is raised at the end of the outermost one. A signal that was received before
    the block does not raise again, so that the code that saves after it can finish.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: _received is not None  # signals arrive in the main thread only
        return
    global _deferred
    within, before = _deferred, _received
    _deferred = True
    try:
        yield lambda: _received is not None
    finally:
        _deferred = within
    if before is None and _received is not None and not within:
        raise Stopped(_received)


def check() -> None:
    """Raise Stopped if a signal was received, even if it has raised Stopped before."""
    if _received is not None:
        raise Stopped(_received)


def _handle(number: int, frame) -> None:
    global _received
    _received = number
    for each in _SIGNALS:
        if signal.getsignal(each) is _handle:
            signal.signal(each, _next_handlers.get(each, signal.SIG_DFL))
    if not _deferred:
        raise Stopped(number)
