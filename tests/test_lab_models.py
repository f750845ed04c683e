"""Test the models that the lab keeps: torch loads them, and they classify pictures."""

import collections
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

import jaxlab
from jaxlab import overfit, predict
from jaxlab.data.digits import mnist5k
from jaxlab.errors import InputError, UsageError
from jaxlab.models.architecture import ARCHITECTURES
from pretrained import WeightsError
from pretrained.files import write_safetensors
from pretrained.layout import state_dict_of, variables_of
from tests.conftest import FORWARD_FLOAT32, relative_error

JOB = ["--hidden", "8,6,4", "--train-size", "20", "--test-size", "30"]
JOB += ["--epochs", "2", "--seeds", "2", "--lr", "0.01"]
NAMES = ["baseline", "dropout+l2", "batchnorm"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Return the folder of a run of the lab, and its results."""
    folder = tmp_path_factory.mktemp("lab") / "run"
    flags = ["--variants", ",".join(NAMES), "--out", str(folder)]
    return folder, overfit.main([*JOB, *flags])


def torch_mlp(inputs, features, classes, batch_norm):
    """Return the module whose state_dict a file of the lab is."""
    layers = collections.OrderedDict(flatten=torch.nn.Flatten())
    sizes = [inputs, *features]
    for i, units in enumerate(features, 1):
        layers[f"fc{i}"] = torch.nn.Linear(sizes[i - 1], units)
        if batch_norm and i < len(features):
            layers[f"bn{i}"] = torch.nn.BatchNorm1d(units)
        layers[f"relu{i}"] = torch.nn.ReLU()
    layers[f"fc{len(sizes)}"] = torch.nn.Linear(sizes[-1], classes)
    return torch.nn.Sequential(layers).eval()


def test_each_variant_leaves_the_model_of_its_first_seed(lab):
    folder, results = lab
    files = sorted(path.name for path in (folder / "models").iterdir())
    assert files == sorted(f"{name}.safetensors" for name in NAMES)
    test = mnist5k().first(20, 30).test
    for name in NAMES:
        classifier = jaxlab.Classifier.load(folder / "models" / f"{name}.safetensors")
        found = classifier.probabilities(list(test.images))
        accuracies = results["variants"][name]["curves"]["test_accuracy"]
        right = (found.argmax(1) == test.labels).mean()
        assert right == pytest.approx(accuracies[0][-1])
        loss = -np.log(found[np.arange(30), test.labels]).mean()
        losses = results["variants"][name]["curves"]["test_loss"]
        assert loss == pytest.approx(losses[0][-1], rel=1e-4)
        assert loss != pytest.approx(losses[1][-1], rel=1e-3)  # the second seed's


@pytest.mark.parametrize("name", NAMES)
def test_torch_loads_a_model_strictly_and_has_its_logits(name, lab):
    path = lab[0] / "models" / f"{name}.safetensors"
    model = torch_mlp(784, (8, 6, 4), 10, batch_norm=name == "batchnorm")
    model.load_state_dict(load_file(path), strict=True)
    images = mnist5k().test.images[:50]
    with torch.no_grad():
        scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        theirs = model(scaled).softmax(1).numpy()
    ours = jaxlab.Classifier.load(path).probabilities(list(images))
    assert relative_error(ours, theirs) <= FORWARD_FLOAT32
    if name == "batchnorm":
        assert model.bn1.num_batches_tracked == 4  # 2 epochs of 2 batches
        model.bn1.running_mean += 1
        with torch.no_grad():
            others = model(scaled).softmax(1).numpy()
        assert relative_error(ours, others) > 1000 * FORWARD_FLOAT32


def test_colours_are_flattened_as_torch_does():
    model = jaxlab.MLP(features=(8, 6), num_classes=3, batch_norm=True)
    random = np.random.default_rng(0)
    images = random.random((4, 5, 7, 3)).astype(np.float32)
    variables = jax.device_get(model.init(jax.random.key(0), images, train=False))
    table = ARCHITECTURES["mlp"].table((5, 7, 3), features=[8, 6], batch_norm=True)
    tensors = state_dict_of(variables, table)
    theirs = torch_mlp(105, (8, 6), 3, batch_norm=True)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    ours = model.apply(variables, images, train=False)
    assert relative_error(ours, expected) <= FORWARD_FLOAT32
    back = variables_of(tensors, table)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_file_says_what_it_is_in_one_entry(lab):
    with safe_open(lab[0] / "models" / "batchnorm.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["jaxlab"]
    assert json.loads(metadata["jaxlab"]) == {
        "architecture": {
            "name": "mlp",
            "precision": "float32",
            "fields": {"features": [8, 6, 4], "batch_norm": True},
        },
        "class_names": list("0123456789"),
        "preprocessing": {"image_size": 28, "crop": False, "mean": [0.0], "std": [1.0]},
    }


def test_pictures_of_any_size_and_colour_are_made_grey_and_resized(lab, tmp_path):
    classifier = jaxlab.Classifier.load(lab[0] / "models" / "dropout+l2.safetensors")
    assert repr(classifier) == "Classifier(mlp, 10 classes: 0, 1, 2, 3, 4, …)"
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))
    colours.save(tmp_path / "colours.png")
    grey = colours.resize((28, 28), Image.Resampling.BILINEAR).convert("L")
    expected = classifier.predict(grey)
    assert classifier.predict(tmp_path / "colours.png") == expected
    assert classifier.predict(np.asarray(colours)) == expected
    assert classifier.prepare(colours).shape == (28, 28, 1)


def test_predict_takes_a_file_or_says_which(lab, tmp_path, capsys, run_here):
    folder, _ = lab
    picture = tmp_path / "digit.png"
    Image.fromarray(mnist5k().test.images[0, :, :, 0]).save(picture)
    predict.main([str(folder / "models" / "baseline.safetensors"), str(picture)])
    assert capsys.readouterr().out.startswith(f"{picture}  ")
    process = run_here(predict.main, folder, picture)
    assert process.returncode == 3
    assert process.stderr == (
        f"error: {folder}: contains 3 models; pass one of the files in "
        f"{folder / 'models'}: baseline.safetensors, batchnorm.safetensors, "
        "dropout+l2.safetensors\n"
    )
    process = run_here(predict.main, picture)
    assert "RUN: missing before" in process.stderr


def test_a_run_of_one_variant_is_its_model_and_overwriting_removes_others(tmp_path):
    folder = tmp_path / "run"
    for variants in ("baseline,l2", "l1"):
        flags = ["--variants", variants, "--out", str(folder), "--overwrite"]
        overfit.main([*JOB, *flags])
        (folder / "models" / "mine.txt").touch()
    names = {path.name for path in (folder / "models").iterdir()}
    assert names == {"l1.safetensors", "mine.txt"}
    one = jaxlab.Classifier.load(folder)
    assert one.sha256 == jaxlab.Classifier.load(folder / "models/l1.safetensors").sha256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": [8, 6, 5], "batch_norm": False}, "fc3.weight"),
        ({"features": [8, 6], "batch_norm": False}, "fc4.weight"),
        ({"features": [8, 6, 4], "batch_norm": True}, "bn1.weight"),
        ({"features": "864"}, "its description of the network is invalid"),
        ({"features": [8, -6, 4]}, "its description of the network is invalid"),
        ({"features": []}, "its description of the network is invalid"),
        ({"width": 3}, "its description of the network is invalid"),
        ([3], "its description of the network is invalid"),
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(fields, message, lab, tmp_path):
    path = lab[0] / "models" / "baseline.safetensors"
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["jaxlab"])
    about["architecture"]["fields"] = fields
    broken = tmp_path / "broken.safetensors"
    write_safetensors(broken, load_arrays(path), {"jaxlab": json.dumps(about)})
    with pytest.raises((InputError, WeightsError)) as raised:
        jaxlab.Classifier.load(broken)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_mlp_is_not_fine_tuned(lab):
    for function in (lambda: jaxlab.Config(model="mlp"), create_mlp):
        with pytest.raises(UsageError, match="'mlp' is not one of alexnet"):
            function()
    with pytest.raises(WeightsError, match="baseline.safetensors"):
        path = str(lab[0] / "models" / "baseline.safetensors")
        jaxlab.create_model("alexnet", num_classes=10, weights=path)


def create_mlp():
    return jaxlab.create_model("mlp", num_classes=10)
