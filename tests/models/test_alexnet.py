"""Test every layer of AlexNet against torchvision, at several sizes and precisions.

It is one file because most tests compare the two networks with the helpers below.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxlab import AlexNet
from jaxlab.models import alexnet, layers
from pretrained import to_flax
from pretrained.tables import alexnet as alexnet_rows
from pretrained.tables import children
from tests.conftest import (
    FORWARD_FLOAT32,
    FORWARD_FLOAT64,
    random_params,
    relative_error,
    torch_alexnet,
    with_imagenet_convolutions,
)
from tests.stress.narrow import NARROW

# The error of a wrong layer must exceed a thousand times the tolerance.
CLEARLY_WRONG = 1000 * FORWARD_FLOAT32
SIZES = [(63, 63), (192, 256), (224, 224), (320, 320)]
# The path of each of our layers in torchvision's module tree.
LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}


def torch_layers(model, images):
    """Return torchvision's output of every named layer, channels last."""
    outputs = {}

    def keep(name):
        def hook(_module, _inputs, output):
            # The output is copied, because the ReLU that follows works in place.
            outputs[name] = output.detach().clone().numpy()

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(name))
        for name, path in LAYERS.items()
    ]
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for handle in handles:
        handle.remove()
    return {
        name: out.transpose(0, 2, 3, 1) if out.ndim == 4 else out
        for name, out in outputs.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def run_captured(model, params, images):
    """Return the logits and Flax's record of all layers; compiled once per shape."""
    logits, captured = model.apply(
        {"params": params}, images, train=False, capture_intermediates=True
    )
    return logits, captured["intermediates"]


def our_layers(model, params, images):
    """Return our model's output of every named layer."""
    with jax.default_matmul_precision("highest"):
        logits, captured = run_captured(model, params, images)
    outputs = {name: captured[name]["__call__"][0] for name in LAYERS}
    np.testing.assert_array_equal(outputs["fc8"], logits)
    return outputs


def errors(model, params, images, oracle):
    """Return each layer's relative error, and whether all top-1 classes agree."""
    ours, theirs = our_layers(model, params, images), torch_layers(oracle, images)
    same = (ours["fc8"].argmax(-1) == theirs["fc8"].argmax(-1)).all()
    return {name: relative_error(ours[name], theirs[name]) for name in LAYERS}, same


def random_images(size, dtype=np.float32, count=4):
    return np.random.default_rng(0).standard_normal((count, *size, 3)).astype(dtype)


def assert_every_layer_equal(dtype, sizes, num_classes=10, weights="random", **widths):
    oracle = torch_alexnet(num_classes, **widths)
    if weights == "imagenet-conv":
        with_imagenet_convolutions(oracle)
    oracle.to(getattr(torch, dtype))
    params = to_flax(oracle.state_dict(), alexnet_rows(**widths))
    model = AlexNet(num_classes, **widths)
    bar = {"float32": FORWARD_FLOAT32, "float64": FORWARD_FLOAT64}[dtype]
    for size in sizes:
        images = random_images(size, dtype)
        with jax.enable_x64(dtype == "float64"):
            found, same_top1 = errors(model, params, images, oracle)
        assert max(found.values()) <= bar, (size, found)
        assert same_top1, size


# These cases are slow, because each size and dtype is a large program to compile.
LARGE = [
    pytest.param(dtype, size, marks=mark)
    for dtype, size, mark in (
        ("float32", SIZES[2], pytest.mark.slow),
        ("float64", SIZES[1], pytest.mark.slow),
        ("float32", SIZES[1], pytest.mark.stress),
        ("float32", SIZES[3], pytest.mark.stress),
        ("float64", SIZES[2], pytest.mark.stress),
        ("float64", SIZES[3], pytest.mark.stress),
    )
]


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)
def test_every_layer_of_a_narrow_copy_equals_torchvision_at_every_size(dtype):
    assert_every_layer_equal(dtype, SIZES, **NARROW)


# Each head in one precision, and under stress in both.
HEADS = [
    pytest.param(dtype, classes, marks=() if is_quick else pytest.mark.stress)
    for dtype, classes, is_quick in (
        ("float64", 10, True),
        ("float32", 1000, True),
        ("float32", 10, False),
        ("float64", 1000, False),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "imagenet-conv"])
@pytest.mark.parametrize("dtype, num_classes", HEADS)
def test_every_layer_equals_torchvision(dtype, num_classes, weights):
    assert_every_layer_equal(dtype, SIZES[:1], num_classes, weights)


@pytest.mark.parametrize("dtype, size", LARGE)
def test_every_layer_equals_torchvision_on_larger_images(dtype, size):
    for weights in ("random", "imagenet-conv"):
        assert_every_layer_equal(dtype, [size], 1000, weights)


def same_padded(*args, kernel_size, **kwargs):
    """Negative control: pad by half of the kernel size instead of torch's padding."""
    kwargs["padding"] = kernel_size // 2
    return layers.Conv(*args, kernel_size=kernel_size, **kwargs)


