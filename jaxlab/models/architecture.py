"""Facts about each network that are available without building it or importing JAX.

To add a network of a family that is here, add a line to `pretrained.tables.TABLES` and
one of the same name to `_ALL`. A new family also needs a Linen module with a method
`links`, and a function that makes its key tables.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pretrained.tables import DEFAULT as DEFAULT
from pretrained.tables import TABLES, Row, children, mlp
from pretrained.tables.vgg import stages

# Default learning rates by optimizer, chosen on validation data: docs/networks.md.
RATES = {"adam": 1e-4, "sgd": 0.01}
NORMALISED_RATES = {
    "adam": 1e-3,
    "sgd": 0.01,
}  # a norm for each convolution, and one dense layer
HEAD_RATES = {"adam": 0.02, "sgd": 0.1}
RECTIFIED_HEAD_RATES = {"adam": 3e-4, "sgd": 1e-3}  # behind the head is a ReLU

FREEZE = ("features", "backbone", "none")  # or the name of any child but the last


class Architecture(NamedTuple):
    """A network: where its module is, and facts that its key table does not contain.

    A child is a direct child of the params tree, such as `conv1`. `features` is the
    last child of the convolutions and their norms. `dropout` names the children with
    dropout before or inside them, whose outputs differ from step to step in training.
    `weights` is the default of `--weights`, `min_image_size` the smallest height and
    width in pixels. `head_rates` are the default learning rates if only the head is
    trained, `learning_rates` those if more is.

    A network with `rows` has no pretrained weights, so that it is not fine-tuned, and
    free widths, so that it has no entry in TABLES: `rows` makes its key table from the
    image's [h, w, c] and the fields that a file of its weights states.
    """

    name: str  # key in ARCHITECTURES, and in TABLES unless there are `rows`
    module: str
    class_name: str
    min_image_size: int
    features: str = ""
    dropout: tuple[str, ...] = ()
    weights: str = "imagenet"
    learning_rates: Mapping[str, float] = RATES
    head_rates: Mapping[str, float] = HEAD_RATES
    fields: Mapping[str, Any] = {}  # arguments of the module, such as widths
    rows: Callable[..., tuple[Row, ...]] | None = None

    def build(self, num_classes: int, **fields: Any) -> Any:
        """Return the Linen module; `fields` take precedence over the entry's own."""
        module = importlib.import_module(self.module)
        return getattr(module, self.class_name)(
            num_classes=num_classes, **{**self.fields, **fields}
        )

    def table(self, image: tuple[int, int, int], **fields: Any) -> tuple[Row, ...]:
        """Return the key table for images [h, w, c] and some fields of the module.

        Raises TypeError or ValueError for fields that the network does not have.
        """
        if self.rows is not None:
            return self.rows(image, **fields)
        if fields:
            raise ValueError(f"{self.name} has no free {', '.join(fields)}")
        return TABLES[self.name]

    @property
    def children(self) -> list[str]:
        """The children of the params tree, in the order in which they are run."""
        return children(TABLES[self.name])

    @property
    def has_dropout(self) -> bool:
        """Whether training differs from evaluation by dropout of a rate above 0."""
        return bool(self.dropout) and self.fields.get("dropout_rate", 1) > 0

    @property
    def head(self) -> str:
        """The last child, whose outputs are the logits."""
        return self.children[-1]

    def frozen(self, freeze: str) -> list[str]:
        """Return the children that `freeze` selects: the first ones of the chain.

        `freeze` is "features" (up to the last convolution), "backbone" (all but the
        head), "none", or the name of a child: all children up to and including it.
        Raises ValueError for any other value, and for the head.
        """
        names = self.children
        last = {"features": self.features, "backbone": names[-2]}.get(freeze, freeze)
        if freeze == "none":
            return []
        if last not in names[:-1]:
            raise ValueError(
                f"{freeze!r}: not a layer that can be frozen; pass one of "
                f"{', '.join((*FREEZE, *names[:-1]))}"
            )
        return names[: names.index(last) + 1]

    def freezing_patterns(self, freeze: str) -> list[tuple[str, str]]:
        """Return the patterns with which `trainable_tree` freezes `frozen(freeze)`."""
        trainable = (r".*", "trainable")
        if not (names := self.frozen(freeze)):
            return [trainable]
        return [(rf"({'|'.join(map(re.escape, names))})/.*", "frozen"), trainable]

    def stored(self, frozen: list[str], split: str) -> list[str]:
        """Return those of the `frozen` children whose outputs can be stored.

        These outputs are the same in every epoch. In the "train" split they end before
        the first child with dropout; in other splits dropout is off.
        """
        if split != "train":
            return frozen
        first = next((i for i, n in enumerate(frozen) if n in self.dropout), None)
        return frozen[:first]


