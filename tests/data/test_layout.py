"""Test that split folders are known in every spelling and never become classes."""

import numpy as np
import pytest

import jaxlab
from jaxlab.data.image_folder import load_folder
from jaxlab.data.layout import split_folders, split_of
from jaxlab.errors import InputError, UsageError
from tests.data.conftest import SQUASH, load, picture


@pytest.mark.parametrize(
    "split, names",
    [
        ("train", "train Train TRAIN training Training_Set train-images train2017 trn"),
        ("train", "seg_train trainset train_data Train.Images training_data my_train"),
        ("validation", "val Val valid VALID validation val2017 dev valid_images eval"),
        ("validation", "validation_set val-set Evaluation dataset_val"),
        (
            "test",
            "test Test TESTING testing test_set seg_test test_images hold-out tst",
        ),
        (
            None,
            "cat valet trainer testimony train_station images data set 2017 invalid",
        ),
        (None, "contest protest evaluate_me devil segments validity"),
    ],
)
def test_the_name_of_a_split_is_known_in_each_spelling(split, names):
    for name in names.split():
        assert split_of(name) == split, name


def tree(root, *paths):
    """Make a tiny picture at each path, such as `train/cat/0.png`, and an empty folder
    for each path that ends with a slash."""
    for i, path in enumerate(paths):
        file = root / path
        if path.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(i, (8, 8)).save(file)
    return root


def classes(*splits, count=3):
    return [
        f"{split}/{name}/{i}.png".lstrip("/")
        for split in splits
        for name in ("cat", "dog")
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "Val"),
        ("Training", "Testing"),
        ("train", "valid"),
        ("train", "validation"),
        ("TRAIN", "test"),
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("asl_alphabet_train", "asl_alphabet_test"),
        ("ImageNet_train", "ImageNet_val"),
        ("x_train", "x_test"),
        ("train-cropped", "test-cropped"),
        ("ＴＲＡＩＮ", "ＴＥＳＴ"),
    ],
)
def test_of_two_split_folders_the_second_is_tested_and_a_line_says_so(
    tmp_path, train, test
):
    data, said = load(tree(tmp_path, *classes(train, test)))
    assert data.class_names == ("cat", "dog") and data.validation is None
    assert {file.rpartition("/")[0].rpartition("/")[0] for file in data.files["test"]}
    assert all(file.startswith(f"{train}/") for file in data.files["train"])
    assert all(file.startswith(f"{test}/") for file in data.files["test"])
    assert data.note == f"trains on {train}, tests on {test}" and said == []


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("train", "valid", "test"), ("Train", "Dev", "Testing")],
)
def test_of_three_split_folders_one_chooses(tmp_path, names):
    data, said = load(tree(tmp_path, *classes(*names)))
    assert list(data.splits) == list(data.files) == ["train", "validation", "test"]
    for name, files in zip(names, data.files.values(), strict=True):
        assert len(files) == 6 and all(file.startswith(f"{name}/") for file in files)
    train, validation, test = names
    note = f"trains on {train}, chooses the epoch by {validation}, tests on {test}"
    assert data.note == note and said == []
    with pytest.raises(UsageError, match="0.5, but the data have a validation split"):
        load(tmp_path, validation_fraction=0.5)


@pytest.mark.parametrize(
    "paths, message",
    [
        (classes("train", "test", "testing"), "test and testing are the same split"),
        (classes("train", "val", "Valid"), "Valid and val are the same split"),
        (classes("train"), "holds only train, and so nothing to test on"),
        (classes("test", "val"), "holds test, val, but no folder train"),
        ([*classes("train", "test"), "eel/0.png"], "holds eel beside test, train"),
        ([*classes("train"), "test/0.png"], "test holds no class folders, and so no"),
        ([*classes("train"), "test/"], "test holds no class folders"),
        (["train/0.png", "test/0.png"], "test, train hold no class folders"),
        (["val/0.png", "test/0.png"], "test, val hold no class folders"),
        (
            classes("Entrenamiento", "Prueba"),
            "Entrenamiento, Prueba hold the same folders, cat, dog, as splits do",
        ),
        (
            classes("cat/train", "cat/test", "dog/train", "dog/test"),
            "cat, dog hold the same folders, test, train, as splits do",
        ),
        (
            classes("cat/train", "cat/test", "dog/train", "dog/val"),
            "each of its folders, such as cat, is split on its own",
        ),
    ],
)
def test_what_is_not_understood_is_refused_and_never_taken_for_classes(
    tmp_path, paths, message
):
    with pytest.raises(InputError) as caught:
        load(tree(tmp_path, *paths))
    assert message in str(caught.value)


def test_a_class_that_is_named_like_a_split_stays_a_class(tmp_path):
    paths = [f"{name}/{i}.png" for name in ("valid", "invalid") for i in range(4)]
    assert split_folders(tree(tmp_path, *paths)) == {"": tmp_path}
    data, said = load(tmp_path)
    assert data.class_names == ("invalid", "valid") and said == []


def test_classes_whose_names_begin_like_splits_stay_classes(tmp_path):
    paths = [f"{name}/{i}.png" for name in ("train_car", "test_tube") for i in range(4)]
    assert load(tree(tmp_path, *paths))[0].class_names == ("test_tube", "train_car")


def test_the_validation_split_is_part_of_the_training_split(pets):
    whole, _ = load(pets)
    data, _ = load(pets, validation_fraction=0.5)
    assert data.files["test"] == whole.files["test"]
    assert set(data.files["train"]) | set(data.files["validation"]) == set(
        whole.files["train"]
    )
    assert np.bincount(data.validation.labels).tolist() == [3, 3]
    assert np.bincount(data.train.labels).tolist() == [3, 3]
    assert data.fingerprint() != whole.fingerprint()
    for i, path in enumerate(sorted(pets.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed {i}.png"))  # it does not depend on names
    assert load(pets, validation_fraction=0.5)[0].fingerprint() == data.fingerprint()
    sized, _ = load(pets, validation_fraction=0.5, train_size=2)
    assert [len(split) for split in sized.splits.values()] == [2, 6, 4]


def test_a_class_that_is_never_tested_or_validated_is_named(tmp_path):
    paths = [*classes("", count=4), "eel/0.png", "fox/0.png", "fox/1.png"]
    _, said = load(tree(tmp_path, *paths), validation_fraction=0.5)
    assert said == [
        "warning: classes that are never tested, because they have too few pictures "
        "(1): eel",
        "warning: classes that are never validated, because they have too few pictures "
        "(2): eel, fox",
    ]


def test_a_split_without_pictures_is_refused(tmp_path):
    root = tree(tmp_path, "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    with pytest.raises(InputError, match="no picture is left for the validation split"):
        load_folder(root, SQUASH, test_fraction=0.5, validation_fraction=0.5)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_fraction_of_a_split_that_exists_is_refused(split, tmp_path):
    root = tree(tmp_path, *classes("train", "val", "test"))
    load(root, test_fraction=0.2)  # the default
    with pytest.raises(UsageError, match=f"{split}_fraction: 0.4, but") as caught:
        load(root, **{f"{split}_fraction": 0.4})
    assert f"the data have a {split} split already; leave" in caught.value.text


def test_the_line_about_split_folders_is_printed_by_load_data(tmp_path, capsys):
    tree(tmp_path, *classes("Train", "Val"))
    jaxlab.load_data(tmp_path, image_size=63)
    assert capsys.readouterr().out == f"{tmp_path}: trains on Train, tests on Val\n"
