"""Download, read and convert pretrained weights as NumPy arrays."""

import importlib

# Imported on first use, so that `pretrained.convert --help` does not wait for NumPy.
_HOME = {
    "DownloadError": "errors",
    "IntegrityError": "errors",
    "WeightsError": "errors",
    "read_torch_file": "torchfile",
    "to_flax": "layout",
    "to_state_dict": "layout",
    "to_torch": "layout",
    "to_variables": "layout",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
