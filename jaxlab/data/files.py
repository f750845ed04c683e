"""Find the picture files of a folder, and name everything that cannot be read.

Training and prediction find the same files. What systems, programs and jaxlab itself
leave in folders of pictures is skipped, and said if pictures are among it.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pretrained.errors import counted, one_line

EXAMPLES = 3  # names in a message
# Names that begin with a dot need not be listed: .DS_Store, .AppleDouble, ._a.jpg,
# .thumbnails, .@__thumb, .ipynb_checkpoints, .Trash-1000, .git.
_SYSTEM_NAMES = frozenset(
    # Windows
    ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin")
    + ("recycler", "recycled", "system volume information", "found.000")
    # macOS
    + ("__macosx", "icon\r", "network trash folder", "temporary items")
    # Linux and Android
    + ("lost+found", "lost.dir")
    # network storage of Synology, QNAP and others
    + ("@eadir", "@tmp", "@sharesnap", "@sharebin", "@synoresource", "@recycle")
    + ("@recently-snapshot", "#recycle", "#snapshot", "~snapshot")
    # editors of pictures, and Python
    + ("picasa.ini", "zbthumbnail.info", "captureone", "nksc_param", "__pycache__")
)
_RUN_FILES = ("config.json", "results.json")  # of a run, and of a run of the lab


class Unusable(NamedTuple):
    """A path that cannot be searched; `kind` groups such paths in a report."""

    path: Path
    kind: str


class Found(NamedTuple):
    """What a folder holds at any depth.

    `files` are sorted, and listed without being opened. `unusable` are folders that
    cannot be read and links that are not followed. `left_out` are the pictures among
    hidden and system files and in such folders, and `runs` are folders of runs.
    """

    files: list[Path]
    unusable: list[Unusable]
    left_out: list[Path]
    runs: list[Path]


def find_files(folder: Path, *, recursive: bool = True) -> Found:
    """Return the files in a folder, without hidden files, system files and runs.

    Links to folders are not followed, so that a loop of links ends. If `recursive` is
    False, its folders are not searched and not reported.
    """
    found = Found([], [], [], [])

    def report(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename or folder))
        found.unusable.append(Unusable(path, "unreadable folder"))

    for place, folders, names in os.walk(folder, onerror=report):
        searched = []
        for name in sorted(folders):
            path = Path(place, name)
            if is_litter(name):
                found.left_out.extend(_pictures_in(path))
            elif is_run(path):
                found.runs.append(path)
            elif not recursive:
                continue
            elif path.is_symlink():
                found.unusable.append(Unusable(path, "link to a folder"))
            else:
                searched.append(name)
        folders[:] = searched
        for path in (Path(place, name) for name in names):
            if is_litter(path.name):
                found.left_out.extend(_pictures_in(path))
            elif path.is_symlink() and not os.path.exists(path):
                found.unusable.append(Unusable(path, "broken link"))
            else:
                found.files.append(path)
    found.files.sort()
    return found


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden, or was left by a system or program.

    >>> is_litter("@eaDir"), is_litter("Thumbs.db"), is_litter("._a.jpg")
    (True, True, True)
    >>> is_litter("cat")
    False
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run of jaxlab, or contains only such ones.

    The second is the folder `runs/` of a command that was started in a data set.
    """
    if any(is_of_jaxlab(folder / name) for name in _RUN_FILES):
        return True
    contains_runs = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder or not is_run(Path(entry.path)):
                    return False
                contains_runs = True
    except OSError:  # it is reported when it is searched
        return False
    return contains_runs


def is_of_jaxlab(path: Path) -> bool:
    """Return whether a config.json or results.json was written by jaxlab."""
    try:
        # A pipe of this name would never end.
        return (
            os.path.isfile(path)
            and "jaxlab" in json.loads(path.read_text("utf-8"))["versions"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def log_skipped(root: Path, found: list[Found], log: Callable[[str], None]) -> None:
    """Log one line for the pictures that are left out, and one for the runs."""
    left_out = [path for each in found for path in each.left_out]
    runs = [path for each in found for path in each.runs]
    for noun, kind, paths in (
        ("picture", "among hidden files and those of systems and programs", left_out),
        ("folder", "with runs of jaxlab", runs),
    ):
        if paths:
            names = listed(relative(path, root) for path in paths)
            count = counted(len(paths), noun)
            log(f"warning: {root}: left out {count} {kind}: {names}")


def relative(path: Path, root: Path) -> str:
    """Return a file's name as messages and lists show it: relative, on one line."""
    return one_line(str(path.relative_to(root)))


def nfc(name: str) -> str:
    """Return a name in Unicode's normal form NFC, in which names are compared.

    macOS stores é as two characters, other systems as one.
    """
    return unicodedata.normalize("NFC", name)


def listed(names: Iterable[str]) -> str:
    """Return the first names, and an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def _pictures_in(path: Path) -> Iterable[Path]:
    """Yield the pictures in a hidden or system folder, or the file itself.

    Folders that cannot be read are passed over, as lost+found usually is. The files
    that begin with "._" are macOS's notes about the pictures beside them.
    """
    from jaxlab.data.pictures import ENDINGS  # `--help` must not wait for Pillow

    if path.is_symlink() or not os.path.isdir(path):
        if path.suffix.lower() in ENDINGS and not path.name.startswith("._"):
            yield path
        return
    for place, _, names in os.walk(path):
        for name in names:
            yield from _pictures_in(Path(place, name))
