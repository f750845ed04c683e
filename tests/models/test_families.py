"""Test torchvision's families: outputs, key tables, fresh layers, and wrong variants.

`python -m tests.stress families` compares every network at full size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision

import jaxlab
from jaxlab import verify
from jaxlab.errors import UsageError
from jaxlab.models import chain, layers
from jaxlab.models.architecture import ARCHITECTURES, FINE_TUNED
from jaxlab.models.describe import largest_outputs
from jaxlab.training import inputs
from jaxlab.training.initial_weights import variable_shapes
from pretrained.layout import flat, recognised
from pretrained.tables import TABLES
from tests.conftest import FORWARD_FLOAT64, compiled_quickly, relative_error
from tests.models.families import FAMILIES, fresh, small
from tests.stress import families

# The error of a wrong variant must exceed this.
CLEARLY_WRONG = 1e-3


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with compiled_quickly():
        yield


def compared(network, size=(45, 64)):
    return verify.compare_modules(
        network.table,
        network.ours,
        network.variables(),
        network.theirs,
        sizes=(size,),
        precisions=("float64",),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_of_a_small_network_equals_torchvisions(family):
    rows = compared(small(family))
    assert [row for row in rows if not row.passed] == []
    assert max(row.relative_error for row in rows) <= FORWARD_FLOAT64
    assert rows[-1].layer == "logits" and len(rows) > 8


# A shallow and a deep network of each family at full size; the others under stress.
SHALLOW_AND_DEEP = (
    *("vgg11", "vgg19_bn", "resnet18", "resnet152", "squeezenet1_0"),
    *("squeezenet1_1", "mobilenet_v2", "densenet121", "densenet201"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW_AND_DEEP)
def test_every_module_equals_torchvisions(name):
    oracle = families.torchvision_of(name)
    families.convert_there_and_back(name, oracle)
    size = max(ARCHITECTURES[name].min_image_size, 33)
    rows = families.outputs(name, oracle, ((size, size + 7),), ("float64",))
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("name", FINE_TUNED)
def test_the_table_has_the_paths_and_shapes_of_the_module(name):
    shapes = variable_shapes(ARCHITECTURES[name].build(1000))
    for collection in ("params", "batch_stats"):
        ours = {
            path: leaf.shape for path, leaf in flat(shapes.get(collection, {})).items()
        }
        rows = [row for row in TABLES[name] if row.collection == collection]
        assert ours.keys() == {row.flax for row in rows}
        for row in rows:
            sizes = [1000 if isinstance(size, str) else size for size in row.shape]
            moved = row.transform.to_flax(np.broadcast_to(np.float32(0), sizes))
            assert ours[row.flax] == moved.shape, row


@pytest.mark.parametrize("name", FINE_TUNED)
def test_the_facts_about_a_network_are_those_of_its_module(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build(3)
    assert [link.name for link in model.bind({}).links()] == architecture.children
    assert model.min_size == architecture.min_image_size
    assert architecture.features in architecture.children[:-1]
    has_rate = hasattr(model, "dropout_rate")
    assert bool(architecture.dropout) is has_rate
    assert set(architecture.dropout) <= set(architecture.children)


# Networks of one family have the same operations outside their blocks.
ONE_OF_EACH = (
    *("alexnet", "vgg11", "resnet18", "squeezenet1_0", "squeezenet1_1"),
    *("mobilenet_v2", "densenet121"),
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_smallest_image_is_torchvisions(name):
    """It has logits, and an image with one pixel less has none on either side."""
    architecture = ARCHITECTURES[name]
    least = architecture.min_image_size
    with torch.device("meta"):
        oracle = torchvision.models.get_model(name, num_classes=2).eval()
        assert oracle(torch.zeros(1, 3, least, least)).shape == (1, 2)
        if least > 1:
            with pytest.raises(RuntimeError):
                oracle(torch.zeros(1, 3, least - 1, least - 1))
    model = architecture.build(2)

    def logits(size):
        init = lambda: model.init(  # noqa: E731
            jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
        )
        return jax.eval_shape(init)

    logits(least)
    if least > 1:
        with pytest.raises(ValueError, match=f"at least {least}x{least} pixels"):
            logits(least - 1)


def test_every_published_network_is_recognised_as_itself_alone():
    for name, table in TABLES.items():
        for without in ("nothing", "counters"):
            rows = [row for row in table if without == "nothing" or row.kind != "count"]
            shapes = {
                row.also if without == "counters" and row.also else row.torch: tuple(
                    10 if isinstance(size, str) else size for size in row.shape
                )
                for row in rows
            }
            assert recognised(shapes) == [name]


# Negative controls: torchvision's network is changed, so that ours is a wrong variant
# of it, and must fail.


def stride_first(model):
    """Stride in the first 1x1 convolution of a bottleneck, as in the paper."""
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


def no_relu_behind_the_head(model):
    """Leave the ReLU behind SqueezeNet's last convolution out."""
    model.classifier[2] = torch.nn.Identity()


