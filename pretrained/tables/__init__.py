"""Key tables, one visible row a tensor: torchvision's state_dict and Flax's params.

A family of networks has a file here, with a function of its widths that returns its
rows; `pretrained.layout` converts by them. Nothing is matched by order or reshaped to
fit.
"""

from collections.abc import Iterable

# The function takes the module's place as the attribute `tables.alexnet`.
from pretrained.tables.alexnet import ALEXNET, alexnet
from pretrained.tables.row import Row, Transform

TABLES: dict[str, tuple[Row, ...]] = {"alexnet": ALEXNET}

__all__ = ["ALEXNET", "TABLES", "Row", "Transform", "alexnet", "children", "head"]


def children(table: Iterable[Row]) -> list[str]:
    """Return the names of a network's children, in order: the first parts of paths."""
    paths = (row.flax for row in table if row.collection == "params")
    return list(dict.fromkeys(path.split("/")[0] for path in paths))


def head(table: Iterable[Row]) -> str:
    """Return the name of a network's head, its last child."""
    return children(table)[-1]
