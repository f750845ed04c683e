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
            main()
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
    total: int, label: str, unit: str = "image", *, shown: bool = True
) -> "tqdm":
    """Return a tqdm bar on stderr, shown only on a terminal and in a notebook."""
    from tqdm import tqdm

    # tqdm itself checks for a terminal if `disable` is None.
    disable = None if shown else True
    if shown and "ipykernel" in sys.modules:
        disable = False
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        leave=False,
        disable=disable,
        # With loss, accuracy and learning rate appended, the bar fits 80 columns.
        bar_format="{desc} {percentage:3.0f}%|{bar:12}| {rate_noinv_fmt}{postfix}",
    )


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
