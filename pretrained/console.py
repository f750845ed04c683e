"""What every command needs at its outermost frame: streams, and the last error line.

A service or a window without a console starts commands with closed streams, a notebook
with streams that are no files, and a pipe closes them while they are written to.
"""

import contextlib
import os
import select
import sys
import traceback
from pathlib import Path

from pretrained import stages
from pretrained.errors import one_line

ERROR_LOG = "error.log"  # in the folder of a run
_MOST = 200  # characters of another library's message


def open_streams() -> None:
    """Make stdout and stderr writable, whatever the process was started with.

    Closed ones discard what is written. Otherwise the next file that is opened would
    take their number, and the messages of libraries would be written into it. A stdout
    that is not a terminal is UTF-8 in every locale; a terminal that lacks a character
    shows "?" instead.
    """
    if os.name == "posix":
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream lacks it
        encoding = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="replace")


def say(line: str) -> None:
    """Print a line to stderr, if that is possible: the exit code says it as well."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def show(error: BaseException) -> None:
    """Print a traceback to stderr, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exception(error)


def reader_is_gone() -> bool:
    """Return whether the reader of stdout or stderr has closed it, as `| head` does."""
    if not hasattr(select, "poll"):
        return True  # on Windows, these are almost the only pipes
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def finish() -> None:
    """Write what is buffered for both streams, or discard what cannot be written.

    The interpreter would print a traceback and change the exit code as it ends.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def unforeseen(error: BaseException, debug: bool) -> str:
    """Return the line for an error that nobody foresaw, and write its traceback.

    The line names the stage and the error. The traceback is written to `error.log` in
    the run's folder, if the run has one already; `debug` says that it is shown anyway.
    """
    name, text = type(error).__name__, one_line(str(error))
    text = text if len(text) <= _MOST else f"{text[:_MOST]}…"
    what = f"while {stages.current()}: {name}" + (f": {text}" if text else "")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        advice = "there is too little memory; end other programs, or use fewer images"
    else:
        advice = "this is a fault of the program"
        advice += "" if debug else "; run again with --debug to see where"
    log = _written(error)
    return f"{what}; {advice}" + (f"; details in {log}" if log else "")


def _written(error: BaseException) -> Path | None:
    folder = stages.folder()
    if folder is None or not folder.is_dir():
        return None
    path = folder / ERROR_LOG
    try:
        text = "".join(traceback.format_exception(error))
        path.write_text(text, "utf-8", "backslashreplace")
    except OSError:  # the disk may be what failed
        return None
    return path
