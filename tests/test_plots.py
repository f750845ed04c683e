"""Test the public plots: what they show, and that wrong arguments fail at the call."""

import numpy as np
import pytest

import jaxlab
from jaxlab.errors import UsageError
from jaxlab.finetune import Run
from jaxlab.runs.record import Rows

IMAGES = np.zeros((3, 8, 8), np.uint8)
ROW = {"epoch": 1, "train_loss": 0.7, "test_loss": 0.9}
ROW |= {"train_accuracy": 0.8, "test_accuracy": 0.7}

WRONG = {
    "fewer labels": (dict(labels=[0, 1]), "labels: 2 for 3 images; pass one for each"),
    "more predictions": (
        dict(predictions=[0, 1, 2, 3]),
        "predictions: 4 for 3 images; pass one for each",
    ),
    "other lengths": (
        dict(labels=[0, 1, 2], predictions=[0, 1]),
        "predictions: 2 for 3 images; pass one for each",
    ),
    "floats": (
        dict(labels=[0.0, 1.0, 2.0]),
        "labels: expected indices of classes, int[n], got float64[3]",
    ),
    "a ragged list": (dict(labels=[[0], [1, 2], []]), "labels: is not an array: "),
    "one label": (dict(labels=3), "labels: expected indices of classes, int[n], got"),
    "logits": (
        dict(predictions=np.zeros((3, 10))),
        "predictions: expected indices of classes, int[n], got float64[3, 10]",
    ),
    "no such class": (
        dict(labels=[0, 1, 2], class_names=["a", "b"]),
        "labels: 0 to 2 do not fit 2 class names",
    ),
    "a negative class": (
        dict(predictions=[0, -1, 1], class_names=["a", "b"]),
        "predictions: -1 to 1 do not fit 2 class names",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_and_predictions_are_checked_at_the_call(case):
    arguments, message = WRONG[case]
    with pytest.raises(UsageError) as raised:
        jaxlab.plot_images(IMAGES, **arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype(np.int64), IMAGES.astype(str), [[[None]]], [], "cat.jpg", [[1], []]],
)
def test_images_are_uint8_or_float(images):
    with pytest.raises(UsageError, match="^images: (expected|is not an array: )"):
        jaxlab.plot_images(images)


def test_images_may_be_bfloat16():
    images = jaxlab.Preprocess(8)(IMAGES).astype("bfloat16")
    assert len(jaxlab.plot_images(images).axes) == 3


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_say_how_the_training_split_was_measured(tmp_path):
    for dropout, when in ((True, "dropout on"), (False, "during the epoch")):
        run = Run(tmp_path, Rows([ROW], dropout), "0" * 64, 20)
        during = [f"training ({when})", "test"]
        assert labels_of(jaxlab.plot_curves(run)) == during
        assert labels_of(jaxlab.plot_curves(run.history)) == during
        assert labels_of(jaxlab.plot_curves(Rows([ROW, ROW], dropout)[:1])) == during
    assert labels_of(jaxlab.plot_curves([ROW])) == ["training", "test"]
    assert run.history == [ROW]


def test_no_images_is_told():
    with pytest.raises(UsageError, match="^images: there are none to show; pass at"):
        jaxlab.plot_images(np.zeros((0, 28, 28, 1), np.uint8))
