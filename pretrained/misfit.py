"""Describe tensors that do not fit a key table, and suggest what to pass instead."""

import os
import re
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import numpy as np

from pretrained.tables import Row

MAX_LISTED = 40  # problems in one message; a DenseNet alone has hundreds of tensors
# A state_dict is attributed to the first family all of whose prefixes start some key.
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
# Under which names training programs keep the weights, the usual ones first.
_STATE_DICTS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module"),
    *("params", "params_ema", "weights", "ema", "backbone"),
)
# What wrappers of a model, or of a part of it, put into keys.
_WRAPPERS = {
    "module.": ", as DataParallel saves them",
    "_orig_mod.": ", as torch.compile saves them",
    "_fsdp_wrapped_module.": ", as FullyShardedDataParallel saves them",
    "_checkpoint_wrapped_module.": ", as activation checkpoints save them",
}


def checked_arrays(
    tensors: Mapping[str, Any],
    counts: Container[str],
    expected: Mapping[str, tuple[int | str, ...]],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the tensors as NumPy arrays, and a line for each problem.

    That is a wrong dtype or count, and what `mismatches` finds. Tensors of a wrong
    dtype are left out. `counts` contains the names of the counters.
    """
    arrays: dict[str, np.ndarray | None] = {}
    problems = []
    for name, tensor in tensors.items():
        # Compared by name: NumPy has no bfloat16, so converting such a tensor raises.
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__))
        dtype = dtype.removeprefix("torch.")
        kinds = ("int64", "int32") if name in counts else ("float32", "float64")
        if dtype not in kinds:
            problems.append(f"{name} is {dtype}, expected {' or '.join(kinds)}")
            arrays[name] = None
            continue
        # A torch tensor may require gradients or live on another device.
        tensor = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
        array = arrays[name] = np.asarray(tensor)
        if name in counts and not ((array >= 0) & (array < 2**31)).all():
            problems.append(f"{name} is {array}, expected 0 to 2^31 - 1")
    usable = {name: array for name, array in arrays.items() if array is not None}
    dtypes = {array.dtype for name, array in usable.items() if name not in counts}
    if len(dtypes) > 1:
        problems.append("float32 and float64 are mixed, expected one dtype")
    return usable, problems + mismatches(arrays, expected)


def mismatches(
    arrays: Mapping[str, np.ndarray | None],
    expected: Mapping[str, tuple[int | str, ...]],
) -> list[str]:
    """Return a line for every missing name, unexpected name and wrong shape.

    None stands for an array whose shape is not compared.
    """
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is unexpected" for name in arrays if name not in expected]
    free: dict[int | str, int] = {}
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


def listed(problems: list[str]) -> str:
    """Return one line with the first `MAX_LISTED` problems and the number of others."""
    more = len(problems) - MAX_LISTED
    listed = "; ".join(problems[:MAX_LISTED])
    return listed + (f"; and {more:,} more" if more > 0 else "")


def advice_on(state_dict: Mapping[Any, Any], table: Iterable[Row]) -> str:
    """Return what keys that do not fit probably belong to, and what to pass instead."""
    names = [str(name) for name in state_dict]
    expected = {row.torch for row in table}
    if inner := inner_state_dict(state_dict):
        return f"this is a training checkpoint; pass checkpoint[{inner!r}]"
    wrappers, prefix = _added_to(names, expected)
    if wrappers or prefix:
        said = " and ".join(f"{w!r}{_WRAPPERS[w]}" for w in wrappers)
        what = [f"keys contain {said}"] if wrappers else []
        what += [f"every key starts with {prefix!r}"] if prefix else []
        plain = "".join(f".replace({wrapper!r}, '')" for wrapper in wrappers)
        plain += f".removeprefix({prefix!r})" if prefix else ""
        renamed = f"{{k{plain}: v for k, v in state_dict.items()}}"
        return f"{', and '.join(what)}; pass {renamed}"
    if set(names) != expected:
        for family, starts in _FAMILIES.items():
            if _has_all(names, starts) and not _has_all(expected, starts):
                return (
                    f"this looks like {family}; pass the state_dict of torchvision's "
                    "version of the expected network"
                )
        if "conv5" in names or any("/" in name for name in names):
            return "these look like Flax params; convert them with to_torch"
    return "pass the float32 state_dict of the expected network from torchvision.models"


def _has_all(names: Iterable[str], starts: Iterable[str]) -> bool:
    """Return whether each start begins one of the names."""
    names = list(names)
    return all(any(name.startswith(start) for name in names) for start in starts)


def inner_state_dict(checkpoint: Mapping[Any, Any]) -> str | None:
    """Return the key of the weights in a training checkpoint, or None if it is none.

    A checkpoint holds the state of an optimizer and more beside the weights, each a
    dict of its own. The usual names come first, then any that sounds like weights.
    """
    inner = [
        str(key) for key, value in checkpoint.items() if isinstance(value, Mapping)
    ]
    sounds = [key for key in inner if re.search("model|net|weight|state_dict", key)]
    for key in (*_STATE_DICTS, *sounds):
        if key in inner and not re.search("optim|sched|scaler", key):
            return key
    return None


def without_additions(names: Collection[str], expected: set[str]) -> list[str]:
    """Return the names without the wrappers and the prefix that were added to them."""
    wrappers, prefix = _added_to(list(names), expected)
    for wrapper in wrappers:
        names = [name.replace(wrapper, "") for name in names]
    return [name.removeprefix(prefix) for name in names]


def _added_to(names: list[str], expected: set[str]) -> tuple[list[str], str]:
    """Return the wrappers and the prefix without which most names are expected ones."""
    wrappers = [w for w in _WRAPPERS if any(f".{w}" in f".{name}" for name in names)]
    for wrapper in wrappers:
        names = [name.replace(wrapper, "") for name in names]
    parts = os.path.commonprefix(names).split(".")[:-1]
    for count in range(len(parts) + 1):
        prefix = "".join(f"{part}." for part in parts[:count])
        rest = {name.removeprefix(prefix) for name in names}
        if 2 * len(expected & rest) > len(expected):
            return wrappers, prefix
    return [], ""
