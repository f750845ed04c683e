"""Test that thirty optimizer steps equal PyTorch's in float64.

Both sides start from the same weights and see the same batches of small images, across
two step-decay boundaries. This is the strongest evidence of equality. The full-size
network runs with the command's default freezing and optimizer only, for six steps, or
thirty under stress. All other cases run a copy with fewer channels, for speed.
It is one file because all tests use the two training loops below.
"""

import gc
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxlab import AlexNet, make_optimizer, make_train_step, trainable_tree
from jaxlab.data.loaders import Batch
from jaxlab.models.architecture import ARCHITECTURES, FREEZE
from jaxlab.training.optim import step_decay
from jaxlab.training.step import init_state
from pretrained import to_flax
from pretrained.tables import ALEXNET, alexnet
from tests.conftest import TRAJECTORY_FLOAT64, relative_error, torch_alexnet
from tests.stress.narrow import NARROW

patterns_of = ARCHITECTURES["alexnet"].freezing_patterns

STEPS, STEPS_PER_EPOCH, BATCH = 30, 5, 4
# For the full-size network, except under stress: as many epochs, of one step each.
FEW = {"STEPS": 6, "STEPS_PER_EPOCH": 1}
L2, GAMMA, STEP_EPOCHS = 5e-4, 0.1, 2
RATE = {"sgd": 1e-2, "adam": 1e-4}
KEY = 7
QUICK = [("features", "adam")]


class Case(NamedTuple):
    """A network in torch and in jaxlab, and the key table that converts its weights."""

    torch: torch.nn.Module
    ours: AlexNet
    table: tuple
    channels: int
    hidden: int

    def params(self, state_dict):
        return to_flax(state_dict, self.table)


def full_size(dropout=0.0):
    model = torch_alexnet(10, dropout=dropout).double()
    return Case(model, AlexNet(10, dropout), ALEXNET, 256, 4096)


def narrow(dropout=0.0):
    model = torch_alexnet(10, dropout=dropout, **NARROW).double()
    return Case(model, AlexNet(10, dropout, **NARROW), alexnet(**NARROW), 12, 32)


def torch_run(model, freeze, optimizer, masks=None):
    """Train in PyTorch; return losses, final state dict and the optimizer's buffers."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = {
            "features": name.startswith("classifier"),
            "backbone": name.startswith("classifier.6"),
            "none": True,
        }[freeze]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if optimizer == "sgd":
        stepper = torch.optim.SGD(
            trained.values(), lr=RATE["sgd"], momentum=0.9, weight_decay=L2
        )
    else:
        stepper = torch.optim.Adam(trained.values(), lr=RATE["adam"], weight_decay=L2)
    scheduler = torch.optim.lr_scheduler.StepLR(stepper, STEP_EPOCHS, GAMMA)
    model.train()
    losses = []
    for step, (images, labels) in enumerate(batches()):
        if masks is not None:
            for layer, mask in masks[step].items():
                model.classifier[layer].mask = torch.from_numpy(mask)
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
    buffers = {"sgd": ["momentum_buffer"], "adam": ["exp_avg", "exp_avg_sq"]}[optimizer]
    state = {
        buffer: {name: stepper.state[p][buffer] for name, p in trained.items()}
        for buffer in buffers
    }
    return losses, model.state_dict(), state


def our_optimizer(optimizer, trainable):
    schedule = step_decay(RATE[optimizer], STEP_EPOCHS, GAMMA, STEPS_PER_EPOCH)
    return make_optimizer(optimizer, schedule, trainable=trainable, l2=L2)


def our_run(model, params, freeze, optimizer, tx=None):
    """Train in jaxlab; return losses, final params and the optimizer's buffers."""
    trainable = trainable_tree(params, patterns_of(freeze))
    tx = tx or our_optimizer(optimizer, trainable)
    step = make_train_step(model.apply, tx, trainable)
    state = init_state(params, tx)
    losses = []
    for images, targets in batches():
        batch = Batch(jnp.array(images), jnp.array(targets), jnp.ones(BATCH))
        state, metrics = step(state, batch, jax.random.key(KEY))
        losses.append(float(metrics.loss / metrics.count))
    names = {"sgd": ["trace"], "adam": ["mu", "nu"]}[optimizer]
    buffers = [optax.tree.get(state.opt_state, name) for name in names]
    return losses, state.params, buffers


def batches():
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        yield (
            random.standard_normal((BATCH, 63, 63, 3)),
            random.integers(0, 10, BATCH).astype(np.int64),
        )


def assert_same_tree(ours, theirs, what):
    """Compare a params tree, whose frozen leaves may be masked, with torch's leaves."""
    compared = 0
    for layer, leaves in ours.items():
        for leaf, value in leaves.items():
            if isinstance(value, optax.MaskedNode):
                assert leaf not in theirs.get(layer, {}), (what, layer, leaf)
                continue
            error = relative_error(value, theirs[layer][leaf])
            assert error <= TRAJECTORY_FLOAT64, (what, layer, leaf, error)
            compared += 1
    assert compared == sum(map(len, theirs.values())), what


