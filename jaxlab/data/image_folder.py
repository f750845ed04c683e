"""Load the user's own pictures from a folder with one subfolder for each class.

The layout is either `FOLDER/class/picture.jpg`, which is split by a fixed seed, or
`FOLDER/train/class/…` and `FOLDER/test/class/…`, and perhaps `FOLDER/val/class/…` (see
`jaxlab.data.layout` for other names). Before training every file
is read, decoded and hashed, and one error reports all problems. Only what
`jaxlab.data.files` knows is skipped: hidden and system files and folders, and runs.

It is one file because all checks of a folder end in one report.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab.data.dataset import Dataset, ProgressBar, Split, joined, no_progress
from jaxlab.data.duplicates import log_duplicates, look
from jaxlab.data.exclude import Exclusion, lines_of
from jaxlab.data.files import (
    Found,
    find_files,
    listed,
    log_skipped,
    nfc,
    relative,
)
from jaxlab.data.groups import groups_of
from jaxlab.data.layout import class_folders, split_folders
from jaxlab.data.pictures import (
    ENDINGS,
    Checked,
    are_kept,
    check_pictures,
    images_of,
)
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import check_fractions, content_order, split_examples
from jaxlab.errors import InputError, UsageError
from pretrained.errors import counted


class _File(NamedTuple):
    path: Path
    label: int
    split: str  # its split folder's, or "" if the folder is split by the seed


def load_folder(
    root: Path,
    preprocess: Preprocess,
    *,
    test_fraction: float,
    validation_fraction: float = 0.0,
    group: str | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    exclude: str | None = None,
    check: bool = False,
    progress: ProgressBar = no_progress,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Return the folder's pictures, resized by `preprocess`, in memory if they fit.

    The class names are the names of the class folders, sorted, in Unicode's normal form
    NFC. If the folder has no split of its own, `test_fraction` of each class is held
    out, always the same pictures, and `validation_fraction` of the rest. Pictures in
    whose paths the regular expression `group` finds the same text stay together.
    `progress` creates the progress bar for the files. `log` receives a warning
    for what is left out, for animated pictures, for pictures that are in two splits or
    classes, and for classes that are never tested. The `note` of the result names the
    split folders.

    The files that the list `exclude` names are left out, and a line says how many. If
    `check`, such a list of all unusable files goes to `log` before the error that
    counts them is raised.

    Raises InputError if the folder does not exist, has another layout, has too few
    pictures to split, or contains a file that is not a usable picture; the message
    lists all such files by kind. Raises UsageError if a split has fewer pictures than
    `train_size` or `test_size`, if `group` or a fraction is given for a folder that has
    such splits of its own, and if `group` separates nothing.
    """
    roots = split_folders(root)
    if group is not None and "" not in roots:
        raise UsageError(
            f"--group: {root} is split into folders already, which stay as they are; "
            "leave it out"
        )
    # Before every picture is decoded, and not only when the pictures are split.
    check_fractions(roots, test_fraction, validation_fraction)
    exclusion = Exclusion(root, exclude)
    class_names, files, problems = _scan(root, roots, exclusion, log)
    exclusion.require_all()
    list_line = log if check else None
    files, checked = _checked(root, files, problems, preprocess, progress, list_line)
    if exclude is not None:
        log(str(exclusion))
    labels = np.array([file.label for file in files], np.int32)
    names = [file.path.relative_to(root).as_posix() for file in files]
    groups = None
    if group is not None:
        groups = groups_of(root, names, labels, class_names, group, log)
    splits, notes = _split(
        root,
        files,
        labels,
        groups=groups,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        train_size=train_size,
        test_size=test_size,
    )
    animated = sum(result.animated for result in checked)
    if animated:
        count = counted(animated, "animated picture")
        log(f"warning: {count}: only the first frame is used")
    contents, looks = [each.content for each in checked], [e.look for e in checked]
    log_duplicates(names, labels, contents, looks, splits, log)
    measured = {"test": "tested", "validation": "validated"}
    if test_size is not None:  # so few may have been asked for
        del measured["test"]
    unit = "pictures" if groups is None else "groups"
    _log_unmeasured(class_names, labels, splits, measured, unit, log)

    paths = [file.path for file in files]
    parts = {
        name: Split(images_of(paths, checked, indices), labels[indices])
        for name, indices in splits.items()
    }
    return Dataset(
        name=str(root),
        train=parts["train"],
        test=parts["test"],
        validation=parts.get("validation"),
        class_names=class_names,
        resized=True,
        files={name: [names[i] for i in indices] for name, indices in splits.items()},
        note=joined([_note(root, roots), *notes]),
    )


