"""Test parts of chains, the modes of links, and the arguments that a step passes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import MLP, AlexNet, Batch, init_state, make_optimizer, make_train_step
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.models.chain import Link, Mode, run, takes
from tests.training.linear import Linear

CURES = {"dropout_rate": 0.5, "batch_norm": True}
WHOLE = MLP(features=(6, 5), num_classes=3, **CURES)
CHILDREN = ["fc1", "bn1", "fc2", "fc3"]


def variables_of(model, images):
    # Outside jit, each operation would be a program of its own.
    init = jax.jit(functools.partial(model.init, train=False))
    return init(jax.random.key(0), images)


@pytest.fixture
def images():
    return np.random.default_rng(0).random((8, 4), np.float32)


def test_links_are_the_children_of_the_params_in_order(images):
    bound = WHOLE.bind(variables_of(WHOLE, images))
    assert [link.name for link in bound.links()] == CHILDREN
    assert set(bound.variables["params"]) == set(CHILDREN)
    network = AlexNet(10, channels=(1, 1, 1, 1, 1), hidden=2)
    names = [link.name for link in network.bind({}).links()]
    assert names == ARCHITECTURES["alexnet"].children


@pytest.mark.parametrize("child", CHILDREN[:-1])
@pytest.mark.parametrize("train", [False, True])
def test_a_part_and_the_rest_are_the_whole(child, train, images):
    apply = functools.partial(
        WHOLE.apply,
        variables_of(WHOLE, images),
        train=train,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats"],
    )
    whole, _ = apply(images)
    part, _ = apply(images, until=child)
    np.testing.assert_array_equal(apply(part, after=child)[0], whole)


def test_frozen_links_keep_their_statistics_while_dropout_stays_on(images):
    variables = variables_of(WHOLE, images)

    def trained(frozen, seed=1):
        out, updated = WHOLE.apply(
            variables,
            images,
            train=True,
            frozen=frozen,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )
        return out, updated["batch_stats"]["bn1"]

    kept, stats = trained("bn1")
    before = variables["batch_stats"]["bn1"]
    assert all((stats[name] == before[name]).all() for name in before)
    assert (kept != trained("bn1", seed=2)[0]).any()  # dropout is on
    moved = trained("fc1")[1]  # the control: frozen only up to fc1
    assert moved["count"] == 1 and (moved["mean"] != before["mean"]).all()


def test_each_link_is_told_its_mode():
    told = []
    links = [
        Link(name, lambda x, mode, name=name: told.append((name, mode)) or x)
        for name in "abc"
    ]
    run(links, jnp.ones(2), train=True, frozen="b")
    assert [name for name, _ in told] == ["a", "b", "c"]
    assert [mode.frozen for _, mode in told] == [True, True, False]
    assert [mode.updates_statistics for _, mode in told] == [False, False, True]
    assert not Mode(train=False).updates_statistics
    with pytest.raises(ValueError, match="'d': unknown layer; pass one of a, b, c"):
        run(links, jnp.ones(2), train=True, after="d")


def test_who_takes_what_is_known_through_wrappers():
    for function in (
        WHOLE.apply,
        functools.partial(WHOLE.apply, after="fc1"),
        functools.wraps(WHOLE.apply)(lambda *args, **kwargs: None),
        lambda variables, x, *, train, weights: x,
    ):
        assert takes(function, "weights")
    for function in (Linear().apply, lambda variables, x, **kwargs: x):
        assert not takes(function, "weights")


def test_a_step_on_a_padded_batch_is_that_on_the_short_one(images):
    labels = np.arange(8) % 3
    variables = variables_of(WHOLE, images)
    trainable = jax.tree.map(lambda _: True, variables["params"])
    optimizer = make_optimizer("sgd", 0.1, trainable=trainable)

    def trained(model, inputs, targets, weights):
        step = make_train_step(model.apply, optimizer, trainable)
        state = init_state(variables["params"], optimizer, variables["batch_stats"])
        batch = Batch(inputs, targets, jnp.asarray(weights, jnp.float32))
        state, _ = step(state, batch, jax.random.key(0))
        return jax.tree.leaves((state.params, state.batch_stats))

    model = WHOLE.clone(dropout_rate=0.0)
    short = trained(model, images[:5], labels[:5], [1] * 5)
    padded = trained(model, images, labels, [1] * 5 + [0] * 3)
    for ours, theirs in zip(padded, short, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    counted = trained(model, images, labels, [1] * 8)  # the control
    assert (
        max(float(np.abs(a - b).max()) for a, b in zip(counted, short, strict=True))
        > 1e-3
    )


def test_a_step_freezes_the_statistics_of_what_is_frozen(images):
    variables = variables_of(WHOLE, images)
    trainable = {
        name: dict.fromkeys(leaves, name in ("fc2", "fc3"))
        for name, leaves in variables["params"].items()
    }
    optimizer = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(WHOLE.apply, optimizer, trainable, frozen="bn1")
    state = init_state(variables["params"], optimizer, variables["batch_stats"])
    batch = Batch(images, np.arange(8) % 3, jnp.ones(8))
    state, _ = step(state, batch, jax.random.key(0))
    assert int(state.batch_stats["bn1"]["count"]) == 0
    with pytest.raises(ValueError, match="takes no such argument"):
        make_train_step(Linear().apply, optimizer, trainable, frozen="fc1")


def test_flaxs_own_batch_norm_is_called_without(images):
    class Students(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
            return nn.Dense(3)(x)

    variables = variables_of(Students(), images)
    trainable = jax.tree.map(lambda _: True, variables["params"])
    optimizer = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(Students().apply, optimizer, trainable)
    state = init_state(variables["params"], optimizer, variables["batch_stats"])
    _, metrics = step(
        state, Batch(images, np.arange(8) % 3, jnp.ones(8)), jax.random.key(0)
    )
    assert np.isfinite(metrics.loss)
