"""Errors that a command reports in one line; each class defines its exit code.

A message has the form `WHAT: why; what to do`.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

# A setting in a message, as on the command line. The flags of pip are none.
_SETTING = re.compile(
    r"pip install (?:--\S+ )?|(?<![\w-])--(no-)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?=(:)?)"
)
_SWITCHES = {
    "crop": "crop=True",
    "debug": "debug=True",
    "help": "help(jaxlab.Config)",
    "offline": "offline=True",
    "overwrite": "overwrite=True",
    "resume": "resume='last'",
}


class JaxlabError(Exception):
    """Base class; a command prints `text` as one line instead of a traceback.

    A message is written as the command line spells settings, for example
    `--batch-size`. `str` spells them as in Python: `batch_size`. `exit_code` is that of
    the command.

    >>> import jaxlab
    >>> try:
    ...     jaxlab.Config(batch_size=0)
    ... except jaxlab.JaxlabError as error:
    ...     print(f"{error} (exit code {error.exit_code})")
    batch_size: 0 is out of range; pass a number that is at least 1 (exit code 2)
    """

    exit_code = 1

    @property
    def text(self) -> str:
        """The message as the command line prints it."""
        return self.args[0]

    def __str__(self) -> str:
        """Return the message with the settings spelled as in Python."""
        return in_python(self.text)


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


def in_python(text: str) -> str:
    """Return a message with its flags spelled as arguments of a Python call.

    >>> in_python("--lr: -1 is out of range; pass a number that is above 0")
    'lr: -1 is out of range; pass a number that is above 0'
    >>> in_python("--out: runs/a is not empty; pass another folder, or --overwrite")
    'out: runs/a is not empty; pass another folder, or overwrite=True'
    """

    def spelled(match: re.Match) -> str:
        negation, name, is_subject = match.groups()
        if name is None:
            return match[0]  # a command of the shell
        argument = name.replace("-", "_")
        if is_subject:
            return argument
        return f"{argument}=False" if negation else _SWITCHES.get(argument, argument)

    return _SETTING.sub(spelled, text).replace(": unknown flag", ": unknown setting")


def did_you_mean(
    name: str, known: Sequence[str], synonyms: Mapping[str, str] = {}
) -> str:
    """Return the end of an error message: the known name that was probably meant.

    `synonyms` maps names of other programs to known names. Without a similar name, the
    message ends with a hint to --help.
    """
    name = name.split("=")[0]
    close = difflib.get_close_matches(name, [*synonyms, *known], n=1)
    if not close:
        return "; see --help"
    return f"; did you mean {synonyms.get(close[0], close[0])}?"
