"""Test that stored outputs of frozen layers are exact, reused and never out of date."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import runtime
from jaxlab.data.loaders import InMemory, epoch_order
from jaxlab.training import feature_store
from jaxlab.training.feature_store import ArrayStore, StoreFullError
from jaxlab.training.features import Images, feature_loader
from tests.conftest import FORWARD_FLOAT64, relative_error

COUNT = 23
SIZE = COUNT * 5 * 8  # bytes of all outputs in float64


def frozen(variables, images):
    """A small frozen layer: uint8[b, 2, 3, 1] -> float[b, 5]."""
    flat = images.reshape(len(images), -1).astype(variables["kernel"].dtype)
    return jnp.tanh(flat @ variables["kernel"] / 255)


class Job:
    """The arguments of one call of `feature_loader`; a test changes some of them."""

    def __init__(self, place):
        random = np.random.default_rng(0)
        self.place = place
        self.feature_fn = frozen
        self.variables = {"kernel": random.standard_normal((6, 5))}
        self.pixels = random.integers(0, 256, (COUNT, 2, 3, 1)).astype(np.uint8)
        self.labels = np.arange(COUNT, dtype=np.int32)
        self.sha256 = "of the pixels"
        self.facts = {"decoder": 1}
        self.said, self.done = [], 0

    def run(self):
        data = InMemory(jnp.asarray(self.pixels), jnp.asarray(self.labels))
        images = Images(data, (2, 3, 1), self.labels, self.sha256)
        self.done = 0

        def count(new):
            self.done += new

        return feature_loader(
            self.feature_fn,
            self.variables,
            images,
            self.place,
            batch_size=10,
            facts=self.facts,
            on_batch=count,
            log=self.said.append,
        )

    def expected(self):
        return frozen(self.variables, jnp.asarray(self.pixels))


@pytest.fixture
def job(tmp_path, x64):
    return Job(ArrayStore(tmp_path / "features", 10_000))


@pytest.fixture(params=["in memory", "on disk"])
def where(request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(runtime, "memory_bytes", lambda: 4 * SIZE - 1)
    return request.param


def check(loader, job):
    """Assert that the batches hold the layer's outputs and the labels, in order."""
    order = epoch_order(COUNT, seed=0, epoch=0)
    seen = []
    for batch in loader(order, 4):
        real = np.asarray(batch.weights) > 0
        indices = np.asarray(batch.labels)[real]
        seen.extend(indices)
        found = np.asarray(batch.inputs)[real]
        assert relative_error(found, job.expected()[indices]) <= FORWARD_FLOAT64
    np.testing.assert_array_equal(seen, order)


def test_outputs_are_the_layers_own_and_are_found_again(job, where):
    loader, found = job.run()
    assert not found and job.done == COUNT
    check(loader, job)
    again, found = job.run()
    assert found
    check(again, job)
    assert isinstance(again, InMemory) == (where == "in memory")
    first, second = (
        [np.asarray(batch.inputs) for batch in load(np.arange(COUNT), 10)]
        for load in (loader, again)
    )
    np.testing.assert_array_equal(first, second)
    assert job.said == []


def test_a_found_output_that_is_wrong_fails_the_check(job):
    """Control: `check` fails for outputs of other pixels stored under the same hash."""
    job.run()
    job.pixels = 255 - job.pixels
    loader, found = job.run()
    assert found
    with pytest.raises(AssertionError):
        check(loader, job)


def scaled(variables, images):
    return frozen(variables, images) * 2


CHANGES = {
    "images": dict(sha256="of other pixels"),
    "variables": dict(variables={"kernel": np.ones((6, 5))}),
    "precision": dict(variables={"kernel": np.ones((6, 5), np.float32)}),
    "names": dict(variables={"kernel": np.ones((6, 5)), "unused": np.zeros(1)}),
    "program": dict(feature_fn=scaled),
    "facts": dict(facts={"decoder": 2}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_decides_the_outputs_is_in_the_key(job, name):
    job.run()
    for attribute, value in CHANGES[name].items():
        setattr(job, attribute, value)
    assert not job.run()[1]
    assert job.run()[1]


def test_labels_are_not(job):
    job.run()
    job.labels = job.labels[::-1].copy()
    loader, found = job.run()
    assert found
    (batch,) = loader(np.arange(COUNT), COUNT)
    np.testing.assert_array_equal(batch.labels, job.labels)


def test_damage_is_said_and_computed_anew(job, where):
    job.run()
    (array,) = job.place.folder.rglob(feature_store.ARRAY)
    data = bytearray(array.read_bytes())
    data[100] ^= 1
    array.write_bytes(data)
    loader, found = job.run()
    assert not found
    check(loader, job)
    (line,) = job.said
    assert line.startswith("warning: ") and line.endswith(
        "; the features are computed again"
    )
    assert job.run()[1]


def test_without_room_outputs_stay_in_memory_and_it_is_said(job):
    job.place.max_bytes = SIZE - 1
    loader, found = job.run()
    assert not found and isinstance(loader, InMemory)
    check(loader, job)
    (line,) = job.said
    assert line.startswith(
        f"warning: {job.place.folder}: features are not kept for later runs: "
    )


def test_a_folder_that_cannot_be_written_is_said(job, tmp_path):
    (tmp_path / "features").write_text("a file")
    loader, _ = job.run()
    check(loader, job)
    assert "File exists" in job.said[0]


def test_a_disk_that_fills_up_meanwhile_loses_nothing(job, monkeypatch):
    class Full(ArrayStore):
        def write(self, *args):
            raise OSError(28, "No space left on device")

    job.place = Full(job.place.folder, 10_000)
    loader, found = job.run()
    check(loader, job)
    assert not found and "No space left" in job.said[0]


def test_outputs_without_any_place_are_refused(job, monkeypatch):
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 4 * SIZE - 1)
    job.place.max_bytes = SIZE - 1
    with pytest.raises(StoreFullError):
        job.run()
    assert job.done == 0


def test_a_second_run_does_not_compile(job):
    job.run()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event)
    )
    job.run()
    assert not [event for event in compiled if "backend_compile" in event]
