"""Load the user's own pictures from a folder with one subfolder for each class.

The layout is either `FOLDER/class/picture.jpg`, which is split by a fixed seed, or
`FOLDER/train/class/…` and `FOLDER/val/class/…` (or `test`). Before training every file
is read, decoded and hashed, and one error reports all problems. Only hidden files and
folders, and system files such as Thumbs.db, are skipped.

It is one file because all checks of a folder end in one report.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlab.data.dataset import (
    Dataset,
    ProgressBar,
    Split,
    balanced_choice,
    content_order,
    no_progress,
    stratified_split,
)
from jaxlab.data.pictures import (
    ENDINGS,
    Checked,
    are_kept,
    check_pictures,
    files_in,
    images_of,
    is_litter,
)
from jaxlab.data.preprocess import Preprocess
from jaxlab.errors import InputError
from pretrained.errors import one_line

TEST_NAMES = ("val", "test")
_EXAMPLES = 3  # names in a message for each kind of problem


class _File(NamedTuple):
    path: Path
    label: int
    split: str  # "train" or "test", or "" if the folder is split by the seed


def load_folder(
    root: Path,
    preprocess: Preprocess,
    *,
    test_fraction: float,
    train_size: int | None = None,
    test_size: int | None = None,
    progress: ProgressBar = no_progress,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Return the folder's pictures, resized by `preprocess`, in memory if they fit.

    The class names are the names of the class folders, sorted. If the folder has no
    split of its own, `test_fraction` of each class is held out, always the same
    pictures. `progress` creates the progress bar for the files. `log` receives a
    warning for animated pictures, and for test pictures that are also in training.

    Raises InputError if the folder does not exist, has another layout, has too few
    pictures to split, or contains a file that is not a usable picture; the message
    lists all such files by kind. Raises UsageError if a split has fewer pictures than
    `train_size` or `test_size`.
    """
    class_names, files, problems = _scan(root)
    files, checked = _checked(root, files, problems, preprocess, progress)
    labels = np.array([file.label for file in files], np.int32)
    if files[0].split:
        held_out = np.array([file.split == "test" for file in files])
    else:
        held_out = stratified_split(labels, test_fraction)
    chosen = {}
    for name, members in (("train", ~held_out), ("test", held_out)):
        indices = np.flatnonzero(members)
        if not len(indices):
            raise InputError(
                f"{root}: no picture is left for the {name} split; add pictures, at "
                "least two in each class"
            )
        asked = train_size if name == "train" else test_size
        chosen[name] = indices[
            balanced_choice(labels[indices], asked, f"--{name}-size")
        ]
    _log_unusual(root, files, checked, held_out, log)

    paths = [file.path for file in files]
    parts = {
        name: Split(images_of(paths, checked, indices), labels[indices])
        for name, indices in chosen.items()
    }
    return Dataset(
        name=str(root),
        train=parts["train"],
        test=parts["test"],
        class_names=class_names,
        resized=True,
        files={
            name: [str(paths[i].relative_to(root)) for i in indices]
            for name, indices in chosen.items()
        },
    )


def _scan(root: Path) -> tuple[tuple[str, ...], list[_File], dict[str, list[str]]]:
    """Return the class names, all files, and the problems found, by kind.

    Raises InputError if the folder does not have one of the two layouts.
    """
    splits = _splits(root)
    problems: dict[str, list[str]] = defaultdict(list)
    names = _class_names(splits, problems)
    files = []
    for split, classes in splits.items():
        for name in sorted(classes):
            found = sorted(files_in(classes[name]))
            for path in found:
                if path.is_dir():
                    kind = "link to a folder inside a class"
                    problems[kind].append(_relative(path, root))
                elif path.suffix.lower() not in ENDINGS:
                    kind = "file name without a picture's ending"
                    problems[kind].append(_relative(path, root))
                else:
                    label = names.index(name) if name in names else 0
                    files.append(_File(path, label, split))
            if not found:
                problems["class without files"].append(_relative(classes[name], root))
    if not names:
        has_pictures = any(path.suffix.lower() in ENDINGS for path in root.iterdir())
        what = "pictures, but no class folders" if has_pictures else "no class folders"
        raise InputError(
            f"{root}: holds {what}; put the pictures into a folder for each class"
        )
    if len(names) == 1:
        problems["single class where at least two are needed"].append(names[0])
    for folder in (root, *(_class_folders(root).values() if len(splits) > 1 else ())):
        loose = [path for path in folder.iterdir() if not path.is_dir()]
        for path in sorted(path for path in loose if not is_litter(path.name)):
            problems["file outside the class folders"].append(_relative(path, root))
    return names, files, problems


