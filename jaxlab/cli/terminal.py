"""The terminal: exit codes, one-line errors, progress bars, and lines beside them."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxlab.cli import signals
from jaxlab.errors import JaxlabError
from pretrained.errors import WeightsError, one_line

if TYPE_CHECKING:
    from tqdm import tqdm


def run(main: Callable[[], Any]) -> int:
    """Run a command's main; return its exit code, with one line on stderr for an error.

    Codes: 0 done, 1 failed, 2 usage, 3 bad input, 4 network or hash, 5 checkpoint, 130
    and 143 stopped by SIGINT and SIGTERM, 141 stdout closed by its reader. `--debug`
    shows the traceback before the line.
    """
    # stdout is None where the shell closed it; print then does nothing.
    if sys.stdout is not None:
        # A terminal without Unicode gets ? for ×, instead of a run that breaks off.
        sys.stdout.reconfigure(errors="replace")
    try:
        with signals.installed():
            main()
            if sys.stdout is not None:
                sys.stdout.flush()
        return 0
    except (JaxlabError, WeightsError) as error:
        return _report(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except BrokenPipeError:
        # The reader of stdout is gone (`| head`): end quietly, as other tools do, and
        # keep the interpreter from flushing into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = error.filename or "a file"
        advice = "check the path, its permissions and the free space"
        return _report(error, f"{where}: {error.strerror or error}; {advice}", 3)


def progress_bar(total: int, label: str, unit: str = "image") -> "tqdm":
    """Return a tqdm bar on stderr, which shows on a terminal only."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        leave=False,
        disable=None,
        # Short enough for 80 columns with a loss, an accuracy and a rate behind it.
        bar_format="{desc} {percentage:3.0f}%|{bar:12}| {rate_noinv_fmt}{postfix}",
    )


def log(line: str) -> None:
    """Print a line beside the bars that are shown: on stderr for a warning."""
    from tqdm import tqdm

    stream = sys.stderr if line.startswith("warning") else sys.stdout
    main = threading.current_thread() is threading.main_thread()
    with (
        # Stopped amid what tqdm does about its lock would become an error of tqdm's.
        signals.deferred() if main else contextlib.nullcontext(),
        # A bar, which may be another thread's, is taken away for the line.
        tqdm.external_write_mode(stream),
    ):
        print(one_line(line), file=stream, flush=True)


def _report(error: BaseException, message: str, code: int) -> int:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
