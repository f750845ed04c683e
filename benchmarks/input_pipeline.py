"""Compare the input pipeline, in images per second, with torchvision's DataLoader.

    python -m benchmarks.input_pipeline

There are two jobs. Digits: 28×28 uint8 images in memory become normalised float32
[64, 224, 224, 3]; ours works inside jit, theirs uses ToPILImage, Grayscale(3), Resize,
ToTensor and Normalize. Photographs: JPEGs of 500×375 on disk go through Resize(256),
CenterCrop(224), ToTensor and Normalize; ours streams them with Grain and Pillow, theirs
uses ImageFolder. Theirs is measured with 0, 1, 2 and 4 workers, and the fastest is
used. After a warm-up, ours and theirs run in turn. "Resized only" measures ours up to
the uint8 pixels, before the floats, which are twelve times larger, are written. Memory
growth is the increase of this process's peak over three epochs of ours after the
warm-up. Ratios above 1 in the JSON lines mean that ours is faster.
"""

import argparse
import hashlib
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxlab.data.digits import mnist5k
from jaxlab.data.loaders import InMemory, Loader, Streamed
from jaxlab.data.pictures import Pictures
from jaxlab.data.preprocess import Preprocess, resize_bilinear
from jaxlab.verify import import_torch

BATCH = 64
WORKERS = (0, 1, 2, 4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Run both jobs and print a table and a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--digits", type=int, default=2000, help="images per epoch")
    parser.add_argument("--photographs", type=int, default=600, help="images per epoch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), options.photographs)
        jobs = {
            "digits": (our_digits(options.digits), torch_digits(options.digits)),
            "photographs": (
                our_photographs(Path(folder)),
                torch_photographs(Path(folder)),
            ),
        }
        for name, (ours, theirs) in jobs.items():
            compare(name, ours, theirs, options.pairs)
        print(f"digits, resized only: {rate(our_resized(options.digits)):,.0f}/s")


def compare(
    name: str,
    ours: Callable[[], int],
    theirs: dict[int, Callable[[], int]],
    pairs: int,
) -> None:
    """Time an epoch of each side in turn, and print every pair and the JSON line."""
    ours()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        ours()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = max(theirs, key=lambda workers: rate(theirs[workers]))
    rows = []
    for pair in range(pairs):
        row = rate(ours), rate(theirs[best])
        rows.append((*row, row[0] / row[1]))
        print(
            f"{name:<13}{pair:>3}{row[0]:>10,.0f}/s{row[1]:>10,.0f}/s"
            f"{row[0] / row[1]:>8.2f}×",
            flush=True,
        )
    columns = list(zip(*rows, strict=True))
    our_rate, torch_rate, ratio = map(statistics.median, columns)
    print(
        json.dumps(
            {
                "name": f"input_pipeline/{name}",
                "ours": round(our_rate, 1),
                "torch": round(torch_rate, 1),
                "torch_workers": best,
                "ratio": round(ratio, 2),
                "range": [round(min(columns[2]), 2), round(max(columns[2]), 2)],
                "pairs": pairs,
                "memory_growth_mb": round((after - before) / 1024, 1),
            }
        )
    )


def rate(epoch: Callable[[], int]) -> float:
    """Run one epoch; return its images per second."""
    started = time.perf_counter()
    count = epoch()
    return count / (time.perf_counter() - started)


def our_digits(count: int) -> Callable[[], int]:
    """Return our epoch over the first `count` digits."""
    return _epoch(_digits(count), jax.jit(Preprocess()), count)


def our_resized(count: int) -> Callable[[], int]:
    """Return an epoch that only resizes the digits; its program is already compiled."""
    resize = jax.jit(resize_bilinear, static_argnums=(1, 2))
    epoch = _epoch(_digits(count), lambda images: resize(images, 224, 224), count)
    epoch()
    return epoch


def our_photographs(folder: Path) -> Callable[[], int]:
    """Return our epoch over all files, which decodes each of them."""
    preprocess = Preprocess(crop=True)
    paths = tuple(sorted(folder.rglob("*.jpg")))
    digests = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    labels = np.zeros(len(paths), np.int32)
    load = Streamed(Pictures(paths, digests), labels, preprocess)
    return _epoch(load, jax.jit(preprocess.normalize), len(paths))


def _digits(count: int) -> Loader:
    data = mnist5k().first(count, None).train
    return InMemory(jnp.asarray(data.images), jnp.asarray(data.labels))


def _epoch(
    load: Loader, prepare: Callable[[jax.Array], jax.Array], count: int
) -> Callable[[], int]:
    def epoch():
        for batch in load(np.arange(count), BATCH):
            jax.block_until_ready(prepare(batch.inputs))
        return count

    return epoch


def torch_digits(count: int) -> dict[int, Callable[[], int]]:
    """Return torchvision's epochs over the same digits, by number of workers."""
    torch, torchvision = import_torch()
    transforms = torchvision.transforms
    data = mnist5k().first(count, None).train
    chain = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Grayscale(3),
            transforms.Resize([224, 224]),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    class Digits(torch.utils.data.Dataset):
        def __len__(self):
            return count

        def __getitem__(self, index):
            return chain(data.images[index]), int(data.labels[index])

    return _torch_epochs(Digits())


def torch_photographs(folder: Path) -> dict[int, Callable[[], int]]:
    """Return torchvision's epochs over the same files, by number of workers."""
    _, torchvision = import_torch()
    transforms = torchvision.transforms
    chain = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return _torch_epochs(torchvision.datasets.ImageFolder(folder, chain))


def _torch_epochs(dataset: Any) -> dict[int, Callable[[], int]]:
    torch, _ = import_torch()

    def epoch(workers: int) -> Callable[[], int]:
        # Persistent workers start only once, which is the fastest way for PyTorch.
        loader = torch.utils.data.DataLoader(
            dataset, BATCH, num_workers=workers, persistent_workers=workers > 0
        )
        return lambda: sum(len(labels) for _, labels in loader)

    return {workers: epoch(workers) for workers in WORKERS}


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEGs with the size and detail of photographs, in two class folders."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.BICUBIC)).astype(np.int16)
        picture += random.integers(-12, 13, picture.shape, np.int16)
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    main()
