"""Key tables that map torchvision's state_dicts to Flax's variables, a row per tensor.

Each family of networks has a module here, with a function that returns its rows for
given layer widths; `pretrained.layout` converts by these rows. Tensors are matched by
name, never by order, and are not reshaped to make them fit.
"""

from collections.abc import Iterable

# A function replaces the module of the same name as an attribute: `tables.alexnet`.
from pretrained.tables.alexnet import ALEXNET, alexnet
from pretrained.tables.mlp import mlp
from pretrained.tables.row import Row, Transform

# The networks that a file is recognised as. An MLP says in the file which one it is.
TABLES: dict[str, tuple[Row, ...]] = {"alexnet": ALEXNET}

__all__ = [
    "ALEXNET",
    "TABLES",
    "Row",
    "Transform",
    "alexnet",
    "children",
    "head",
    "mlp",
]


def children(table: Iterable[Row]) -> list[str]:
    """Return a network's children in order: the first components of the Flax paths."""
    paths = (row.flax for row in table if row.collection == "params")
    return list(dict.fromkeys(path.split("/")[0] for path in paths))


def head(table: Iterable[Row]) -> str:
    """Return the name of a network's head, its last child."""
    return children(table)[-1]