def _split(
    root: Path, files: Sequence[_File], labels: np.ndarray, **how: Any
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the indices, int64[k], of each split, and notes about their choice.

    `how` is for `split_examples`. Raises InputError for a split without pictures.
    """
    members = defaultdict(list)
    for i, file in enumerate(files):
        members[file.split or "train"].append(i)
    sources = {name: np.array(indices) for name, indices in members.items()}
    chosen = split_examples(
        {name: labels[indices] for name, indices in sources.items()}, **how
    )
    splits = {name: sources[c.source][c.indices] for name, c in chosen.items()}
    for name, indices in splits.items():
        if not len(indices):
            raise InputError(
                f"{root}: no picture is left for the {name} split; add pictures, at "
                "least two in each class"
            )
    return splits, [each.note for each in chosen.values()]


def _scan(
    root: Path,
    roots: dict[str, Path],
    exclusion: Exclusion,
    log: Callable[[str], None],
) -> tuple[tuple[str, ...], list[_File], dict[str, list[str]]]:
    """Return the class names, all files, and the problems found, by kind.

    `roots` are the folders of class folders by split. `log` receives a line for what is
    skipped. Raises InputError if there are no class folders.
    """
    splits = {split: class_folders(folder) for split, folder in roots.items()}
    problems: dict[str, list[str]] = defaultdict(list)
    names = _class_names(splits, problems)
    outside = [
        exclusion.without(find_files(folder, recursive=False))
        for folder in dict.fromkeys((root, *roots.values()))
    ]
    inside = {
        path: exclusion.without(find_files(path))
        for each in splits.values()
        for path in each.values()
    }
    log_skipped(root, [*outside, *inside.values()], log)
    if not names:
        has_pictures = any(path.suffix.lower() in ENDINGS for path in root.iterdir())
        what = "pictures, but no class folders" if has_pictures else "no class folders"
        raise InputError(
            f"{root}: holds {what}; put the pictures into a folder for each class"
        )
    if len(names) == 1:
        problems["single class where at least two are needed"].append(names[0])
    for found in outside:
        for path in found.files:
            problems["file outside the class folders"].append(relative(path, root))
    for found in (*outside, *inside.values()):
        for path, kind in found.unusable:
            problems[kind].append(relative(path, root))
    files = []
    for split, classes in splits.items():
        for name, folder in classes.items():
            label = names.index(nfc(name)) if nfc(name) in names else 0
            files += _class_files(folder, inside[folder], label, split, root, problems)
    return names, files, problems


def _class_files(
    folder: Path,
    found: Found,
    label: int,
    split: str,
    root: Path,
    problems: dict[str, list[str]],
) -> list[_File]:
    """Return the pictures of a class; add its other files to `problems`."""
    files = []
    for path in found.files:
        if path.suffix.lower() in ENDINGS:
            files.append(_File(path, label, split))
        else:
            kind = "file name without a picture's ending"
            problems[kind].append(relative(path, root))
    if not found.files and not found.unusable:
        problems["class without files"].append(relative(folder, root))
    return files


def _class_names(
    splits: dict[str, dict[str, Path]], problems: dict[str, list[str]]
) -> tuple[str, ...]:
    """Return the class names, sorted; add what is wrong with them to `problems`."""
    normalised = [[nfc(name) for name in classes] for classes in splits.values()]
    names = tuple(sorted(set(normalised[0])))
    for classes in normalised:
        for name in sorted(set(names) ^ set(classes)):
            problems["class that one split lacks"].append(name)
        for name, count in Counter(classes).items():
            if count > 1:
                problems["class names that look the same"].append(name)
    for name in names:
        if not name.isprintable() or name != name.encode(errors="replace").decode():
            problems["class name that is not printable UTF-8"].append(ascii(name))
    for lower, count in Counter(name.casefold() for name in names).items():
        if count > 1:
            problems["class names that differ by case only"].append(lower)
    return names


def _checked(
    root: Path,
    files: Sequence[_File],
    problems: dict[str, list[str]],
    preprocess: Preprocess,
    progress: ProgressBar,
    list_line: Callable[[str], None] | None,
) -> tuple[list[_File], list[Checked]]:
    """Decode every file; return the files and the results in `content_order`.

    Raises InputError, which counts all problems, if there are any; `list_line` gets a
    line for each of them before.
    """
    keep = are_kept(len(files), preprocess)
    with progress(len(files), "pictures", "picture") as bar:
        paths = [file.path for file in files]
        checked = check_pictures(paths, preprocess, keep, bar.update, look)
    reasons = {}
    for file, result in zip(files, checked, strict=True):
        if result.problem is not None:
            name = relative(file.path, root)
            problems[result.problem.kind].append(name)
            reasons[name] = str(result.problem)
    if list_line is not None:
        for line in lines_of(problems, reasons):
            list_line(line)
    _refuse(root, problems)
    # The split and the selection must not depend on the names of the files.
    order = content_order(result.content for result in checked)
    return [files[i] for i in order], [checked[i] for i in order]


def _refuse(root: Path, problems: dict[str, list[str]]) -> None:
    if not problems:
        return
    kinds = []
    for kind, found in problems.items():
        kinds.append(f"{kind} ({len(found):,}): {listed(found)}")
    raise InputError(
        f"{root}: cannot be used as it is: {'; '.join(kinds)}; remove or repair these, "
        "or list all with --check and leave them out with --exclude"
    )


def _note(root: Path, roots: dict[str, Path]) -> str:
    """Return which folders are the splits; "" if the folder has none of its own."""
    if "" in roots:
        return ""
    names = {split: folder.relative_to(root) for split, folder in roots.items()}
    chooses = f"chooses the epoch by {names.get('validation')}, "
    return (
        f"trains on {names['train']}, {chooses if 'validation' in names else ''}tests "
        f"on {names['test']}"
    )


def _log_unmeasured(
    class_names: Sequence[str],
    labels: np.ndarray,
    splits: dict[str, np.ndarray],
    measured: dict[str, str],
    unit: str,
    log: Callable[[str], None],
) -> None:
    """Log a warning for classes that no picture of a split shows.

    `measured` are the splits to look at, with what they do to a class, and `unit` is
    what a class has too few of.
    """
    for split in [name for name in measured if name in splits]:
        seen = np.bincount(labels[splits[split]], minlength=len(class_names))
        missing = [class_names[i] for i, count in enumerate(seen) if not count]
        if missing:
            log(
                f"warning: classes that are never {measured[split]}, because they have "
                f"too few {unit} ({len(missing):,}): {listed(missing)}"
            )
