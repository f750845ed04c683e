"""Test every variant of the lab's MLP against PyTorch, in float64.

It is one file because most tests use torch's copy of the MLP and the two loops below.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxlab import MLP, make_optimizer, make_train_step
from jaxlab.data.loaders import Batch
from jaxlab.models import mlp
from jaxlab.overfit import VARIANTS
from jaxlab.training.optim import penalty, step_decay
from jaxlab.training.step import init_state
from tests.conftest import TRAJECTORY_FLOAT64, relative_error

STEPS, STEPS_PER_EPOCH, BATCH = 40, 5, 8
RATE, STEP_EPOCHS, GAMMA, L1, L2, KEY = 1e-3, 3, 0.1, 1e-4, 1e-3, 11
SIZES = (784, 512, 128, 10)


class GivenMask(torch.nn.Module):
    """Multiply by a given mask in training, in place of torch's dropout."""

    def forward(self, x):
        return x * self.mask if self.training else x


def torch_mlp(variant):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fc = [torch.nn.Linear(a, b) for a, b in zip(SIZES, SIZES[1:], strict=False)]
        model = torch.nn.Sequential()
        model.add_module("flatten", torch.nn.Flatten())
        model.add_module("fc1", fc[0])
        if variant.batch_norm:
            model.add_module("bn1", torch.nn.BatchNorm1d(512))
        model.add_module("relu1", torch.nn.ReLU())
        if variant.dropout:
            model.add_module("drop1", GivenMask())
        model.add_module("fc2", fc[1])
        model.add_module("relu2", torch.nn.ReLU())
        model.add_module("fc3", fc[2])
    return model.double()


def as_variables(tensors):
    """Convert torch's names and layouts to ours; return (params, batch_stats)."""
    params, stats = {}, {}
    for name, value in tensors.items():
        layer, leaf = name.split(".")
        value = value.detach().numpy()
        if leaf in ("running_mean", "running_var"):
            stats.setdefault(layer, {})[leaf.removeprefix("running_")] = value.copy()
        elif leaf == "num_batches_tracked":
            stats.setdefault(layer, {})["count"] = value.astype(np.int32)
        elif layer.startswith("bn"):
            names = {"weight": "scale", "bias": "bias"}
            params.setdefault(layer, {})[names[leaf]] = value.copy()
        elif layer.startswith("fc"):
            names = {"weight": "kernel", "bias": "bias"}
            params.setdefault(layer, {})[names[leaf]] = value.T.copy()
    return params, stats


def batches():
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        yield random.random((BATCH, 28, 28, 1)), random.integers(0, 10, BATCH)


