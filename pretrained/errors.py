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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural but for 1.

    >>> counted(1, "class"), counted(1200, "class"), counted(0, "image")
    ('1 class', '1,200 classes', '0 images')
    """
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}"


def install(extra: str) -> str:
    """Return what to do for a missing optional package.

    jaxlab is in no package index: it is installed from its clone.
    """
    return f"run pip install -e '.[{extra}]' in the folder of jaxlab's pyproject.toml"
