"""Test that valid image folders load completely and that every problem is reported.

It is one file because nearly all of these tests start from the same small image folder.
"""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import jaxlab
from jaxlab import finetune
from jaxlab.data import pictures
from jaxlab.data.dataset import Dataset, Split
from jaxlab.data.pictures import Pictures
from jaxlab.data.preprocess import Preprocess
from jaxlab.data.selection import stratified_split
from jaxlab.errors import CheckpointError, InputError, UsageError
from jaxlab.training.job import class_weights
from tests.conftest import NO_CHECKPOINTS
from tests.data.conftest import load, picture
from tests.data.test_pictures import BAD, JPEG, encoded


def test_class_names_are_sorted_and_pictures_resized(pets):
    data, said = load(pets)
    assert data.class_names == ("cat", "dog") and data.resized and said == []
    assert len(data.train) == 12 and len(data.test) == 4
    assert data.train.images.shape == (12, 63, 63, 3)
    for name, split in data.splits.items():
        for file, pixels, label in zip(
            data.files[name], split.images, split.labels, strict=True
        ):
            assert file.startswith(data.class_names[label])
            expected = Image.open(pets / file).resize((63, 63), Image.BILINEAR)
            np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_the_split_is_seeded_stratified_and_complete(pets):
    first, again = load(pets)[0], load(pets)[0]
    assert first.files == again.files
    assert first.fingerprint() == again.fingerprint()
    assert np.bincount(first.test.labels).tolist() == [2, 2]
    everything = {f"{c}/{i}.png" for c in ("cat", "dog") for i in range(8)}
    assert set(first.files["train"]) | set(first.files["test"]) == everything
    assert not set(first.files["train"]) & set(first.files["test"])


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_every_class_of_two_is_on_both_sides(fraction):
    labels = np.array([0] * 2 + [1] * 50 + [2])
    held_out = stratified_split(labels, fraction, seed=0)
    for label, count in ((0, 2), (1, 50)):
        assert 1 <= held_out[labels == label].sum() <= count - 1
    assert not held_out[labels == 2].any()  # a single image is used for training


@pytest.mark.parametrize("test", ["val", "test"])
def test_a_split_on_the_disk_is_kept(pets, tmp_path, test):
    root = tmp_path / "split"
    for name in ("cat", "dog"):
        for part, keep in (("train", range(6)), (test, (6, 7))):
            (root / part / name).mkdir(parents=True)
            for i in keep:
                shutil.copy(pets / name / f"{i}.png", root / part / name)
    data, _ = load(root)
    assert {os.path.dirname(file) for file in data.files["train"]} == {
        "train/cat",
        "train/dog",
    }
    assert len(data.train) == 12 and len(data.test) == 4
    assert data.class_names == ("cat", "dog")


def test_the_first_images_are_balanced_and_bounded(pets):
    data, _ = load(pets, train_size=6, test_size=2)
    assert np.bincount(data.train.labels).tolist() == [3, 3]
    assert np.bincount(data.test.labels).tolist() == [1, 1]
    with pytest.raises(UsageError, match="train_size: 99 images requested, but"):
        load(pets, train_size=99)


