"""Streaming: the same batches from memory, from threads and from any worker count."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_folder import load, pets, picture  # noqa: F401 (a fixture)

from jaxlab.data import pictures
from jaxlab.data.stream import streamed
from jaxlab.errors import InputError
from jaxlab.preprocess import Preprocess
from jaxlab.train import Resident, epoch_order

SQUASH = Preprocess(63)


@pytest.fixture
def both(pets, monkeypatch):  # noqa: F811 (the fixture)
    """The same pictures in memory and on the disk."""
    whole = load(pets)[0].train
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    return whole, load(pets)[0].train


@pytest.mark.parametrize("workers", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_from_memory(both, workers):
    whole, files = both
    order = epoch_order(12, seed=0, epoch=1)
    expected = Resident(jnp.asarray(whole.images), jnp.asarray(whole.labels))
    stream = streamed(files.images, files.labels, SQUASH, workers)
    for ours, theirs in zip(stream(order, 5), expected(order, 5), strict=True):
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.weights, theirs.weights)


@pytest.mark.parametrize("change", ["deleted", "changed", "damaged"])
def test_a_file_that_changes_while_it_is_used_is_named(both, change):
    _, files = both
    path = files.images.paths[3]
    if change == "deleted":
        path.unlink()
    elif change == "changed":
        picture(77).save(path)
    else:
        path.write_bytes(path.read_bytes()[:-30])
    stream = streamed(files.images, files.labels, SQUASH)
    with pytest.raises(InputError, match="leave the folder as it is") as raised:
        list(stream(np.arange(12), 4))
    assert str(path) in str(raised.value)
