"""The files of MNIST and of data sets like it: their names, hashes and places."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jaxlab.data import idx
from jaxlab.errors import InputError
from pretrained.sources import DataFile

# The names of the images and the labels of each split, without the ending .gz.
NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_ALL = tuple(name for names in NAMES.values() for name in names)


class _File(NamedTuple):
    """A published file: its size and hash, and the hash of its unpacked content."""

    bytes: int
    sha256: str
    content: str


class Published(NamedTuple):
    """A published data set of four `files`, which have the ending .gz at `url`."""

    title: str
    folder: str  # torchvision's
    url: str
    class_names: tuple[str, ...]
    files: dict[str, _File]

    def sources(self, name: str) -> dict[str, DataFile]:
        """Return what to download, by the files' names; `name` is the data set's."""
        return {
            file: DataFile(
                f"{self.title}'s {file}.gz",
                f"{self.url}{file}.gz",
                about.bytes,
                about.sha256,
                f"data/{name}",
            )
            for file, about in self.files.items()
        }


# By the name of --dataset, which is TFDS's. All hashes were computed from the files but
# those of MNIST's training images, which are as registered in TFDS and as stated in
# several public places.
PUBLISHED = {
    "mnist": Published(
        "MNIST",
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        tuple("0123456789"),
        {
            "train-images-idx3-ubyte": _File(
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "train-labels-idx1-ubyte": _File(
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "t10k-images-idx3-ubyte": _File(
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            "t10k-labels-idx1-ubyte": _File(
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
    ),
    "fashion_mnist": Published(
        "Fashion-MNIST",
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
        + ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        {
            "train-images-idx3-ubyte": _File(
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            "train-labels-idx1-ubyte": _File(
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            "t10k-images-idx3-ubyte": _File(
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            "t10k-labels-idx1-ubyte": _File(
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        },
    ),
}
COUNTS = {"train": 60_000, "test": 10_000}  # examples in the published files


class OtherFilesError(InputError):
    """A folder has some of the four files, or those of another data set."""


def find(folder: str | os.PathLike, name: str | None = None) -> dict[str, Path] | None:
    """Return the paths of the four files by their names; None if there are none.

    They lie in `folder` itself, or below it as torchvision stores them, or in a folder
    with the name of the data set. With the `name` of a published data set, the files of
    another are passed over.

    Raises OtherFilesError if only some of the files are there, or with `name` only
    those of another data set; and InputError if there are several data sets and no
    `name`, or if the labels are damaged.
    """
    known = PUBLISHED if name is None else {name: PUBLISHED[name]}
    places = [".", "raw"]
    for each, published in known.items():
        places += [f"{published.folder}/raw", each]
    found = [files for place in places if (files := _files_in(Path(folder, place)))]
    whole = [files for files in found if len(files) == len(_ALL)]
    if name is None and len(whole) > 1:
        raise InputError(
            f"{folder}: contains several data sets, in "
            f"{' and in '.join(str(folder_of(files)) for files in whole)}; pass one of "
            "these folders"
        )
    if whole and name is not None:
        return _of_data_set(name, whole)
    if whole:
        return whole[0]
    if not found:
        return None
    missing = ", ".join(file for file in _ALL if file not in found[0])
    raise OtherFilesError(
        f"{folder_of(found[0])}: contains {', '.join(found[0])}, but lacks {missing} "
        "(also with the ending .gz); put all four files into it"
    )


def _of_data_set(name: str, whole: Sequence[dict[str, Path]]) -> dict[str, Path]:
    """Return the first files that are not those of another published data set."""
    others = {}
    for files in whole:
        other = _identity_of(files)
        if other is None or other == name:
            return files
        others[other] = folder_of(files)
    other, folder = next(iter(others.items()))
    raise OtherFilesError(
        f"{folder}: contains {PUBLISHED[other].title}, not {PUBLISHED[name].title}; "
        f"pass --dataset {other}, or another folder"
    )


def folder_of(files: Mapping[str, Path]) -> Path:
    """Return the folder of some of the files."""
    return next(iter(files.values())).parent


def _files_in(folder: Path) -> dict[str, Path]:
    """Return which of the four files are in a folder, by their names.

    Of a file and its compressed copy, the latter is taken: gzip notices its damages.
    """
    found = {}
    for name in _ALL:
        for spelling in (name, name.replace("-idx", ".idx")):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if os.path.isfile(path):
                    found[name] = path
    return found


def read(file: str, path: Path, opened: BinaryIO | None = None) -> bytes:
    """Return the content of one of the four files, which may be `opened` already.

    Raises InputError if it is damaged.
    """
    dimensions = 3 if "-idx3" in file else 1
    if opened is None:
        return idx.read(path, dimensions)
    return idx.unpacked(opened, path, dimensions)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def identity(contents: Mapping[str, bytes]) -> str | None:
    """Return the name of the published data set with these labels; None for another."""
    hashes = {file: sha256(contents[file]) for _, file in NAMES.values()}
    for name, published in PUBLISHED.items():
        if all(published.files[file].content == h for file, h in hashes.items()):
            return name
    return None


def _identity_of(files: Mapping[str, Path]) -> str | None:
    return identity({file: read(file, files[file]) for _, file in NAMES.values()})
