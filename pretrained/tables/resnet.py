"""The key tables of torchvision's ResNet, ResNeXt and wide ResNet networks."""

from collections.abc import Iterator, Sequence

from pretrained.tables.row import Row, batch_norm, conv, linear

EXPANSION = 4  # of a bottleneck: its output channels, per channel of its stage


def resnet(
    depths: Sequence[int] = (2, 2, 2, 2),
    channels: Sequence[int] = (64, 128, 256, 512),
    bottleneck: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
) -> Iterator[Row]:
    """Yield the rows of a ResNet with these numbers of blocks and channels by stage."""
    inputs = channels[0]
    yield from conv("conv1", "conv1", inputs, 3, 7, bias=False)
    yield from batch_norm("bn1", "bn1", inputs)
    for stage, (depth, width) in enumerate(zip(depths, channels, strict=True), start=1):
        outputs = width * EXPANSION if bottleneck else width
        inner = width * width_per_group // 64 * groups
        for i in range(depth):
            if bottleneck:  # of each convolution: out, in, kernel, groups
                sizes = [
                    (inner, inputs, 1, 1),
                    (inner, inner, 3, groups),
                    (outputs, inner, 1, 1),
                ]
            else:
                sizes = [(width, inputs, 3, 1), (width, width, 3, 1)]
            torch, flax = f"layer{stage}.{i}", f"layer{stage}/{i}"
            for k, (*size, parts) in enumerate(sizes, start=1):
                names = f"{torch}.conv{k}", f"{flax}/conv{k}"
                yield from conv(*names, *size, groups=parts, bias=False)
                yield from batch_norm(f"{torch}.bn{k}", f"{flax}/bn{k}", size[0])
            if inputs != outputs or (stage > 1 and i == 0):
                names = f"{torch}.downsample.0", f"{flax}/downsample_conv"
                yield from conv(*names, outputs, inputs, 1, bias=False)
                names = f"{torch}.downsample.1", f"{flax}/downsample_bn"
                yield from batch_norm(*names, outputs)
            inputs = outputs
    yield from linear("fc", "fc", "num_classes", inputs)
