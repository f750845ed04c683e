"""Recognise the folders of a data set: split folders, or class folders."""

import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from jaxlab.data.files import is_litter, is_run, listed
from jaxlab.errors import InputError

# The words for a split, without the affixes below. Keras, torchvision, Roboflow,
# Ultralytics and Kaggle's sets differ in them and in case and separators.
_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "validate", "dev", "development")
    + ("eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_AFFIX = r"(seg|my|data|dataset|sets?|images?|imgs?|pictures?|photos?|split|folder|dir)"
_HINT = (
    "pass a folder of class folders, or one that holds train and test, and perhaps "
    "val, with class folders in each, and nothing else"
)


def split_of(name: str) -> str | None:
    """Return "train", "validation" or "test" for a split folder's name, else None.

    Case, digits, separators and words such as "set" or "images" do not count.

    >>> split_of("Training_Set"), split_of("val2017"), split_of("seg_test")
    ('train', 'validation', 'test')
    >>> split_of("cat") is None
    True
    """
    word = re.sub(r"[\W\d_]+", "", unicodedata.normalize("NFKC", name).casefold())
    while word and word not in _SPLIT_OF:
        shorter = re.sub(rf"^{_AFFIX}|{_AFFIX}$", "", word, count=1)
        if shorter == word:
            return None
        word = shorter
    return _SPLIT_OF.get(word)


def _split_in(name: str) -> str | None:
    """Return the split that the first or the last word of a folder's name stands for.

    A single folder may have such a name by chance, as a class "train station" has.
    """
    words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word]
    found = [split for word in (words[:1] + words[-1:]) if (split := split_of(word))]
    return split_of(name) or (found[0] if found else None)


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by name, sorted, but for system folders and runs.

    There are none in a folder that cannot be read, which `find_files` reports.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return {}
    return {
        path.name: path
        for path in paths
        if os.path.isdir(path) and not is_litter(path.name) and not is_run(path)
    }


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder that holds the class folders of each split.

    Either "" for `root` itself, which has no split of its own, or "train" and "test",
    or "train", "validation" and "test". Of two split folders the one that is not for
    training is the test split, whatever its name. A folder that is named like a split
    and holds class folders is never a class.

    Raises InputError if `root` does not exist, or for split folders in an order that is
    not understood.
    """
    if not root.exists():
        raise InputError(f"{root}: does not exist; check the path")
    if not root.is_dir():
        raise InputError(
            f"{root}: not a directory; pass the folder that holds the class folders"
        )
    _check_readable(root)
    folders = class_folders(root)
    named = {name: split for name in folders if (split := split_of(name))}
    by_part = {name: split for name in folders if (split := _split_in(name))}
    # Such as cats_train and cats_test.
    if len(by_part) == len(folders) > 1 and any(map(class_folders, folders.values())):
        named = by_part
    for name in named:
        _check_readable(folders[name])
    if not any(class_folders(folders[name]) for name in named):
        _refuse_other_layouts(root, folders, named)
        return {"": root}
    _refuse_what_is_unclear(root, folders, named)
    found = {split: _descend(folders[name], split) for name, split in named.items()}
    if len(found) == 2:
        found = {"train": found.pop("train"), "test": next(iter(found.values()))}
    return {split: found[split] for split in _WORDS if split in found}


def _check_readable(folder: Path) -> None:
    try:
        os.listdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read: {error.strerror or error}; check the folder's "
            "permissions"
        ) from error


def _descend(folder: Path, split: str) -> Path:
    """Return the only folder in a split folder if it is named alike, else itself."""
    inside = class_folders(folder)
    if len(inside) == 1 and split_of(next(iter(inside))) == split:
        (folder,) = inside.values()
        _check_readable(folder)
    return folder


def _refuse_other_layouts(
    root: Path, folders: dict[str, Path], named: dict[str, str]
) -> None:
    """Raise InputError if folders without class folders are splits nevertheless."""
    if len(named) == len(folders) > 1:
        raise InputError(
            f"{root}: {listed(folders)} hold no class folders, so nothing says what "
            f"their pictures show; {_HINT}"
        )
    inside = [
        {split_of(name) for name in class_folders(folder)}
        for folder in folders.values()
    ]
    below = [set(class_folders(folder)) for folder in folders.values()]
    if len(below) > 1 and len(below[0]) > 1 and all(each == below[0] for each in below):
        raise InputError(
            f"{root}: {listed(folders)} hold the same folders, "
            f"{listed(sorted(below[0]))}, as splits do; {_HINT}"
        )
    if inside and all("train" in splits and len(splits) > 1 for splits in inside):
        raise InputError(
            f"{root}: each of its folders, such as {next(iter(folders))}, is split on "
            f"its own; {_HINT}"
        )


def _refuse_what_is_unclear(
    root: Path, folders: dict[str, Path], named: dict[str, str]
) -> None:
    """Raise InputError unless there is one folder for each split, and no other."""
    by_split = defaultdict(list)
    for name, split in named.items():
        by_split[split].append(name)
    twice = [names for names in by_split.values() if len(names) > 1]
    others = [name for name in folders if name not in named]
    empty = [name for name in named if not class_folders(folders[name])]
    if twice:
        problem = f"{' and '.join(twice[0])} are the same split"
    elif others:
        problem = f"holds {listed(others)} beside {', '.join(named)}"
    elif empty:
        problem = f"{listed(empty)} holds no class folders, and so no labels"
    elif "train" not in by_split:
        problem = f"holds {', '.join(named)}, but no folder train"
    elif len(by_split) == 1:
        problem = f"holds only {', '.join(named)}, and so nothing to test on"
    else:
        return
    raise InputError(f"{root}: {problem}; {_HINT}")
