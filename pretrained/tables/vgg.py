"""The key tables of torchvision's VGG networks."""

from collections.abc import Iterator, Sequence

from pretrained.tables import row
from pretrained.tables.row import Row, conv, flattened_chw, linear

WIDTHS = (64, 128, 256, 512, 512)  # of the convolutions of each stage


def stages(*convolutions: int) -> tuple[tuple[int, ...], ...]:
    """Return the channels of these numbers of convolutions of each stage."""
    return tuple(
        (width,) * count for width, count in zip(WIDTHS, convolutions, strict=True)
    )


def vgg(
    channels: Sequence[Sequence[int]],
    batch_norm: bool = False,
    hidden: int = 4096,
) -> Iterator[Row]:
    """Yield the rows of a VGG with these channels of the convolutions of each stage.

    In torch, the layers are counted with the operations between them.
    """
    place, inputs = 0, 3
    for stage, widths in enumerate(channels, start=1):
        for i, width in enumerate(widths, start=1):
            yield from conv(f"features.{place}", f"conv{stage}_{i}", width, inputs, 3)
            if batch_norm:
                place += 1
                norm = row.batch_norm(f"features.{place}", f"bn{stage}_{i}", width)
                yield from norm
            place, inputs = place + 2, width  # behind its ReLU
        place += 1  # behind the stage's pool
    flattened = flattened_chw(inputs, 7, 7)
    yield from linear("classifier.0", "fc6", hidden, inputs * 49, flattened)
    yield from linear("classifier.3", "fc7", hidden, hidden)
    yield from linear("classifier.6", "fc8", "num_classes", hidden)