class Drop(nn.Module):
    """Apply the MLP's dropout alone; the same layer name gives it the same key."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, name="drop1")(x, deterministic=False)


def mask(step):
    key = jax.random.fold_in(jax.random.key(KEY), step)
    return np.array(Drop().apply({}, jnp.ones((BATCH, 512)), rngs={"dropout": key}))


def torch_run(model, variant, optimizer):
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    flags = {"momentum": 0.9} if optimizer == "sgd" else {}
    stepper = kinds[optimizer](model.parameters(), lr=RATE, **flags)
    epochs = STEP_EPOCHS if variant.step_decay else 10**6
    scheduler = torch.optim.lr_scheduler.StepLR(stepper, epochs, GAMMA)
    model.train()
    losses = []
    for step, (images, labels) in enumerate(batches()):
        if variant.dropout:
            model.drop1.mask = torch.from_numpy(mask(step))
        logits = model(torch.from_numpy(images))
        cross_entropy = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(labels)
        )
        loss = cross_entropy
        if variant.l1:
            loss = loss + L1 * sum(p.abs().sum() for p in model.parameters())
        if variant.l2:
            loss = loss + L2 * sum(p.square().sum() for p in model.parameters())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(cross_entropy.item())
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
    names = {"adam": ["exp_avg", "exp_avg_sq"], "sgd": ["momentum_buffer"]}[optimizer]
    buffers = [
        as_variables({n: stepper.state[p][buffer] for n, p in model.named_parameters()})
        for buffer in names
    ]
    return losses, [params for params, _ in buffers]


def our_run(variables, variant, optimizer, decay=0.0, l2=L2):
    params, stats = variables
    model = MLP(
        dropout_rate=0.5 if variant.dropout else 0.0, batch_norm=variant.batch_norm
    )
    rate = RATE
    if variant.step_decay:
        rate = step_decay(RATE, STEP_EPOCHS, GAMMA, STEPS_PER_EPOCH)
    trainable = jax.tree.map(lambda _: True, params)
    tx = make_optimizer(optimizer, rate, trainable=trainable, l2=decay)
    l1, l2 = L1 * variant.l1, l2 * variant.l2
    step = make_train_step(
        model.apply, tx, trainable, lambda p: penalty(p, l1=l1, l2=l2)
    )
    state = init_state(params, tx, stats)
    losses = []
    for images, labels in batches():
        batch = Batch(jnp.array(images), jnp.array(labels), jnp.ones(BATCH))
        state, metrics = step(state, batch, jax.random.key(KEY))
        losses.append(float(metrics.loss / metrics.count))
    names = {"adam": ["mu", "nu"], "sgd": ["trace"]}[optimizer]
    buffers = [optax.tree.get(state.opt_state, name) for name in names]
    return losses, state, buffers, model


def assert_same_tree(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    whole = optax.tree.norm(theirs)
    for (path, b), a in zip(
        jax.tree.leaves_with_path(theirs), jax.tree.leaves(ours), strict=True
    ):
        # Batch normalisation subtracts the mean, so the gradient of the bias before it
        # is zero, and the optimizer's buffers of that bias hold only roundoff (1e-19).
        if np.linalg.norm(b) < 1e-12 * whole:
            assert np.linalg.norm(a) < 1e-12 * whole, path
        else:
            assert relative_error(a, b) <= TRAJECTORY_FLOAT64, path


QUICK = [("dropout", "adam"), ("batchnorm+step-decay", "sgd")]
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(VARIANTS, ("adam", "sgd"))
]


@pytest.mark.parametrize("name, optimizer", CASES)
def test_forty_steps_equal_torchs(name, optimizer, x64, slow_is_compiled_quickly):
    variant = VARIANTS[name]
    oracle = torch_mlp(variant)
    start = as_variables(oracle.state_dict())
    their_losses, their_buffers = torch_run(oracle, variant, optimizer)
    our_losses, state, our_buffers, model = our_run(start, variant, optimizer)

    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    params, stats = as_variables(oracle.state_dict())
    assert_same_tree(state.params, params)
    assert_same_tree(state.batch_stats, stats)
    for ours, theirs in zip(our_buffers, their_buffers, strict=True):
        assert_same_tree(ours, theirs)

    oracle.eval()
    images, _ = next(batches())
    logits = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats}, images, train=False
    )
    theirs = oracle(torch.from_numpy(images)).detach().numpy()
    assert relative_error(logits, theirs) <= TRAJECTORY_FLOAT64


def test_a_biased_running_variance_fails_the_bar(monkeypatch, x64):
    class Flax(nn.BatchNorm):
        momentum: float = 0.9

        def __call__(self, x, *, train, weights=None):
            return super().__call__(x, use_running_average=not train)

    monkeypatch.setattr(mlp, "BatchNorm", Flax)
    variant = VARIANTS["batchnorm"]
    oracle = torch_mlp(variant)
    start = as_variables(oracle.state_dict())
    their_losses, _ = torch_run(oracle, variant, "adam")
    our_losses, state, _, _ = our_run(start, variant, "adam")
    params, stats = as_variables(oracle.state_dict())
    # Training does not use the running variance, so nothing else differs.
    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    assert_same_tree(state.params, params)
    error = relative_error(state.batch_stats["bn1"]["var"], stats["bn1"]["var"])
    assert error > 1000 * TRAJECTORY_FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_l2_in_the_loss_is_twice_that_decay_in_the_optimiser(
    optimizer, x64, slow_is_compiled_quickly
):
    variant = VARIANTS["l2"]
    start = as_variables(torch_mlp(variant).state_dict())
    by_loss = our_run(start, variant, optimizer)
    by_decay = our_run(start, VARIANTS["baseline"], optimizer, decay=2 * L2)
    by_once = our_run(start, VARIANTS["baseline"], optimizer, decay=L2)
    assert relative_error(by_decay[0], by_loss[0]) <= TRAJECTORY_FLOAT64
    assert_same_tree(by_decay[1].params, by_loss[1].params)
    assert relative_error(by_once[0], by_loss[0]) > 1000 * TRAJECTORY_FLOAT64


def test_the_penalties_are_their_formulas_and_l1_is_flat_at_zero():
    params = {"fc1": {"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.array([3.0])}}
    assert penalty(params, l1=0.5) == 2.5
    assert penalty(params, l2=0.5) == 6.5
    assert penalty(params) == 0.0
    gradient = jax.grad(lambda p: penalty(p, l1=0.5))(params)
    np.testing.assert_array_equal(gradient["fc1"]["kernel"], [[0.0, -0.5]])


@pytest.mark.slow
def test_fresh_layers_are_drawn_as_torch_draws_them():
    params = MLP().init(jax.random.key(0), jnp.zeros((1, 784)), train=False)["params"]
    theirs, _ = as_variables(torch_mlp(VARIANTS["baseline"]).state_dict())
    for layer, leaves in params.items():
        bound = leaves["kernel"].shape[0] ** -0.5
        for leaf, values in leaves.items():
            allowed = 5 * 0.3 / np.sqrt(values.size)
            for drawn in (values, theirs[layer][leaf]):
                assert np.abs(drawn).max() <= np.float32(bound)
                assert abs(np.std(drawn) / bound - 3**-0.5) < allowed, (layer, leaf)


def test_what_has_no_place_is_refused():
    def init(model, x):
        return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))

    with pytest.raises(ValueError, match="at least two hidden layers, got 1;"):
        init(MLP(features=(512,), dropout_rate=0.5), jnp.zeros((1, 784)))
    with pytest.raises(ValueError, match="at least two hidden layers, got 0;"):
        init(MLP(features=(), batch_norm=True), jnp.zeros((1, 784)))
    with pytest.raises(ValueError, match="got uint8; scale inputs to"):
        init(MLP(), jnp.zeros((1, 784), jnp.uint8))
    params = init(MLP(features=(512,)), jnp.zeros((1, 28, 28, 1)))["params"]
    assert list(params) == ["fc1", "fc2"]
