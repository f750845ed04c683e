"""Test the optimizers by values computed by hand; test_parity compares trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxlab.training.optim import (
    Schedule,
    make_optimizer,
    step_decay,
    trainable_tree,
)

PARAMS = {
    "body": {"kernel": jnp.array([1.0, -2.0])},
    "head": {"bias": jnp.array([4.0])},
}
ALL = {"body": {"kernel": True}, "head": {"bias": True}}
HEAD = {"body": {"kernel": False}, "head": {"bias": True}}
GRADIENTS = {
    "body": {"kernel": jnp.array([8.0, 8.0])},
    "head": {"bias": jnp.array([1.0])},
}


def run(tx, steps, params=PARAMS, gradients=GRADIENTS):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_l2_joins_the_gradient_before_momentum_biases_included():
    # All values are exact in float32, because they have few binary digits:
    # g1 = 1 + 0.5·4 = 3, v1 = 3, w1 = 4 - 0.25·3 = 3.25
    # g2 = 1 + 0.5·3.25 = 2.625, v2 = 0.5·3 + 2.625 = 4.125, w2 = 3.25 - 1.03125
    tx = make_optimizer("sgd", 0.25, trainable=ALL, momentum=0.5, l2=0.5)
    assert run(tx, 1)[0]["head"]["bias"] == 3.25
    assert run(tx, 2)[0]["head"]["bias"] == 2.21875


def test_a_new_rate_does_not_rescale_the_momentum():
    # v1 = 1, w1 = 4 - 1; v2 = 0.5 + 1 = 1.5, w2 = 3 - 0.5·1.5
    tx = make_optimizer("sgd", step_decay(1.0, 1, 0.5, 1), trainable=ALL, momentum=0.5)
    assert run(tx, 2)[0]["head"]["bias"] == 2.25


def test_frozen_leaves_hold_no_state_in_bytes_and_do_not_move():
    sizes = {"sgd": 1, "adam": 2}
    for name, copies in sizes.items():
        tx = make_optimizer(name, 0.1, trainable=HEAD, l2=0.1)
        params, state = run(tx, 3)
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        counters = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim == 0)
        assert nbytes - counters == copies * PARAMS["head"]["bias"].nbytes
        assert counters <= 8
        np.testing.assert_array_equal(
            params["body"]["kernel"], PARAMS["body"]["kernel"]
        )
        assert params["head"]["bias"] != PARAMS["head"]["bias"]


def test_optax_masked_would_move_frozen_leaves_uphill():
    """Negative control: optax.masked adds a frozen leaf's gradient to the leaf."""
    params, _ = run(optax.masked(optax.sgd(0.1), HEAD), 1)
    assert (params["body"]["kernel"] == PARAMS["body"]["kernel"] + 8).all()


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 63])
def test_step_decay_changes_where_torchs_steplr_does(epochs, steps_per_epoch):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, epochs, 0.1)
    schedule = step_decay(0.01, epochs, 0.1, steps_per_epoch)
    jitted = jax.jit(schedule)
    for step in range(7 * steps_per_epoch):
        theirs = optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(schedule(step), theirs, rtol=1e-12)
        np.testing.assert_allclose(jitted(jnp.int32(step)), theirs, rtol=1e-6)
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            scheduler.step()


def test_the_first_pattern_that_matches_decides():
    patterns = (("head/.*", "trainable"), (".*", "frozen"))
    assert trainable_tree(PARAMS, patterns) == HEAD


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ((("head/.*", "trainable"),), "no pattern matches body/kernel"),
        ((("head", "trainable"), (".*", "frozen")), "'head' applies to no leaf"),
        (((".*", "trainable"), ("head/.*", "frozen")), "'head/.*' applies to no leaf"),
        (((".*", "freeze"),), "'freeze' is not a label"),
    ],
)
def test_patterns_that_would_freeze_the_wrong_layers_are_errors(patterns, message):
    with pytest.raises(ValueError) as raised:
        trainable_tree(PARAMS, patterns)
    assert message in str(raised.value)


def test_another_optimiser_is_refused():
    with pytest.raises(ValueError, match="expected 'sgd' or 'adam', got 'rmsprop'"):
        make_optimizer("rmsprop", 0.1, trainable=ALL)


def torch_schedule(optimizer, kind, warmup, epochs):
    """Return torch's schedulers in the order that a recipe chains them."""
    schedulers = torch.optim.lr_scheduler
    main = {
        "step": lambda: schedulers.StepLR(optimizer, 2, 0.1),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, epochs - warmup),
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0),
    }[kind]()
    if not warmup:
        return main
    rise = schedulers.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return schedulers.SequentialLR(optimizer, [rise, main], milestones=[warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("kind", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_a_schedule_equals_torchs_schedulers(kind, warmup):
    epochs, steps_per_epoch = 8, 5
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = torch_schedule(optimizer, kind, warmup, epochs)
    schedule = Schedule(0.01, kind, 2, 0.1, warmup, epochs)
    of_steps = schedule.of_steps(steps_per_epoch)
    for epoch in range(epochs):
        theirs = optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(schedule.rate(epoch), theirs, rtol=1e-12)
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            ours = of_steps(jnp.int32(step)) if callable(of_steps) else of_steps
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "epochs, lr_step, first",
    [(5, 3, None), (20, 12, None), (20, 3, 12), (16, 3, None), (17, 3, 12)],
)
def test_a_schedule_knows_the_epoch_from_which_it_starves(epochs, lr_step, first):
    schedule = Schedule(1e-4, "step", lr_step, 0.1, 0, epochs)
    assert schedule.starves_from() == first
    assert Schedule(1e-4, "cosine", epochs=epochs).starves_from() is None
