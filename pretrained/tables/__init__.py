"""Key tables that map torchvision's state_dicts to Flax's variables, a row per tensor.

Each family of networks has a module here, with a function that returns its rows for
given layer widths; `pretrained.layout` converts by these rows. Tensors are matched by
name, never by order, and are not reshaped to make them fit. `python -m
pretrained.tables NAME` prints a table.

To add a network of a family that is here, add a line to TABLES, and an entry of the
same name to `jaxlab.models.architecture.ARCHITECTURES`.
"""

from collections.abc import Iterable
from typing import Any

# A function replaces the module of the same name as an attribute: `tables.alexnet`.
from pretrained.tables.alexnet import ALEXNET, alexnet
from pretrained.tables.densenet import densenet
from pretrained.tables.mlp import mlp
from pretrained.tables.mobilenet import mobilenet
from pretrained.tables.resnet import resnet
from pretrained.tables.row import Row, Transform
from pretrained.tables.squeezenet import squeezenet
from pretrained.tables.vgg import stages, vgg

Table = tuple[Row, ...]


def _grouped(groups: int, width: int) -> dict[str, Any]:
    """Return the fields of bottlenecks with groups of this width."""
    return {"bottleneck": True, "groups": groups, "width_per_group": width}


# The networks that a file is recognised as. An MLP says in the file which one it is.
TABLES: dict[str, Table] = {
    "alexnet": ALEXNET,
} | {
    name: tuple(rows)
    for name, rows in {
        "vgg11": vgg(stages(1, 1, 2, 2, 2)),
        "vgg11_bn": vgg(stages(1, 1, 2, 2, 2), batch_norm=True),
        "vgg13": vgg(stages(2, 2, 2, 2, 2)),
        "vgg13_bn": vgg(stages(2, 2, 2, 2, 2), batch_norm=True),
        "vgg16": vgg(stages(2, 2, 3, 3, 3)),
        "vgg16_bn": vgg(stages(2, 2, 3, 3, 3), batch_norm=True),
        "vgg19": vgg(stages(2, 2, 4, 4, 4)),
        "vgg19_bn": vgg(stages(2, 2, 4, 4, 4), batch_norm=True),
        "resnet18": resnet((2, 2, 2, 2)),
        "resnet34": resnet((3, 4, 6, 3)),
        "resnet50": resnet((3, 4, 6, 3), bottleneck=True),
        "resnet101": resnet((3, 4, 23, 3), bottleneck=True),
        "resnet152": resnet((3, 8, 36, 3), bottleneck=True),
        "resnext50_32x4d": resnet((3, 4, 6, 3), **_grouped(32, 4)),
        "resnext101_32x8d": resnet((3, 4, 23, 3), **_grouped(32, 8)),
        "resnext101_64x4d": resnet((3, 4, 23, 3), **_grouped(64, 4)),
        "wide_resnet50_2": resnet((3, 4, 6, 3), **_grouped(1, 128)),
        "wide_resnet101_2": resnet((3, 4, 23, 3), **_grouped(1, 128)),
        "squeezenet1_0": squeezenet(),
        "squeezenet1_1": squeezenet((64, 3), pools=("fire3", "fire5")),
        "mobilenet_v2": mobilenet(),
        "densenet121": densenet((6, 12, 24, 16)),
        "densenet161": densenet((6, 12, 36, 24), 48, 96),
        "densenet169": densenet((6, 12, 32, 32)),
        "densenet201": densenet((6, 12, 48, 32)),
    }.items()
}

DEFAULT = "alexnet"  # where no network is named

__all__ = [
    "ALEXNET",
    "DEFAULT",
    "TABLES",
    "Row",
    "Transform",
    "alexnet",
    "children",
    "densenet",
    "head",
    "layers_of",
    "mlp",
    "mobilenet",
    "resnet",
    "squeezenet",
    "vgg",
]


def children(table: Iterable[Row]) -> list[str]:
    """Return a network's children in order: the first components of the Flax paths."""
    paths = (row.flax for row in table if row.collection == "params")
    return list(dict.fromkeys(path.split("/")[0] for path in paths))


def layers_of(table: Iterable[Row]) -> list[str]:
    """Return the paths in Flax of the layers with params, in torch's order."""
    paths = (row.flax for row in table if row.collection == "params")
    return list(dict.fromkeys(path.rpartition("/")[0] for path in paths))


def head(table: Iterable[Row]) -> str:
    """Return the name of a network's head, its last child."""
    return children(table)[-1]
