"""Test the content of the layer table."""

import numpy as np

from jaxlab.figures.text import layer_table


def test_the_layer_table_counts_what_is_trained():
    params = {
        "conv1": {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2)},
        "fc8": {"kernel": np.ones((4, 5)), "bias": np.ones(5)},
    }
    trainable = {
        "conv1": {"kernel": False, "bias": False},
        "fc8": {"kernel": True, "bias": True},
    }
    table = layer_table(params, trainable, {"conv1": "ImageNet", "fc8": "fresh"})
    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ["conv1", "3×3×1×2", "20", "frozen", "ImageNet"]
    assert rows[2] == ["fc8", "4×5", "25", "trainable", "fresh"]
    assert rows[3] == ["total", "45", "25", "trainable,", "20", "frozen"]
