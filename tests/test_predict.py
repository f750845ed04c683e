"""Test that predictions equal the run's own, in every image format and output form.

It is one file because most of these tests ask the same finished run.
"""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxlab import finetune, predict
from jaxlab.classifier import Classifier
from jaxlab.data import pictures
from jaxlab.data.digits import mnist5k
from jaxlab.errors import InputError, UsageError
from pretrained.sources import imagenet_classes
from tests.conftest import NO_CHECKPOINTS
from tests.data.conftest import refuse
from tests.data.test_pictures import encoded
from tests.stress.narrow import NARROW, narrow


@pytest.fixture(scope="module")
def trained(narrow_weights, tmp_path_factory):
    """Train on digits, save the test digits as PNG files, and return both folders."""
    folder = tmp_path_factory.mktemp("predict")
    job = ["--train-size", "300", "--test-size", "100", "--image-size", "63"]
    job += ["--epochs", "3", "--weights", narrow_weights, *NO_CHECKPOINTS]
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch.setitem)
        finetune.main([*job, "--out", str(folder / "run")])
    test = mnist5k().test
    for i in range(100):
        image = Image.fromarray(test.images[i, :, :, 0])
        (folder / "digits" / str(test.labels[i])).mkdir(parents=True, exist_ok=True)
        image.save(folder / "digits" / str(test.labels[i]) / f"{i}.png")
    return folder / "run", folder / "digits"


@pytest.fixture
def run(narrowed, trained):
    return trained


