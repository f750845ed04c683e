"""Errors that a command reports in one line; each class defines its exit code.

A message has the form `WHAT: why; what to do`.
"""

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pretrained.errors import one_line

_CLOSE = 0.83  # a ratio of difflib's; two swapped letters of six leave as much
_SHORT = 5  # letters; one wrong letter of a short name leaves a smaller ratio
MAX_SHOWN = 60  # characters of a value in a message

# A setting in a message, as on the command line. The flags of pip are none.
_SETTING = re.compile(
    r"pip install (?:--\S+ )?|(?<![\w-])--(no-)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?=(:)?)"
)
# How to resume a run, with its folder as shlex.quote writes it.
_RESUME = re.compile(r"""--resume --out ((?:[\w@%+=:,./-]|'[^']*'|"'")+)""", re.ASCII)
# What a flag is called where a function's argument has another name.
_ARGUMENTS = {"load_data": {"dataset": "source"}, "create_model": {"model": "name"}}
_SWITCHES = {
    "check": "check=True",
    "crop": "crop=True",
    "debug": "debug=True",
    "offline": "offline=True",
    "overwrite": "overwrite=True",
    "resume": "resume='last'",
}


class JaxlabError(Exception):
    """Base class; a command prints `text` as one line instead of a traceback.

    A message is written as the command line spells settings, for example
    `--batch-size`. `str` spells them as in Python: `batch_size`, and names the help of
    the function that was called (see `help_of`). `exit_code` is that of the command.

    >>> import jaxlab
    >>> try:
    ...     jaxlab.Config(batch_size=0)
    ... except jaxlab.JaxlabError as error:
    ...     print(f"{error} (exit code {error.exit_code})")
    batch_size: 0 is out of range; pass a number that is at least 1 (exit code 2)
    """

    exit_code = 1
    function: str | None = None  # a public name, whose help explains the arguments

    @property
    def text(self) -> str:
        """The message as the command line prints it."""
        return self.args[0]

    def __str__(self) -> str:
        """Return the message with the settings spelled as in Python."""
        return in_python(self.text, self.function or "Config")


class UsageError(JaxlabError):
    """A flag or setting is invalid."""

    exit_code = 2


class InputError(JaxlabError):
    """Data, or a package that data come from, are missing or unusable."""

    exit_code = 3


class DivergedError(JaxlabError):
    """The loss of a training run is not finite."""


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


@contextlib.contextmanager
def help_of(function: str) -> Iterator[None]:
    """Make the errors of a block or a decorated function refer to a function's help.

    `function` is a public name of jaxlab. Of several blocks, the innermost decides.
    """
    try:
        yield
    except JaxlabError as error:
        error.function = error.function or function
        raise


def in_python(text: str, function: str = "Config") -> str:
    """Return a message with its flags spelled as arguments of a Python call.

    `--help` becomes the help of `function`, a public name of jaxlab.

    >>> in_python("--lr: -1 is out of range; pass a number that is above 0")
    'lr: -1 is out of range; pass a number that is above 0'
    >>> in_python("--out: runs/a is not empty; pass another folder, or --overwrite")
    'out: runs/a is not empty; pass another folder, or overwrite=True'
    >>> in_python("to continue, pass --resume --out runs/a")
    'to continue, pass jaxlab.fine_tune(resume="last", out="runs/a")'
    """

    def spelled(match: re.Match) -> str:
        negation, name, is_subject = match.groups()
        if name is None:
            return match[0]  # a command of the shell
        argument = name.replace("-", "_")
        argument = _ARGUMENTS.get(function, {}).get(argument, argument)
        if is_subject:
            return argument
        if argument == "help":
            return f"help(jaxlab.{function})"
        return f"{argument}=False" if negation else _SWITCHES.get(argument, argument)

    if match := _RESUME.search(text):
        before, after = text[: match.start()], text[match.end() :]
        (folder,) = shlex.split(match[1])
        call = f'jaxlab.fine_tune(resume="last", out={_literal(folder)})'
        return in_python(before, function) + call + in_python(after, function)
    text = text.replace("--resume without a step", "--resume")
    text = text.replace("step to --resume", "step to resume")
    return _SETTING.sub(spelled, text).replace(": unknown flag", ": unknown setting")


def _literal(text: str) -> str:
    """Return a string of Python, in double quotes where it contains none."""
    single = repr(text)
    return single if '"' in single else f'"{single[1:-1]}"'


def did_you_mean(
    name: str, known: Sequence[str], synonyms: Mapping[str, str] = {}
) -> str:
    """Return the end of an error message: the known name that was probably meant.

    `synonyms` maps names of other programs to known names. Case, hyphens, underscores
    and spaces do not count. Only a name that is almost the same is guessed by its
    spelling, since a wrong guess is worse than none, after which the message ends with
    a hint to --help.

    >>> did_you_mean("--learning_rate", ["--lr"], {"--learning-rate": "--lr"})
    '; did you mean --lr?'
    >>> did_you_mean("--dropout", ["--out"])
    '; see --help'
    """
    meant = closest(name, known, synonyms)
    return "; see --help" if meant is None else f"; did you mean {meant}?"


def closest(
    name: str, known: Sequence[str], synonyms: Mapping[str, str] = {}
) -> str | None:
    """Return the known name that was probably meant; see `did_you_mean`."""
    name = name.split("=")[0]
    meant = {each: each for each in known}
    meant = {**synonyms, **meant}
    by_letters = {_letters(each): each for each in meant}
    typed = _letters(name)
    for letters in difflib.get_close_matches(typed, by_letters, n=3, cutoff=0.75):
        found = by_letters[letters]
        ratio = difflib.SequenceMatcher(None, letters, typed).ratio()
        is_short = len(letters) == len(typed) <= _SHORT and letters[0] == typed[0]
        is_close = ratio >= _CLOSE or is_short
        # Another word makes another name, in contrast to another letter.
        is_opposite = typed in (f"un{letters}", f"no{letters}")
        if not is_close or is_opposite or _has_another_word(name, found):
            continue
        return meant[found]
    return None


def _has_another_word(name: str, found: str) -> bool:
    """Return whether a name has a word more than `found`, or another in its place."""
    words, known = _words(name), _words(found)
    if len(words) != len(known):
        return set(known) < set(words)
    return any(
        difflib.SequenceMatcher(None, word, other).ratio() < 0.75
        and sorted(word) != sorted(other)  # letters that were swapped
        for word, other in zip(words, known, strict=True)
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_\s]+", name.casefold()) if word]


def _letters(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.casefold())


def shown(value: Any) -> str:
    """Return a value as a message shows it: on one line, and not too long."""
    try:
        text = one_line(repr(value))
    except ValueError:  # Python prints no integer of over 4,300 digits
        text = "an integer of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
