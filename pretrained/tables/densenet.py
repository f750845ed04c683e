"""The key tables of torchvision's DenseNet networks."""

from collections.abc import Iterator, Sequence

from pretrained.tables.row import Row, batch_norm, conv, linear


def densenet(
    depths: Sequence[int] = (6, 12, 24, 16),
    growth_rate: int = 32,
    stem_channels: int = 64,
    bottleneck: int = 4,
) -> Iterator[Row]:
    """Yield the rows of a DenseNet with these numbers of layers by block.

    The published files have older names for the layers' parts: `norm.1` for `norm1`.
    """
    channels, between = stem_channels, growth_rate * bottleneck
    yield from conv("features.conv0", "conv0", channels, 3, 7, bias=False)
    yield from batch_norm("features.norm0", "norm0", channels)
    for block, depth in enumerate(depths, start=1):
        for i in range(1, depth + 1):
            torch = f"features.denseblock{block}.denselayer{i}"
            flax = f"block{block}/layer{i}"
            sizes = (between, channels, 1), (growth_rate, between, 3)
            for k, size in enumerate(sizes, start=1):
                names = f"{torch}.norm{k}", f"{flax}/norm{k}"
                yield from _also(f"{torch}.norm.{k}", batch_norm(*names, size[1]))
                names = f"{torch}.conv{k}", f"{flax}/conv{k}"
                layer = conv(*names, *size, bias=False)
                yield from _also(f"{torch}.conv.{k}", layer)
            channels += growth_rate
        if block < len(depths):
            torch, flax = f"features.transition{block}", f"transition{block}"
            yield from batch_norm(f"{torch}.norm", f"{flax}/norm", channels)
            names = f"{torch}.conv", f"{flax}/conv"
            yield from conv(*names, channels // 2, channels, 1, bias=False)
            channels //= 2
    yield from batch_norm("features.norm5", "norm5", channels)
    yield from linear("classifier", "fc", "num_classes", channels)


def _also(torch: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows with the older name of their layer."""
    for row in rows:
        leaf = row.torch.rpartition(".")[2]
        yield row._replace(also=f"{torch}.{leaf}")