def round_up(model):
    """Keep the odd row in front of a DenseNet's average pools."""
    for name in ("transition1", "transition2", "transition3"):
        model.features.get_submodule(name).pool.ceil_mode = True


@pytest.mark.parametrize(
    ("family", "damage"),
    [
        ("resnext", stride_first),
        ("squeezenet", no_relu_behind_the_head),
        ("densenet", round_up),
    ],
)
def test_a_wrong_variant_fails(family, damage):
    network = small(family)
    damage(network.theirs)
    *_, logits = compared(network)
    assert logits.relative_error > CLEARLY_WRONG
    assert not logits.passed


# Layers.


@pytest.mark.parametrize(
    ("window", "stride", "padding", "ceil_mode"),
    [
        (3, 2, 0, True),
        (3, 2, 1, False),
        (3, 2, 1, True),
        (2, 2, 0, True),
        (2, 3, 0, True),
    ],
)
def test_max_pool_equals_torchs(window, stride, padding, ceil_mode, x64):
    ours = layers.MaxPool(window, stride, padding, ceil_mode)
    theirs = torch.nn.MaxPool2d(window, stride, padding, ceil_mode=ceil_mode)
    random = np.random.default_rng(0)
    for height, width in ((3, 4), (4, 7), (7, 8), (8, 3), (10, 10)):
        x = random.standard_normal((2, height, width, 3)) - 3  # below 0, as padding
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
        expected = theirs(pixels).permute(0, 2, 3, 1)
        found, pullback = jax.vjp(lambda x: ours.apply({}, x), x)
        np.testing.assert_array_equal(found, expected.detach())
        dy = random.standard_normal(found.shape)
        expected.backward(torch.from_numpy(dy))
        dx = pixels.grad.permute(0, 2, 3, 1)
        np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], dx, rtol=0, atol=1e-15)


def test_a_pool_padded_with_0_fails(x64):
    """The control: only where nothing is above 0, which a ReLU in front rules out."""
    x = np.random.default_rng(0).standard_normal((2, 7, 7, 3)) - 3
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
    theirs = torch.nn.MaxPool2d(3, 2, 1)(pixels).permute(0, 2, 3, 1)
    zeros = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    assert relative_error(layers.MaxPool(3, 2).apply({}, zeros), theirs) > CLEARLY_WRONG


def test_avg_pool_drops_the_odd_row(x64):
    x = np.random.default_rng(0).standard_normal((2, 7, 8, 3))
    theirs = torch.nn.AvgPool2d(2)(torch.from_numpy(x).permute(0, 3, 1, 2))
    ours = layers.AvgPool(2).apply({}, x)
    assert relative_error(ours, theirs.permute(0, 2, 3, 1)) <= FORWARD_FLOAT64


def test_relu6_has_torchs_gradient_at_its_corners():
    x = np.array([-1.0, 0.0, 1e-6, 3.0, 6.0, 7.0, np.inf], np.float32)
    pixels = torch.from_numpy(x).requires_grad_()
    torch.nn.functional.relu6(pixels).sum().backward()
    module = layers.ReLU6()
    np.testing.assert_array_equal(module.apply({}, x), np.clip(x, 0, 6))
    ours = jax.grad(lambda x: module.apply({}, x).sum())(x)
    np.testing.assert_array_equal(ours, pixels.grad)
    clipped = jax.grad(lambda x: jnp.clip(x, 0, 6).sum())(x)
    assert (clipped != ours).any()  # the control
    assert np.isnan(module.apply({}, np.float32(np.nan)))


