"""Test that the conversion of weights is bijective, exact and reports mismatches.

It is one file because many of these tests share one full-size state dict and its
converted parameters, which take half a gigabyte.
"""

import functools
import re

import jax
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import AlexNet
from pretrained import (
    WeightsError,
    to_flax,
    to_state_dict,
    to_torch,
    to_variables,
)
from pretrained.layout import recognised, state_dict_of, variables_of
from pretrained.tables import ALEXNET, alexnet, children, head
from pretrained.tables.row import batch_norm, conv, flattened_chw, linear
from tests.conftest import torch_alexnet
from tests.stress.narrow import NARROW


def state_dict(num_classes=10, table=ALEXNET, seed=0):
    """Return arrays of random bits; any float32 may occur, NaN and -0.0 included."""
    random = np.random.default_rng(seed)
    return {
        row.torch: random.integers(
            0,
            2**32,
            [num_classes if isinstance(n, str) else n for n in row.shape],
            np.uint32,
        ).view(np.float32)
        for row in table
    }


@functools.cache
def full():
    """Return a valid full-size state dict, for tests that do not modify its arrays."""
    return state_dict()


@functools.cache
def full_params():
    return to_flax(full())


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """Free the two cached networks after the tests; they take half a gigabyte."""
    yield
    full.cache_clear()
    full_params.cache_clear()


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        assert ours[name].flags.c_contiguous, name
        assert ours[name].tobytes() == np.ascontiguousarray(value).tobytes(), name


def flat(params):
    return {
        f"{a}/{b}": value for a, leaves in params.items() for b, value in leaves.items()
    }


def assert_bijective(start, table):
    params = to_flax(start, table)
    assert_same_bits(to_torch(params, table), start)
    assert_same_bits(flat(to_flax(to_torch(params, table), table)), flat(params))


width = st.integers(1, 7)


@settings(deadline=None)
@given(st.tuples(width, width, width, width, width), width, st.integers(1, 2000), width)
def test_there_and_back_is_the_identity_for_any_width(channels, hidden, classes, seed):
    table = alexnet(channels, hidden)
    assert_bijective(state_dict(classes, table, seed), table)


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_classes", [pytest.param(1, marks=pytest.mark.stress), 1000]
)
def test_there_and_back_is_the_identity_for_alexnet(num_classes):
    assert_bijective(state_dict(num_classes), ALEXNET)


def test_float64_stays_float64():
    table = alexnet((1, 2, 3, 4, 5), 6)
    start = {name: np.full(v.shape, 1 / 3) for name, v in state_dict(7, table).items()}
    assert_bijective(start, table)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_the_flatten_permutation_is_flax_s_order_of_torchs_rows(c, h, w, out):
    weight = np.arange(out * c * h * w, dtype=np.float32).reshape(out, c * h * w)
    transform = flattened_chw(c, h, w)
    kernel = transform.to_flax(weight)
    image = np.random.default_rng(0).standard_normal((c, h, w))
    by_torch = weight @ image.reshape(-1)
    by_flax = image.transpose(1, 2, 0).reshape(-1) @ kernel
    # Both sides sum the same products, 729 at most, in float64 in a different order;
    # the rounding error of that sum is below 1e-6.
    np.testing.assert_allclose(by_flax, by_torch, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(transform.to_torch(kernel), weight)


def test_every_key_is_used_once_and_every_leaf_set_once():
    model = AlexNet(10)
    images = jax.ShapeDtypeStruct((1, 63, 63, 3), np.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False)["params"], images
    )
    ours = {f"{a}/{b}": v.shape for a, ls in shapes.items() for b, v in ls.items()}
    theirs = torch_alexnet(10).state_dict()
    assert len({row.torch for row in ALEXNET}) == len(ALEXNET) == len(theirs)
    assert {row.torch for row in ALEXNET} == theirs.keys()
    converted = {name: value.shape for name, value in flat(to_flax(theirs)).items()}
    assert converted == ours


def test_torch_parameters_that_require_gradients_convert():
    model, table = torch_alexnet(10, **NARROW), alexnet(**NARROW)
    params = to_flax(dict(model.named_parameters()), table)
    assert_same_bits(
        to_torch(params, table), {k: v.numpy() for k, v in model.state_dict().items()}
    )


def test_the_inputs_are_copied_not_shared():
    table = alexnet(**NARROW)
    start = state_dict(table=table)
    params = to_flax(start, table)
    params["conv1"]["bias"][:] = 7
    assert (start["features.0.bias"] != 7).all()


