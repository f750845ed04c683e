"""Test that IDX files are read as they are, from a folder or a download, or refused.

It is one file because the tests share the four hand-made files below.
"""

import contextlib
import gzip
import hashlib
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import jaxlab
from jaxlab import finetune, overfit
from jaxlab.data import idx, mnist, mnist_files
from jaxlab.data.load import load
from jaxlab.data.mnist_files import NAMES, PUBLISHED, OtherFilesError, Published
from jaxlab.data.pictures import pixel_digest
from jaxlab.data.selection import content_order
from jaxlab.errors import InputError, NetworkError, UsageError
from pretrained import download
from tests.conftest import NO_CHECKPOINTS, ROOT, assert_one_line
from tests.pretrained.server import Server

ORIGINALS = ROOT.parent / "shared" / "data"
needs_originals = pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason=f"needs the original files of MNIST in {ORIGINALS}"
)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = (
    name for names in NAMES.values() for name in names
)


def idx_bytes(array):
    """Return an array of bytes in the IDX format, written by another way than ours."""
    sizes = b"".join(struct.pack(">i", size) for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


def write(folder, contents, ending="", dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        name = name.replace("-idx", ".idx") if dotted else name
        content = gzip.compress(content) if ending == ".gz" else content
        (folder / f"{name}{ending}").write_bytes(content)


@pytest.fixture(scope="module")
def arrays():
    """Return images and labels of 60 training and 30 test examples of ten classes."""
    random = np.random.default_rng(0)
    return {
        split: (
            random.integers(0, 256, (count, 28, 28), np.uint8),
            (np.arange(count) ** 2 % 10).astype(np.uint8)
            if split == "train"
            else np.arange(count, dtype=np.uint8) % 10,
        )
        for split, count in (("train", 60), ("test", 30))
    }


@pytest.fixture(scope="module")
def contents(arrays):
    return {
        name: idx_bytes(array)
        for split, names in NAMES.items()
        for name, array in zip(names, arrays[split], strict=True)
    }


@pytest.fixture
def folder(tmp_path, contents):
    write(tmp_path / "digits", contents, ".gz")
    return tmp_path / "digits"


@pytest.mark.parametrize(
    "layout, ending, dotted",
    [
        (".", ".gz", False),
        (".", "", False),
        (".", "", True),
        ("raw", "", False),
        ("MNIST/raw", "", False),
        ("mnist", ".gz", False),
    ],
)
def test_the_files_are_found_and_read_as_they_are(
    layout, ending, dotted, arrays, contents, tmp_path
):
    write(tmp_path / layout, contents, ending, dotted)
    by_name = load("mnist", None, data_dir=str(tmp_path), order="file", offline=True)
    by_folder = load(str(tmp_path), None, order="file")
    for data in (by_name, by_folder):
        for name, split in data.splits.items():
            images, labels = arrays[name]
            np.testing.assert_array_equal(split.images, images[..., None])
            np.testing.assert_array_equal(split.labels, labels)
            assert split.labels.dtype == np.int32 and not data.resized
        assert data.class_names == tuple("0123456789")
    assert by_name.note == "not the published files of MNIST" and by_folder.note == ""


def test_both_data_sets_of_torchvision_s_folder_are_told_apart(contents, tmp_path):
    write(tmp_path / "MNIST" / "raw", contents)
    changed = {**contents, TRAIN_LABELS: contents[TEST_LABELS]}
    write(tmp_path / "FashionMNIST" / "raw", changed)
    assert len(load("mnist", None, data_dir=str(tmp_path)).train) == 60
    with pytest.raises(InputError, match="FashionMNIST/raw/train-images.*30 labels"):
        load("fashion_mnist", None, data_dir=str(tmp_path))
    with pytest.raises(InputError, match="contains several data sets, in .*MNIST/raw "):
        load(str(tmp_path), None)


def test_the_compressed_copy_is_read_whose_damages_are_noticed(contents, tmp_path):
    """torchvision keeps both; the content decides, not the name."""
    write(tmp_path, contents, ".gz")
    write(tmp_path, {name: b"damaged" for name in contents})
    assert len(load(str(tmp_path), None).train) == 60
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(contents[TRAIN_IMAGES])
    assert len(load(str(tmp_path), None).train) == 60


@pytest.mark.parametrize(
    "file, damage, message",
    [
        (TRAIN_IMAGES, lambda c: b"", "is empty; replace it by an undamaged copy"),
        (TRAIN_IMAGES, lambda c: b"\n<HTML>no", "is an HTML page, perhaps from a fail"),
        (
            TEST_LABELS,
            lambda c: b"<!doctype html>",
            "is an HTML page, perhaps from a f",
        ),
        (TEST_LABELS, lambda c: b"version https://git-lfs.g", "run git lfs pull"),
        (TRAIN_IMAGES, lambda c: c[:11], "ends within its header; replace"),
        (TRAIN_LABELS, lambda c: b"\0\0\x0d\1" + c[4:], "magic number 0x00000d01, exp"),
        (TRAIN_IMAGES, lambda c: b"\0\0\x08\4" + c[4:], "magic number 0x00000804, exp"),
        (
            TRAIN_IMAGES,
            lambda c: b"PNG!" + c[4:],
            r"0x504e4721, expected images \(0x00",
        ),
        (TRAIN_LABELS, lambda c: c[:-1], "only 59 bytes of values .* says 60 "),
        (
            TRAIN_IMAGES,
            lambda c: c[:-1],
            r"only 47,039 .* 47,040 \(60×28×28\); replace",
        ),
        (
            TRAIN_IMAGES,
            lambda c: c + b"\0",
            "has more bytes of values where its header",
        ),
        (TRAIN_LABELS, lambda c: idx_bytes(np.zeros(0, np.uint8)), r"is empty \(0 val"),
        (TRAIN_IMAGES, lambda c: c[:4] + b"\xff" * 12 + c[16:], "more than 4 GiB;"),
        # 3 GiB are less than that, but nothing of the kind is in the file.
        (
            TRAIN_LABELS,
            lambda c: c[:4] + b"\xbf\xff\xff\xff" + c[8:],
            "has only 60 byte",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_each_damage_is_named_with_its_file(
    file, damage, message, ending, contents, tmp_path
):
    write(tmp_path, {**contents, file: damage(contents[file])}, ending)
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path), None)
    assert str(caught.value).startswith(f"{tmp_path / file}{ending}: ")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: c[:200], "Compressed file ended before the end-of-stream"),
        (lambda c: c[:300] + b"!" + c[301:], "is damaged: "),
        (lambda c: c[:-6] + b"!!" + c[-4:], "is damaged: CRC check failed"),
        (lambda c: c + b"rest", "is damaged: Not a gzipped file"),
    ],
)
def test_each_damage_of_the_compression_is_named(damage, message, folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{path}: .*{message}.*; replace it by"):
        load(str(folder), None)


def test_files_of_each_other_s_kind_or_size_are_refused(arrays, contents, tmp_path):
    images, labels = arrays["test"]
    for file, content, message in (
        (TRAIN_LABELS, contents[TRAIN_IMAGES], "contains images, expected labels"),
        (TRAIN_IMAGES, contents[TRAIN_LABELS], "contains labels, expected images"),
        (TEST_LABELS, idx_bytes(labels[:-1]), "has 30 images, but t10k.* has 29 label"),
        (TEST_IMAGES, idx_bytes(images[:, :, 1:]), "28×28 pixels, but .* 28×27;"),
    ):
        write(tmp_path, {**contents, file: content})
        with pytest.raises(InputError, match=message):
            load(str(tmp_path), None)
    write(tmp_path, {**contents, TEST_LABELS: idx_bytes(labels + 1)})
    with pytest.raises(InputError, match="has the label 10, but mnist has 10 classes"):
        load("mnist", None, data_dir=str(tmp_path))
    # The classes of other data are as many as there are labels.
    assert load(str(tmp_path), None).class_names[-1] == "10"


def test_what_is_missing_or_cannot_be_opened_is_named(folder, monkeypatch):
    def refusing(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(idx, "open_regular", refusing)
        with pytest.raises(
            InputError, match="train-images.*: Permission denied; check"
        ):
            load(str(folder), None)
    (folder / f"{TEST_LABELS}.gz").unlink()
    (folder / TEST_LABELS).mkdir()
    for name, data_dir in ((str(folder), None), ("mnist", str(folder))):
        with pytest.raises(
            OtherFilesError, match="but lacks t10k-labels.*; put all fo"
        ):
            load(name, None, data_dir=data_dir, offline=True)


def test_the_same_images_in_another_order_are_the_same_dataset(
    arrays, contents, folder, tmp_path
):
    order = np.random.default_rng(1).permutation(60)
    images, labels = (array[order] for array in arrays["train"])
    shuffled = {TRAIN_IMAGES: idx_bytes(images), TRAIN_LABELS: idx_bytes(labels)}
    write(tmp_path / "shuffled", {**contents, **shuffled})
    for how in ({}, {"train_size": 20, "test_size": 10}, {"validation_fraction": 0.2}):
        one = load(str(folder), None, **how)
        other = load(str(tmp_path / "shuffled"), None, **how)
        assert one.fingerprint() == other.fingerprint()
        by_file = load(str(folder), None, order="file", **how)
        assert by_file.fingerprint() != one.fingerprint()
    expected = content_order(map(pixel_digest, arrays["train"][0]))
    np.testing.assert_array_equal(
        load(str(folder), None).train.labels, arrays["train"][1][expected]
    )


def test_the_first_in_the_files_order_and_the_balanced_choice_are_called_so(
    folder, arrays
):
    first = load(str(folder), None, order="file", train_size=7, test_size=20)
    np.testing.assert_array_equal(first.train.labels, arrays["train"][1][:7])
    np.testing.assert_array_equal(first.test.images[..., 0], arrays["test"][0][:20])
    assert first.note == (
        "training images: the first 7 of 60 in the source's order, 1 to 2 of each "
        "class; test images: the first 20 of 30 in the source's order, 2 of each class"
    )
    balanced = load(str(folder), None, train_size=6)
    assert np.bincount(balanced.train.labels).max() == 1  # six classes of squares
    assert balanced.note == (
        "training images: a class-balanced choice of 6 of 60, 1 of each class"
    )
    held = load(str(folder), None, order="file", train_size=40, validation_fraction=0.2)
    np.testing.assert_array_equal(held.train.labels, arrays["train"][1][:40])
    np.testing.assert_array_equal(held.validation.labels, arrays["train"][1][48:])
    assert "; validation images: the last of the training images" in held.note
    with pytest.raises(UsageError, match="^train_size: 61 images requested"):
        load(str(folder), None, order="file", train_size=61)


def test_no_order_is_made_up(tmp_path):
    (tmp_path / "cat").mkdir()
    for name, message in (
        ("mnist5k", "sorted by class, .* pass source mnist for MNIST's own order"),
        (str(tmp_path), "have no order but that of their names; leave it out"),
        ("cifar10", "is shuffled when it is prepared by TFDS"),
    ):
        with pytest.raises(UsageError, match=f"^order: .*{message}"):
            jaxlab.load_data(name, order="file", offline=True)
    with pytest.raises(UsageError, match="'first' is not one of balanced, file"):
        jaxlab.Config(order="first")
    images = np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4)
    own = jaxlab.load_data((images, np.arange(10) % 2), order="file", train_size=3)
    assert own.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert own.test.images[:, 0, 0, 0].tolist() == [8, 9]
    assert own.note == (
        "training images: the first 3 of 8 in the source's order, 1 to 2 of each "
        "class; test images: the last of the training images"
    )


def test_only_pictures_have_paths(folder):
    for flag in ("exclude", "group"):
        with pytest.raises(
            UsageError, match=f"^{flag}: .* contains IDX files, and has"
        ):
            jaxlab.load_data(folder, **{flag: "x"})


def published(contents, url="http://127.0.0.1:9/"):
    """Return a published data set of these contents."""
    files = {}
    for name, content in contents.items():
        packed = gzip.compress(content, mtime=0)
        hashes = (hashlib.sha256(each).hexdigest() for each in (packed, content))
        files[name] = mnist_files._File(len(packed), *hashes)
    return Published("Tiny", "Tiny", url, tuple("abcdefghij"), files)


def test_files_of_a_published_data_set_are_compared_with_it(
    contents, tmp_path, monkeypatch
):
    monkeypatch.setitem(PUBLISHED, "mnist", published(contents))
    monkeypatch.setattr(mnist, "COUNTS", {"train": 60, "test": 30})
    write(tmp_path, contents)
    assert load("mnist", None, data_dir=str(tmp_path)).note == ""
    # Whoever passes the folder gets the same classes.
    assert load(str(tmp_path), None).class_names == tuple("abcdefghij")
    with pytest.raises(OtherFilesError) as caught:
        load("fashion_mnist", None, data_dir=str(tmp_path), offline=True)
    assert caught.value.text == (
        f"{tmp_path}: contains Tiny, not Fashion-MNIST; pass --dataset mnist, or "
        "another folder"
    )
    changed = bytearray(contents[TRAIN_IMAGES])
    changed[1000] ^= 1
    (tmp_path / TRAIN_IMAGES).write_bytes(changed)
    with pytest.raises(
        InputError, match="train-images.*: is not the published file of"
    ):
        load("mnist", None, data_dir=str(tmp_path))
    assert load(str(tmp_path), None).note == ""  # as the user's own images


@contextlib.contextmanager
def serving(contents):
    """Serve the compressed contents; yield the server, with the names asked for."""
    server = Server()
    server.asked = []

    def send(handler):
        name = handler.path.rpartition("/")[2].removesuffix(".gz")
        server.asked.append(name)
        handler.answer(body=gzip.compress(contents[name], mtime=0))

    server.behaviours = [send]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    return tmp_path / "home" / "data" / "mnist"


def test_what_is_nowhere_is_downloaded_once(contents, cache, monkeypatch, capsys):
    with serving(contents) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(PUBLISHED, "mnist", published(contents, address))
        data = jaxlab.load_data("mnist", order="file")
        assert server.asked == list(contents)
        assert "complete, with the published SHA-256" in capsys.readouterr().err
        again = jaxlab.load_data("mnist", order="file", offline=True)
        assert server.asked == list(contents) and capsys.readouterr().err == ""
    assert again.fingerprint() == data.fingerprint() and data.note == ""
    assert data.class_names == tuple("abcdefghij")
    # A file that was damaged since is noticed.
    (cache / f"{TEST_LABELS}.gz").write_bytes(b"damaged")
    with pytest.raises(NetworkError, match="is not the published file") as caught:
        jaxlab.load_data("mnist", offline=True)
    assert caught.value.exit_code == 4


def test_other_bytes_than_the_published_ones_are_not_kept(contents, cache, monkeypatch):
    other = bytearray(contents[TRAIN_LABELS])
    other[20] ^= 1
    with serving({**contents, TRAIN_LABELS: bytes(other)}) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        source = published(contents, address)
        # The size must fit, so that the hash is what decides.
        packed = len(gzip.compress(bytes(other), mtime=0))
        source.files[TRAIN_LABELS] = source.files[TRAIN_LABELS]._replace(bytes=packed)
        monkeypatch.setitem(PUBLISHED, "mnist", source)
        with pytest.raises(
            NetworkError, match="train-labels.*SHA-256 checksum mismatch"
        ):
            jaxlab.load_data("mnist", log=False)
    assert not (cache / f"{TRAIN_LABELS}.gz").exists()


def test_offline_the_line_says_what_to_save_where(cache, run_here, tmp_path):
    cache.mkdir(parents=True)
    (cache / f"{TRAIN_IMAGES}.gz").touch()
    flags = ["--dataset", "mnist", "--offline", "--out", tmp_path / "run"]
    for main in (finetune.main, overfit.main):
        process = run_here(main, *flags)
        assert_one_line(process, 4, "mnist: not in the cache, and --offline forbids")
        assert (
            f"save {TRAIN_LABELS}.gz, {TEST_IMAGES}.gz, {TEST_LABELS}.gz from "
            f"https://ossci-datasets.s3.amazonaws.com/mnist/ in {cache}, or in a "
            "folder that you pass as --data-dir\n"
        ) in process.stderr
    assert not (tmp_path / "run").exists()


def test_no_network_is_told_with_the_address_and_the_path(contents, cache, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "mnist", published(contents))
    with pytest.raises(NetworkError) as caught:
        jaxlab.load_data("mnist", log=False)
    assert str(caught.value).startswith(f"http://127.0.0.1:9/{TRAIN_IMAGES}.gz: ")
    assert f"save it as {cache / TRAIN_IMAGES}.gz" in str(caught.value)


def test_neither_tensorflow_nor_a_connection_is_needed(folder):
    script = (
        "import sys\n"
        "events = []\n"
        "sys.addaudithook(lambda name, _: events.append(name))\n"
        "import jaxlab\n"
        "data = jaxlab.load_data('mnist', data_dir=sys.argv[1], log=False)\n"
        "print(data, 'tensorflow' in sys.modules,\n"
        "      'tensorflow_datasets' in sys.modules,\n"
        "      any(event.startswith('socket') for event in events))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True
    )
    assert process.stdout.endswith("10 classes) False False False\n"), process.stderr


def test_the_lab_and_fine_tuning_run_on_it(folder, narrowed, tmp_path, capsys):
    sizes = ["--train-size", "20", "--test-size", "10", "--epochs", "1"]
    job = ["--dataset", str(folder), "--order", "file", *sizes]
    lab = ["--seeds", "1", "--variants", "baseline", "--out", str(tmp_path / "lab")]
    overfit.main([*job, *lab])
    called = "the first 20 of 60 in the source's order, 2 to 4 of each class"
    assert called in capsys.readouterr().out.splitlines()[0]
    run = ["--image-size", "63", "--weights", "none", "--out", str(tmp_path / "run")]
    finetune.main([*job, *run, *NO_CHECKPOINTS])
    assert called in capsys.readouterr().out


@needs_originals
def test_the_hashes_are_those_of_the_original_files():
    """All but MNIST's training images, which are not at hand."""
    compared = []
    for name, published_set in PUBLISHED.items():
        for file, about in published_set.files.items():
            path = ORIGINALS / name / f"{file}.gz"
            if path.exists():
                packed = path.read_bytes()
                content = gzip.decompress(packed)
                hashes = [hashlib.sha256(c).hexdigest() for c in (packed, content)]
                assert [len(packed), *hashes] == list(about)
                compared.append(f"{name}/{file}")
    assert len(compared) == 7 and f"mnist/{TRAIN_IMAGES}" not in compared


@needs_originals
def test_the_first_two_hundred_of_fashion_mnist_are_not_balanced(tmp_path):
    shutil.copytree(ORIGINALS / "fashion_mnist", tmp_path / "FashionMNIST" / "raw")
    how = {"data_dir": str(tmp_path), "train_size": 200, "offline": True}
    data = load("fashion_mnist", None, order="file", **how)
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.class_names[9] == "Ankle boot"
    assert data.note == (
        "training images: the first 200 of 60,000 in the source's order, 16 to 26 of "
        "each class"
    )
    assert len(set(np.bincount(data.train.labels))) > 1
    content = gzip.decompress(
        Path(ORIGINALS, "fashion_mnist", f"{TRAIN_IMAGES}.gz").read_bytes()
    )
    first = np.frombuffer(content, np.uint8, 200 * 784, offset=16)
    np.testing.assert_array_equal(data.train.images.ravel(), first)
    with pytest.raises(OtherFilesError, match="contains Fashion-MNIST, not MNIST"):
        load("mnist", None, data_dir=str(tmp_path / "FashionMNIST"))