def plain_pool(x, output_size):
    """Negative control: pool windows of one size instead of torch's adaptive bins."""
    (height, width), (rows, columns) = x.shape[1:3], output_size
    window = (height // rows, width // columns)
    return nn.avg_pool(x, window, strides=window)[:, :rows, :columns]


def test_wrong_variants_fail_the_parity_bar(monkeypatch, recompiled):
    oracle = torch_alexnet(10, **NARROW)
    params = to_flax(oracle.state_dict(), alexnet_rows(**NARROW))
    images = random_images((320, 320))

    found, _ = errors(AlexNet(10, **NARROW), params, images, oracle)
    assert max(found.values()) <= FORWARD_FLOAT32

    unpermuted = {
        **params,
        "fc6": {
            "kernel": oracle.state_dict()["classifier.1.weight"].numpy().T,
            "bias": params["fc6"]["bias"],
        },
    }
    found, _ = errors(AlexNet(10, **NARROW), unpermuted, images, oracle)
    assert found["conv5"] <= FORWARD_FLOAT32 < CLEARLY_WRONG < found["fc6"]

    with monkeypatch.context() as patch:
        patch.setattr(layers, "adaptive_avg_pool", plain_pool)
        recompiled()
        found, _ = errors(AlexNet(10, **NARROW), params, images, oracle)
        assert found["conv5"] <= FORWARD_FLOAT32 < CLEARLY_WRONG < found["fc6"]

    # This padding adds a row and a column to conv1's output. Only the outputs after the
    # adaptive pool have equal shapes and can be compared.
    monkeypatch.setattr(alexnet, "Conv", same_padded)
    recompiled()
    ours = our_layers(AlexNet(10, **NARROW), params, images)["fc6"]
    assert relative_error(ours, torch_layers(oracle, images)["fc6"]) > CLEARLY_WRONG


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 6), (7, 7), (9, 9), (12, 13)])
def test_adaptive_average_pool_has_torchs_bins(size, x64):
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    theirs = torch.nn.AdaptiveAvgPool2d((6, 6))(torch.from_numpy(x).permute(0, 3, 1, 2))
    ours = jax.jit(layers.adaptive_avg_pool, static_argnums=1)(x, (6, 6))
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert relative_error(ours, theirs) <= FORWARD_FLOAT64


def test_adaptive_average_pool_is_the_identity_at_224():
    x = jnp.ones((1, 6, 6, 256))
    assert layers.adaptive_avg_pool(x, (6, 6)) is x


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 62, 224, 3), "float32", "at least 63x63 pixels, got 62x224"),
        ((1, 224, 224, 1), "float32", "float[b, h, w, 3], got float32[1, 224, 224, 1]"),
        ((224, 224, 3), "float32", "float[b, h, w, 3], got float32[224, 224, 3]"),
        ((1, 224, 224, 3), "uint8", "got uint8[1, 224, 224, 3]"),
    ],
)
def test_unusable_inputs_are_refused_with_what_is_expected(shape, dtype, message):
    model = AlexNet(10)
    with pytest.raises(ValueError) as raised:
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros(shape, dtype), train=False)
        )
    assert message in str(raised.value)


@pytest.mark.slow
def test_fresh_layers_are_drawn_as_torch_draws_them():
    widths = {"hidden": 256}
    model = AlexNet(10, **widths)
    init = jax.jit(lambda key, x: model.init(key, x, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 63, 63, 3)))
    oracle = torch_alexnet(10, **widths).state_dict()
    oracle = to_flax(oracle, alexnet_rows(**widths))
    for name, layer in params["params"].items():
        fan_in = np.prod(layer["kernel"].shape[:-1])
        for leaf, values in layer.items():
            bound = 1 / np.sqrt(fan_in)
            assert np.abs(values).max() <= np.float32(bound), (name, leaf)
            # In units of the bound, the standard error of a uniform sample's standard
            # deviation is below 0.3/√n, that of its mean below 0.6/√n. Allow five.
            allowed = 5 * 0.3 / np.sqrt(values.size)
            for drawn in (values, oracle[name][leaf]):
                assert abs(np.std(drawn) / bound - 3**-0.5) < allowed, (name, leaf)
                assert abs(np.mean(drawn) / bound) < 2 * allowed, (name, leaf)


def test_dropout_acts_in_training_only_and_follows_its_key():
    model = AlexNet(10, **NARROW)
    images = random_images((63, 63), count=2)
    params = to_flax(torch_alexnet(10, **NARROW).state_dict(), alexnet_rows(**NARROW))
    apply_fn = jax.jit(model.apply, static_argnames="train")

    def logits(train, seed=0):
        rngs = {"dropout": jax.random.key(seed)} if train else {}
        return np.asarray(apply_fn({"params": params}, images, train=train, rngs=rngs))

    np.testing.assert_array_equal(logits(False), logits(False))
    np.testing.assert_array_equal(logits(True, 1), logits(True, 1))
    assert (logits(True, 1) != logits(True, 2)).all()
    assert (logits(True, 1) != logits(False)).all()


def test_a_part_and_the_rest_are_the_whole_network_behind_every_child():
    model, images = AlexNet(10, **NARROW), random_images((63, 63))
    variables = {"params": random_params(model)}
    whole = model.apply(variables, images, train=False)
    shapes = {}
    for child in children(alexnet_rows(**NARROW)):
        part = model.apply(variables, images, train=False, until=child)
        shapes[child] = part.shape[1:]
        if child != "fc8":
            part = model.apply(variables, part, train=False, after=child)
        np.testing.assert_array_equal(part, whole)
    assert shapes["conv1"] == (7, 7, 8) and shapes["conv5"] == (6, 6, 12)
    assert shapes["fc7"] == (32,) and shapes["fc8"] == (10,)
    with pytest.raises(ValueError, match="'conv9': unknown layer; pass one of conv1, "):
        model.apply(variables, images, train=False, until="conv9")