def _vgg(name: str, *convolutions: int, batch_norm: bool = False) -> Architecture:
    """Return a VGG with these numbers of convolutions of each stage."""
    norm = "bn" if batch_norm else "conv"
    return Architecture(
        name=name,
        module="jaxlab.models.vgg",
        class_name="VGG",
        min_image_size=32,
        features=f"{norm}5_{convolutions[-1]}",
        dropout=("fc7", "fc8"),
        weights="imagenet-conv" if name == "vgg16" else "imagenet",
        fields={"channels": stages(*convolutions), "batch_norm": batch_norm},
    )


def _resnet(name: str, *depths: int, **fields: Any) -> Architecture:
    return Architecture(
        name=name,
        module="jaxlab.models.resnet",
        class_name="ResNet",
        min_image_size=1,
        features="layer4",
        learning_rates=NORMALISED_RATES,
        fields={"depths": depths, **fields},
    )


def _resnext(name: str, *depths: int, groups: int, width: int) -> Architecture:
    grouped = {"groups": groups, "width_per_group": width}
    return _resnet(name, *depths, bottleneck=True, **grouped)


def _squeezenet(name: str, min_image_size: int, **fields: Any) -> Architecture:
    return Architecture(
        name=name,
        module="jaxlab.models.squeezenet",
        class_name="SqueezeNet",
        min_image_size=min_image_size,
        features="fire9",
        dropout=("conv10",),
        # A large step would make logits negative everywhere, where the ReLU behind them
        # has no gradient.
        head_rates=RECTIFIED_HEAD_RATES,
        fields=fields,
    )


def _densenet(name: str, *depths: int, **fields: Any) -> Architecture:
    return Architecture(
        name=name,
        module="jaxlab.models.densenet",
        class_name="DenseNet",
        min_image_size=29,
        features="norm5",
        learning_rates=NORMALISED_RATES,
        fields={"depths": depths, **fields},
    )


_ALL = (
    Architecture(
        name="alexnet",
        module="jaxlab.models.alexnet",
        class_name="AlexNet",
        min_image_size=63,
        features="conv5",
        dropout=("fc6", "fc7"),
        weights="imagenet-conv",
    ),
    _vgg("vgg11", 1, 1, 2, 2, 2),
    _vgg("vgg11_bn", 1, 1, 2, 2, 2, batch_norm=True),
    _vgg("vgg13", 2, 2, 2, 2, 2),
    _vgg("vgg13_bn", 2, 2, 2, 2, 2, batch_norm=True),
    _vgg("vgg16", 2, 2, 3, 3, 3),
    _vgg("vgg16_bn", 2, 2, 3, 3, 3, batch_norm=True),
    _vgg("vgg19", 2, 2, 4, 4, 4),
    _vgg("vgg19_bn", 2, 2, 4, 4, 4, batch_norm=True),
    _resnet("resnet18", 2, 2, 2, 2),
    _resnet("resnet34", 3, 4, 6, 3),
    _resnet("resnet50", 3, 4, 6, 3, bottleneck=True),
    _resnet("resnet101", 3, 4, 23, 3, bottleneck=True),
    _resnet("resnet152", 3, 8, 36, 3, bottleneck=True),
    _resnext("resnext50_32x4d", 3, 4, 6, 3, groups=32, width=4),
    _resnext("resnext101_32x8d", 3, 4, 23, 3, groups=32, width=8),
    _resnext("resnext101_64x4d", 3, 4, 23, 3, groups=64, width=4),
    _resnext("wide_resnet50_2", 3, 4, 6, 3, groups=1, width=128),
    _resnext("wide_resnet101_2", 3, 4, 23, 3, groups=1, width=128),
    _squeezenet("squeezenet1_0", 21),
    _squeezenet("squeezenet1_1", 17, stem=(64, 3), pools=("fire3", "fire5")),
    Architecture(
        name="mobilenet_v2",
        module="jaxlab.models.mobilenet",
        class_name="MobileNetV2",
        min_image_size=1,
        features="last",
        dropout=("fc",),
        learning_rates=NORMALISED_RATES,
    ),
    _densenet("densenet121", 6, 12, 24, 16),
    _densenet("densenet161", 6, 12, 36, 24, growth_rate=48, stem_channels=96),
    _densenet("densenet169", 6, 12, 32, 32),
    _densenet("densenet201", 6, 12, 48, 32),
    Architecture(
        name="mlp",
        module="jaxlab.models.mlp",
        class_name="MLP",
        min_image_size=1,
        weights="none",
        rows=mlp,
    ),
)
ARCHITECTURES = {each.name: each for each in _ALL}
# The names of the networks that are fine-tuned.
FINE_TUNED = tuple(name for name, each in ARCHITECTURES.items() if not each.rows)
