"""Test what `jaxlab.fit` refuses in a module, and that threads may call it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.errors import UsageError


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, 4, 4, 1), np.uint8)
    return jaxlab.load_data((images, np.arange(30) % 3))


class Student(nn.Module):
    """A module whose fault is given by `fault`."""

    fault: str = ""

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        if self.fault == "statistics in evaluation":
            x = nn.BatchNorm(use_running_average=False)(x)
        if self.fault == "noise in training" and train:
            x += jax.random.normal(self.make_rng("noise"), x.shape)
        if self.fault == "noise in evaluation":
            x += jax.random.normal(self.make_rng("dropout"), x.shape)
        if self.fault == "a cache":
            self.variable("cache", "calls", jnp.zeros, ())
        if self.fault == "a changed cache":
            calls = self.variable("cache", "calls", jnp.zeros, ())
            calls.value += 1
        if self.fault == "a parameter of training" and train:
            x += self.param("shift", nn.initializers.zeros, x.shape[1:])
        if self.fault == "no parameters":
            return x[:, :3]
        logits = nn.Dense(3)(x)
        return {
            "a tuple": (logits, x),
            "a dict": {"logits": logits},
            "nothing": None,
            "classes": logits.argmax(-1),
            "whole numbers": logits.astype(jnp.int32),
            "one image": logits[0],
        }.get(self.fault, logits)


class Masked(nn.Module):
    """A module with another argument than the images."""

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(3)(x * mask)


class Uncalled(nn.Module):
    """A module without a `__call__`."""


FAULTS = {
    "a tuple": "model: returns a tuple; return only the logits, float[b, 3]",
    "a dict": "model: returns a dict; return only the logits, float[b, 3]",
    "nothing": "model: returns a NoneType; return only the logits, float[b, 3]",
    "classes": "model: returns int32[4] for 4 images",
    "whole numbers": "model: returns int32[4, 3] for 4 images",
    "one image": "model: returns float32[3] for 4 images",
    "no parameters": "model: has no parameters to train; add a layer",
    "a cache": "model: has variables in 'cache'; fit keeps 'params' and 'batch_stats'",
    "a changed cache": "model: has variables in 'cache'; fit keeps 'params' and",
    "noise in training": "model: needs a key for 'noise' in training, but has one for "
    "'dropout' there; call make_rng('dropout')",
    "noise in evaluation": "model: needs a key for 'dropout' in evaluation, but has "
    "none there; ",
    "a parameter of training": "model: in training: Could not find parameter named "
    '"shift" in scope "/"; see the documentation of Flax',
    "statistics in evaluation": "model: changes 'batch_stats' in evaluation; ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_module_that_cannot_be_trained_is_refused_at_the_call(fault, data):
    with pytest.raises(UsageError) as raised:
        jaxlab.fit(Student(fault), data, epochs=1, log=False)
    assert str(raised.value).startswith(FAULTS[fault])
    assert "\n" not in str(raised.value)


def test_without_a_fault_the_module_is_trained(data):
    history = jaxlab.fit(Student(), data, epochs=1, log=False)
    assert sorted(history.variables) == ["params"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Masked(), "model: its __call__ takes (x, mask); fit calls it with images"),
        (Uncalled(), "model: Uncalled has no __call__; "),
    ],
)
def test_a_module_that_is_called_otherwise_is_refused(model, message, data):
    with pytest.raises(UsageError) as raised:
        jaxlab.fit(model, data, epochs=1, log=False)
    assert str(raised.value).startswith(message)


def test_variables_that_fit_does_not_keep_are_refused(data):
    variables = Student().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
    variables = {**variables, "cache": {"calls": jnp.zeros(())}}
    with pytest.raises(UsageError, match="^variables: has variables in 'cache'; fit"):
        jaxlab.fit(Student(), data, variables=variables, log=False)
    with pytest.raises(UsageError, match="^variables: expected a dict with 'params'"):
        jaxlab.fit(Student(), data, variables=[1], log=False)


@pytest.mark.slow
def test_two_threads_train_as_one_does(data):
    def train(seed, barrier):
        barrier.wait()
        model = jaxlab.MLP((8, 6), num_classes=3, dropout_rate=0.5, batch_norm=True)
        settings = {"epochs": 3, "lr": 0.01, "seed": seed, "batch_size": 8}
        return jaxlab.fit(model, data, **settings, log=False)

    alone = [train(seed, threading.Barrier(1)) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(train, range(2), [threading.Barrier(2)] * 2))
    for one, other in zip(alone, at_once, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
        losses = [[row["train_loss"] for row in each.rows] for each in (one, other)]
        assert losses[0] == losses[1]
    assert alone[0].rows[-1]["train_loss"] != alone[1].rows[-1]["train_loss"]
