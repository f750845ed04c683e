"""What is known of each network without building it, or waiting for JAX.

A network is added here, as a module with `links`, and as a key table of its name.
"""

import importlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pretrained.tables import TABLES, children

FREEZE = ("features", "backbone", "none")  # and the name of any child but the last


class Architecture(NamedTuple):
    """A network: where its module is, and what is not to be read off its key table.

    `features` is its last convolutional child. `dropout` are the children with dropout
    in front of them or inside, whose outputs differ from step to step in training.
    `weights` are those that a run starts from by default.
    """

    name: str  # of its key table
    module: str
    class_name: str
    min_image_size: int
    features: str
    dropout: tuple[str, ...]
    weights: str
    fields: Mapping[str, Any] = {}  # of the module, such as its widths

    def build(self, num_classes: int, **fields: Any) -> Any:
        """Return the Linen module for some classes."""
        module = importlib.import_module(self.module)
        return getattr(module, self.class_name)(
            num_classes, **{**self.fields, **fields}
        )

    @property
    def children(self) -> list[str]:
        """The children of the params tree, in the order in which they are run."""
        return children(TABLES[self.name])

    @property
    def head(self) -> str:
        """The last child, whose outputs are the logits."""
        return self.children[-1]

    def frozen(self, freeze: str) -> list[str]:
        """Return the children that a choice of freezing keeps: a prefix of the chain.

        `freeze` is "features", "backbone" (all but the head), "none", or a child up to
        and with which all is kept. Raises ValueError for any other, and for the head.
        """
        names = self.children
        last = {"features": self.features, "backbone": names[-2]}.get(freeze, freeze)
        if freeze == "none":
            return []
        if last not in names[:-1]:
            raise ValueError(
                f"{freeze!r}: nothing to freeze up to; pass one of "
                f"{', '.join((*FREEZE, *names[:-1]))}"
            )
        return names[: names.index(last) + 1]

    def freezing_patterns(self, freeze: str) -> list[tuple[str, str]]:
        """Return a choice of freezing as `trainable_tree` takes it."""
        trainable = (r".*", "trainable")
        if not (names := self.frozen(freeze)):
            return [trainable]
        return [(rf"({'|'.join(map(re.escape, names))})/.*", "frozen"), trainable]

    def stored(self, frozen: list[str], split: str) -> list[str]:
        """Return the children whose outputs are the same in every epoch, of a prefix.

        In training they end before the first dropout; it is off in a test.
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
}
