"""Test that a TensorFlow Datasets (TFDS) dataset is prepared once and then only read.

It is one file because many of these tests read the small dataset that the fixture
`prepared` stores once with TensorFlow, which is slow. Some use the real Fashion-MNIST.
"""

import functools
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxlab import finetune, overfit
from jaxlab.data import pictures, tfds, tfds_builder, tfds_prepare
from jaxlab.data.dataset import Split
from jaxlab.data.digits import mnist5k
from jaxlab.data.load import load
from jaxlab.data.loaders import Streamed
from jaxlab.data.mnist_files import NAMES
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import content_order
from jaxlab.data.tfds import load_tfds
from jaxlab.errors import InputError, NetworkError, UsageError
from tests.conftest import NO_CHECKPOINTS, ROOT, assert_one_line, command
from tests.data.test_idx import idx_bytes

ORIGINALS = ROOT.parent / "shared" / "data" / "fashion_mnist"
needs_originals = pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason=f"needs Fashion-MNIST's four files in {ORIGINALS}"
)
JOB = ["--image-size", "63", "--weights", "none", "--epochs", "2", *NO_CHECKPOINTS]
LOAD = (
    "import sys\n"
    "events = []\n"
    "sys.addaudithook(lambda name, _: events.append(name))\n"
    "from jaxlab.data.tfds import load_tfds\n"
    "name, *folders = sys.argv[1:]\n"
    "data = load_tfds(name, data_dir=folders[0], manual_dir=folders[1])\n"
    "print(len(data.train), len(data.test), 'tensorflow' in sys.modules,\n"
    "      any(event.startswith('socket') for event in events))\n"
)


def loading(folder, name="fashion_mnist", manual=ORIGINALS):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, name, folder, manual],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def incomplete(folder):
    return list((folder / "fashion_mnist").glob("incomplete.*"))


# A program that stores arrays as a TFDS dataset with the given name and version.
STORE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

file, name, version, shape, classes, folder = sys.argv[1:]
arrays = np.load(file, allow_pickle=True)
names = ("train", "validation", "test")
splits = {split: [] for split in names if f"{split}_images" in arrays}
for split, examples in splits.items():
    pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"])
    examples += [(i, {"image": x, "label": int(y)}) for i, (x, y) in enumerate(pairs)]
shape = tuple(int(n) if n != "None" else None for n in shape.split(","))
features = tfds.features.FeaturesDict({
    "image": tfds.features.Image(shape=shape),
    "label": tfds.features.ClassLabel(names=classes.split(",")),
})
tfds.dataset_builders.store_as_tfds_dataset(
    name=name, version=version, data_dir=folder, split_datasets=splits,
    features=features, description="", homepage="", file_format="array_record",
    disable_shuffling=True,
)
"""


def store(folder, name, version, shape, classes, **arrays):
    np.savez(folder / "arrays.npz", **arrays)
    shape = ",".join(map(str, shape))
    words = [folder / "arrays.npz", name, version, shape, ",".join(classes), folder]
    script = [sys.executable, "-c", STORE, *words]
    (folder / "temporary").mkdir()  # TFDS leaves a folder behind there
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    subprocess.run(script, check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Store 300 training and 200 test digits under the name of TFDS's dataset mnist."""
    folder = tmp_path_factory.mktemp("tensorflow datasets")
    digits = mnist5k().first(300, 200)
    arrays = {
        f"{name}_{what}": getattr(split, what)
        for name, split in digits.splits.items()
        for what in ("images", "labels")
    }
    store(folder, "mnist", "3.0.1", (28, 28, 1), digits.class_names, **arrays)
    return folder


@pytest.mark.stress
@needs_originals
@pytest.mark.slow
def test_fashion_mnist_is_prepared_and_its_pixels_are_the_original_files(tmp_path):
    out, err = loading(tmp_path).communicate()
    assert "preparing it under" in out and err == ""
    assert out.splitlines()[-1] == "60000 10000 False False"
    assert incomplete(tmp_path) == []
    content = gzip.decompress((ORIGINALS / "t10k-images-idx3-ubyte.gz").read_bytes())
    original = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    builder = tfds.open_builder("fashion_mnist", str(tmp_path))
    test = tfds._read(builder, "test", tfds._pixels)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    theirs = content_order(map(pictures.pixel_digest, original))
    np.testing.assert_array_equal(test.images, original[theirs])
    by_tfds = load("fashion_mnist", None, data_dir=str(tmp_path))
    by_files = load("fashion_mnist", None, data_dir=str(ORIGINALS))
    assert by_tfds.fingerprint() == by_files.fingerprint()
    assert by_tfds.class_names == by_files.class_names


