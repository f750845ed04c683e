"""Stored outputs of frozen layers: equal to the layers', found again, never stale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FORWARD_FLOAT64, random_params, relative_error

from jaxlab import (
    AlexNet,
    Preprocess,
    inputs,
    make_eval_step,
    make_optimizer,
    make_train_step,
    runtime,
    store,
    trainable_tree,
)
from jaxlab.config import FREEZE
from jaxlab.data.dataset import no_progress
from jaxlab.data.digits import mnist5k
from jaxlab.features import Images, feature_loader
from jaxlab.runtime import Clock
from jaxlab.store import ArrayStore, NoRoom
from jaxlab.train import Resident, epoch_order, evaluate, init_state, train_epoch
from tests.stress.narrow import NARROW

COUNT = 23
SIZE = COUNT * 5 * 8  # bytes of all outputs in float64


def frozen(variables, images):
    """A small frozen layer: uint8[b, 2, 3, 1] -> float[b, 5]."""
    flat = images.reshape(len(images), -1).astype(variables["kernel"].dtype)
    return jnp.tanh(flat @ variables["kernel"] / 255)


class Job:
    """One run's request, of which a test changes a part."""

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
        data = Resident(jnp.asarray(self.pixels), jnp.asarray(self.labels))
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
            say=self.said.append,
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
    """Every batch holds the layer's own outputs, labels and weights, in order."""
    order = epoch_order(COUNT, seed=0, epoch=0)
    seen = []
    for batch in loader(order, 4):
        real = np.asarray(batch.weights) > 0
        places = np.asarray(batch.labels)[real]
        seen.extend(places)
        found = np.asarray(batch.inputs)[real]
        assert relative_error(found, job.expected()[places]) <= FORWARD_FLOAT64
    np.testing.assert_array_equal(seen, order)


def test_outputs_are_the_layers_own_and_are_found_again(job, where):
    loader, found = job.run()
    assert not found and job.done == COUNT
    check(loader, job)
    again, found = job.run()
    assert found
    check(again, job)
    assert isinstance(again, Resident) == (where == "in memory")
    first, second = (
        [np.asarray(batch.inputs) for batch in load(np.arange(COUNT), 10)]
        for load in (loader, again)
    )
    np.testing.assert_array_equal(first, second)
    assert job.said == []


def test_a_found_output_that_is_wrong_fails_the_check(job):
    """The control of `check`: outputs of other pixels under the same hash."""
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
    (array,) = job.place.folder.rglob(store.ARRAY)
    data = bytearray(array.read_bytes())
    data[100] ^= 1
    array.write_bytes(data)
    loader, found = job.run()
    assert not found
    check(loader, job)
    (line,) = job.said
    assert line.startswith("warning: ") and line.endswith("; computing it anew")
    assert job.run()[1]


def test_without_room_outputs_stay_in_memory_and_it_is_said(job):
    job.place.max_bytes = SIZE - 1
    loader, found = job.run()
    assert not found and isinstance(loader, Resident)
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
    with pytest.raises(NoRoom):
        job.run()
    assert job.done == 0


LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
TRAINED, TESTED = 24, 12


class Narrow:
    """A narrow network on digits, in float64, trained from images or stored outputs."""

    def __init__(self, folder):
        self.model, self.preprocess = AlexNet(10, **NARROW), Preprocess(63)
        self.data = mnist5k().first(TRAINED, TESTED)
        self.params = random_params(self.model, np.float64)
        self.images = inputs.images(self.model, self.data, self.preprocess, workers=0)
        self.store = ArrayStore(folder, 1 << 30)

    def trainable(self, frozen):
        """The tree of what is trained where the layers named are frozen."""
        return {
            layer: dict.fromkeys(leaves, layer not in frozen)
            for layer, leaves in self.params.items()
        }

    def stored(self, trainable):
        return inputs.features(
            self.images,
            self.model,
            self.params,
            self.data,
            self.preprocess,
            trainable,
            self.store,
            clock=Clock(),
            progress=no_progress,
            say=lambda line: None,
        )

    def train(self, splits, trainable):
        """Three epochs with dropout; what comes of them, as arrays by name."""
        optimizer = make_optimizer("adam", 1e-3, trainable=trainable, l2=5e-4)
        step = make_train_step(splits["train"].apply_fn, optimizer, trainable)
        state = init_state(self.params, optimizer)
        for epoch in range(3):
            state, score = train_epoch(
                step,
                state,
                splits["train"].load,
                order=epoch_order(TRAINED, seed=0, epoch=epoch),
                batch_size=10,
                key=jax.random.key(1),
            )
        tested, answers = evaluate(
            make_eval_step(splits["test"].apply_fn),
            state,
            splits["test"].load,
            count=TESTED,
            batch_size=5,
        )
        return state.params, [*score, *tested], answers


