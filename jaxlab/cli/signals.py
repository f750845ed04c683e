"""SIGINT and SIGTERM: a run ends where nothing is lost.

The first one breaks off at once what can be done again, and is deferred while training,
where the step under way is finished and saved. The second one ends the process.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `exit_code` is a shell's for it."""

    def __init__(self, number: int):
        """Keep the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_received: int | None = None
_deferred = False


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Within, a signal raises Stopped in the main thread.

    At the latest at the end: Python drops what is raised in a destructor or a callback
    of the garbage collector, and would print it.
    """
    global _received
    _received = None
    print_unraisable, dropped = sys.unraisablehook, []

    def keep(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            dropped.append(unraisable.exc_value.exit_code)
        else:
            print_unraisable(unraisable)

    sys.unraisablehook = keep
    # What ignores a signal, as a shell's background jobs do SIGINT, goes on to.
    before = {n: signal.getsignal(n) for n in _SIGNALS}
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
    """Within, a signal is only noted: the yielded function tells. Then, Stopped.

    Where one lies within another, after the outer one. A signal that has stopped
    something before does not do so again: who saves after it must be let.
    """
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
    """Raise Stopped if a signal was received, whatever became of the one it raised."""
    if _received is not None:
        raise Stopped(_received)


def _handle(number: int, frame) -> None:
    global _received
    _received = number
    for each in _SIGNALS:  # the second one is the system's
        if signal.getsignal(each) is _handle:
            signal.signal(each, signal.SIG_DFL)
    if not _deferred:
        raise Stopped(number)
