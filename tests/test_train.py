"""The step and the loops: what is computed, counted, donated and recompiled."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxlab import (
    AlexNet,
    make_eval_step,
    make_optimizer,
    make_train_step,
    train,
    trainable_tree,
)
from jaxlab.config import FREEZE
from jaxlab.models import cpu
from jaxlab.train import (
    Batch,
    Resident,
    batches,
    epoch_order,
    evaluate,
    init_state,
    train_epoch,
)


class Linear(nn.Module):
    """The smallest network with dropout."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        return nn.Dense(3, name="head")(x)


def linear_job(rate=0.5, count=10):
    model = Linear(rate)
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.standard_normal((count, 4)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 3, count), jnp.int32)
    params = model.init(jax.random.key(0), inputs[:1], train=False)["params"]
    trainable = jax.tree.map(lambda _: True, params)
    tx = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(model.apply, tx, trainable)
    return model, step, init_state(params, tx), inputs, labels


def test_a_padded_batch_takes_the_step_of_the_short_one():
    _, step, state, inputs, labels = linear_job(rate=0.0)
    key = jax.random.key(0)
    short = Batch(inputs[:3], labels[:3], jnp.ones(3))
    padded = Batch(
        jnp.concatenate([inputs[:3], 100 * inputs[3:5]]),
        labels[:5],
        jnp.array([1.0, 1, 1, 0, 0]),
    )
    by_short, short_metrics = step(jax.tree.map(jnp.copy, state), short, key)
    by_padded, padded_metrics = step(state, padded, key)
    np.testing.assert_allclose(short_metrics, padded_metrics, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        by_short.params,
        by_padded.params,
    )


def test_the_last_short_batch_does_not_recompile_and_loses_nothing():
    _, step, state, inputs, labels = linear_job()
    seen = []
    programs = train._steps._cache_size()
    state, score = train_epoch(
        step,
        state,
        Resident(inputs, labels),
        order=epoch_order(10, seed=0, epoch=0),
        batch_size=4,
        key=jax.random.key(0),
        on_batch=lambda score, count: seen.append(count),
    )
    assert sum(seen) == 10
    assert int(state.step) == 3
    assert train._steps._cache_size() == programs + 1
    assert np.isfinite(score.loss)


def test_steps_give_the_same_bits_by_one_and_by_many(monkeypatch):
    def job(load_of, seconds_away):
        monkeypatch.setattr(train, "SECONDS_AWAY", seconds_away)
        _, step, state, inputs, labels = linear_job(count=50)
        calls = []
        state, score = train_epoch(
            step,
            state,
            load_of(Resident(inputs, labels)),
            order=epoch_order(50, seed=0, epoch=0),
            batch_size=4,
            key=jax.random.key(0),
            on_batch=lambda score, count: calls.append(count),
        )
        return jax.tree.leaves(jax.device_get(state)), score, calls

    whole, score, calls = job(lambda data: data, np.inf)
    assert calls == [4, 8, 16, 22]  # 1, 2, 4 and 6 batches; the last one holds 2
    # A plain function: any other loader, whose batches pass by the host.
    loaders = {"one": lambda data: data, "host": lambda data: data.__call__}
    for name, load_of in loaders.items():
        found, found_score, calls = job(load_of, 0)
        assert calls == [4] * 12 + [2], name
        # By the host it is another program, which may round otherwise.
        tolerance = {"one": 0, "host": 1e-6}[name]
        np.testing.assert_allclose(found_score, score, rtol=tolerance)
        for ours, theirs in zip(found, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_evaluation_counts_every_example_exactly_once(batch_size):
    model, _, state, inputs, labels = linear_job()
    score, predictions = evaluate(
        make_eval_step(model.apply),
        state,
        Resident(inputs, labels),
        count=10,
        batch_size=batch_size,
    )
    logits = np.asarray(model.apply({"params": state.params}, inputs, train=False))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(predictions, logits.argmax(-1))
    assert score.accuracy == (logits.argmax(-1) == labels).mean()
    np.testing.assert_allclose(
        score.loss, -logs[np.arange(10), labels].mean(), rtol=1e-6
    )


def test_an_order_visits_every_example_once_and_differs_by_seed_and_epoch():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], epoch_order(50, 0, 0))
    kept = np.concatenate([i[w > 0] for i, w in batches(orders[0], 8)])
    np.testing.assert_array_equal(kept, orders[0])


