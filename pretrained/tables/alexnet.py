"""The key table of torchvision's AlexNet."""

from pretrained.tables.row import Row, conv, flattened_chw, linear


def alexnet(
    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256),
    hidden: int = 4096,
) -> tuple[Row, ...]:
    """Return the rows of an AlexNet; the default widths are torchvision's."""
    c1, c2, c3, c4, c5 = channels
    return (
        *conv("features.0", "conv1", c1, 3, 11),
        *conv("features.3", "conv2", c2, c1, 5),
        *conv("features.6", "conv3", c3, c2, 3),
        *conv("features.8", "conv4", c4, c3, 3),
        *conv("features.10", "conv5", c5, c4, 3),
        *linear("classifier.1", "fc6", hidden, c5 * 36, flattened_chw(c5, 6, 6)),
        *linear("classifier.4", "fc7", hidden, hidden),
        *linear("classifier.6", "fc8", "num_classes", hidden),
    )


ALEXNET = alexnet()
