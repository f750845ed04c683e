"""Terminal output: exit codes, one-line errors, progress bars and log lines."""

import contextlib
import errno
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlab.cli import signals
from jaxlab.errors import JaxlabError, in_python
from pretrained import console, stages
from pretrained.errors import WeightsError, one_line, printable

if TYPE_CHECKING:
    from tqdm import tqdm


def run(main: Callable[[], Any]) -> int:
    """Run a command's main function and return the exit code.

    An error is printed to stderr as one line, with `--debug` after its traceback. What
    nobody foresaw is one line too, which names the stage; it is caught here and nowhere
    else. Exit codes: 0 success, 1 failure, 2 usage error, 3 invalid input, 4 failed
    download or checksum mismatch, 5 checkpoint error, 130 and 143 stopped by SIGINT and
    SIGTERM, 141 stdout closed by its reader.
    """
    console.open_streams()
    stages.start()
    # Figures are written to files, in matplotlib's default style. A notebook exports
    # the name of a backend to its commands, whose package they may lack.
    own = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    before = {name: os.environ.get(name) for name in own}
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.update(own)
    try:
        return _outcome(main)
    finally:
        console.finish()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outcome(main: Callable[[], Any]) -> int:
    try:
        with signals.installed():
            try:
                main()
            finally:
                show_status("")
            stages.begin("exiting")
            sys.stdout.flush()
        return 0
    except JaxlabError as error:
        return _report(error, error.text, error.exit_code)
    except WeightsError as error:
        return _report(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        console.say(interruption())
        return getattr(error, "exit_code", 130)
    except SystemExit:  # of --help
        raise
    except BaseException as error:  # Rust's panics are no Exception
        if isinstance(error, BrokenPipeError) and console.reader_is_gone():
            return 141  # end quietly, as other tools do
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            where = error.filename or f"while {stages.current()}"
            why = error.strerror or error
            return _report(error, f"{where}: {why}; {_advice(error)}", 3)
        return _report(error, console.unforeseen(error, "--debug" in sys.argv), 1)


def interruption() -> str:
    """Return the line for an interrupted command: what is saved, and how to go on."""
    return one_line(f"interrupted while {stages.current()}: {stages.saved()}")


def _advice(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files, as by ulimit -n 1024"
    return "check the path, its permissions and the free space"


def progress_bar(
    total: int,
    label: str,
    unit: str = "image",
    *,
    shown: bool = True,
    eta: bool = True,
) -> "tqdm":
    """Return a tqdm bar on stderr, shown only on a terminal and in a notebook.

    It ends with the time until it is full, unless `eta` is False: then the caller
    appends the time until the end of something larger.
    """
    from tqdm import tqdm

    show_status("")  # the bar says what is waited for
    # With loss, accuracy and ETA appended, the bar fits 80 columns.
    bar, ending = ("{bar:10}", ", ETA {remaining}") if eta else ("{bar:6}", "{postfix}")
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        leave=False,
        disable=not (shown and bars_are_shown()),
        bar_format="{desc} {percentage:3.0f}%|" + bar + "| {rate_noinv_fmt}" + ending,
    )


def bars_are_shown() -> bool:
    """Return whether stderr can show lines that change: a terminal, or a notebook."""
    try:
        return _is_notebook() or sys.stderr.isatty()
    except (AttributeError, ValueError):  # it is missing, or closed
        return False


def _is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    A process that only starts kernels, or has IPython for something else, is none.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


_status: list["tqdm"] = []  # the status line, if one is shown


def show_status(text: str) -> None:
    """Show on a terminal what is waited for, until the next status or progress bar."""
    main = threading.current_thread() is threading.main_thread()
    with signals.deferred() if main else contextlib.nullcontext():
        with contextlib.suppress(IndexError):  # none is shown
            _status.pop().close()
        if text and bars_are_shown():
            from tqdm import tqdm

            _status.append(tqdm(desc=text, bar_format="{desc}", leave=False))


def log(line: str) -> None:
    """Print a line above the progress bars: a warning to stderr, others to stdout."""
    from tqdm import tqdm

    stream = sys.stderr if line.startswith("warning") else sys.stdout
    main = threading.current_thread() is threading.main_thread()
    # A warning that cannot be shown must not end a run.
    passed_over = (OSError,) if stream is sys.stderr else ()
    with (
        # If Stopped is raised while tqdm handles its lock, tqdm raises another error.
        signals.deferred() if main else contextlib.nullcontext(),
        contextlib.suppress(*passed_over),
        # Progress bars, also of other threads, are hidden while the line is printed.
        tqdm.external_write_mode(stream),
    ):
        print(printable(line), file=stream, flush=True)


class Console(NamedTuple):
    """Where a job reports: a function for each line, and one for progress bars.

    `shown` is False if it reports nowhere; then the packages that it calls must not
    print either.
    """

    log: Callable[[str], None]
    progress: Callable[..., Any]
    shown: bool = True

    def wait(self, stage: str, line: str | None = None) -> None:
        """Begin a stage, and say so: in a status line, or by a `line` if there is none.

        A line is logged only if one is given: before the line about the data, which is
        the first one, there is none.
        """
        stages.begin(stage)
        if self.shown and bars_are_shown():
            show_status(f"{line or stage} …")
        elif line is not None:
            self.log(f"{line} …")


SHELL = Console(log, progress_bar)
PYTHON = Console(lambda line: log(in_python(line)), progress_bar)
SILENT = Console(
    lambda line: None, functools.partial(progress_bar, shown=False), shown=False
)


def _report(error: BaseException, message: str, code: int) -> int:
    if "--debug" in sys.argv:
        console.show(error)
    console.say(f"error: {one_line(message)}")
    return code