@needs_originals
@pytest.mark.stress
def test_it_is_prepared_once_by_two_processes_after_another_was_killed(
    tmp_path, monkeypatch
):
    # The killed process leaves its temporary files here.
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    process = loading(tmp_path)
    while not list((tmp_path / "fashion_mnist").glob("incomplete.*/*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert incomplete(tmp_path)
    both = [loading(tmp_path), loading(tmp_path)]
    results = [process.communicate() for process in both]
    for out, err in results:
        assert out.splitlines()[-1] == "60000 10000 False False", err
        assert err == ""
    told = [out for out, _ in results if "preparing it under" in out]
    assert len(told) == 1  # the other process waited
    assert incomplete(tmp_path) == []


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Write the digits of `prepared` as IDX files, in another order."""
    folder = tmp_path_factory.mktemp("original files")
    digits = mnist5k().first(300, 200)
    for name, split in digits.splits.items():
        order = np.random.default_rng(0).permutation(len(split))
        images, labels = split.images[order, :, :, 0], split.labels[order]
        for file, array in zip(
            NAMES[name], (images, labels.astype(np.uint8)), strict=True
        ):
            (folder / file).write_bytes(idx_bytes(array))
    return folder


def test_the_original_files_give_the_dataset_that_tfds_prepared(prepared, original):
    """So the runs that began with one of them go on with the other."""
    for how in (
        {},
        {"train_size": 100, "test_size": 60},
        {"train_size": 50, "validation_fraction": 0.1},
    ):
        by_tfds = load("mnist", None, data_dir=str(prepared), **how)
        by_files = load("mnist", None, data_dir=str(original), **how)
        assert by_tfds.fingerprint() == by_files.fingerprint()
        assert by_tfds.class_names == by_files.class_names
        assert "not the published files" in by_files.note
        assert "not the published files" not in by_tfds.note
    # The files decide wherever both are, unless they are those of something else.
    both = load("mnist", None, data_dir=str(prepared), manual_dir=str(original))
    assert "not the published files" in both.note
    # TFDS has lost the order of the files.
    with pytest.raises(NetworkError, match="not in the cache"):
        load("mnist", None, data_dir=str(prepared), order="file", offline=True)


def test_what_is_prepared_is_only_read(prepared):
    files = {p: p.stat().st_mtime_ns for p in prepared.rglob("*") if p.is_file()}
    out, err = loading(prepared, "mnist", manual="/nowhere").communicate()
    assert (out, err) == ("300 200 False False\n", "")
    after = {p: p.stat().st_mtime_ns for p in prepared.rglob("*") if p.is_file()}
    assert after == files


@pytest.mark.slow
def test_the_lab_runs_on_it(prepared, undrawn, tmp_path, capsys):
    job = ["--dataset", "mnist", "--data-dir", str(prepared), "--offline"]
    flags = ["--seeds", "1", "--epochs", "1", "--variants", "baseline"]
    overfit.main([*job, "--train-size", "100", *flags, "--out", str(tmp_path / "lab")])
    printed = capsys.readouterr()
    assert "mnist: 100 training, 200 test images, MLP 784-512-128-10, " in printed.out
    assert printed.err == ""  # no message from TFDS itself


@pytest.mark.slow
def test_the_same_images_as_a_folder_of_pngs_give_the_same_accuracy(
    prepared, narrowed, tmp_path
):
    sizes = {"train_size": 100, "test_size": 60}
    data = load_tfds("mnist", data_dir=str(prepared), **sizes)
    for part, split in data.splits.items():
        for name in data.class_names:
            (tmp_path / "png" / part / name).mkdir(parents=True)
        for i, (image, label) in enumerate(
            zip(split.images, split.labels, strict=True)
        ):
            path = tmp_path / "png" / part / data.class_names[label] / f"{i}.png"
            Image.fromarray(image[:, :, 0]).save(path)
    results = {}
    for dataset in ("mnist", str(tmp_path / "png")):
        sizes = ["--train-size", "100", "--test-size", "60"]
        out = str(tmp_path / f"run {len(results)}")
        flags = ["--dataset", dataset, "--data-dir", str(prepared), "--out", out]
        finetune.main([*flags, *sizes, *JOB])
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
        results[dataset] = [
            (entry["train_accuracy"], entry["test_accuracy"])
            for entry in map(json.loads, lines)
        ]
        config = json.loads((Path(out) / "config.json").read_text())
        assert config["dataset"]["name"] == dataset
        assert len(config["class_names"]) == 10
    by_tfds, by_folder = results.values()
    assert by_tfds == by_folder
    assert json.loads((Path(out) / "split.json").read_text()).keys() == {
        "train",
        "test",
    }


def test_a_cut_shard_is_noticed(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    (shard,) = (tmp_path / "data").rglob("*test.array_record*")
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(InputError, match="the split test cannot be read: .* again"):
        load_tfds("mnist", data_dir=str(tmp_path / "data"))
    (shard,) = (tmp_path / "data").rglob("*train.array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(InputError, match="the split train cannot be read"):
        load_tfds("mnist", data_dir=str(tmp_path / "data"))


def test_a_shard_without_records_is_noticed(prepared, tmp_path):
    """A shard that opens but is empty, as some truncated ones are, is refused."""
    from array_record.python.array_record_module import ArrayRecordWriter

    shutil.copytree(prepared, tmp_path / "data")
    (shard,) = (tmp_path / "data").rglob("*test.array_record*")
    ArrayRecordWriter(str(shard), "group_size:1").close()
    with pytest.raises(InputError, match="test has 0 records, .* lists 200; remove"):
        load_tfds("mnist", data_dir=str(tmp_path / "data"))


@pytest.mark.parametrize("content", ["", "{"])
def test_a_cut_description_is_noticed(prepared, tmp_path, content):
    shutil.copytree(prepared, tmp_path / "data")
    (info,) = (tmp_path / "data").rglob("dataset_info.json")
    info.write_text(content)
    with pytest.raises(InputError, match="dataset_info.json .* is damaged; remove"):
        load_tfds("mnist", data_dir=str(tmp_path / "data"))


def test_no_temporary_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(NetworkError):
        load_tfds("mnist", data_dir=str(tmp_path / "data"), offline=True)
    assert list(tmp_path.iterdir()) == []
    # As a control, TFDS itself leaves a temporary folder behind.
    tfds_builder.tfds().builder("mnist", data_dir=str(tmp_path / "data"))
    assert len(list(tmp_path.glob("tmp*tfds"))) == 1


def test_a_proxy_is_asked_instead_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="no connection to 127.0.0.1"):
        load_tfds("fashion_mnist", data_dir=str(tmp_path))


def test_a_label_without_a_class_is_noticed(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    builder = tfds.open_builder("mnist", str(tmp_path / "data"))
    builder.info.features["label"]._num_classes = 9
    with pytest.raises(InputError, match="labels from 0 to 9, but 9 classes"):
        tfds._read(builder, "test", tfds._pixels)


@needs_originals
@pytest.mark.slow
def test_a_damaged_original_fails_its_checksum(tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    for path in ORIGINALS.iterdir():
        (manual / path.name).write_bytes(path.read_bytes())
    with open(manual / "t10k-labels-idx1-ubyte.gz", "r+b") as file:
        file.seek(100)
        file.write(b"!")
    with pytest.raises(InputError, match="cannot be prepared: .*t10k-labels"):
        load_tfds("fashion_mnist", data_dir=str(tmp_path), manual_dir=str(manual))
    assert list(tmp_path.rglob("dataset_info.json")) == []


@pytest.mark.slow
def test_offline_and_not_prepared_names_three_ways_out(tmp_path):
    process = command(
        *("--dataset", "kmnist", "--data-dir", tmp_path, "--offline"),
        *("--manual-dir", tmp_path),
        cwd=tmp_path,
    )
    assert_one_line(process, 4, "not prepared in")
    for way in (
        "--offline forbids the download; run once with a network",
        "(t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz, train-images-idx3-",
        "pass --manual-dir",
        f"({tmp_path} lacks t10k-images",
        "copy the prepared dataset from another machine into",
    ):
        assert way in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", ["refuses", "hangs"])
def test_no_network_is_noticed_before_anything_is_tried(network, tmp_path, monkeypatch):
    def connect(address, timeout):
        if network == "hangs":
            time.sleep(2)
        raise ConnectionRefusedError

    monkeypatch.setattr(tfds_prepare.socket, "create_connection", connect)
    monkeypatch.setattr(tfds_prepare, "PROBE_SECONDS", 0.2)
    with pytest.raises(NetworkError, match="no connection to fashion-mnist"):
        load_tfds("fashion_mnist", data_dir=str(tmp_path))


def test_a_host_that_answers_is_reached():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert tfds_prepare._unreachable({"127.0.0.1": port}) is None
    assert tfds_prepare._unreachable({"127.0.0.1": port}) == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fashion_mnst",
            "'fashion_mnst' is neither mnist5k, nor a folder, nor the name",
        ),
        ("fashion_mnst", "did you mean fashion_mnist?"),
        ("huggingface:x/y", "'huggingface:x/y' is neither mnist5k, nor a folder"),
        ("imdb_reviews", "is not an image-classification dataset that can be used"),
        ("tf_flowers", "not prepared in"),
        ("mnist:9.9.9", "mnist:9.9.9: cannot be opened"),
    ],
)
def test_names_that_do_not_fit_are_told(name, message, tmp_path):
    flags = ["--dataset", name, "--data-dir", str(tmp_path), "--offline"]
    with pytest.raises((UsageError, InputError, NetworkError)) as raised:
        finetune.main([*flags, "--out", str(tmp_path / "run")])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# One dataset of each kind, of all 445 (`python -m tests.stress tfds`), and its line.
ENDINGS = {
    "mnist": r"put the original files \(t10k-images-idx3-ubyte.gz, .* --manual-dir,",
    "caltech_birds2010": "with a network, or copy",  # TFDS does not know a file's name
    "cifar10_h": "with a network, or copy",  # TFDS lists no files
    "imagenet2012": "by hand; .*: manual_dir should contain two files: ILSVRC2012_img",
    "resisc45": "by hand; .* --manual-dir; TFDS says: Dataset can be downloaded from",
    "cifar10_n": "by hand; .* --manual-dir; TFDS says: Download 'side_info_cifar10N",
    "aloha_mobile": "TFDS reads it from cloud storage, gs://gresearch/robotics/; pass",
    "rlu_rwrl": "TFDS reads it from cloud storage, gs://rl_unplugged/rwrl/; pass",
    "bair_robot_pushing_small": "its examples have no names for .* of kind Sequence;",
    "titanic": "it has no image, but pclass, survived, name, sex, age, sibsp, …; pass",
    "moving_mnist": "it has no image, but video; pass another",
    "savee": "it has no image, but audio; pass another",
    "scene_parse150": "it has no label, but image, annotation; pass another",
    "smallnorb": "it has no single label, but label_category, label_elevation",
    "chexpert": "it has several labels for an image; pass another",
    "lfw": "its label is not a class, but of kind Text; pass another",
    "i_naturalist2021": "TFDS lacks its file i_naturalist2021_labels_ordered_by_json",
    "wmt_translate": "TFDS cannot open it by its name: The raw `wmt_translate` can",
}


@pytest.mark.slow
def test_every_kind_of_dataset_ends_in_one_line_without_a_connection(tmp_path):
    script = [sys.executable, "-m", "tests.stress", "tfds", "--quick", *ENDINGS]
    process = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    *lines, counts = process.stdout.splitlines()
    for line, (name, ending) in zip(lines, ENDINGS.items(), strict=True):
        assert re.match(rf"{name}: .*{ending}", line)
    assert counts == "12 cannot be used, 3 not prepared, 3 needs files by hand"


def test_files_to_get_by_hand_are_looked_for(tmp_path):
    load = functools.partial(load_tfds, "imagenet_lt", data_dir=str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="by hand, and .*/empty is not such a folder;"):
        load(Preprocess(63), manual_dir=str(tmp_path / "empty"), offline=True)
    # It has files to download, too.
    (tmp_path / "empty" / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(NetworkError, match=r"lacks ImageNet_LT_val.txt, ImageNet_LT_t"):
        load(Preprocess(63), manual_dir=str(tmp_path / "empty"), offline=True)


def test_the_preparation_opens_no_connection_when_offline(tmp_path):
    """A dataset may ask for more than the files that TFDS lists."""
    ask = (
        "import sys, urllib.request\n"
        "from jaxlab.data import tfds_prepare\n"
        "if sys.argv[1:]:\n"
        "    tfds_prepare._refuse_connections()\n"
        "urllib.request.urlopen('http://localhost:9/')\n"
    )
    for flags, error in (["offline"], "a connection to localhost"), ([], "refused"):
        process = subprocess.run(
            [sys.executable, "-c", ask, *flags], capture_output=True, text=True
        )
        assert error in process.stderr.splitlines()[-1]


@needs_originals
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: .*or pass data_dir"):
        load_tfds(
            "fashion_mnist",
            data_dir=str(tmp_path / "file"),
            manual_dir=str(ORIGINALS),
        )


def test_without_the_package_the_remedy_is_named(monkeypatch, tmp_path):
    find = tfds_builder.importlib.util.find_spec
    monkeypatch.setattr(
        tfds_builder.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow_datasets" else find(name),
    )
    with pytest.raises(InputError, match=r"pip install -e '.\[tfds\]'"):
        finetune.main(["--dataset", "cifar10", "--out", str(tmp_path / "run")])
    # Two data sets are read without it, and their names are still understood.
    with pytest.raises(UsageError, match="did you mean fashion_mnist"):
        finetune.main(["--dataset", "FashionMNIST", "--out", str(tmp_path / "run")])


def test_the_lab_takes_no_folder(tmp_path):
    with pytest.raises(UsageError, match="is a folder, and the lab needs images of"):
        overfit.main(["--dataset", str(tmp_path), "--out", str(tmp_path / "run")])


@pytest.fixture(scope="module")
def varying(tmp_path_factory):
    """Store twenty dark and light images of different sizes in a single split."""
    folder = tmp_path_factory.mktemp("varying")
    random = np.random.default_rng(0)
    images = np.empty(20, object)
    for i in range(20):
        size, low = random.integers(30, 80, 2), 110 * (i % 2)
        images[i] = random.integers(low, low + 145, (*size, 3), np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(20) % 2}
    shape, classes = (None, None, 3), ("dark", "light")
    store(folder, "varying", "1.0.0", shape, classes, **arrays)
    return folder / "varying" / "1.0.0"


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_different_sizes_are_resized_or_streamed(
    in_memory, varying, monkeypatch
):
    builder = tfds_builder.tfds().builder_from_directory(varying)
    monkeypatch.setattr(tfds, "open_builder", lambda name, data_dir: builder)
    if not in_memory:
        monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    preprocess = Preprocess(63)
    data = load_tfds("varying", preprocess, test_fraction=0.25)
    assert data.resized and data.class_names == ("dark", "light")
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    if in_memory:
        images = data.train.images
        assert images.shape == (16, 63, 63, 3)
    else:
        load = Streamed(data.train.images, data.train.labels, preprocess)
        images = next(load(np.arange(16), 16)).inputs
    light = np.asarray(images).mean((1, 2, 3)) > 127
    np.testing.assert_array_equal(light, data.train.labels == 1)
    with pytest.raises(UsageError, match=r"shape \(None, None, 3\), and the lab"):
        load_tfds("varying")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """Store digits in three splits, of which the test split has no labels."""
    folder = tmp_path_factory.mktemp("validated")
    digits = mnist5k(validation_fraction=0.01).first(30, 20)
    arrays = {
        f"{name}_{what}": getattr(split, what)
        for name, split in digits.splits.items()
        for what in ("images", "labels")
    }
    arrays["test_labels"] = np.full(20, -1)
    store(folder, "mnist", "3.0.1", (28, 28, 1), digits.class_names, **arrays)
    return folder


@pytest.mark.slow
def test_a_test_split_without_labels_is_not_tested_on(validated, monkeypatch):
    said = []
    load = functools.partial(load_tfds, "mnist", data_dir=str(validated))
    data = load(log=said.append)
    assert data.validation is None and len(data.test) == 40
    assert np.bincount(data.test.labels).tolist() == [4] * 10
    assert data.note == "its test split has no labels, tests on its validation split"
    # With labels, all three are used. Negative control: labels are what decides.
    monkeypatch.setattr(tfds, "_has_no_labels", lambda builder, split: False)
    with pytest.raises(InputError, match="has labels from -1 to -1, but 10 classes"):
        load(log=said.append)


@pytest.mark.slow
def test_a_validation_split_chooses_and_is_not_tested_on(validated, monkeypatch):
    read = tfds._read

    def labelled(builder, split, how):
        if split != "test":
            return read(builder, split, how)
        images = np.zeros((20, 28, 28, 1), np.uint8)
        return Split(images, np.arange(20, dtype=np.int32) % 10)

    monkeypatch.setattr(tfds, "_has_no_labels", lambda builder, split: False)
    monkeypatch.setattr(tfds, "_read", labelled)
    said = []
    data = load_tfds("mnist", data_dir=str(validated), log=said.append)
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 30, "validation": 40, "test": 20} and data.note == ""
    with pytest.raises(UsageError, match="a validation split already"):
        load_tfds("mnist", data_dir=str(validated), validation_fraction=0.1)
