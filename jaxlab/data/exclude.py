"""List the files of a folder that cannot be used, and leave out listed files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlab.data.files import Found, listed, relative
from jaxlab.errors import InputError, UsageError
from pretrained.errors import counted, one_line

_MARK = "  # "  # between a name and its reason; a name as shown has no two spaces


def _line(name: str, reason: str) -> str:
    """Return the line of a list for a file, as `Exclusion` reads it."""
    # A line that begins so would be a comment, or a warning on the terminal.
    prefix = "./" if name.startswith(("#", "warning")) else ""
    return f"{prefix}{name}{_MARK}{reason}"


def lines_of(
    problems: Mapping[str, Sequence[str]], reasons: Mapping[str, str]
) -> list[str]:
    """Return the lines of a list of all problems: files, and as comments the others.

    `problems` maps each kind to names, and `reasons` a name to a longer text than its
    kind.
    """
    files, others = [], []
    for kind, names in problems.items():
        # A class is not left out by a list of files.
        if kind.startswith(("class", "single class")):
            others += [f"# {kind}: {name}" for name in names]
        else:
            files += [_line(name, reasons.get(name, kind)) for name in names]
    return [*sorted(files), *others]


class Exclusion:
    """The files of a folder that are left out, because a list names them.

    A line of the list is a name relative to the folder, and perhaps a reason behind a
    tab or behind two spaces and "#"; lines that begin with "#" are comments.
    """

    def __init__(self, root: Path, file: str | None):
        """Read the list; None leaves out nothing. Raises UsageError without a file."""
        self.root, self.file = root, file
        self.left_out: set[Path] = set()
        self._names: set[str] = set()
        self._found: set[str] = set()
        if file is None:
            return
        try:
            # Names are bytes of any kind; those that are not UTF-8 are kept.
            text = Path(file).read_text("utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise UsageError(
                f"--exclude: {file}: {error.strerror}; pass a text file with a name on "
                "each line, as --check prints them"
            ) from error
        for line in text.split("\n"):
            name = line.split("\t")[0].split(_MARK)[0].strip()
            if name and not name.startswith("#"):
                self._names.add(name.removeprefix("./"))

    def has(self, path: Path) -> bool:
        """Return whether a file is left out: by its name, or as a message shows it."""
        if not self._names:
            return False
        matched = {str(path.relative_to(self.root)), relative(path, self.root)}
        matched &= self._names
        self._found |= matched
        if matched:
            self.left_out.add(path)
        return bool(matched)

    def without(self, found: Found) -> Found:
        """Return what a folder holds without what is left out."""
        return found._replace(
            files=[path for path in found.files if not self.has(path)],
            unusable=[each for each in found.unusable if not self.has(each.path)],
        )

    def require_all(self) -> None:
        """Raise InputError if the list names files that were not asked for."""
        missing = sorted(self._names - self._found)
        if missing:
            shown = listed(one_line(name)[:100] for name in missing)
            raise InputError(
                f"--exclude: {self.file} names {counted(len(missing), 'file')} that "
                f"{self.root} does not contain: {shown}; correct or remove these "
                "lines"
            )

    def __str__(self) -> str:
        """Return how many files are left out."""
        count = len(self.left_out)
        return (
            f"{self.root}: {counted(count, 'file')} named in {self.file} "
            f"{'is' if count == 1 else 'are'} left out"
        )
