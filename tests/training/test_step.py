"""Test what the train step computes, counts and donates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import export

from jaxlab import AlexNet, make_optimizer, make_train_step, trainable_tree
from jaxlab.data.loaders import Batch
from jaxlab.models.architecture import ARCHITECTURES, FREEZE
from jaxlab.training.initial_weights import variable_shapes
from jaxlab.training.step import init_state
from tests.training.linear import linear_job

patterns_of = ARCHITECTURES["alexnet"].freezing_patterns


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


# Convolutions, matrix products and pool gradients. The forward pass has 5 convolutions
# and 3 products. If all layers are trained, the backward pass adds one for each weight
# and for each input but the images, and 3 pool gradients. Frozen layers add none.
OPERATIONS = {
    "none": (5 + 5 + 4, 3 + 6, 3),
    "features": (5, 3 + 5, 0),
    "backbone": (5, 3 + 1, 0),
}


def step_of(freeze, batch_size):
    """Return AlexNet's train step and the shapes of its arguments."""
    model = AlexNet(10)
    images = jax.ShapeDtypeStruct((batch_size, 63, 63, 3), jnp.float32)
    shapes = variable_shapes(model)["params"]
    trainable = trainable_tree(shapes, patterns_of(freeze))
    tx = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(model.apply, tx, trainable)
    state = jax.eval_shape(lambda params: init_state(params, tx), shapes)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    weights = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (state, Batch(images, labels, weights), key)


def operations_of(step, arguments, platform):
    lowered = step.trace(*arguments).lower(lowering_platforms=(platform,))
    names = ("convolution(", "dot_general ", 'select_and_scatter"')
    return tuple(lowered.as_text().count(f"stablehlo.{name}") for name in names)


@pytest.mark.parametrize(
    "platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("freeze", FREEZE)
def test_other_devices_get_plain_operations_and_no_gradient_of_frozen_layers(
    freeze, platform
):
    assert operations_of(*step_of(freeze, 2), platform) == OPERATIONS[freeze]


def test_a_cpu_gets_kernels_of_its_own():
    """Control of the test above: it detects the operations that CPUs have instead."""
    convolutions, products, pools = operations_of(*step_of("none", 2), "cpu")
    assert convolutions == pools == 0 and products > 100


@pytest.mark.slow
def test_the_step_is_exported_for_any_batch_and_several_platforms():
    (batch_size,) = export.symbolic_shape("b")
    step, arguments = step_of("none", batch_size)
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(step, platforms=platforms)(*arguments)
    assert exported.platforms == platforms


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
    # The metrics are unweighted, so that they are comparable with the test loss.
    plain = torch.nn.CrossEntropyLoss()(logits, targets)
    np.testing.assert_allclose(metrics.loss / metrics.count, plain.item(), rtol=1e-5)
