"""The key tables of the MLP of `jaxlab.overfit`, whose widths are free.

In torch it is, with two hidden layers and batch normalisation, and with names:

    nn.Sequential(OrderedDict(
        flatten=nn.Flatten(), fc1=nn.Linear(784, 512), bn1=nn.BatchNorm1d(512),
        relu1=nn.ReLU(), fc2=nn.Linear(512, 128), relu2=nn.ReLU(),
        fc3=nn.Linear(128, 10),
    ))
"""

from collections.abc import Sequence

from pretrained.tables import row
from pretrained.tables.row import Row, flattened_chw, linear


def mlp(
    image: tuple[int, int, int],
    features: Sequence[int] = (512, 128),
    batch_norm: bool = False,
) -> tuple[Row, ...]:
    """Return the rows of an MLP for images [h, w, c] with these hidden layers.

    Batch normalisation is behind each hidden layer but the last. Raises ValueError if a
    width is not a whole number of at least 1.
    """
    height, width, channels = image
    sizes = [height * width * channels, *features]
    if not features or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"features: expected whole numbers, got {features!r:.60}")
    # torch flattens C·H·W, and Flax H·W·C.
    flattened = flattened_chw(channels, height, width)
    rows = [*linear("fc1", "fc1", sizes[1], sizes[0], flattened)]
    for i, (inputs, units) in enumerate(zip(sizes[1:], sizes[2:], strict=False), 2):
        if batch_norm:
            rows += row.batch_norm(f"bn{i - 1}", f"bn{i - 1}", inputs)
        rows += linear(f"fc{i}", f"fc{i}", units, inputs)
    head = f"fc{len(sizes)}"
    return (*rows, *linear(head, head, "num_classes", sizes[-1]))
