"""Facts about each network that are available without building it or importing JAX.

To add a pretrained network, write a Linen module with a method `links`, add its key
table to `pretrained.tables.TABLES`, and an entry of the same name to `ARCHITECTURES`.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pretrained.tables import TABLES, Row, children, mlp

FREEZE = ("features", "backbone", "none")  # or the name of any child but the last


class Architecture(NamedTuple):
    """A network: where its module is, and facts that its key table does not contain.

    A child is a direct child of the params tree, such as `conv1`. `features` is the
    last convolutional child. `dropout` names the children with dropout before or inside
    them, whose outputs differ from step to step in training. `weights` is the default
    of `--weights`, `min_image_size` the smallest height and width in pixels.

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
    weights: str = "none"
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


ARCHITECTURES = {
    "alexnet": Architecture(
        name="alexnet",
        module="jaxlab.models.alexnet",
        class_name="AlexNet",
        min_image_size=63,
        features="conv5",
        dropout=("fc6", "fc7"),
        weights="imagenet-conv",
    ),
    "mlp": Architecture(
        name="mlp",
        module="jaxlab.models.mlp",
        class_name="MLP",
        min_image_size=1,
        rows=mlp,
    ),
}
# The names of the networks that are fine-tuned.
FINE_TUNED = tuple(name for name, each in ARCHITECTURES.items() if not each.rows)
