"""What a command can report in one line; each class names its exit code.

A message reads `WHAT: why; what to do`.
"""


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


class NetworkError(JaxlabError):
    """Something that needs a network, and there is none."""

    exit_code = 4
