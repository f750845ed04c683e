"""Small networks of each family, in torchvision, in jaxlab, and their key tables."""

from typing import Any, NamedTuple

import numpy as np
import torch

from jaxlab import verify
from jaxlab.models.densenet import DenseNet
from jaxlab.models.mobilenet import MobileNetV2
from jaxlab.models.resnet import ResNet
from jaxlab.models.squeezenet import SqueezeNet
from jaxlab.models.vgg import VGG
from pretrained import tables
from pretrained.layout import variables_of

CLASSES = 7


class Small(NamedTuple):
    """A small network on both sides, without dropout, and its key table.

    `branches` are the ends of the names of each residual branch's last norm in torch.
    """

    theirs: Any
    ours: Any
    table: tuple[tables.Row, ...]
    branches: tuple[str, ...] = ()

    def variables(self) -> Any:
        """Return the variables of torch's network as they are now."""
        return variables_of(self.arrays(), self.table)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return a copy of torch's state_dict."""
        state_dict = self.theirs.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state_dict.items()}


def fresh(family: str) -> Small:
    """Return a small network of a family, as torchvision draws it.

    Each has every kind of operation that its family has.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _FAMILIES[family]()


def small(family: str) -> Small:
    """Return a small network of a family, with random weights, statistics, counters."""
    found = fresh(family)
    model = verify.randomised(found.theirs.double(), torch)
    for name, tensor in model.state_dict().items():
        if name.endswith(found.branches):
            tensor.mul_(0.1)
    return found


def _vgg() -> Small:
    from torchvision.models import vgg

    widths: list[int | str] = [8, "M", 8, 8, "M", 12, "M", 12, "M", 12, "M"]
    theirs = vgg.VGG(vgg.make_layers(widths, True), num_classes=CLASSES, dropout=0.0)
    sizes = (12 * 49, 16), (16, 16), (16, CLASSES)
    for place, size in zip((0, 3, 6), sizes, strict=True):
        theirs.classifier[place] = layer = torch.nn.Linear(*size)
        torch.nn.init.normal_(layer.weight, 0, 0.01)
        torch.nn.init.zeros_(layer.bias)
    fields = {
        "channels": ((8,), (8, 8), (12,), (12,), (12,)),
        "batch_norm": True,
        "hidden": 16,
    }
    ours = VGG(CLASSES, dropout_rate=0.0, **fields)
    return Small(theirs, ours, tuple(tables.vgg(**fields)))


def _resnet() -> Small:
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as Theirs

    depths = (1, 2, 1, 1)
    theirs = Theirs(BasicBlock, list(depths), num_classes=CLASSES)
    rows = tuple(tables.resnet(depths))
    return Small(theirs, ResNet(CLASSES, depths=depths), rows, ("bn2.weight",))


def _resnext() -> Small:
    from torchvision.models.resnet import Bottleneck
    from torchvision.models.resnet import ResNet as Theirs

    fields = {"bottleneck": True, "groups": 4, "width_per_group": 8}
    depths = (1, 2, 1, 1)
    theirs = Theirs(
        Bottleneck, list(depths), num_classes=CLASSES, groups=4, width_per_group=8
    )
    rows = tuple(tables.resnet(depths, **fields))
    ours = ResNet(CLASSES, depths=depths, **fields)
    return Small(theirs, ours, rows, ("bn3.weight",))


def _squeezenet() -> Small:
    from torchvision.models.squeezenet import SqueezeNet as Theirs

    fields = {"stem": (64, 3), "pools": ("fire3", "fire5")}
    theirs = Theirs("1_1", num_classes=CLASSES, dropout=0.0)
    ours = SqueezeNet(CLASSES, dropout_rate=0.0, **fields)
    return Small(theirs, ours, tuple(tables.squeezenet(**fields)))


def _mobilenet() -> Small:
    from torchvision.models.mobilenetv2 import MobileNetV2 as Theirs

    blocks = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 24, 2, 2))
    theirs = Theirs(CLASSES, 1.0, [list(each) for each in blocks], dropout=0.0)
    ours = MobileNetV2(CLASSES, dropout_rate=0.0, blocks=blocks)
    rows = tuple(tables.mobilenet(blocks))
    return Small(theirs, ours, rows, ("conv.2.weight", "conv.3.weight"))


def _densenet() -> Small:
    from torchvision.models.densenet import DenseNet as Theirs

    fields = {
        "depths": (2, 1, 2, 1),
        "growth_rate": 4,
        "stem_channels": 8,
        "bottleneck": 2,
    }
    theirs = Theirs(4, (2, 1, 2, 1), 8, 2, num_classes=CLASSES)
    return Small(theirs, DenseNet(CLASSES, **fields), tuple(tables.densenet(**fields)))


_FAMILIES = {
    "vgg": _vgg,
    "resnet": _resnet,
    "resnext": _resnext,
    "squeezenet": _squeezenet,
    "mobilenet": _mobilenet,
    "densenet": _densenet,
}
FAMILIES = tuple(_FAMILIES)