def changed(**changes):
    """Return a valid state_dict with keys replaced, added, or (for None) removed.

    `__` in the name of an argument stands for a dot.
    """
    tensors = dict(full())
    for name, value in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        (
            lambda: changed(features__0__bias=None, classifier__6__weight=None),
            ["features.0.bias is missing", "classifier.6.weight is missing"],
        ),
        (
            lambda: changed(features__0__bias=None, extra=np.ones(1, np.float32)),
            ["features.0.bias is missing", "extra is unexpected", "state_dict of"],
        ),
        (
            lambda: changed(features__3__weight=np.ones((192, 64, 3, 3), np.float32)),
            ["features.3.weight has shape [192, 64, 3, 3], expected [192, 64, 5, 5]"],
        ),
        (
            lambda: changed(classifier__6__bias=np.ones(11, np.float32)),
            ["classifier.6.bias has shape [11], expected [10]"],
        ),
        (
            lambda: changed(
                classifier__6__bias=np.ones(0, np.float32),
                classifier__6__weight=np.ones((0, 4096), np.float32),
            ),
            ["classifier.6.weight has shape [0, 4096], expected [num_classes, 4096]"],
        ),
        (
            lambda: changed(features__0__bias=np.ones(64, np.float16)),
            ["features.0.bias is float16, expected float32 or float64"],
        ),
        (
            lambda: changed(features__0__bias=torch.ones(64, dtype=torch.bfloat16)),
            ["features.0.bias is bfloat16, expected float32 or float64"],
        ),
        (
            lambda: changed(features__0__bias=np.ones(64, np.float64)),
            ["float32 and float64 are mixed"],
        ),
        (
            lambda: changed(features__0__bias="text"),
            ["features.0.bias is str, expected"],
        ),
        (
            lambda: {f"module.{name}": value for name, value in full().items()},
            ["keys contain 'module.', as DataParallel", "k.replace('module.', '')"],
        ),
        (
            lambda: {"state_dict": full(), "epoch": 3},
            ["training checkpoint", "'state_dict'"],
        ),
        (
            lambda: {"optimizer": {}, "ema_model": full()},
            ["training checkpoint; pass checkpoint['ema_model']"],
        ),
        (dict, ["features.0.weight is missing", "classifier.6.bias is missing"]),
        (full_params, ["these look like Flax params", "to_torch"]),
        (lambda: [1, 2], ["expected a mapping", "got a list"]),
    ],
)
def test_what_does_not_fit_is_named_all_at_once(make, messages):
    with pytest.raises(WeightsError) as raised:
        to_flax(make())
    for message in messages:
        assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "named"),
    [
        ("resnet18", "a ResNet"),
        ("vgg11", "a VGG"),
        pytest.param("vgg16", "a VGG", marks=pytest.mark.slow),
        pytest.param("vgg16_bn", "a VGG with batch", marks=pytest.mark.slow),
        ("densenet121", "a DenseNet"),
        ("squeezenet1_0", "a SqueezeNet"),
        ("mobilenet_v2", "a MobileNet v2"),
        ("mobilenet_v3_small", "a MobileNet v3"),
        ("efficientnet_b0", "a MobileNet v3, EfficientNet"),
        ("convnext_tiny", "a MobileNet v3, EfficientNet, ConvNeXt"),
        ("googlenet", "a GoogLeNet"),
        ("inception_v3", "an Inception v3"),
        ("shufflenet_v2_x1_0", "a ShuffleNet"),
        pytest.param("vit_b_16", "a vision transformer", marks=pytest.mark.slow),
    ],
)
def test_another_architecture_is_named(architecture, named):
    # These two warn that a default will change unless the flag is given.
    slow = architecture in ("googlenet", "inception_v3")
    flags = {"init_weights": False} if slow else {}
    with torch.device("meta"):  # names and shapes only
        foreign = torchvision.models.get_model(architecture, **flags).state_dict()
    foreign = {
        name: np.zeros(value.shape, np.float32) for name, value in foreign.items()
    }
    with pytest.raises(
        WeightsError, match=f"^state_dict: this looks like {named}.*torchvision's"
    ):
        to_flax(foreign)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"params": p}, "pass variables['params']"),
        (lambda p: [p], "expected nested dicts of arrays, got a list"),
        (lambda p: {**p, "fc9": p["fc8"]}, "fc9/kernel is unexpected"),
        (lambda p: {k: v for k, v in p.items() if k != "fc6"}, "fc6/kernel is missing"),
        (lambda p: {**p, "conv1": p["conv2"]}, "expected [11, 11, 3, 64]"),
        (
            lambda p: {**p, "fc6": {**p["fc6"], "kernel": p["fc6"]["kernel"].T}},
            "fc6/kernel has shape [4096, 9216], expected [9216, 4096]",
        ),
    ],
)
def test_params_that_do_not_fit_are_named(change, message):
    with pytest.raises(WeightsError) as raised:
        to_torch(change(full_params()))
    assert message in str(raised.value)


