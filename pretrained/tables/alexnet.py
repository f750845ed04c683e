"""torchvision's AlexNet."""

from pretrained.tables.row import Row, flattened_chw, oihw_hwio, same, transposed


def alexnet(
    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256),
    hidden: int = 4096,
) -> tuple[Row, ...]:
    """Return AlexNet's rows, for torchvision's widths or others."""
    c1, c2, c3, c4, c5 = channels
    flatten = flattened_chw(c5, 6, 6)
    return (
        Row("features.0.weight", "conv1/kernel", (c1, 3, 11, 11), oihw_hwio),
        Row("features.0.bias", "conv1/bias", (c1,), same),
        Row("features.3.weight", "conv2/kernel", (c2, c1, 5, 5), oihw_hwio),
        Row("features.3.bias", "conv2/bias", (c2,), same),
        Row("features.6.weight", "conv3/kernel", (c3, c2, 3, 3), oihw_hwio),
        Row("features.6.bias", "conv3/bias", (c3,), same),
        Row("features.8.weight", "conv4/kernel", (c4, c3, 3, 3), oihw_hwio),
        Row("features.8.bias", "conv4/bias", (c4,), same),
        Row("features.10.weight", "conv5/kernel", (c5, c4, 3, 3), oihw_hwio),
        Row("features.10.bias", "conv5/bias", (c5,), same),
        Row("classifier.1.weight", "fc6/kernel", (hidden, c5 * 36), flatten),
        Row("classifier.1.bias", "fc6/bias", (hidden,), same),
        Row("classifier.4.weight", "fc7/kernel", (hidden, hidden), transposed),
        Row("classifier.4.bias", "fc7/bias", (hidden,), same),
        Row("classifier.6.weight", "fc8/kernel", ("num_classes", hidden), transposed),
        Row("classifier.6.bias", "fc8/bias", ("num_classes",), same),
    )


ALEXNET = alexnet()
