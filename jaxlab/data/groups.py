"""Find the groups of pictures that must be on one side of a split, by their paths."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxlab.data.files import listed
from jaxlab.errors import UsageError
from pretrained.errors import counted, one_line


def groups_of(
    root: Path,
    paths: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    pattern: str,
    log: Callable[[str], None],
) -> np.ndarray:
    """Return the number of each picture's group, int64[n].

    Pictures in whose path, relative to `root`, the first group of the regular
    expression `pattern`, or else all of it, matches the same text are one group. A
    picture whose path does not match is a group of its own, and `log` receives a
    warning.

    Raises UsageError if there is nothing to separate: no path matches, or a class has
    several pictures that all belong to one group.

    >>> paths = ["cat/tom_1.jpg", "cat/tom_2.jpg", "cat/kit_1.jpg"]
    >>> groups_of(Path("photos"), paths, np.zeros(3, int), ["cat"], "([a-z]+)_", print)
    photos: 3 pictures in 2 groups
    array([0, 0, 1])
    """
    matches = [re.search(pattern, path) for path in paths]
    texts = [m and m[1 if m.re.groups else 0] for m in matches]
    alone = [one_line(p) for p, text in zip(paths, texts, strict=True) if text is None]
    if len(alone) == len(paths):
        raise UsageError(
            f"--group: {pattern!r} matches none of the paths in {root}, such as "
            f"{alone[0]}; pass a pattern that does"
        )
    keys = [(text, i if text is None else None) for i, text in enumerate(texts)]
    of_class = defaultdict(list)
    for label, key in zip(labels, keys, strict=True):
        of_class[int(label)].append(key)
    for label, found in sorted(of_class.items()):
        if len(found) > len(set(found)) == 1:
            raise UsageError(
                f"--group: {pattern!r} puts all {counted(len(found), 'picture')} of "
                f"the class {class_names[label]} into one group, {found[0][0]!r}, "
                "which cannot be split; pass another pattern"
            )
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    log(f"{root}: {counted(len(paths), 'picture')} in {counted(len(numbers), 'group')}")
    if alone:
        log(
            f"warning: --group {pattern} does not match "
            f"{counted(len(alone), 'picture')}, each of which is on its own: "
            f"{listed(alone)}"
        )
    return np.array([numbers[key] for key in keys], np.int64)
