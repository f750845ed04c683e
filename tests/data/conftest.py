"""Fixtures and helpers for tests that load a folder of images."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.image_folder import load_folder
from jaxlab.data.preprocess import Preprocess

SQUASH = Preprocess(63)


def picture(seed=0, size=(40, 30)):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(values)


def load(root, preprocess=SQUASH, **kwargs):
    said = []
    kwargs = {"test_fraction": 0.2, "log": said.append, **kwargs}
    return load_folder(root, preprocess, **kwargs), said


def refuse(monkeypatch, *folders):
    """Let these folders refuse to be listed; root may list any folder.

    Python's own `os.walk`, `glob` and `pathlib` list them by these two functions.
    """

    def refusing(function):
        def listing(path="."):
            if not isinstance(path, int) and Path(os.fsdecode(path)) in folders:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return function(path)

        return listing

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))


@pytest.fixture
def pets(tmp_path):
    """Return the path of a folder with two classes of eight images each."""
    return write_pets(tmp_path / "my pets")


def write_pets(root):
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            picture(10 * label + i).save(root / name / f"{i}.png")
    return root