# A network with nested modules and running statistics.
DEEP = (
    *conv("stem.conv", "stem/conv", 4, 3, 3),
    *batch_norm("stem.norm", "stem/norm", 4),
    *conv("body.block.conv", "body/block/conv", 6, 4, 3, groups=2, bias=False),
    *batch_norm("body.block.norm", "body/block/norm", 6),
    *linear("head", "head", "num_classes", 6),
)


def deep_state_dict(num_classes=5):
    block = torch.nn.Sequential()
    block.add_module("conv", torch.nn.Conv2d(4, 6, 3, groups=2, bias=False))
    block.add_module("norm", torch.nn.BatchNorm2d(6))
    model = torch.nn.Sequential()
    model.add_module("stem", torch.nn.Sequential())
    model.add_module("body", torch.nn.Sequential())
    model.stem.add_module("conv", torch.nn.Conv2d(3, 4, 3))
    model.stem.add_module("norm", torch.nn.BatchNorm2d(4))
    model.body.add_module("block", block)
    model.add_module("head", torch.nn.Linear(6, num_classes))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
            else:
                tensor.fill_(12345)
    return model.state_dict()


def test_a_table_of_any_depth_is_torchs_in_names_order_and_shapes():
    theirs = deep_state_dict()
    assert [row.torch for row in DEEP] == list(theirs)
    for row in DEEP:
        sizes = [5 if size == "num_classes" else size for size in row.shape]
        assert tuple(sizes) == theirs[row.torch].shape


def test_running_statistics_and_counters_go_there_and_back():
    theirs = deep_state_dict()
    variables = variables_of(theirs, DEEP)
    assert variables.keys() == {"params", "batch_stats"}
    assert set(variables["params"]["body"]["block"]["conv"]) == {"kernel"}
    assert variables["params"]["body"]["block"]["conv"]["kernel"].shape == (3, 3, 2, 6)
    norm = variables["batch_stats"]["body"]["block"]["norm"]
    assert norm.keys() == {"mean", "var", "count"}
    assert norm["count"] == 12345 and norm["count"].dtype == np.int32
    back = state_dict_of(variables, DEEP)
    assert list(back) == list(theirs)
    assert_same_bits(back, {name: tensor.numpy() for name, tensor in theirs.items()})


def test_counters_may_be_absent_and_must_be_counts():
    theirs = deep_state_dict()
    name = "stem.norm.num_batches_tracked"
    del theirs[name]
    assert variables_of(theirs, DEEP)["batch_stats"]["stem"]["norm"]["count"] == 0
    for wrong, reason in (
        (torch.tensor(2**31), f"{name} is 2147483648, expected 0 to 2^31 - 1"),
        (torch.tensor(-1), f"{name} is -1, expected"),
        (torch.tensor(1.0), f"{name} is float32, expected int64 or int32"),
        (torch.tensor([1, 2]), f"{name} has shape [2], expected []"),
    ):
        with pytest.raises(WeightsError, match=re.escape(reason)):
            variables_of({**theirs, name: wrong}, DEEP)
    variables = variables_of(theirs, DEEP)
    del variables["batch_stats"]["stem"]["norm"]["mean"]
    with pytest.raises(WeightsError, match="batch_stats: .*stem/norm/mean is missing"):
        state_dict_of(variables, DEEP)


def test_a_table_knows_its_children_and_its_head():
    assert children(DEEP) == ["stem", "body", "head"] and head(DEEP) == "head"
    assert children(ALEXNET)[-2:] == ["fc7", "fc8"] and head(ALEXNET) == "fc8"


def test_a_network_is_recognised_by_its_keys_and_shapes():
    def shapes_of(architecture, num_classes=10):
        with torch.device("meta"):
            model = getattr(torchvision.models, architecture)(num_classes=num_classes)
        return {name: tuple(t.shape) for name, t in model.state_dict().items()}

    for num_classes in (2, 1000):
        assert recognised(shapes_of("alexnet", num_classes)) == ["alexnet"]
    assert recognised(shapes_of("vgg11")) == ["vgg11"]
    assert recognised(shapes_of("shufflenet_v2_x0_5")) == []
    assert recognised({**shapes_of("alexnet"), "more": (1,)}) == []


@pytest.mark.slow
def test_variables_of_a_network_by_its_name():
    variables = to_variables(full(), "alexnet")
    assert variables.keys() == {"params"}
    assert_same_bits(to_state_dict(variables, "alexnet"), full())
    with pytest.raises(WeightsError, match="'lenet': unknown network; pass one of"):
        to_variables(full(), "lenet")
