"""What can be wrong with weights; each class names the exit code of a command."""


class WeightsError(ValueError):
    """Weights that are absent, unreadable, or not what was asked for."""

    exit_code = 3


class IntegrityError(WeightsError):
    """A file whose bytes are not the published ones."""

    exit_code = 4


class DownloadError(WeightsError):
    """A file that could not be fetched."""

    exit_code = 4


def one_line(message: str) -> str:
    """Return a message for a terminal: no line breaks, no control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
