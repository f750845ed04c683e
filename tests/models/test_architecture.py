"""Test the facts about networks that are available without building one."""

import subprocess
import sys

import pytest

from jaxlab.models.architecture import ARCHITECTURES

ALEXNET = ARCHITECTURES["alexnet"]
CONVOLUTIONS = ["conv1", "conv2", "conv3", "conv4", "conv5"]


@pytest.mark.parametrize(
    "freeze, frozen",
    [
        ("none", []),
        ("features", CONVOLUTIONS),
        ("backbone", [*CONVOLUTIONS, "fc6", "fc7"]),
        ("conv1", CONVOLUTIONS[:1]),
        ("conv3", CONVOLUTIONS[:3]),
        ("fc6", [*CONVOLUTIONS, "fc6"]),
    ],
)
def test_freezing_is_a_prefix_of_the_chain(freeze, frozen):
    assert ALEXNET.frozen(freeze) == frozen
    assert ALEXNET.stored(frozen, "test") == frozen
    assert ALEXNET.stored(frozen, "train") == frozen[:5]


@pytest.mark.parametrize("freeze", ["fc8", "conv", "all", ""])
def test_the_head_and_what_is_no_child_cannot_be_frozen(freeze):
    with pytest.raises(ValueError, match="not a layer that can be frozen; pass one of"):
        ALEXNET.frozen(freeze)


def test_it_waits_for_neither_jax_nor_flax():
    code = "import sys, jaxlab.models.architecture; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"jax", "flax"} & set(loaded)


def test_it_builds_the_network_with_its_fields():
    narrow = ALEXNET._replace(fields={"hidden": 7})
    assert narrow.build(3).hidden == 7 and narrow.build(3, hidden=9).hidden == 9
    assert ALEXNET.build(3).num_classes == 3 and ALEXNET.head == "fc8"
