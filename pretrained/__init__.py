"""Pretrained weights as NumPy arrays: where they come from and how they convert."""

from pretrained.convert import to_flax, to_torch
from pretrained.errors import IntegrityError, WeightsError

__all__ = ["IntegrityError", "WeightsError", "to_flax", "to_torch"]
