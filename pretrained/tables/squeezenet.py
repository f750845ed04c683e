"""The key tables of torchvision's SqueezeNet networks."""

from collections.abc import Iterator, Sequence

from pretrained.tables.row import Row, conv

FIRES = (
    *((16, 64), (16, 64), (32, 128), (32, 128)),
    *((48, 192), (48, 192), (64, 256), (64, 256)),
)


def squeezenet(
    stem: tuple[int, int] = (96, 7),
    fires: Sequence[tuple[int, int]] = FIRES,
    pools: Sequence[str] = ("fire4", "fire8"),
) -> Iterator[Row]:
    """Yield the rows of a SqueezeNet.

    `stem` are the channels and the kernel's side of the first convolution, `fires` the
    channels of each fire module's squeeze and expand convolutions, and `pools` the fire
    modules before a pool, which is counted in torch's names.
    """
    yield from conv("features.0", "conv1", stem[0], 3, stem[1])
    place, inputs = 3, stem[0]  # behind its ReLU and the first pool
    for i, (squeezed, expanded) in enumerate(fires, start=2):
        torch, flax = f"features.{place}", f"fire{i}"
        yield from conv(f"{torch}.squeeze", f"{flax}/squeeze", squeezed, inputs, 1)
        for size in (1, 3):
            name = f"expand{size}x{size}"
            names = f"{torch}.{name}", f"{flax}/{name}"
            yield from conv(*names, expanded, squeezed, size)
        place, inputs = place + (2 if flax in pools else 1), 2 * expanded
    yield from conv("classifier.1", "conv10", "num_classes", inputs, 1)
