"""Test the confusion matrix and the content of its figure."""

import numpy as np
import pytest
from PIL import Image

from jaxlab.figures.confusion import confusion_matrix, draw_confusion


def test_rows_are_true_classes_and_columns_predicted_ones():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_the_confusion_picture_names_classes_counts_and_axes(tmp_path):
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    figure = draw_confusion(labels, predictions, ("cat", "dog"), "Pets")
    figure.savefig(tmp_path / "c.png", dpi=150)
    (axes,) = figure.axes
    assert axes.get_title() == "Pets\n1 of 4 wrong"
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class (images)"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat (2)", "dog (2)"]
    cells = {t.get_position(): t.get_text() for t in axes.texts}  # (column, row)
    assert cells == {(0, 0): "1", (1, 0): "1", (1, 1): "2"}
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 400


@pytest.mark.slow
def test_a_thousand_classes_are_a_picture_that_memory_holds(tmp_path):
    labels = np.arange(1000)
    names = [f"class {n}" for n in labels]
    figure = draw_confusion(labels, labels[::-1], names, "Many")
    figure.savefig(tmp_path / "c.png", dpi=150)
    (axes,) = figure.axes
    assert axes.get_title() == "Many\n1000 of 1,000 wrong" and not axes.texts
    with Image.open(tmp_path / "c.png") as picture:
        assert 1000 < min(picture.size) and max(picture.size) < 3000
        reds = (np.asarray(picture.convert("RGB"))[..., 1] < 130).sum()
    assert reds > 1000  # each mistake has a cell that can be seen
