"""Terminal output: exit codes, one-line errors, progress bars and log lines."""

import contextlib
import functools
import io
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlab.cli import signals
from jaxlab.errors import JaxlabError, in_python
from pretrained.errors import WeightsError, one_line, printable

if TYPE_CHECKING:
    from tqdm import tqdm


def run(main: Callable[[], Any]) -> int:
    """Run a command's main function and return the exit code.

    An error is printed to stderr as one line, with `--debug` after its traceback.
    Exit codes: 0 success, 1 failure, 2 usage error, 3 invalid input, 4 failed download
    or checksum mismatch, 5 checkpoint error, 130 and 143 stopped by SIGINT and SIGTERM,
    141 stdout closed by its reader.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode shows ? for ×, so that the run does not fail.
        sys.stdout.reconfigure(errors="replace")
    try:
        with signals.installed():
            main()
            # It is None if the shell closed it; print does nothing then.
            if sys.stdout is not None:
                sys.stdout.flush()
        return 0
    except JaxlabError as error:
        return _report(error, error.text, error.exit_code)
    except WeightsError as error:
        return _report(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except BrokenPipeError:
        # The reader of stdout has exited, as in `| head`. End quietly, as other tools
        # do, and keep the interpreter from flushing to the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = error.filename or "a file"
        advice = "check the path, its permissions and the free space"
        return _report(error, f"{where}: {error.strerror or error}; {advice}", 3)


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
    with (
        # If Stopped is raised while tqdm handles its lock, tqdm raises another error.
        signals.deferred() if main else contextlib.nullcontext(),
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
        traceback.print_exception(error)
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
