"""Both layouts of a network's weights, there and back by its key table.

Whatever does not fit a table is named with all that is missing, unexpected or of
another shape, and with what it looks like instead.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrained.errors import WeightsError
from pretrained.tables import ALEXNET, Row

Params = dict[str, dict[str, np.ndarray]]

MAX_LISTED = 40  # of what does not fit: all of AlexNet's, not all of a DenseNet's
# Starts of keys that, all present, give away what a foreign state_dict belongs to.
_FAMILIES = {
    "a ResNet": ("layer1.0.",),
    "a DenseNet": ("features.denseblock1.",),
    "a SqueezeNet": ("features.3.squeeze.",),
    "a VGG with batch normalisation": ("features.1.running_mean", "classifier.3."),
    "a VGG": ("features.0.weight", "classifier.3.weight"),
    "a MobileNet v2": ("features.1.conv.0.",),
    "a MobileNet v3, EfficientNet, ConvNeXt or Swin": ("features.0.0.", "features.1."),
    "a vision transformer": ("encoder.layers.",),
    "a GoogLeNet": ("inception3a.",),
    "an Inception v3": ("Mixed_5b.",),
    "a ShuffleNet": ("stage2.0.branch",),
}
# Wrappers that put their name before every key.
_WRAPPERS = {
    "module.": ", as DataParallel saves them",
    "_orig_mod.": ", as torch.compile saves them",
}


def to_flax(state_dict: Mapping[str, Any], table: tuple[Row, ...] = ALEXNET) -> Params:
    """Convert a torchvision state_dict to Flax params.

    `state_dict` maps torchvision's names to float32 or float64 arrays (anything NumPy
    can read, torch's CPU tensors included), of any number of classes. The result has
    the layout of `table`'s Flax side, in new C-contiguous arrays of the same dtype; for
    AlexNet `{"conv1".."conv5", "fc6".."fc8": {"kernel", "bias"}}`, kernels HWIO or
    [in, out], fc6's rows in NHWC flatten order.

    Every key is used once and every leaf set once. Raises WeightsError listing all that
    is missing, unexpected or of another shape or dtype.
    """
    if not isinstance(state_dict, Mapping):
        raise WeightsError(
            f"state_dict: expected a mapping of names to arrays, got a "
            f"{type(state_dict).__name__}; pass model.state_dict()"
        )
    arrays, problems = _arrays(state_dict)
    problems += _mismatches(arrays, {row.torch: row.shape for row in table})
    if problems:
        advice = _advice_on(list(map(str, state_dict)), table)
        # Advice first: of a foreign network the list runs to hundreds of keys.
        raise WeightsError(f"state_dict: {advice} ({_listed(problems)})")
    return nested_params(
        {
            row.flax: np.array(row.transform.to_flax(arrays[row.torch]), order="C")
            for row in table
        }
    )


def to_torch(
    params: Mapping[str, Mapping[str, Any]], table: tuple[Row, ...] = ALEXNET
) -> dict[str, np.ndarray]:
    """Convert Flax params to a torchvision state_dict: the exact inverse of `to_flax`.

    The result holds new C-contiguous arrays (a transposed view would be written wrongly
    by safetensors), in torchvision's order. Raises WeightsError like `to_flax`.
    """
    if not isinstance(params, Mapping):
        raise WeightsError(
            f"params: expected nested dicts of arrays, got a {type(params).__name__}; "
            "pass variables['params']"
        )
    if set(params) == {"params"}:
        raise WeightsError(
            "params: got the variables around the params; pass variables['params']"
        )
    arrays = flat_params(params, table)
    return {
        row.torch: np.array(row.transform.to_torch(arrays[row.flax]), order="C")
        for row in table
    }


def flat_params(
    params: Mapping[str, Any], table: tuple[Row, ...] = ALEXNET
) -> dict[str, np.ndarray]:
    """Return `{"conv1/kernel": …}` of nested or flat params that fit the table.

    The arrays are the same, not copies. Raises WeightsError like `to_flax`.
    """
    flat: dict[str, Any] = {}
    for layer, leaves in params.items():
        if isinstance(leaves, Mapping):
            flat.update({f"{layer}/{leaf}": value for leaf, value in leaves.items()})
        else:
            flat[layer] = leaves
    arrays, problems = _arrays(flat)
    problems += _mismatches(arrays, {row.flax: _flax_shape(row) for row in table})
    if problems:
        expected = ", ".join(dict.fromkeys(row.flax.split("/")[0] for row in table))
        raise WeightsError(
            f"params: pass a dict of the layers {expected} ({_listed(problems)})"
        )
    return {row.flax: arrays[row.flax] for row in table}


def nested_params(flat: Mapping[str, np.ndarray]) -> Params:
    """Return `{"conv1": {"kernel": …}}` of `{"conv1/kernel": …}`; copies nothing."""
    params: Params = {}
    for path, array in flat.items():
        layer, leaf = path.split("/")
        params.setdefault(layer, {})[leaf] = array
    return params


def _flax_shape(row: Row) -> tuple[int | str, ...]:
    # A free dimension stands in as 0 columns while the transform moves the axes.
    free = next((size for size in row.shape if isinstance(size, str)), None)
    numbers = [0 if isinstance(size, str) else size for size in row.shape]
    shape = row.transform.to_flax(np.empty(numbers, np.bool_)).shape
    return tuple(free if free and size == 0 else size for size in shape)


def _arrays(tensors: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors as arrays, and one line for each that is not a float array."""
    arrays: dict[str, np.ndarray | None] = {}
    problems = []
    for name, tensor in tensors.items():
        # Asked by name: torch's bfloat16 has no NumPy dtype, and converting it raises.
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__))
        dtype = dtype.removeprefix("torch.")
        if dtype not in ("float32", "float64"):
            problems.append(f"{name} is {dtype}, expected float32 or float64")
            arrays[name] = None
        else:
            # A torch tensor may require gradients or live on another device.
            tensor = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
            arrays[name] = np.asarray(tensor)
    if len({array.dtype for array in arrays.values() if array is not None}) > 1:
        problems.append("float32 and float64 are mixed, expected one dtype")
    return arrays, problems