def test_litter_is_ignored_and_folders_below_are_searched(pets):
    before = load(pets)[0].fingerprint()
    (pets / ".ipynb_checkpoints").mkdir()
    (pets / "cat" / ".ipynb_checkpoints").mkdir()
    shutil.copy(pets / "cat" / "0.png", pets / "cat" / ".ipynb_checkpoints" / "x.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (pets / "cat" / name).write_bytes(b"litter")
        (pets / name).write_bytes(b"litter")
    assert load(pets)[0].fingerprint() == before
    (pets / "dog" / "more").mkdir()
    picture(99).save(pets / "dog" / "more" / "x.JPG", "JPEG")
    assert "dog/more/x.JPG" in sum(load(pets)[0].files.values(), [])


def test_an_ending_may_differ_from_the_format(pets):
    (pets / "cat" / "0.png").write_bytes(encoded(picture(), "JPEG"))
    assert len(load(pets)[0].train) == 12


def test_odd_but_good_pictures_are_told(pets):
    frames = [picture(1).quantize(), picture(2).quantize()]
    frames[0].save(pets / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    data, said = load(pets)
    assert said == ["warning: 1 animated picture: only the first frame is used"]


def test_a_test_picture_that_is_trained_on_is_told(tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            picture(label).save(tmp_path / part / name / f"{part}.png")
    _, said = load(tmp_path)
    (line,) = said
    assert line == (
        "warning: the test accuracy is inflated by 2 test pictures identical to "
        "training pictures: val/cat/val.png and train/cat/train.png, "
        "val/dog/val.png and train/dog/train.png"
    )


def test_many_pictures_stay_on_the_disk(pets, monkeypatch):
    whole = load(pets)[0]
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 1000)
    data, _ = load(pets)
    assert isinstance(data.train.images, Pictures)
    assert data.files == whole.files
    assert len(data.train.images) == 12


@pytest.mark.parametrize("name", [n for n in BAD if n != "zero bytes"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_each_bad_file_is_reported_with_its_kind(pets, name):
    content, kind = BAD[name]
    (pets / "cat" / "bad.jpg").write_bytes(content)
    with pytest.raises(InputError) as raised:
        load(pets)
    assert f": {kind}" in str(raised.value)
    assert " (1): cat/bad.jpg; " in str(raised.value) and raised.value.exit_code == 3


def test_all_problems_are_told_at_once_with_their_counts(pets):
    for i in range(5):
        (pets / "cat" / f"t{i}.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    (pets / "dog" / "empty.png").write_bytes(b"")
    (pets / "dog" / "text.png").write_bytes(b"text")
    (pets / "dog" / "gone.png").symlink_to(pets / "nowhere.png")
    with pytest.raises(InputError) as raised:
        load(pets)
    line = str(raised.value)
    assert line.startswith(f"{pets}: cannot be used as it is: ")
    assert "damaged (5): cat/t0.jpg, cat/t1.jpg, cat/t2.jpg, …" in line
    assert "empty file (1): dog/empty.png" in line
    assert "unknown image format (1): dog/text.png" in line
    assert "broken link (1): dog/gone.png" in line
    assert line.endswith(
        "; remove or repair these, or list all with check=True and leave them out with "
        "exclude"
    )


def spoil(root):
    """Add two unusable files of each of several kinds, with unusual names."""
    names = ("cat/t 0.jpg", "cat/a  b.jpg", "dog/empty\n.png", "dog/empty.png")
    for name, content in zip(names, (JPEG[:-999], JPEG[:-999], b"", b""), strict=True):
        (root / name).write_bytes(content)
    (root / "dog" / "notes.txt").write_text("text")
    (root / "# readme").write_text("text")


LISTED = (
    "./# readme  # file outside the class folders",
    "cat/a b.jpg  # damaged (",
    "cat/t 0.jpg  # damaged (",
    "dog/empty .png  # empty file",
    "dog/empty.png  # empty file",
    "dog/notes.txt  # file name without a picture's ending",
)


def test_all_unusable_files_are_listed_and_left_out_by_the_same_list(pets, tmp_path):
    whole, _ = load(pets)
    spoil(pets)
    said = []
    with pytest.raises(InputError, match="damaged .2.: .* or list all with check=True"):
        load(pets, check=True, log=said.append)
    for line, start in zip(said, LISTED, strict=True):
        assert line.startswith(start)
    (tmp_path / "bad.txt").write_text("# mine\n\n" + "\n".join(said))
    data, told = load(pets, exclude=str(tmp_path / "bad.txt"))
    assert told == [f"{pets}: 6 files named in {tmp_path / 'bad.txt'} are left out"]
    assert data.fingerprint() == whole.fingerprint() and data.files == whole.files


def test_good_pictures_are_left_out_too_with_a_reason_behind_a_tab(pets, tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfcat/0.png\ttoo dark\r\n./cat/1.png")
    data, told = load(pets, exclude=str(tmp_path / "list"))
    files = data.files["train"] + data.files["test"]
    assert len(files) == 14 and not {"cat/0.png", "cat/1.png"} & set(files)
    assert told == [f"{pets}: 2 files named in {tmp_path / 'list'} are left out"]


def test_names_that_do_not_exist_and_a_class_without_files_are_refused(pets, tmp_path):
    listing = tmp_path / "list"
    listing.write_text("cat/0.png\ncat/no.png\ncat\n")
    with pytest.raises(
        InputError, match="exclude: .* names 2 files that .*: cat, cat/"
    ):
        load(pets, exclude=str(listing))
    listing.write_text("".join(f"cat/{i}.png\n" for i in range(8)))
    with pytest.raises(InputError, match="class without files .1.: cat; "):
        load(pets, exclude=str(listing))
    with pytest.raises(
        UsageError, match="exclude: .*: No such file or directory; pass"
    ):
        load(pets, exclude=str(tmp_path / "none"))


def test_problems_of_classes_are_listed_as_comments(pets):
    (pets / "eel").mkdir()
    said = []
    with pytest.raises(InputError):
        load(pets, check=True, log=said.append)
    assert said == ["# class without files: eel"]


def test_the_command_and_the_library_check_alike(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = ["--dataset", str(pets), "--image-size", "63", "--check", "--out", "run"]
    assert finetune.main(job) is None
    printed = capsys.readouterr()
    assert printed.out == (
        f"{pets}: 12 training, 4 test images, 2 classes: all can be used\n"
    )
    spoil(pets)
    texts = []
    for check in (
        lambda: finetune.main(job),
        lambda: jaxlab.load_data(pets, image_size=63, check=True),
    ):
        with pytest.raises(InputError) as raised:
            check()
        texts.append((capsys.readouterr().out, str(raised.value)))
    assert texts[0] == texts[1] and texts[0][0].count("\n") == len(LISTED)
    (tmp_path / "bad.txt").write_text(texts[0][0])
    data = jaxlab.load_data(pets, image_size=63, exclude="bad.txt", log=False)
    assert len(data.train) + len(data.test) == 16
    finetune.main([*job, "--exclude", "bad.txt"])
    assert "6 files named in bad.txt are left out\n" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()  # nothing is written


def test_only_a_folder_has_files_to_leave_out(tmp_path):
    with pytest.raises(UsageError, match="exclude: mnist5k is not a folder"):
        jaxlab.load_data("mnist5k", exclude="list")
    arrays = (np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)
    with pytest.raises(UsageError, match="exclude: cannot be combined with arrays"):
        jaxlab.load_data(arrays, exclude="list")
    with pytest.raises(UsageError, match="check: trains nothing, .* jaxlab.load_data"):
        jaxlab.fine_tune("mnist5k", check=True)


def absent(root):
    shutil.rmtree(root)


def a_file(root):
    shutil.rmtree(root)
    root.write_text("file")


def empty(root):
    for name in ("cat", "dog"):
        shutil.rmtree(root / name)


def images_at_root(root):
    empty(root)
    picture().save(root / "a.png")


def one_class(root):
    shutil.rmtree(root / "dog")


def empty_class(root):
    (root / "eel").mkdir()


def only_litter(root):
    (root / "eel").mkdir()
    (root / "eel" / ".DS_Store").write_bytes(b"")


def other_ending(root):
    (root / "cat" / "labels.csv").write_text("a,b")


def case_differs(root):
    shutil.copytree(root / "cat", root / "Cat")


def newline_in_a_class(root):
    (root / "cat").rename(root / "c\nat")


def no_utf8_in_a_class(root):
    folder = os.fsencode(root)
    os.rename(os.path.join(folder, b"cat"), os.path.join(folder, b"c\xff"))


def a_loop(root):
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "back").symlink_to(root / "dog")


def train_and_more(root):
    for name in ("train", "val"):
        shutil.copytree(root / "cat", root / name / "cat")


def a_class_that_val_lacks(root):
    inner = root.with_name("inner")
    shutil.copytree(root, inner)
    for name in ("train", "val"):
        shutil.copytree(inner, root / name)
    empty(root)
    shutil.rmtree(root / "val" / "dog")


def a_class_that_train_lacks(root):
    a_class_that_val_lacks(root)
    (root / "val" / "eel").mkdir()
    picture().save(root / "val" / "eel" / "a.png")


def a_pipe(root):
    os.mkfifo(root / "cat" / "pipe.png")


def stray_files(root):
    picture().save(root / "lost.png")
    (root / "notes.txt").write_text("mine")
    (root / "cat" / "cut.jpg").write_bytes(JPEG[:100])


LAYOUTS = [
    (absent, "does not exist; check the path"),
    (a_file, "not a directory; pass the folder that holds the class folders"),
    (empty, "holds no class folders; put the pictures into a folder for each class"),
    (images_at_root, "holds pictures, but no class folders"),
    (one_class, "single class where at least two are needed (1): cat"),
    (empty_class, "class without files (1): eel"),
    (only_litter, "class without files (1): eel"),
    (other_ending, "file name without a picture's ending (1): cat/labels.csv"),
    (case_differs, "class names that differ by case only (1): cat"),
    (newline_in_a_class, r"class name that is not printable UTF-8 (1): 'c\nat'"),
    (no_utf8_in_a_class, r"class name that is not printable UTF-8 (1): 'c\udcff'"),
    (a_loop, "link to a folder (2): cat/loop, dog/back"),
    (train_and_more, "holds cat, dog beside train, val; pass a folder of"),
    (a_class_that_val_lacks, "class that one split lacks (1): dog"),
    (a_class_that_train_lacks, "class that one split lacks (2): dog, eel"),
    (a_pipe, "non-regular file (1): cat/pipe.png"),
    (stray_files, "file outside the class folders (2): lost.png, notes.txt; "),
]


@pytest.mark.parametrize(("change", "message"), LAYOUTS)
def test_each_odd_layout_is_told(pets, change, message):
    change(pets)
    with pytest.raises(InputError) as raised:
        load(pets, Preprocess(63, crop=True))
    assert str(raised.value).startswith(f"{pets}: ")
    assert message in str(raised.value)
    assert raised.value.exit_code == 3


def test_one_picture_a_class_leaves_nothing_to_test_with(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        picture(label).save(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="no picture is left for the test split"):
        load(tmp_path)


def test_odd_file_names_are_no_fault(pets):
    content = encoded(picture(5))
    (pets / "cat" / "new\nline.png").write_bytes(content)
    with open(os.path.join(os.fsencode(pets), b"cat", b"\xff.png"), "wb") as file:
        file.write(encoded(picture(6)))
    data, _ = load(pets)
    assert len(data.train) + len(data.test) == 18


@pytest.mark.slow
def test_few_pictures_of_a_class_are_warned_of_or_weighed(
    narrowed, narrow_weights, pets, tmp_path, capsys
):
    for i in range(100):
        picture(1000 + i).save(pets / "cat" / f"more {i}.png")
    job = ["--dataset", str(pets), "--image-size", "63", "--weights", narrow_weights]
    job += ["--epochs", "1", *NO_CHECKPOINTS]
    finetune.main([*job, "--out", str(tmp_path / "plain")])
    warned = capsys.readouterr().err
    assert warned == (
        "warning: the largest class has 86 training images and the smallest has 6; "
        "pass --class-weights balanced to give all classes equal weight\n"
    )
    weighed = [*job, "--class-weights", "balanced"]
    finetune.main([*weighed, "--out", str(tmp_path / "weighed")])
    assert capsys.readouterr().err == ""
    plain, balanced = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("plain", "weighed")
    )
    assert plain != balanced


@pytest.mark.slow
def test_a_streamed_run_is_the_one_from_memory(
    narrowed, narrow_weights, pets, tmp_path, monkeypatch
):
    job = ["--dataset", str(pets), "--image-size", "63", "--weights", narrow_weights]
    job += ["--epochs", "2", *NO_CHECKPOINTS]
    in_memory = finetune.main([*job, "--out", str(tmp_path / "memory")])
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    streaming = finetune.main([*job, "--out", str(tmp_path / "streaming")])
    assert in_memory.test_accuracy == streaming.test_accuracy
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("memory", "streaming")
    )
    assert first == second


@pytest.mark.slow
def test_a_run_resumes_with_the_same_pictures_left_out(
    narrowed, narrow_weights, pets, tmp_path
):
    listing, out = tmp_path / "list", str(tmp_path / "run")
    listing.write_text("cat/0.png\n")
    job = ["--dataset", str(pets), "--image-size", "63", "--weights", narrow_weights]
    finetune.main([*job, "--epochs", "1", "--exclude", str(listing), "--out", out])
    again = ["--resume", "--epochs", "2", "--out", out]
    listing.write_text("cat/1.png\n")
    with pytest.raises(CheckpointError, match="the images of .* differ from those of"):
        finetune.main(again)
    listing.rename(tmp_path / "moved")  # the pictures count, not the list's name
    (tmp_path / "moved").write_text("cat/0.png\ttoo dark\n")
    run = finetune.main([*again, "--exclude", str(tmp_path / "moved")])
    assert len(run.history) == 2
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["exclude"] == str(tmp_path / "moved")


def test_balanced_weights_are_inverse_to_the_counts():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    images = np.zeros((10, 2, 2, 1), np.uint8)
    split = Split(images, labels)
    data = Dataset("d", split, split, class_names=tuple("abcd"))
    weights = class_weights(data, "balanced", print)
    # scikit-learn's formula for the classes present: n / (n_classes × n_in_class).
    # The weights are float32, whose relative rounding error is below 1e-7.
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3], rtol=1e-6)
