"""Test that training on stored outputs equals training on images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import (
    AlexNet,
    Preprocess,
    make_eval_step,
    make_optimizer,
    make_train_step,
    runtime,
    trainable_tree,
)
from jaxlab.data.dataset import no_progress
from jaxlab.data.digits import mnist5k
from jaxlab.data.loaders import epoch_order
from jaxlab.models.architecture import ARCHITECTURES, FREEZE
from jaxlab.runtime import Clock
from jaxlab.training import inputs
from jaxlab.training.epoch import evaluate_split, train_epoch
from jaxlab.training.feature_store import ArrayStore
from jaxlab.training.step import init_state
from tests.conftest import FORWARD_FLOAT64, random_params, relative_error
from tests.stress.narrow import NARROW

patterns_of = ARCHITECTURES["alexnet"].freezing_patterns


@pytest.fixture(params=["in memory", "on disk"])
def where(request, monkeypatch):
    if request.param == "on disk":
        monkeypatch.setattr(runtime, "memory_bytes", lambda: 0)
    return request.param


LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


TRAINED, TESTED = 24, 12


class Narrow:
    """A narrow float64 network, trained on images of digits or on stored outputs."""

    def __init__(self, folder):
        self.model, self.preprocess = AlexNet(10, **NARROW), Preprocess(63)
        self.data = mnist5k().first(TRAINED, TESTED)
        self.params = random_params(self.model, np.float64)
        self.images = inputs.image_inputs(
            self.model, self.data, self.preprocess, workers=0
        )
        self.store = ArrayStore(folder, 1 << 30)

    def trainable(self, frozen):
        """Return a tree of bool like params: False in the layers named in `frozen`."""
        return {
            layer: dict.fromkeys(leaves, layer not in frozen)
            for layer, leaves in self.params.items()
        }

    def stored(self, trainable):
        return inputs.feature_inputs(
            self.images,
            ARCHITECTURES["alexnet"],
            self.model,
            {"params": self.params},
            self.data,
            self.preprocess,
            trainable,
            self.store,
            clock=Clock(),
            progress=no_progress,
            log=lambda line: None,
        )

    def train(self, splits, trainable):
        """Train three epochs; return params, train and test scores, and predictions."""
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
        tested, answers = evaluate_split(
            make_eval_step(splits["test"].apply_fn),
            state,
            splits["test"].load,
            count=TESTED,
            batch_size=5,
        )
        return state.params, [*score, *tested], answers


def assert_same_training(found, expected):
    """Assert equality to float64 roundoff, and exact equality of predictions."""
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


# `depth` is the number of frozen layers, counted from the first; the head is trained.
@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(depth, marks=() if depth == 7 else pytest.mark.slow)
        for depth in range(len(LAYERS))
    ],
)
def test_training_on_stored_outputs_is_training_on_images(
    depth, narrow, slow_is_compiled_quickly
):
    trainable = narrow.trainable(LAYERS[:depth])
    found = narrow.train(narrow.stored(trainable), trainable)
    assert_same_training(found, narrow.train(narrow.images, trainable))


@pytest.mark.parametrize("freeze", FREEZE)
def test_what_each_choice_of_freezing_stores(freeze, narrow, where):
    trainable = trainable_tree(narrow.params, patterns_of(freeze))
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
    if freeze == "backbone":  # in both places, as training reads the outputs there
        found = narrow.train(stored, trainable)
        assert_same_training(found, narrow.train(narrow.images, trainable))


def test_a_layer_of_which_a_part_is_trained_is_not_stored(narrow):
    trainable = narrow.trainable(LAYERS[:5])
    trainable["conv3"] = {"kernel": False, "bias": True}
    batch = next(narrow.stored(trainable)["train"].load(np.arange(2), 2))
    assert batch.inputs.shape == (2, 3, 3, 12)  # of conv2's output


@pytest.mark.slow
def test_a_wrong_cut_is_refused_and_would_train_another_network(narrow, monkeypatch):
    """Storing the outputs of trained layers is refused, and would change the result.

    All convolutions are to be stored here, but only the first three are frozen.
    """
    trainable = narrow.trainable(LAYERS[:3])
    monkeypatch.setattr(inputs, "frozen_children", lambda *_: list(LAYERS[:5]))
    with pytest.raises(ValueError) as raised:
        narrow.stored(trainable)
    assert str(raised.value).startswith(
        "stored outputs: conv4/bias, conv4/kernel, conv5/bias, conv5/kernel are trained"
    )
    monkeypatch.setattr(
        inputs,
        "frozen_layers",
        lambda variables, trainable, layers: {
            "params": {name: variables["params"][name] for name in layers}
        },
    )
    found = narrow.train(narrow.stored(trainable), trainable)
    with pytest.raises(AssertionError):
        assert_same_training(found, narrow.train(narrow.images, trainable))


def test_a_split_without_any_place_keeps_its_images(tmp_path, monkeypatch):
    model, data = AlexNet(10, **NARROW), mnist5k().first(24, 12)
    params = random_params(model)
    images = inputs.image_inputs(model, data, Preprocess(63), workers=0)
    output = jax.eval_shape(
        lambda: model.apply(
            {"params": params}, jnp.zeros((12, 63, 63, 3)), train=False, until="conv5"
        )
    )
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 0)
    said = []
    found = inputs.feature_inputs(
        images,
        ARCHITECTURES["alexnet"],
        model,
        {"params": params},
        data,
        Preprocess(63),
        trainable_tree(params, patterns_of("features")),
        ArrayStore(tmp_path / "features", 4 * output.size),
        clock=Clock(),
        progress=no_progress,
        log=said.append,
    )
    assert found["train"] is images["train"]
    (batch,) = found["test"].load(np.arange(12), 12)
    assert batch.inputs.shape == output.shape
    assert "not enough space for the features of 24 images" in said[0]
    assert said[1].startswith("features: 12 images")