# With dropout, and without more blocks than needed.
WITH_DROPOUT = {
    "alexnet": {"channels": (4, 4, 4, 4, 4), "hidden": 8},
    "vgg11": {"channels": ((4,), (4,), (4, 4), (4, 4), (4, 4)), "hidden": 8},
    "squeezenet1_1": {"fires": ((2, 4),) * 8},
    "mobilenet_v2": {"blocks": ((1, 4, 1, 1), (2, 4, 2, 2)), "last_channels": 8},
}


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_what_dropout_changes_begins_where_the_facts_say(name):
    """Up to there outputs in training are the same in each step, and can be stored."""
    architecture = ARCHITECTURES[name]
    model = architecture.build(3, **WITH_DROPOUT[name])
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(
        jax.random.key(0)
    )
    names = chain.children(model)

    @functools.partial(jax.jit, static_argnums=1)
    def run(seed, until):
        out, _ = model.apply(
            variables,
            images,
            train=True,
            frozen=names[-1],
            until=until,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )
        return out

    first = names.index(architecture.dropout[0])
    before = names[first - 1]
    np.testing.assert_array_equal(run(0, before), run(1, before))
    for child in architecture.dropout:
        assert (run(0, child) != run(1, child)).any(), child


def test_a_batch_is_limited_by_the_largest_output():
    model = ARCHITECTURES["vgg16"].build(10)
    sizes = largest_outputs(model, variable_shapes(model), (224, 224, 3))
    assert max(sizes.values()) == sizes["conv1_1"] == 224 * 224 * 64
    assert inputs.forward_batch(model, 224) == 12
    assert inputs.forward_batch(model, 224, "conv5_3") == inputs.FORWARD_BATCH
    assert inputs.forward_batch(model, 2048) == 1
    assert inputs.forward_batch(ARCHITECTURES["alexnet"].build(10), 224) == 100


def test_a_summary_has_every_operation_of_a_block():
    model = ARCHITECTURES["resnet18"].build(10)
    lines = str(jaxlab.summary(model, (224, 224, 3))).splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    conv = "layer2/0/downsample_conv Conv(64, 128, kernel_size=1, stride=2, bias=False)"
    assert rows["layer2/0/downsample_conv"] == [
        *conv.split(),
        *"[28, 28, 128] 8,192 trained".split(),
    ]
    assert rows["maxpool"][1:4] == ["MaxPool(3,", "stride=2,", "padding=1)"]
    assert lines[-1].split() == "total 11,181,642 11,181,642 trained, 0 frozen".split()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet18", {"groups": 4}, "groups and width_per_group: have no effect"),
        ("squeezenet1_0", {"pools": ("fire1",)}, "pools: fire1 is no fire module"),
        ("vgg11", {"channels": ((4,), (0,))}, "channels: expected whole numbers"),
        ("densenet121", {"depths": (1, 1)}, "depths: expected 4 whole numbers"),
        ("mobilenet_v2", {"blocks": ((1, 2, 3),)}, "blocks: expected 4 whole numbers"),
        ("resnet18", {"width": 3}, "see help.jaxlab.models.resnet.ResNet"),
    ],
)
def test_fields_that_a_network_cannot_have_are_refused(name, fields, message):
    with pytest.raises(UsageError, match=message):
        jaxlab.create_model(name, num_classes=2, **fields)


def test_a_convolution_without_bias_has_none():
    conv = layers.Conv(3, 4, 3, bias=False)
    variables = conv.init(jax.random.key(0), jnp.zeros((1, 5, 5, 3)))
    assert list(variables["params"]) == ["kernel"]


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_layers_are_drawn_as_torchvision_draws_them(family):
    """Compare each leaf's mean, deviation and largest value with torchvision's."""
    network = fresh(family)
    theirs = flat(network.variables()["params"])
    images = jnp.zeros((1, 64, 64, 3))
    draw = jax.jit(lambda key: network.ours.init(key, images, train=False))
    variables = draw(jax.random.key(0))
    for path, leaf in flat(variables["params"]).items():
        expected = theirs[path]
        if np.std(expected) == 0:  # a bias or a scale
            np.testing.assert_array_equal(leaf, expected)
            continue
        # A deviation and a mean have standard errors below this, on either side.
        error = np.std(expected) * leaf.size**-0.5
        assert abs(np.std(leaf) - np.std(expected)) <= 7 * error, path
        assert abs(np.mean(leaf) - np.mean(expected)) <= 7 * error, path
        if leaf.size > 500:  # a uniform one ends at √3 deviations
            is_uniform = np.abs(expected).max() < 1.8 * np.std(expected)
            assert (np.abs(leaf).max() < 1.8 * np.std(expected)) == is_uniform, path
    for path, leaf in flat(variables.get("batch_stats", {})).items():
        value = {"mean": 0, "var": 1, "count": 0}[path.rpartition("/")[2]]
        np.testing.assert_array_equal(leaf, np.full_like(leaf, value))