def test_dropout_differs_by_step_and_seed_and_repeats_with_both():
    _, step, state, inputs, labels = linear_job()
    batch = Batch(inputs, labels, jnp.ones(10))

    def loss(at, seed):
        start = jax.tree.map(jnp.copy, state).replace(step=jnp.int32(at))
        return float(step(start, batch, jax.random.key(seed))[1].loss)

    assert loss(0, seed=0) == loss(0, seed=0)
    assert len({loss(0, seed=0), loss(1, seed=0), loss(0, seed=1)}) == 3


def test_the_state_is_donated_but_the_callers_params_are_not():
    model, step, _, inputs, labels = linear_job()
    params = model.init(jax.random.key(0), inputs[:1], train=False)["params"]
    trainable = jax.tree.map(lambda _: True, params)
    state = init_state(params, make_optimizer("sgd", 0.1, trainable=trainable))
    step(state, Batch(inputs, labels, jnp.ones(10)), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


# Forward: 5 convolutions, 3 products. Backward, all trained: every weight, and every
# input but the first convolution's. Frozen layers add nothing to the forward pass.
OPERATIONS = {
    "none": (5 + 5 + 4, 3 + 6),
    "features": (5, 3 + 5),
    "backbone": (5, 3 + 1),
}


@pytest.mark.parametrize("freeze", FREEZE)
def test_no_gradient_is_computed_for_frozen_layers(freeze, monkeypatch, recompiled):
    # What other devices run: a convolution there is one operation.
    monkeypatch.setattr(cpu, "_is_cpu", lambda x: False)
    recompiled()
    model = AlexNet(10)
    images = jax.ShapeDtypeStruct((2, 63, 63, 3), jnp.float32)
    params = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )["params"]
    trainable = trainable_tree(params, FREEZE[freeze])
    tx = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(model.apply, tx, trainable)
    state = jax.eval_shape(lambda params: init_state(params, tx), params)
    batch = Batch(
        images,
        jax.ShapeDtypeStruct((2,), jnp.int32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    )
    program = step.lower(state, batch, jax.random.key(0)).as_text()
    found = (
        program.count("stablehlo.convolution("),
        program.count("stablehlo.dot_general "),
    )
    assert found == OPERATIONS[freeze]


def test_frozen_negative_zero_keeps_its_sign():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3, name="head")(nn.Dense(4, name="body")(x))

    model = Two()
    params = model.init(jax.random.key(0), jnp.ones((1, 4)), train=False)["params"]
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), params)
    patterns = (("head/.*", "trainable"), (".*", "frozen"))
    trainable = trainable_tree(params, patterns)
    tx = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(model.apply, tx, trainable)
    batch = Batch(jnp.ones((2, 4)), jnp.array([0, 1]), jnp.ones(2))
    state, _ = step(init_state(params, tx), batch, jax.random.key(0))
    assert np.signbit(state.params["body"]["kernel"]).all()
    assert (np.asarray(state.params["head"]["bias"]) != 0).all()


def test_class_weights_are_torch_s():
    model, _, _, inputs, labels = linear_job(rate=0.0)
    params = model.init(jax.random.key(0), inputs[:1], train=False)["params"]
    trainable = jax.tree.map(lambda _: True, params)
    tx = make_optimizer("sgd", 1.0, trainable=trainable)
    weights = jnp.array([0.5, 3.0, 1.25])
    step = make_train_step(model.apply, tx, trainable, class_weights=weights)
    padded = Batch(
        jnp.concatenate([inputs, inputs[:2]]),
        jnp.concatenate([labels, labels[:2]]),
        jnp.array([1.0] * 10 + [0.0] * 2),
    )
    state, metrics = step(init_state(params, tx), padded, jax.random.key(0))

    kernel, bias = (
        torch.tensor(np.asarray(params["head"][name]), requires_grad=True)
        for name in ("kernel", "bias")
    )
    logits = torch.tensor(np.asarray(inputs)) @ kernel + bias
    targets = torch.tensor(np.asarray(labels), dtype=torch.int64)
    loss = torch.nn.CrossEntropyLoss(torch.tensor(np.asarray(weights)))(logits, targets)
    loss.backward()
    for name, leaf in (("kernel", kernel), ("bias", bias)):
        np.testing.assert_allclose(
            params["head"][name] - state.params["head"][name], leaf.grad, atol=1e-6
        )
    # The metrics stay those of plain cross entropy, comparable with the test loss.
    plain = torch.nn.CrossEntropyLoss()(logits, targets)
    np.testing.assert_allclose(metrics.loss / metrics.count, plain.item(), rtol=1e-5)
