"""The published files: the URL, size and hash of each, and of weights the accuracy."""

import importlib.resources
from typing import NamedTuple

from pretrained.errors import WeightsError


class Source(NamedTuple):
    """A published weights file; `top1` and `top5` are the published accuracies in %.

    `bytes` is its size, or the smallest and the largest that the published one in MB
    stands for. `sha256` is in full where two public places state it; elsewhere it is
    the first 8 digits, which the name of the file contains. `resize` is the length of
    the short side of a picture, in pixels, before its centre of 224×224 is cropped.
    """

    network: str  # in TABLES
    title: str
    url: str
    bytes: int | tuple[int, int]
    sha256: str
    parameters: int
    top1: float
    top5: float
    resize: int = 256
    licence: str = "BSD-3-Clause; trained on ImageNet"
    superseded: tuple[str, ...] = ()  # names of older files with the same weights

    @property
    def file_name(self) -> str:
        """Return the last component of the URL; the file has this name in the cache."""
        return self.url.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Return the folder of the cache in which the file is kept."""
        return "weights"

    @property
    def is_hash_known(self) -> bool:
        """Whether `sha256` is more than its first 8 digits."""
        return len(self.sha256) == 64

    @property
    def preprocessing(self) -> str:
        """Return how a picture is prepared for the network."""
        return (
            f"RGB, short side to {self.resize} (bilinear), centre 224×224, ImageNet's "
            "mean and standard deviation"
        )


class DataFile(NamedTuple):
    """A published file of a data set, kept in this `folder` of the cache."""

    title: str
    url: str
    bytes: int
    sha256: str
    folder: str

    @property
    def file_name(self) -> str:
        """Return the last component of the URL; the file has this name in the cache."""
        return self.url.rpartition("/")[2]


URL = "https://download.pytorch.org/models/"


def _torchvision(
    network: str,
    version: str,
    size: int | tuple[int, int],
    sha256: str,
    parameters: int,
    top1: float,
    top5: float,
    resize: int,
) -> Source:
    return Source(
        network=network,
        title=f"torchvision's {network}, IMAGENET1K_{version}",
        url=f"{URL}{network}-{sha256[:8]}.pth",
        bytes=size,
        sha256=sha256,
        parameters=parameters,
        top1=top1,
        top5=top5,
        resize=resize,
    )


_ALL = (
    # Size and hash are as stated in several public places. Every download checks both
    # and every load checks the hash, so a wrong value here cannot load other weights.
    Source(
        network="alexnet",
        title="torchvision's AlexNet, IMAGENET1K_V1",
        url=f"{URL}alexnet-owt-7be5be79.pth",
        bytes=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        parameters=61_100_840,
        top1=56.522,
        top5=79.066,
        superseded=("alexnet-owt-4df8aa71.pth",),
    ),
    # Of these, where the hash has 8 digits or the size two bounds, fewer than two
    # places state them in full.
    _torchvision(
        "densenet121",
        "V1",
        32_342_954,
        "a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395",
        *(7_978_856, 74.434, 91.972, 256),
    ),
    _torchvision(
        "densenet161",
        "V1",
        (115_729_760, 115_730_809),
        "8d451a50",
        *(28_681_000, 77.138, 93.56, 256),
    ),
    _torchvision(
        "densenet169",
        "V1",
        (57_364_972, 57_366_020),
        "b2777c0a",
        *(14_149_480, 75.6, 92.806, 256),
    ),
    _torchvision(
        "densenet201",
        "V1",
        (81_130_947, 81_131_995),
        "c1103571",
        *(20_013_928, 76.896, 93.37, 256),
    ),
    _torchvision(
        "mobilenet_v2",
        "V1",
        (14_212_923, 14_213_972),
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        *(3_504_872, 71.878, 90.286, 256),
    ),
    _torchvision(
        "mobilenet_v2",
        "V2",
        14_258_573,
        "7ebf99e03e254b273379b23edca7ec0da9f48273b23a332b93c1c99d49e86e8f",
        *(3_504_872, 72.154, 90.822, 232),
    ),
    _torchvision(
        "resnet101",
        "V1",
        (178_793_218, 178_794_267),
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
        *(44_549_160, 77.374, 93.546, 256),
    ),
    _torchvision(
        "resnet101",
        "V2",
        (178_813_141, 178_814_190),
        "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",
        *(44_549_160, 81.886, 95.78, 232),
    ),
    _torchvision(
        "resnet152",
        "V1",
        (241_627_038, 241_628_086),
        "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
        *(60_192_808, 78.312, 94.046, 256),
    ),
    _torchvision(
        "resnet152",
        "V2",
        (241_668_981, 241_670_029),
        "f82ba261",
        *(60_192_808, 82.284, 96.002, 232),
    ),
    _torchvision(
        "resnet18",
        "V1",
        46_830_571,
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        *(11_689_512, 69.758, 89.078, 256),
    ),
    _torchvision(
        "resnet34",
        "V1",
        87_319_819,
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
        *(21_797_672, 73.314, 91.42, 256),
    ),
    _torchvision(
        "resnet50",
        "V1",
        102_530_333,
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        *(25_557_032, 76.13, 92.862, 256),
    ),
    _torchvision(
        "resnet50",
        "V2",
        102_540_417,
        "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
        *(25_557_032, 80.858, 95.434, 232),
    ),
    _torchvision(
        "resnext101_32x8d",
        "V1",
        (356_081_205, 356_082_254),
        "8ba56ff5",
        *(88_791_336, 79.312, 94.526, 256),
    ),
    _torchvision(
        "resnext101_32x8d",
        "V2",
        (356_172_431, 356_173_480),
        "110c445d",
        *(88_791_336, 82.834, 96.228, 232),
    ),
    _torchvision(
        "resnext101_64x4d",
        "V1",
        (334_828_667, 334_829_715),
        "173b62eb",
        *(83_455_272, 83.246, 96.454, 232),
    ),
    _torchvision(
        "resnext50_32x4d",
        "V1",
        (100_441_522, 100_442_571),
        "7cdf4587",
        *(25_028_904, 77.618, 93.698, 256),
    ),
    _torchvision(
        "resnext50_32x4d",
        "V2",
        (100_487_660, 100_488_708),
        "1a0047aa",
        *(25_028_904, 81.198, 95.34, 232),
    ),
    _torchvision(
        "squeezenet1_0",
        "V1",
        (5_009_572, 5_010_620),
        "b66bff10",
        *(1_248_424, 58.092, 80.42, 256),
    ),
    _torchvision(
        "squeezenet1_1",
        "V1",
        4_958_839,
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        *(1_235_496, 58.178, 80.624, 256),
    ),
    _torchvision(
        "vgg11",
        "V1",
        (531_459_736, 531_460_784),
        "8a719046",
        *(132_863_336, 69.02, 88.628, 256),
    ),
    _torchvision(
        "vgg11_bn",
        "V1",
        (531_502_727, 531_503_776),
        "6002323d",
        *(132_868_840, 70.37, 89.81, 256),
    ),
    _torchvision(
        "vgg13",
        "V1",
        (532_198_982, 532_200_030),
        "19584684",
        *(133_047_848, 69.928, 89.246, 256),
    ),
    _torchvision(
        "vgg13_bn",
        "V1",
        (532_246_168, 532_247_216),
        "abd245e5",
        *(133_053_736, 71.586, 90.374, 256),
    ),
    _torchvision(
        "vgg16",
        "V1",
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        *(138_357_544, 71.592, 90.382, 256),
    ),
    _torchvision(
        "vgg16_bn",
        "V1",
        553_507_836,
        "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
        *(138_365_992, 73.36, 91.516, 256),
    ),
    _torchvision(
        "vgg19",
        "V1",
        574_673_361,
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        *(143_667_240, 72.376, 90.876, 256),
    ),
    _torchvision(
        "vgg19_bn",
        "V1",
        574_769_405,
        "c79401a0cf3cb42714e4182f5868c7a6f4f4534f5df9e956e2bb2098de41cbb6",
        *(143_678_248, 74.218, 91.842, 256),
    ),
    _torchvision(
        "wide_resnet101_2",
        "V1",
        254_695_146,
        "32ee1156",
        *(126_886_696, 78.848, 94.284, 256),
    ),
    _torchvision(
        "wide_resnet101_2",
        "V2",
        (508_293_546, 508_294_595),
        "d733dc28",
        *(126_886_696, 82.51, 96.02, 232),
    ),
    _torchvision(
        "wide_resnet50_2",
        "V1",
        138_223_492,
        "95faca4d11227dddf8633dbb5ff6c8a9003c1aa5b8945c73834b8007b10950b8",
        *(68_883_240, 78.468, 94.086, 256),
    ),
    _torchvision(
        "wide_resnet50_2",
        "V2",
        (275_904_987, 275_906_036),
        "9ba9bcbebc349d733a72eb7608143fd754e4689ac8d8ce2916ca0bdff6443950",
        *(68_883_240, 81.602, 95.758, 232),
    ),
)
PUBLISHED = ("imagenet", "imagenet-v2")  # torchvision's IMAGENET1K_V1 and V2
SOURCES: dict[str, dict[str, Source]] = {}  # by the network, then by a name above
for _each in _ALL:
    _name = "imagenet-v2" if _each.title.endswith("V2") else "imagenet"
    SOURCES.setdefault(_each.network, {})[_name] = _each


def published(network: str, name: str) -> Source:
    """Return the published weights of a network, by a name of PUBLISHED.

    Raises WeightsError if there are none.
    """
    found = SOURCES.get(network, {})
    if name not in found:
        others = ", ".join(each for each in SOURCES if name in SOURCES[each])
        raise WeightsError(
            f"{name}: not published for {network}; "
            f"pass {' or '.join(found) or 'a file'}, or --model with one of {others}"
        )
    return found[name]


def by_sha256(sha256: str) -> Source | None:
    """Return the published file with this hash, or None if there is none.

    A file of which only 8 digits are known is not found: others can have them too.
    """
    every = (source for each in SOURCES.values() for source in each.values())
    return next((source for source in every if source.sha256 == sha256), None)


def imagenet_classes() -> list[str]:
    """Return the names of ImageNet's 1,000 classes, in the order of the logits."""
    file = importlib.resources.files("pretrained") / "imagenet_classes.txt"
    return file.read_text("utf-8").splitlines()
