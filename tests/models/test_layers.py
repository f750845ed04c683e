"""Test BatchNorm against torch's, dropout's rate and scale, and initial kernels."""

import dataclasses
import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxlab.models import layers
from jaxlab.models.layers import BatchNorm, uniform_fan_in
from tests.conftest import FORWARD_FLOAT64, compiled_quickly, relative_error


class Biased(BatchNorm):
    """Negative control: Flax's BatchNorm, which stores the biased running variance."""

    @nn.compact
    def __call__(self, x, *, train):
        stats = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
        return stats(x)


def jitted(module):
    """Return the module's init, its apply in training, and in evaluation.

    Outside jit, each operation would be a program of its own.
    """
    return (
        jax.jit(functools.partial(module.init, train=False)),
        jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"])),
        jax.jit(functools.partial(module.apply, train=False)),
    )


def running(module, steps=3):
    """Run training steps and then eval, and return the relative errors against torch.

    They are those of each step's output, eval's output, running mean and variance.
    """
    random = np.random.default_rng(0)
    batches = [3 * random.standard_normal((5, 4)) + 2 for _ in range(steps)]
    scale, bias = random.standard_normal((2, 4))
    oracle = torch.nn.BatchNorm1d(4).double()
    with torch.no_grad():
        oracle.weight.copy_(torch.from_numpy(scale))
        oracle.bias.copy_(torch.from_numpy(bias))
    init, train, evaluate = jitted(module)
    variables = init(jax.random.key(0), batches[0])
    stats = variables["batch_stats"]
    params = jax.tree.map(
        lambda leaf: scale if leaf[0] == 1 else bias, variables["params"]
    )
    ours, theirs = [], []
    for batch in batches:
        out, updated = train({"params": params, "batch_stats": stats}, batch)
        stats = updated["batch_stats"]
        ours.append(out)
        theirs.append(oracle(torch.from_numpy(batch)).detach().numpy())
    oracle.eval()
    variables = {"params": params, "batch_stats": stats}
    ours.append(evaluate(variables, batches[0]))
    theirs.append(oracle(torch.from_numpy(batches[0])).detach().numpy())
    stats = stats.get("BatchNorm_0", stats)  # the name in the control
    ours += [stats["mean"], stats["var"]]
    theirs += [oracle.running_mean.numpy(), oracle.running_var.numpy()]
    assert int(stats.get("count", steps)) == int(oracle.num_batches_tracked) == steps
    return [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]


def test_batch_norm_equals_torchs_in_both_modes_and_in_its_statistics(x64):
    assert max(running(BatchNorm())) <= FORWARD_FLOAT64


def test_a_biased_running_variance_fails(x64):
    *training, evaluation, mean, var = running(Biased())
    assert max(training) <= FORWARD_FLOAT64 and mean <= FORWARD_FLOAT64
    assert min(evaluation, var) > 0.01


def test_batch_norm_over_images_has_one_statistic_a_channel(x64):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    init, train, _ = jitted(BatchNorm())
    ours, _ = train(init(jax.random.key(0), x), x)
    theirs = torch.nn.BatchNorm2d(5).double()(torch.from_numpy(x).permute(0, 3, 1, 2))
    theirs = theirs.permute(0, 2, 3, 1).detach().numpy()
    assert relative_error(ours, theirs) <= FORWARD_FLOAT64


