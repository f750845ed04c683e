"""What a command can report in one line; each class names its exit code.

A message reads `WHAT: why; what to do`.
"""

import difflib
from collections.abc import Sequence


class JaxlabError(Exception):
    """The family; a command prints it as one line instead of a traceback."""

    exit_code = 1


class UsageError(JaxlabError):
    """A flag or setting that cannot be used."""

    exit_code = 2


class InputError(JaxlabError):
    """Data, or a package that carries data, that is absent or unusable."""

    exit_code = 3


class CheckpointError(JaxlabError):
    """A checkpoint that cannot be written, or cannot be resumed from."""

    exit_code = 5


class CorruptionError(JaxlabError):
    """Stored data that are not what was written: a checkpoint's, or features'.

    Whoever reads them says so and does without them.
    """

    exit_code = 3


class NetworkError(JaxlabError):
    """Something that needs a network, and there is none."""

    exit_code = 4


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of an error's line: the known name that was meant, or --help."""
    close = difflib.get_close_matches(name.split("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else "; see --help"
