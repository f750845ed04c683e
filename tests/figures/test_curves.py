"""Test the labels and the values in the figure of the training curves."""

import numpy as np

from jaxlab.figures.curves import draw_curves


def test_the_curves_picture_shows_both_splits_with_units():
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
    figure = draw_curves(history, "A run")
    loss, accuracy = figure.axes
    assert figure.get_suptitle() == "A run"
    assert [a.get_ylabel() for a in (loss, accuracy)] == ["loss (nats)", "accuracy (%)"]
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    np.testing.assert_allclose(lines["test"], [45, 90])
    np.testing.assert_allclose(lines["training (dropout on)"], [40, 80])
    assert accuracy.texts[0].get_text() == "90.0 %"
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1])
