"""Errors that a command reports in one line; each class defines its exit code.

A message has the form `WHAT: why; what to do`.
"""

import difflib
from collections.abc import Sequence


class JaxlabError(Exception):
    """Base class; a command prints the message as one line instead of a traceback."""

    exit_code = 1


class UsageError(JaxlabError):
    """A flag or setting is invalid."""

    exit_code = 2


class InputError(JaxlabError):
    """Data, or a package that data come from, are missing or unusable."""

    exit_code = 3


class CheckpointError(JaxlabError):
    """A checkpoint cannot be written, or a run cannot be resumed from it."""

    exit_code = 5


class CorruptionError(JaxlabError):
    """A stored checkpoint or cached features differ from what was written.

    The caller logs a warning and continues without them, or raises CheckpointError.
    """

    exit_code = 3


class NetworkError(JaxlabError):
    """A network connection is needed, but is unavailable or forbidden by --offline."""

    exit_code = 4


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message: a similar known name, or a hint to --help."""
    close = difflib.get_close_matches(name.split("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else "; see --help"
