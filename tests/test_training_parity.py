"""Thirty optimiser steps beside PyTorch in float64: the strongest evidence of equality.

Both sides start from the same weights of the real, full-size torchvision AlexNet and
see the same batches of small images, across a step-decay boundary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import TRAJECTORY_FLOAT64, relative_error, torch_alexnet

from jaxlab import AlexNet, label_tree, make_optimizer, make_train_step
from jaxlab.finetune import FREEZE
from jaxlab.optim import step_decay
from jaxlab.train import Batch, init_state
from pretrained import to_flax

STEPS, STEPS_PER_EPOCH, BATCH = 30, 5, 4
L2, GAMMA, STEP_EPOCHS = 5e-4, 0.1, 2
RATE = {"sgd": 1e-2, "adam": 1e-4}
KEY = 7


def torch_run(model, freeze, optimizer, masks=None):
    """PyTorch's own loop; returns the losses, the end weights and the buffers."""
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


def our_run(params, freeze, optimizer, dropout_rate=0.0):
    """The same through jaxlab; returns losses, params, the optimiser's trees."""
    model = AlexNet(10, dropout_rate)
    labels = label_tree(params, FREEZE[freeze])
    schedule = step_decay(RATE[optimizer], STEP_EPOCHS, GAMMA, STEPS_PER_EPOCH)
    tx = make_optimizer(optimizer, schedule, labels=labels, l2=L2)
    step = make_train_step(model.apply, tx, labels)
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
    """Compare a (partly masked) params tree with a partial state_dict, leaf by leaf."""
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


def as_params(partial, whole):
    """Convert a partial state_dict by filling up the rest, then dropping it again."""
    filled = to_flax({**whole, **partial})
    layers = {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc6": "classifier.1",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    }
    return {
        layer: leaves
        for layer, leaves in filled.items()
        if f"{layers[layer]}.weight" in partial
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("freeze", ["features", "backbone", "none"])
def test_thirty_steps_equal_torchs(freeze, optimizer, x64):
    model = torch_alexnet(10, dropout=0.0).double()
    start = to_flax(model.state_dict())
    their_losses, their_weights, their_buffers = torch_run(model, freeze, optimizer)
    our_losses, our_params, our_buffers = our_run(start, freeze, optimizer)

    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    assert_same_tree(our_params, to_flax(their_weights), "params")
    for name, ours in zip(their_buffers, our_buffers, strict=True):
        theirs = as_params(their_buffers[name], their_weights)
        assert_same_tree(ours, theirs, name)

    frozen = label_tree(start, FREEZE[freeze])
    for layer, leaves in start.items():
        for leaf, before in leaves.items():
            after = np.asarray(our_params[layer][leaf])
            same = after.tobytes() == before.tobytes()
            assert same == (not frozen[layer][leaf]), (layer, leaf)


class GivenMask(torch.nn.Module):
    """torch's dropout with the mask handed in."""

    def forward(self, x):
        return x * self.mask


def test_thirty_steps_with_dropout_equal_torchs_with_the_same_masks(x64):
    model = torch_alexnet(10).double()
    start = to_flax(model.state_dict())
    ours = AlexNet(10)

    def mask_of(step):
        rngs = {"dropout": jax.random.fold_in(jax.random.key(KEY), step)}

        def masks(module):
            at6 = module.drop6(jnp.ones((BATCH, 9216)), deterministic=False)
            at7 = module.drop7(jnp.ones((BATCH, 4096)), deterministic=False)
            return at6, at7

        at6, at7 = ours.apply({}, method=masks, rngs=rngs)
        # Ours drops from H·W·C order, torch from C·H·W.
        at6 = at6.reshape(BATCH, 6, 6, 256).transpose(0, 3, 1, 2).reshape(BATCH, -1)
        return {0: np.array(at6), 3: np.array(at7)}

    masks = [mask_of(step) for step in range(STEPS)]
    assert set(np.unique(masks[0][0])) == {0.0, 2.0}
    model.classifier[0], model.classifier[3] = GivenMask(), GivenMask()
    their_losses, their_weights, _ = torch_run(model, "none", "sgd", masks)
    our_losses, our_params, _ = our_run(start, "none", "sgd", dropout_rate=0.5)
    assert relative_error(our_losses, their_losses) <= TRAJECTORY_FLOAT64
    assert_same_tree(our_params, to_flax(their_weights), "params")


def test_decoupled_decay_and_a_late_boundary_fail_the_bar(x64):
    """Negative controls: adamw's decay, and a decay one step late."""
    model = torch_alexnet(10, dropout=0.0).double()
    start = to_flax(model.state_dict())
    their_losses, _, _ = torch_run(model, "backbone", "adam")
    labels = label_tree(start, FREEZE["backbone"])

    def losses(tx):
        step = make_train_step(AlexNet(10, 0.0).apply, tx, labels)
        state = init_state(start, tx)
        found = []
        for images, targets in batches():
            batch = Batch(jnp.array(images), jnp.array(targets), jnp.ones(BATCH))
            state, metrics = step(state, batch, jax.random.key(KEY))
            found.append(float(metrics.loss / metrics.count))
        return found

    schedule = step_decay(RATE["adam"], STEP_EPOCHS, GAMMA, STEPS_PER_EPOCH)
    right = make_optimizer("adam", schedule, labels=labels, l2=L2)
    decoupled = optax.adamw(schedule, weight_decay=L2)
    late = make_optimizer("adam", lambda step: schedule(step - 1), labels=labels, l2=L2)
    assert relative_error(losses(right), their_losses) <= TRAJECTORY_FLOAT64
    for wrong in (decoupled, late):
        error = relative_error(losses(wrong), their_losses)
        assert error > 100 * TRAJECTORY_FLOAT64