def answers(*arguments, capsys):
    predict.main([*map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_run_s_own_accuracy_is_reproduced(run, capsys):
    folder, digits = run
    found = answers(folder, digits, capsys=capsys)
    assert len(found) == 100
    right = [x["top"][0]["class"] == x["file"].split("/")[-2] for x in found]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert np.mean(right) == json.loads(lines[-1])["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("crop", [False, True])
def test_a_run_on_pictures_answers_them_as_it_trained(crop, slim, tmp_path, capsys):
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            size = (random.integers(60, 120), random.integers(60, 120), 3)
            values = random.integers(110 * label, 145 + 110 * label, size, np.uint8)
            Image.fromarray(values).save(tmp_path / "data" / name / f"{i}.png")
    flags = ["--dataset", str(tmp_path / "data"), "--image-size", "63"]
    flags += ["--crop"] if crop else []
    out = tmp_path / "run"
    flags += ["--epochs", "12", "--lr-step", "12", "--lr", "0.003", *NO_CHECKPOINTS]
    result = finetune.main([*flags, "--out", str(out)])
    config = json.loads((out / "config.json").read_text())
    assert config["class_names"] == ["dark", "light"]
    assert config["preprocessing"]["crop"] is crop
    split = json.loads((out / "split.json").read_text())
    capsys.readouterr()
    paths = [tmp_path / "data" / file for file in split["test"]]
    found = answers(out, *paths, capsys=capsys)
    right = [x["top"][0]["class"] == x["file"].split("/")[-2] for x in found]
    assert np.mean(right) == result.test_accuracy == 1.0


def test_one_picture_in_any_form_has_one_answer(run, tmp_path, capsys):
    folder, digits = run
    image = Image.open(next(digits.rglob("7.png"))).convert("L").resize((112, 112))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = image.convert("RGBA")
    forms = {
        "a.png": encoded(image),
        "b.jpg": encoded(image, "JPEG", quality=100),
        "c.jpg": encoded(turned, "JPEG", quality=100, exif=exif),
        "d.png": encoded(rgba),
        "e.png": encoded(image.convert("RGB")),
        "f.webp": encoded(image.convert("RGB"), "WEBP", lossless=True),
        "g.tif": encoded(image, "TIFF"),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
    found = answers(folder, tmp_path, capsys=capsys)
    assert [x["file"] for x in found] == [str(tmp_path / name) for name in forms]
    assert len({x["top"][0]["class"] for x in found}) == 1
    exact = [x["top"] for x in found if x["file"][-5] in "ade"]
    assert exact[0] == exact[1] == exact[2]


def test_the_table_the_json_and_the_csv_agree(run, capsys):
    folder, digits = run
    picture = next(digits.rglob("7.png"))
    found = answers(folder, picture, "--top", "2", capsys=capsys)
    (first, second) = found[0]["top"]
    assert first["probability"] >= second["probability"]
    predict.main([str(folder), str(picture), "--top", "2"])
    line = f"{picture}  {first['class']} {first['probability']:.1%}  "
    assert capsys.readouterr().out.startswith(line)
    predict.main([str(folder), str(picture), "--top", "2", "--csv"])
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["file", "rank", "class", "probability"]
    assert rows[1][:3] == [str(picture), "1", first["class"]] and len(rows) == 3
    predict.main([str(folder), str(picture), "--top", "99", "--csv"])
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert abs(sum(float(row[3]) for row in rows[1:]) - 1) < 1e-4 and len(rows) == 11


def test_test_images_are_answered_beside_their_true_classes(run, capsys):
    folder, _ = run
    test = mnist5k().first(None, 100).test
    found = answers(folder, "--test-index", "0,17,99", capsys=capsys)
    assert [x["test_index"] for x in found] == [0, 17, 99]
    assert [x["true_class"] for x in found] == [
        str(test.labels[i]) for i in (0, 17, 99)
    ]
    # They are the answers that the classifier gives for these images.
    classifier = Classifier.load(folder)
    for x, i in zip(found, (0, 17, 99), strict=True):
        expected = classifier.predict(test.images[i], top=3)
        assert [(each["class"], each["probability"]) for each in x["top"]] == expected
    predict.main([str(folder), "--test-index", "17", "--top", "1"])
    best = found[1]["top"][0]
    assert capsys.readouterr().out == (
        f"test image 17 (true class {test.labels[17]})  "
        f"{best['class']} {best['probability']:.1%}\n"
    )
    model = str(folder / "model.safetensors")
    predict.main([model, "--test-index", " 17, 17", "--csv", "--top", "1"])
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["test_index", "true_class", "rank", "class", "probability"]
    answer = ["17", str(test.labels[17]), "1", best["class"]]
    assert [row[:4] for row in rows] == [answer, answer]


def test_all_test_images_give_the_run_s_accuracy(run, capsys):
    folder, _ = run
    indices = ",".join(map(str, range(100)))
    found = answers(folder, "--test-index", indices, "--top", "1", capsys=capsys)
    right = [x["top"][0]["class"] == x["true_class"] for x in found]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert np.mean(right) == json.loads(lines[-1])["test_accuracy"]


def test_test_images_that_are_not_there_are_refused(run, tmp_path):
    folder, digits = map(str, run)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())

    def changed(*keys, value):
        """Write the copy's config.json with one change; return the folder."""
        content = json.loads(json.dumps(config))
        parent = content
        for key in keys[:-1]:
            parent = parent[key]
        parent[keys[-1]] = value
        (copy / "config.json").write_text(json.dumps(content))
        return str(copy)

    for arguments, message, code in (
        ([folder, "--test-index", "100"], "100 is out of range; .* at most 99", 2),
        ([folder, "--test-index", "-1"], "'-1' is not a place in the test split;", 2),
        ([folder, "--test-index", "1,,2"], "'' is not a place in the test split;", 2),
        ([folder, "--test-index", "1", digits], "combined with pictures", 2),
        (["--weights", "imagenet", "--test-index", "1", "x"], "combined with weig", 2),
        ([folder, "--index", "1"], "did you mean test_index", 2),
        (
            [changed("dataset", "sha256", value="0"), "--test-index", "1"],
            "the images of mnist5k differ from those of the run; restore them",
            3,
        ),
    ):
        with pytest.raises((UsageError, InputError), match=message) as caught:
            predict.main(arguments)
        assert caught.value.exit_code == code
    for keys, value, message in (
        (("class_names",), ["a"], "the classes are 0, 1, .*, but the run has a; res"),
        (("settings", "dataset"), str(tmp_path / "no"), "cannot be loaded: .*/no"),
        (("settings", "lr"), -1, "cannot be loaded: lr: -1 is out of range"),
        (("versions",), {}, "config.json: cannot be read: was not written by jaxlab"),
    ):
        with pytest.raises((UsageError, InputError), match=message):
            predict.main([changed(*keys, value=value), "--test-index", "1"])
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        predict.main([str(copy / "model.safetensors"), "--test-index", "1"])


@pytest.mark.parametrize("in_memory", [True, False])
def test_test_images_of_a_folder_are_those_of_the_run(
    in_memory, trained, narrowed, narrow_weights, tmp_path, monkeypatch, capsys
):
    _, digits = trained
    if not in_memory:
        monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    job = ["--dataset", str(digits), "--image-size", "63", "--crop", "--epochs", "1"]
    job += ["--weights", narrow_weights, "--out", str(tmp_path / "run")]
    finetune.main([*job, *NO_CHECKPOINTS])
    capsys.readouterr()
    files = json.loads((tmp_path / "run" / "split.json").read_text())["test"]
    by_index = answers(tmp_path / "run", "--test-index", "0,3", capsys=capsys)
    paths = [digits / files[i] for i in (0, 3)]
    by_file = answers(tmp_path / "run", *paths, capsys=capsys)
    assert [x["top"] for x in by_index] == [x["top"] for x in by_file]
    assert [x["true_class"] for x in by_index] == [path.parent.name for path in paths]


def test_flags_may_stand_between_the_run_and_the_pictures(run, capsys):
    folder, digits = map(str, run)
    expected = answers(
        folder, f"{digits}/7", f"{digits}/8", "--top", "1", capsys=capsys
    )
    found = answers(
        folder, "--top", "1", f"{digits}/7", "--offline", f"{digits}/8", capsys=capsys
    )
    assert found == expected and len(found[0]["top"]) == 1
    with pytest.raises(UsageError, match="topp: unknown setting; did you mean top"):
        predict.main([folder, "--topp", "1", digits])


def test_patterns_and_folders_are_searched_once(run, capsys):
    folder, digits = run
    pattern = f"{digits}/**/*.png"
    found = answers(folder, pattern, digits, capsys=capsys)
    assert len(found) == len({x["file"] for x in found}) == 100


def test_bad_pictures_are_named_and_the_others_answered(run, run_here, tmp_path):
    folder, digits = run
    good = next(digits.rglob("7.png"))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-30])
    (tmp_path / ".hidden.png").write_bytes(good.read_bytes())
    (tmp_path / "notes.txt").write_text("text")
    process = run_here(predict.main, folder, good, tmp_path)
    assert process.returncode == 3
    assert process.stdout.startswith(str(good)) and process.stdout.count("\n") == 1
    hidden, left_out, *lines = process.stderr.splitlines()
    assert "left out 1 picture among hidden" in hidden and ".hidden.png" in hidden
    assert left_out == (
        f"warning: {tmp_path}: left out what has no picture's ending (1): notes.txt"
    )
    assert len(lines) == 3 and lines[0].startswith(f"warning: {tmp_path}/cut.png: dam")
    assert lines[1] == f"warning: {tmp_path}/text.png: unknown image format"
    assert lines[2].startswith("error: pictures: 2 of 3 could not be read, the others")
    process = run_here(predict.main, folder, tmp_path)
    assert "pictures: 2 of 2 could not be read; check" in process.stderr


def test_folders_that_cannot_be_searched_are_named_and_the_others_answered(
    run, run_here, tmp_path, monkeypatch
):
    folder, digits = run
    good = next(digits.rglob("7.png")).read_bytes()
    for name in ("a", "locked", "@eaDir/a.png"):
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "x.png").write_bytes(good)
    (tmp_path / "new" / "a" / "loop").symlink_to(tmp_path / "new")
    (tmp_path / "new" / "a" / "gone").symlink_to(tmp_path / "nowhere")
    refuse(monkeypatch, tmp_path / "new" / "locked")
    process = run_here(predict.main, folder, tmp_path / "new")
    assert process.returncode == 3
    assert process.stdout.startswith(f"{tmp_path}/new/a/x.png  ")
    assert process.stdout.count("\n") == 1
    left_out, *lines = process.stderr.splitlines()
    assert "left out 1 picture among" in left_out and "@eaDir/a.png/x.png" in left_out
    assert sorted(lines[:3]) == [
        f"warning: {tmp_path}/new/a/gone: broken link",
        f"warning: {tmp_path}/new/a/loop: link to a folder",
        f"warning: {tmp_path}/new/locked: unreadable folder",
    ]
    assert lines[3].startswith("error: pictures: 3 of 4 could not be read")
    # A pattern passes over such folders, so they are looked for beside it.
    for pattern in ("**/*.png", "*/*.png"):
        process = run_here(predict.main, folder, tmp_path / "new" / pattern)
        assert process.returncode == 3
        assert f"warning: {tmp_path}/new/locked: unreadable folder" in process.stderr
    process = run_here(predict.main, folder, tmp_path / "new" / "locked")
    assert process.returncode == 3 and "1 of 1 could not be read" in process.stderr