def assert_same_training(found, expected):
    """To roundoff in float64, but for the answers, which are equal."""
    for ours, theirs in zip(
        *map(jax.tree.leaves, (found[0], expected[0])), strict=True
    ):
        assert ours.dtype == np.float64
        assert relative_error(ours, theirs) <= FORWARD_FLOAT64
    np.testing.assert_allclose(found[1], expected[1], FORWARD_FLOAT64)
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.fixture
def narrow(tmp_path, x64):
    return Narrow(tmp_path / "features")


# How many layers, from the first on, are frozen: every place to freeze up to.
@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(depth, marks=() if depth == 7 else pytest.mark.slow)
        for depth in range(len(LAYERS))
    ],
)
def test_training_on_stored_outputs_is_training_on_images(depth, narrow):
    trainable = narrow.trainable(LAYERS[:depth])
    found = narrow.train(narrow.stored(trainable), trainable)
    assert_same_training(found, narrow.train(narrow.images, trainable))


@pytest.mark.parametrize("freeze", FREEZE)
def test_what_each_choice_of_freezing_stores(freeze, narrow, where):
    trainable = trainable_tree(narrow.params, FREEZE[freeze])
    stored = narrow.stored(trainable)
    shapes = {
        name: next(iter(stored[name].load(np.arange(2), 2))).inputs.shape
        for name in stored
    }
    image, outputs, hidden = (2, 28, 28, 1), (2, 6, 6, 12), (2, 32)
    assert (
        shapes
        == {
            "features": {"train": outputs, "test": outputs},
            "backbone": {"train": outputs, "test": hidden},
            "none": {"train": image, "test": image},
        }[freeze]
    )
    if freeze == "backbone":  # from the disk too, since what is stored is read there
        found = narrow.train(stored, trainable)
        assert_same_training(found, narrow.train(narrow.images, trainable))


def test_a_wrong_cut_is_refused_and_would_train_another_network(narrow, monkeypatch):
    """The control: all convolutions stored where only three of them are frozen."""
    trainable = narrow.trainable(LAYERS[:3])
    monkeypatch.setattr(inputs, "_last_frozen", lambda cuts, trainable: cuts[0])
    with pytest.raises(ValueError) as raised:
        narrow.stored(trainable)
    assert str(raised.value).startswith(
        "stored outputs: conv4/bias, conv4/kernel, conv5/bias, conv5/kernel are trained"
    )
    monkeypatch.setattr(
        inputs,
        "frozen_layers",
        lambda params, trainable, layers: {name: params[name] for name in layers},
    )
    found = narrow.train(narrow.stored(trainable), trainable)
    with pytest.raises(AssertionError):
        assert_same_training(found, narrow.train(narrow.images, trainable))


def test_a_split_without_any_place_keeps_its_images(tmp_path, monkeypatch):
    model, data = AlexNet(10, **NARROW), mnist5k().first(24, 12)
    params = random_params(model)
    fed = inputs.images(model, data, Preprocess(63), workers=0)
    output = jax.eval_shape(
        lambda: model.apply(
            {"params": params}, jnp.zeros((12, 63, 63, 3)), method="features"
        )
    )
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 0)
    said = []
    found = inputs.features(
        fed,
        model,
        params,
        data,
        Preprocess(63),
        trainable_tree(params, FREEZE["features"]),
        ArrayStore(tmp_path / "features", 4 * output.size),
        clock=Clock(),
        progress=no_progress,
        say=said.append,
    )
    assert found["train"] is fed["train"]
    (batch,) = found["test"].load(np.arange(12), 12)
    assert batch.inputs.shape == output.shape
    assert "no place for the features of 24 images" in said[0]
    assert said[1].startswith("features: 12 images")


def test_a_second_run_does_not_compile(job):
    job.run()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event)
    )
    job.run()
    assert not [event for event in compiled if "backend_compile" in event]
