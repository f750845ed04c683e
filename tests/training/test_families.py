"""Test that steps of torchvision's families equal PyTorch's in float64.

Both sides start from the same random weights, statistics and counters, and take three
steps of SGD with momentum and weight decay. The last batch has seven images; on our
side it is padded with an eighth of weight 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxlab import Batch, init_state, make_optimizer, make_train_step, trainable_tree
from jaxlab.models import batch_norm
from jaxlab.training import inputs
from pretrained.layout import flat, variables_of
from tests.conftest import TRAJECTORY_FLOAT64, compiled_quickly, relative_error
from tests.models.families import CLASSES, FAMILIES, small

RATE, MOMENTUM, L2 = 0.01, 0.9, 5e-4
SIZE = 40
SHORT = 7  # images of the last batch, of 8
# An error of a wrong variant must exceed this.
CLEARLY_WRONG = 1e-3
# A biased variance is wrong by one part in the number of values of a channel.
SLIGHTLY_WRONG = 1e-4

# The last frozen child of each family, and the modules of torch up to there.
PREFIXES = {
    "vgg": ("bn2_2", range(11)),
    "resnet": ("layer2", ("conv1", "bn1", "layer1", "layer2")),
    "mobilenet": ("block3", range(4)),
    "densenet": (
        "transition1",
        ("conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with compiled_quickly():
        yield


@pytest.fixture(autouse=True)
def in_float64(x64):
    yield


def batches():
    random = np.random.default_rng(1)
    for count in (8, 8, SHORT):
        images = random.standard_normal((count, SIZE, SIZE, 3))
        yield images, random.integers(0, CLASSES, count)


def trained_by_torch(network, frozen=()):
    """Return torch's variables and momentum as variables, and the losses."""
    model = network.theirs.train()
    for module in frozen:
        module.eval().requires_grad_(False)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    stepper = torch.optim.SGD(
        parameters.values(), lr=RATE, momentum=MOMENTUM, weight_decay=L2
    )
    losses = []
    for images, labels in batches():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    momentum = {
        name: stepper.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in parameters.items()
    }
    # The other tensors take their places, so that the table converts the momentum.
    momentum = variables_of({**network.arrays(), **momentum}, network.table)["params"]
    return network.variables(), momentum, losses


def trained_by_us(network, variables, frozen=None, stored=False):
    """Return the same of ours; `stored` computes the outputs of `frozen` before."""
    model = network.ours
    names = list(dict.fromkeys(row.flax.split("/")[0] for row in network.table))
    patterns = [(".*", "trainable")]
    if frozen is not None:
        kept = "|".join(names[: names.index(frozen) + 1])
        patterns.insert(0, (f"({kept})/.*", "frozen"))
    trainable = trainable_tree(variables["params"], patterns)
    optimizer = make_optimizer(
        "sgd", RATE, trainable=trainable, momentum=MOMENTUM, l2=L2
    )
    apply_fn = inputs.rest_of(model, frozen) if stored else model.apply
    step = make_train_step(apply_fn, optimizer, trainable, frozen=frozen)
    state = init_state(variables["params"], optimizer, variables.get("batch_stats"))
    features = jax.jit(functools.partial(model.apply, train=False, until=frozen))
    losses = []
    for images, labels in batches():
        count = len(images)
        padding = [(0, 8 - count)] + [(0, 0)] * 3
        images = np.pad(images, padding, mode="edge")  # of its last image
        if stored:
            images = features(variables, images)
        labels = np.pad(labels, padding[0], mode="edge")
        weights = np.arange(8) < count
        batch = Batch(
            jnp.asarray(images), jnp.asarray(labels), jnp.asarray(weights, float)
        )
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics.loss / metrics.count))
    momentum = optax.tree.get(state.opt_state, "trace")
    return {"params": state.params, **state.other_variables}, momentum, losses