def as_params(case, partial):
    """Convert a partial state dict: fill it up with NaN, then drop the NaN layers."""
    missing = {
        row.torch: torch.full(shape.shape, torch.nan, dtype=torch.float64)
        for row in case.table
        if row.torch not in partial
        for shape in [case.torch.state_dict()[row.torch]]
    }
    return {
        layer: leaves
        for layer, leaves in case.params({**missing, **partial}).items()
        if not np.isnan(leaves["bias"]).any()
    }


def assert_same_trajectory(case, freeze, optimizer, folder):
    start = case.params(case.torch.state_dict())
    # torch's results are on disk while our run is computed, because the results of both
    # full-size networks may not fit into memory together.
    their_losses, weights, buffers = torch_run(case.torch, freeze, optimizer)
    torch.save(weights, folder / "params")
    for name, buffer in buffers.items():
        torch.save(buffer, folder / name)
    names = list(buffers)
    del weights, buffers, buffer
    case.torch.to("meta")
    gc.collect()

    our_losses, our_params, our_buffers = our_run(case.ours, start, freeze, optimizer)
    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    theirs = case.params(torch.load(folder / "params"))
    assert_same_tree(our_params, theirs, "params")
    del theirs
    for name in reversed(names):
        theirs = as_params(case, torch.load(folder / name))
        assert_same_tree(our_buffers.pop(), theirs, name)
        del theirs

    trainable = trainable_tree(start, patterns_of(freeze))
    for layer, leaves in start.items():
        for leaf, before in leaves.items():
            after = np.asarray(our_params[layer][leaf])
            same = after.tobytes() == before.tobytes()
            assert same == (not trainable[layer][leaf]), (layer, leaf)


CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(FREEZE, RATE)
]


@pytest.mark.parametrize("freeze, optimizer", CASES)
def test_thirty_steps_equal_torchs(
    freeze, optimizer, tmp_path, x64, slow_is_compiled_quickly
):
    assert_same_trajectory(narrow(), freeze, optimizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", ["six", pytest.param("thirty", marks=pytest.mark.stress)]
)
def test_steps_of_the_full_size_network_equal_torchs(steps, tmp_path, monkeypatch, x64):
    for name, value in FEW.items() if steps == "six" else ():
        monkeypatch.setattr(sys.modules[__name__], name, value)
    assert_same_trajectory(full_size(), "features", "adam", tmp_path)


class GivenMask(torch.nn.Module):
    """Multiply by a given mask, in place of torch's dropout."""

    def forward(self, x):
        return x * self.mask


def test_thirty_steps_with_dropout_equal_torchs_with_the_same_masks(x64):
    case = narrow(dropout=0.5)
    start = case.params(case.torch.state_dict())

    def masks_of(step):
        def masks(module):
            features = jnp.ones((BATCH, 36 * case.channels))
            hidden = jnp.ones((BATCH, case.hidden))
            return (
                module.drop6(features, deterministic=False),
                module.drop7(hidden, deterministic=False),
            )

        key = jax.random.fold_in(jax.random.key(KEY), step)
        at6, at7 = case.ours.apply({}, method=masks, rngs={"dropout": key})
        # Our mask is in H·W·C order, torch's features are in C·H·W order.
        at6 = at6.reshape(BATCH, 6, 6, -1).transpose(0, 3, 1, 2).reshape(BATCH, -1)
        return {0: np.array(at6), 3: np.array(at7)}

    masks = [masks_of(step) for step in range(STEPS)]
    assert set(np.unique(masks[0][0])) == {0.0, 2.0}
    case.torch.classifier[0], case.torch.classifier[3] = GivenMask(), GivenMask()
    their_losses, their_weights, _ = torch_run(case.torch, "none", "sgd", masks)
    our_losses, our_params, _ = our_run(case.ours, start, "none", "sgd")
    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    assert_same_tree(our_params, case.params(their_weights), "params")


@pytest.mark.slow
def test_wrong_optimizers_fail_the_bar(x64, slow_is_compiled_quickly):
    """Negative controls: decoupled weight decay, late step decay, unfrozen layers."""
    case = narrow()
    start = case.params(case.torch.state_dict())
    their_losses, _, _ = torch_run(case.torch, "features", "adam")
    trainable = trainable_tree(start, patterns_of("features"))
    everything = jax.tree.map(lambda _: True, trainable)
    schedule = step_decay(RATE["adam"], STEP_EPOCHS, GAMMA, STEPS_PER_EPOCH)

    def error(tx, freeze="features"):
        losses, _, _ = our_run(case.ours, start, freeze, "adam", tx)
        return relative_error(losses, their_losses)

    assert error(our_optimizer("adam", trainable)) <= TRAJECTORY_FLOAT64
    decoupled = optax.adamw(schedule, weight_decay=L2)
    late = make_optimizer(
        "adam",
        lambda step: schedule(jnp.maximum(step - 1, 0)),
        trainable=trainable,
        l2=L2,
    )
    assert error(decoupled) > 100 * TRAJECTORY_FLOAT64
    assert error(late) > 100 * TRAJECTORY_FLOAT64
    unfrozen = our_optimizer("adam", everything)
    assert error(unfrozen, freeze="none") > 100 * TRAJECTORY_FLOAT64
