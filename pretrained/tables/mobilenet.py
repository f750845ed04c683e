"""The key table of torchvision's MobileNetV2."""

from collections.abc import Iterator, Sequence

from pretrained.tables.row import Row, batch_norm, conv, linear

BLOCKS = (  # expansion, channels, number of blocks, stride of the first one
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenet(
    blocks: Sequence[tuple[int, int, int, int]] = BLOCKS,
    stem_channels: int = 32,
    last_channels: int = 1280,
) -> Iterator[Row]:
    """Yield the rows of a MobileNetV2 with these settings of its blocks."""
    yield from _conv_norm("features.0.0", "features.0.1", "stem", stem_channels, 3, 3)
    place, inputs = 1, stem_channels
    for expansion, channels, count, _ in blocks:
        for _ in range(count):
            torch, flax = f"features.{place}.conv", f"block{place}"
            width, part = inputs * expansion, 0
            if expansion > 1:
                names = f"{torch}.0.0", f"{torch}.0.1", f"{flax}/expand"
                yield from _conv_norm(*names, width, inputs, 1)
                part = 1
            names = f"{torch}.{part}.0", f"{torch}.{part}.1", f"{flax}/depthwise"
            yield from _conv_norm(*names, width, width, 3, groups=width)
            names = f"{torch}.{part + 1}", f"{torch}.{part + 2}", f"{flax}/project"
            yield from _conv_norm(*names, channels, width, 1)
            place, inputs = place + 1, channels
    names = f"features.{place}.0", f"features.{place}.1", "last"
    yield from _conv_norm(*names, last_channels, inputs, 1)
    yield from linear("classifier.1", "fc", "num_classes", last_channels)


def _conv_norm(
    torch: str,
    torch_norm: str,
    flax: str,
    out: int,
    inputs: int,
    kernel: int,
    groups: int = 1,
) -> Iterator[Row]:
    """Yield the rows of a convolution without bias, and of the norm behind it."""
    path = f"{flax}/conv"
    yield from conv(torch, path, out, inputs, kernel, groups=groups, bias=False)
    yield from batch_norm(torch_norm, f"{flax}/bn", out)
