"""Test that what the pages say of NNX runs, and that listed lines exist."""

import numpy as np
import pytest
from flax import nnx

from jaxlab import AlexNet
from tests.conftest import ROOT
from tests.stress.broken import LINES

PAGE = ROOT / "docs" / "api.md"


@pytest.mark.slow
def test_the_nnx_bridge_wraps_alexnet():
    assert "nnx.bridge.ToNNX(AlexNet(10), rngs=nnx.Rngs(0))" in PAGE.read_text()
    images = np.ones((1, 63, 63, 3), np.float32)
    model = nnx.bridge.ToNNX(AlexNet(10), rngs=nnx.Rngs(0)).lazy_init(
        images, train=False
    )
    assert model(images, train=False).shape == (1, 10)


def test_each_line_that_stress_breaks_occurs_once_in_its_file():
    counts = {
        line.right: (ROOT / line.file).read_text("utf-8").count(line.right)
        for line in LINES
    }
    assert set(counts.values()) == {1}, counts
    for line in LINES:
        assert (ROOT / "tests" / line.tests).is_file(), line.tests