def _mismatches(
    arrays: Mapping[str, np.ndarray | None],
    expected: Mapping[str, tuple[int | str, ...]],
) -> list[str]:
    """List every missing name, unexpected name and wrong shape."""
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is unexpected" for name in arrays if name not in expected]
    free: dict[str, int] = {}
    for name, shape in expected.items():
        if (array := arrays.get(name)) is None:
            continue
        fits = len(shape) == array.ndim and all(
            size >= 1 and size == free.setdefault(dimension, size)
            if isinstance(dimension, str)
            else size == dimension
            for dimension, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            right = ", ".join(str(free.get(size, size)) for size in shape)
            found = ", ".join(map(str, array.shape))
            problems.append(f"{name} has shape [{found}], expected [{right}]")
    return problems


def _listed(problems: list[str]) -> str:
    more = len(problems) - MAX_LISTED
    listed = "; ".join(problems[:MAX_LISTED])
    return listed + (f"; and {more:,} more" if more > 0 else "")


def _advice_on(names: list[str], table: tuple[Row, ...]) -> str:
    """Say what keys that do not fit look like, and what to do."""
    expected = {row.torch for row in table}
    prefix = names[0].split(".")[0] + "." if names else ""
    if {name.removeprefix(prefix) for name in names} & expected and not (
        expected & set(names)
    ):
        return (
            f"every key starts with {prefix!r}{_WRAPPERS.get(prefix, '')}; pass "
            f"{{k.removeprefix({prefix!r}): v for k, v in state_dict.items()}}"
        )
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if wrapper in names:
            return f"this is a training checkpoint; pass its [{wrapper!r}]"
    if set(names) != expected:
        for family, starts in _FAMILIES.items():
            if all(any(name.startswith(start) for name in names) for start in starts):
                return f"this looks like {family}; pass torchvision's alexnet"
        if "conv5" in names or any("/" in name for name in names):
            return "these look like Flax params; to_torch converts those"
    return "pass the float32 state_dict of torchvision.models.alexnet"
