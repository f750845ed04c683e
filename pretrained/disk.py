"""Writing a file so that it is there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pretrained.errors import WeightsError

# Asked for once: to ask is to set it, for all threads that create files meanwhile.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield where to write a file; it takes the place of `path`, or is removed.

    A process that dies meanwhile leaves a folder beside the file, of its name, some
    letters and `.partial`. Raises OSError, which names `path`, when the file system
    refuses.
    """
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f"{path.name}.", suffix=".partial"
        ) as folder:
            partial = Path(folder, path.name)
            yield partial
            # Its writer may have created it for its owner only.
            partial.chmod(0o666 & ~_UMASK)
            partial.replace(path)
    except OSError as error:  # of writing names the other file, or none
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def atomic_write_weights(path: str | os.PathLike) -> Iterator[Path]:
    """`atomic_write`, but that it raises WeightsError, with the remedy."""
    try:
        with atomic_write(path) as partial:
            yield partial
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be written: {error.strerror}; check the folder and the "
            "free space"
        ) from error
