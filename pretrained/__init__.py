"""Pretrained weights as NumPy arrays: where they come from and how they convert."""

import importlib

# Imported when first used: `python -m pretrained.convert` is one of these modules.
_HOMES = {
    "DownloadError": "errors",
    "IntegrityError": "errors",
    "WeightsError": "errors",
    "read_torch_file": "torchfile",
    "to_flax": "tables",
    "to_torch": "tables",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
