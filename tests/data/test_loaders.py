"""Test that streaming gives the in-memory batches for any number of workers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.data import loaders, pictures
from jaxlab.data.loaders import InMemory, Streamed, batches, epoch_order
from jaxlab.errors import InputError, JaxlabError
from tests.data.conftest import SQUASH, load, picture


@pytest.fixture
def both(pets, monkeypatch):
    """Return the same training images in memory and read from the disk."""
    whole = load(pets)[0].train
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    return whole, load(pets)[0].train


def test_an_order_visits_every_example_once_and_differs_by_seed_and_epoch():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], epoch_order(50, 0, 0))
    kept = np.concatenate([i[w > 0] for i, w in batches(orders[0], 8)])
    np.testing.assert_array_equal(kept, orders[0])


@pytest.mark.parametrize(
    "workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_batches_are_those_from_memory(both, workers):
    whole, files = both
    order = epoch_order(12, seed=0, epoch=1)
    expected = InMemory(jnp.asarray(whole.images), jnp.asarray(whole.labels))
    stream = Streamed(files.images, files.labels, SQUASH, workers)
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
    stream = Streamed(files.images, files.labels, SQUASH)
    with pytest.raises(InputError, match="leave the folder unchanged") as raised:
        list(stream(np.arange(12), 4))
    assert str(path) in str(raised.value)


def test_a_worker_that_is_ended_is_one_line_with_a_remedy():
    def batches(message):
        yield 1
        raise RuntimeError(message)

    ended = "Worker process was terminated unexpectedly with exit code -7. Search"
    with pytest.raises(JaxlabError) as raised:
        list(loaders._ends_explained(batches(ended)))
    assert raised.value.text.startswith(
        "--workers: a process that decodes images terminated unexpectedly with exit "
        "code -7, as it does without memory, or where /dev/shm is small"
    )
    with pytest.raises(RuntimeError, match="odd"):
        list(loaders._ends_explained(batches("odd")))