def assert_equal(ours, theirs, before):
    """Compare variables, and how far they have moved, momentum and losses."""
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        found, expected = flat(found), flat(expected)
        for path, leaf in found.items():
            if isinstance(leaf, optax.MaskedNode):
                continue
            if np.asarray(leaf).dtype.kind == "i":
                assert int(leaf) == int(expected[path]), path
            elif np.abs(expected[path]).max() > 1e-12:
                # A bias in front of a norm has no gradient, but roundoff.
                assert relative_error(leaf, expected[path]) <= TRAJECTORY_FLOAT64, path
    np.testing.assert_allclose(ours[2], theirs[2], rtol=TRAJECTORY_FLOAT64)
    moved = [
        np.abs(leaf - flat(before)[path]).max() for path, leaf in flat(ours[0]).items()
    ]
    assert max(moved) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_equal_torchs(family):
    network = small(family)
    before = network.variables()
    ours = trained_by_us(network, before)
    theirs = trained_by_torch(network)
    assert_equal(ours, theirs, before)
    for path, leaf in flat(ours[0].get("batch_stats", {})).items():
        if path.endswith("count"):
            assert int(leaf) == int(flat(before["batch_stats"])[path]) + 3


def modules(network, children):
    """Return torch's modules of some children of the network, or of its features."""
    model = getattr(network.theirs, "features", network.theirs)
    return [model.get_submodule(str(child)) for child in children]


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("stored", [False, True])
def test_behind_a_frozen_prefix_steps_equal_torchs_with_eval_there(family, stored):
    network = small(family)
    frozen, children = PREFIXES[family]
    before = network.variables()
    ours = trained_by_us(network, before, frozen, stored)
    theirs = trained_by_torch(network, modules(network, children))
    assert_equal(ours, theirs, before)


@pytest.mark.stress
@pytest.mark.parametrize("family", FAMILIES)
def test_behind_every_prefix_stored_outputs_train_the_same(family):
    network = small(family)
    before = network.variables()
    children = dict.fromkeys(row.flax.split("/")[0] for row in network.table)
    for child in list(children)[:-1]:
        ours = trained_by_us(network, before, child, stored=True)
        assert_equal(ours, trained_by_us(network, before, child), before)


def largest_error(ours, theirs):
    expected = flat(theirs)
    return max(
        relative_error(leaf, expected[path])
        for path, leaf in flat(ours).items()
        if np.asarray(leaf).dtype.kind == "f"
    )


def test_freezing_without_eval_differs():
    """The control: torch's frozen norms still move their running statistics."""
    network = small("resnet")
    _, children = PREFIXES["resnet"]
    before = network.variables()
    ours, *_ = trained_by_us(network, before, "layer2")
    for module in modules(network, children):
        module.requires_grad_(False)
    theirs, *_ = trained_by_torch(network)
    assert largest_error(ours["batch_stats"], theirs["batch_stats"]) > CLEARLY_WRONG


def counting_all(monkeypatch):
    """Batch normalisation that counts the examples that only pad the batch."""
    normalise, count = batch_norm.normalise, batch_norm.count

    def wrong(x, scale, bias, weights, epsilon):
        return normalise(x, scale, bias, None, epsilon)

    monkeypatch.setattr(batch_norm, "normalise", wrong)
    monkeypatch.setattr(batch_norm, "count", lambda x, weights: count(x, None))


def biased(monkeypatch):
    """Batch normalisation that keeps the biased variance."""
    normalise = batch_norm.normalise

    def wrong(x, scale, bias, weights, epsilon):
        y, mean, var = normalise(x, scale, bias, weights, epsilon)
        count = batch_norm.count(x, weights)
        return y, mean, var * (count - 1) / count

    monkeypatch.setattr(batch_norm, "normalise", wrong)


@pytest.mark.parametrize(
    "damage, error", [(counting_all, CLEARLY_WRONG), (biased, SLIGHTLY_WRONG)]
)
def test_a_wrong_batch_norm_fails(damage, error, monkeypatch, recompiled):
    damage(monkeypatch)
    recompiled()
    network = small("mobilenet")
    ours, *_ = trained_by_us(network, network.variables())
    theirs, *_ = trained_by_torch(network)
    assert largest_error(ours["batch_stats"], theirs["batch_stats"]) > error
