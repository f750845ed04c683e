"""Key tables, one visible row a tensor: torchvision's state_dict and Flax's params.

A family of networks has a file here, with a function of its widths that returns its
rows; `pretrained.layout` converts by them. Nothing is matched by order or reshaped to
fit.
"""

# The function takes the module's place as the attribute `tables.alexnet`.
from pretrained.tables.alexnet import ALEXNET, alexnet
from pretrained.tables.row import Row, Transform

TABLES = {"alexnet": ALEXNET}

__all__ = ["ALEXNET", "TABLES", "Row", "Transform", "alexnet"]