def _splits(root: Path) -> dict[str, dict[str, Path]]:
    """Return the class folders by split; the split is "" if the seed decides."""
    if not root.exists():
        raise InputError(f"{root}: does not exist; check the path")
    if not root.is_dir():
        raise InputError(
            f"{root}: not a directory; pass the folder that holds the class folders"
        )
    folders = _class_folders(root)
    if "train" not in folders:
        return {"": folders}
    tests = [name for name in TEST_NAMES if name in folders]
    if len(tests) == 1 and len(folders) == 2:
        return {
            "train": _class_folders(folders["train"]),
            "test": _class_folders(folders[tests[0]]),
        }
    raise InputError(
        f"{root}: contains the folders {', '.join(sorted(folders))}; beside train it "
        f"must contain either {' or '.join(TEST_NAMES)}, and no other folder"
    )


def _class_names(
    splits: dict[str, dict[str, Path]], problems: dict[str, list[str]]
) -> tuple[str, ...]:
    """Return the class names, sorted; add what is wrong with them to `problems`."""
    names = tuple(sorted(next(iter(splits.values()))))
    for classes in splits.values():
        for name in sorted(set(names) ^ set(classes)):
            problems["class that one split lacks"].append(name)
    for name in names:
        if not name.isprintable() or name != name.encode(errors="replace").decode():
            problems["class name that is not printable UTF-8"].append(ascii(name))
    for lower, count in Counter(name.casefold() for name in names).items():
        if count > 1:
            problems["class names that differ by case only"].append(lower)
    return names


def _class_folders(folder: Path) -> dict[str, Path]:
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }


def _relative(path: Path, root: Path) -> str:
    return one_line(str(path.relative_to(root)))


def _checked(
    root: Path,
    files: Sequence[_File],
    problems: dict[str, list[str]],
    preprocess: Preprocess,
    progress: ProgressBar,
) -> tuple[list[_File], list[Checked]]:
    """Decode every file; return the files and the results in `content_order`.

    Raises InputError, which lists all problems, if there are any.
    """
    keep = are_kept(len(files), preprocess)
    with progress(len(files), "pictures", "picture") as bar:
        paths = [file.path for file in files]
        checked = check_pictures(paths, preprocess, keep, bar.update)
    for file, result in zip(files, checked, strict=True):
        if result.problem is not None:
            problems[result.problem.kind].append(_relative(file.path, root))
    _refuse(root, problems)
    # The split and the selection must not depend on the names of the files.
    order = content_order(result.content for result in checked)
    return [files[i] for i in order], [checked[i] for i in order]


def _refuse(root: Path, problems: dict[str, list[str]]) -> None:
    if not problems:
        return
    kinds = []
    for kind, found in problems.items():
        named = ", ".join(found[:_EXAMPLES])
        more = ", …" if len(found) > _EXAMPLES else ""
        kinds.append(f"{kind} ({len(found):,}): {named}{more}")
    raise InputError(
        f"{root}: cannot be used as it is: {'; '.join(kinds)}; remove or repair these"
    )


def _log_unusual(
    root: Path,
    files: Sequence[_File],
    checked: Sequence[Checked],
    held_out: np.ndarray,
    log: Callable[[str], None],
) -> None:
    animated = sum(result.animated for result in checked)
    if animated:
        log(f"warning: {animated:,} animated pictures: only the first frame is used")
    trained = {c.digest for c, out in zip(checked, held_out, strict=True) if not out}
    twice = [
        _relative(file.path, root)
        for file, result, out in zip(files, checked, held_out, strict=True)
        if out and result.digest in trained
    ]
    if twice:
        log(
            f"warning: {len(twice):,} test pictures are identical to training pictures "
            f"and inflate the test accuracy: {', '.join(twice[:_EXAMPLES])}"
        )
