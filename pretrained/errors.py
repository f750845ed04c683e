"""Exceptions for weights files; `exit_code` is the exit code of a failed command."""


class WeightsError(ValueError):
    """Raised if weights are missing, unreadable, unwritable, or not those expected."""

    exit_code = 3


class IntegrityError(WeightsError):
    """Raised if the bytes of a file are not the published ones."""

    exit_code = 4


class DownloadError(WeightsError):
    """Raised if a file cannot be downloaded, or the cache cannot be used."""

    exit_code = 4


def one_line(message: str) -> str:
    """Return a message on one line, with "?" for each unprintable character."""
    return printable(" ".join(message.split()))


def printable(text: str) -> str:
    """Return a text with "?" for each unprintable character, such as a newline."""
    return "".join(c if c.isprintable() else "?" for c in text)