def test_examples_that_fill_a_batch_up_are_not_counted(x64):
    """Outputs and statistics equal those of torch for a batch without the padding."""
    random = np.random.default_rng(0)
    x = 3 * random.standard_normal((7, 3, 4, 5)) + 2
    padded = np.concatenate([x, 100 * x[:3]])
    weights = jnp.array([1.0] * 7 + [0.0] * 3)
    oracle = torch.nn.BatchNorm2d(5).double()
    theirs = oracle(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    init, train, _ = jitted(BatchNorm())
    variables = init(jax.random.key(0), x)

    def errors(**kwargs):
        ours, updated = train(variables, padded, **kwargs)
        stats = updated["batch_stats"]
        return [
            relative_error(ours[:7], theirs.detach().numpy()),
            relative_error(stats["mean"], oracle.running_mean.numpy()),
            relative_error(stats["var"], oracle.running_var.numpy()),
        ]

    assert max(errors(weights=weights)) <= FORWARD_FLOAT64
    assert min(errors()) > 0.1  # the control: padding is counted


def test_batch_norm_refuses_one_value_a_channel_as_torch_does():
    module = BatchNorm()
    x = jnp.ones((1, 4))
    variables = module.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="more than one value per channel.*got 1"):
        module.apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm1d(4)(torch.ones(1, 4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fresh_kernels_are_the_numbers_that_jax_draws_in_their_shape(dtype, x64):
    key, shape = jax.random.key(3), (3, 5, 7, 11)
    bound = 75**-0.5
    with compiled_quickly():
        kernel = uniform_fan_in(75)(key, shape, jnp.dtype(dtype))
        drawn = jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)
    np.testing.assert_array_equal(kernel, drawn)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_drops_at_its_rate_and_scales_what_it_keeps(rate):
    draws = 1_000_000
    kept = nn.Dropout(rate, deterministic=False).apply(
        {}, jnp.ones(draws), rngs={"dropout": jax.random.key(0)}
    )
    dropped = int((kept == 0).sum())
    # The number of dropped units is binomial; allow four standard deviations.
    sigma = np.sqrt(draws * rate * (1 - rate))
    assert abs(dropped - draws * rate) <= 4 * sigma
    values = np.unique(kept)
    np.testing.assert_allclose(values, [0, 1 / (1 - rate)], rtol=1e-6)
    same = nn.Dropout(rate, deterministic=True).apply({}, jnp.ones(10))
    np.testing.assert_array_equal(same, np.ones(10))


# torch's name of each layer, and of each of its fields.
OF_TORCH = {
    "AdaptiveAvgPool": ("AdaptiveAvgPool2d", {"output_size": "output_size"}),
    "AvgPool": ("AvgPool2d", {"window": "kernel_size"}),
    "BatchNorm": ("BatchNorm2d", {"momentum": "momentum", "epsilon": "eps"}),
    "Conv": (
        "Conv2d",
        {name: name for name in ("in_channels", "out_channels", "kernel_size")}
        | {name: name for name in ("stride", "padding", "groups", "bias")},
    ),
    "Dense": ("Linear", {"features": "out_features"}),
    "Dropout": ("Dropout", {"rate": "p"}),
    "Flatten": ("Flatten", {}),
    "MaxPool": (
        "MaxPool2d",
        {"window": "kernel_size"}
        | {name: name for name in ("stride", "padding", "ceil_mode")},
    ),
    "ReLU": ("ReLU", {}),
    "ReLU6": ("ReLU6", {}),
}
OF_FLAX = {"parent", "name", "dtype", "deterministic", "broadcast_dims"}
OF_FLAX |= {"rng_collection", "kernel_init", "bias_init"}


def test_every_layer_has_torch_s_defaults():
    ours = {
        name: thing
        for name, thing in vars(layers).items()
        if isinstance(thing, type) and issubclass(thing, nn.Module)
    }
    assert sorted(ours) == sorted(OF_TORCH)
    for name, (torch_name, names) in OF_TORCH.items():
        signature = inspect.signature(getattr(torch.nn, torch_name))
        fields = {
            field.name: field.default
            for field in dataclasses.fields(ours[name])
            if field.name not in OF_FLAX
        }
        assert sorted(fields) == sorted(names), name
        for field, default in fields.items():
            theirs = signature.parameters[names[field]].default
            theirs = (
                dataclasses.MISSING if theirs is inspect.Parameter.empty else theirs
            )
            assert default == theirs, f"{name}.{field}"


@pytest.mark.parametrize("arguments", [(3,), (3, 2), (2, 3), (2, None)])
def test_max_pool_is_torch_s_with_torch_s_stride(arguments):
    x = np.random.default_rng(0).standard_normal((2, 11, 10, 3)).astype(np.float32)
    theirs = torch.nn.MaxPool2d(*arguments)(torch.from_numpy(x).permute(0, 3, 1, 2))
    ours = jax.jit(layers.MaxPool(*arguments).apply)({}, x)
    np.testing.assert_array_equal(ours, theirs.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [2, (2, 2), (3, 1)])
def test_an_adaptive_pool_takes_one_size_as_torch_s_does(size):
    x = np.random.default_rng(0).standard_normal((2, 7, 5, 3))
    theirs = torch.nn.AdaptiveAvgPool2d(size)(torch.from_numpy(x).permute(0, 3, 1, 2))
    with jax.enable_x64(True):
        ours = jax.jit(layers.AdaptiveAvgPool(size).apply)({}, x)
    assert relative_error(ours, theirs.permute(0, 2, 3, 1)) <= FORWARD_FLOAT64
