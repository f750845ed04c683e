"""What the pictures and tables say, read back from the figures."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxlab.report import (
    confusion_matrix,
    layer_table,
    write_confusion,
    write_curves,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_rows_are_true_classes_and_columns_predicted_ones():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_the_confusion_picture_names_classes_counts_and_axes(tmp_path, drawn):
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    write_confusion(tmp_path / "c.png", labels, predictions, ("cat", "dog"), "Pets")
    (axes,) = drawn[0].axes
    assert axes.get_title() == "Pets\n1 of 4 wrong"
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class (images)"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat (2)", "dog (2)"]
    cells = {t.get_position(): t.get_text() for t in axes.texts}  # (column, row)
    assert cells == {(0, 0): "1", (1, 0): "1", (1, 1): "2"}
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 400


def test_a_thousand_classes_are_a_picture_that_memory_holds(tmp_path, drawn):
    labels = np.arange(1000)
    names = [f"class {n}" for n in labels]
    write_confusion(tmp_path / "c.png", labels, labels[::-1], names, "Many")
    (axes,) = drawn[0].axes
    assert axes.get_title() == "Many\n1000 of 1,000 wrong" and not axes.texts
    with Image.open(tmp_path / "c.png") as picture:
        assert 1000 < min(picture.size) and max(picture.size) < 3000
        reds = (np.asarray(picture.convert("RGB"))[..., 1] < 130).sum()
    assert reds > 1000  # each mistake has its cell


def test_the_curves_picture_shows_both_splits_with_units(tmp_path, drawn):
    history = [
        {
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "test_loss": 1.0 / epoch,
            "train_accuracy": 0.4 * epoch,
            "test_accuracy": 0.45 * epoch,
        }
        for epoch in (1, 2)
    ]
    write_curves(tmp_path / "c.png", history, "A run")
    loss, accuracy = drawn[0].axes
    assert drawn[0].get_suptitle() == "A run"
    assert [a.get_ylabel() for a in (loss, accuracy)] == ["loss (nats)", "accuracy (%)"]
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    np.testing.assert_allclose(lines["test"], [45, 90])
    np.testing.assert_allclose(lines["training (dropout on)"], [40, 80])
    assert accuracy.texts[0].get_text() == "90.0 %"
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1])


def test_the_layer_table_counts_what_is_trained():
    params = {
        "conv1": {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2)},
        "fc8": {"kernel": np.ones((4, 5)), "bias": np.ones(5)},
    }
    trainable = {
        "conv1": {"kernel": False, "bias": False},
        "fc8": {"kernel": True, "bias": True},
    }
    table = layer_table(params, trainable, {"conv1": "ImageNet", "fc8": "fresh"})
    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ["conv1", "3×3×1×2", "20", "frozen", "ImageNet"]
    assert rows[2] == ["fc8", "4×5", "25", "trainable", "fresh"]
    assert rows[3] == ["total", "45", "25", "trainable,", "20", "frozen"]