def test_what_is_no_run_or_no_picture_is_told(run, tmp_path):
    folder, digits = run
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[1")
    (tmp_path / "size").mkdir()
    # Runs of before have the description of the network in config.json only.
    tensors = load_file(folder / "model.safetensors")
    for name in ("odd", "size"):
        path = tmp_path / name / "model.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["preprocessing"]["image_size"] = -5
    (tmp_path / "size" / "config.json").write_text(json.dumps(config))
    for arguments, error, message in (
        ([], UsageError, "RUN: missing"),
        ([folder], UsageError, "pictures: missing"),
        (["a.PNG"], UsageError, "RUN: missing before a.PNG; pass the folder of a run"),
        (["a.PNG", "b.png"], UsageError, "RUN: missing before a.PNG"),
        (
            [folder, digits, "--json", "--csv"],
            UsageError,
            "cannot be combined with json",
        ),
        ([folder, tmp_path / "absent.png"], InputError, "absent.png: no such file"),
        ([folder, tmp_path / "empty"], InputError, "empty: contains no pictures"),
        ([folder, f"{tmp_path}/emp*"], InputError, "emp*: contains no pictures"),
        ([tmp_path / "size", digits], InputError, "image_size: expected at least 1"),
        (
            [digits, digits],
            InputError,
            "contains no model.safetensors; pass the folder of a finished run",
        ),
        ([tmp_path / "odd", digits], InputError, "description of the network is inv"),
        ([unfinished, digits], InputError, "contains no model.safetensors; pass"),
    ):
        with pytest.raises(error) as raised:
            predict.main([str(argument) for argument in arguments])
        assert message in str(raised.value)


@pytest.mark.slow
def test_without_a_run_imagenet_answers_with_its_own_classes(
    narrowed, tmp_path, monkeypatch, capsys
):
    from pretrained import to_flax
    from pretrained.files import Weights
    from pretrained.tables import alexnet
    from tests.conftest import torch_alexnet

    oracle = torch_alexnet(1000, **NARROW)
    params = to_flax(oracle.state_dict(), alexnet(**NARROW))
    asked = []

    def whole_network(name, network, *, offline, log):
        asked.append((name, offline))
        return Weights(params, "alexnet", "torch", False, sha256="", source=None)

    monkeypatch.setattr("jaxlab.classifier.whole_network", whole_network)
    values = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = answers("--weights", "imagenet", "--offline", tmp_path, capsys=capsys)
    assert asked == [("imagenet", True)]

    import torch
    from torchvision.transforms import v2 as transforms

    prepared = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(Image.fromarray(values))
    with torch.no_grad():
        probabilities = oracle(prepared[None]).softmax(-1)[0].numpy()
    best = int(probabilities.argmax())
    assert found[0]["top"][0]["class"] == imagenet_classes()[best]
    np.testing.assert_allclose(
        found[0]["top"][0]["probability"], probabilities[best], rtol=1e-4
    )


def test_imagenet_s_classes_are_torchvision_s():
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    assert imagenet_classes() == _IMAGENET_CATEGORIES
