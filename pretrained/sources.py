"""The published files: the URL, size and hash of each, and of weights the accuracy."""

import importlib.resources
from typing import NamedTuple


class Source(NamedTuple):
    """A published weights file; `top1` and `top5` are the published accuracies in %."""

    title: str
    url: str
    bytes: int
    sha256: str
    parameters: int
    top1: float
    top5: float
    preprocessing: str
    licence: str
    superseded: tuple[str, ...] = ()  # names of older files with the same weights

    @property
    def file_name(self) -> str:
        """Return the last component of the URL; the file has this name in the cache."""
        return self.url.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Return the folder of the cache in which the file is kept."""
        return "weights"


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


SOURCES = {
    # Size and hash are as stated in several public places. Every download checks both
    # and every load checks the hash, so a wrong value here cannot load other weights.
    "imagenet": Source(
        title="torchvision's AlexNet, IMAGENET1K_V1",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        bytes=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        parameters=61_100_840,
        top1=56.522,
        top5=79.066,
        preprocessing="RGB, short side to 256 (bilinear), centre 224×224, ImageNet's "
        "mean and standard deviation",
        licence="BSD-3-Clause; trained on ImageNet",
        superseded=("alexnet-owt-4df8aa71.pth",),
    ),
}


def by_sha256(sha256: str) -> Source | None:
    """Return the published file with this hash, or None if there is none."""
    return next((s for s in SOURCES.values() if s.sha256 == sha256), None)


def imagenet_classes() -> list[str]:
    """Return the names of ImageNet's 1,000 classes, in the order of the logits."""
    file = importlib.resources.files("pretrained") / "imagenet_classes.txt"
    return file.read_text("utf-8").splitlines()
