"""Test the labels, marks and values in the figures of training curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.figures.curves import draw_curves, training_label
from jaxlab.models.architecture import ARCHITECTURES


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
    assert legend_of(figure) == ["training", "test"]
    assert [a.get_ylabel() for a in (loss, accuracy)] == ["loss (nats)", "accuracy (%)"]
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    np.testing.assert_allclose(lines["test"], [45, 90])
    np.testing.assert_allclose(lines["training"], [40, 80])
    assert accuracy.texts[0].get_text() == "90.0 %"
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1])


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rows_of(epochs, watched="test"):
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 0.9,
            f"{watched}_loss": abs(epoch - 3) + 0.5,
            f"{watched}_accuracy": 0.8,
        }
        for epoch in range(1, epochs + 1)
    ]


def test_the_best_epoch_is_marked_also_before_the_test():
    rows = rows_of(5, "validation")
    figure = draw_curves(rows, "A run")
    assert legend_of(figure) == ["training", "validation", "best epoch, 3"]
    for axes in figure.axes:
        (mark,) = [line for line in axes.lines if "best" in line.get_label()]
        assert list(mark.get_xdata()) == [3, 3]
    assert figure.axes[0].texts[0].get_text() == "0.500"
    rows[-1] |= {"test_loss": 0.7, "test_accuracy": 0.75}
    figure = draw_curves(rows, "A run")
    assert legend_of(figure)[3] == "test, once"
    (star,) = [a for a in figure.axes[1].lines if a.get_label() == "test, once"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (3, 75)
    assert figure.axes[1].texts[0].get_text() == "75.0 %"


@pytest.mark.parametrize("epochs", [1, 5, 200])
def test_any_number_of_epochs_has_few_whole_ticks_and_visible_curves(epochs):
    figure = draw_curves(rows_of(epochs), "A run")
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert all(tick == int(tick) for tick in ticks)
        assert min(epochs, 2) <= len(ticks) <= 12
        training, test = axes.lines
        # Apart in grey, too, and single epochs are points.
        assert training.get_linestyle() != test.get_linestyle()
        markers = [line.get_marker() for line in axes.lines]
        assert len(set(markers)) == (1 if epochs == 200 else 2)
        assert all(markers) is (epochs != 200)


def test_an_accuracy_that_does_not_change_has_an_axis_of_percents():
    axes = draw_curves(rows_of(2), "A run").axes[1]
    low, high = axes.get_ylim()
    assert high <= 101 and high - low >= 2


def is_random(model):
    """Return whether the network's training draws random numbers."""
    images = jnp.zeros((1, 64, 64, 3))
    keys = {"dropout": jax.random.key(0)}
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), images, train=False)
    )
    program = jax.make_jaxpr(
        lambda v: model.apply(v, images, train=True, rngs=keys, mutable=["batch_stats"])
    )(variables)
    return "random_bits" in str(program)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("fields", [{}, {"dropout_rate": 0.0}])
def test_the_label_says_dropout_where_the_network_has_it(name, fields):
    architecture = ARCHITECTURES[name]
    if architecture.dropout:
        architecture = architecture._replace(fields=fields)
    assert architecture.has_dropout == is_random(architecture.build(10))


def test_without_dropout_the_label_has_no_dropout():
    assert training_label(True) == "training (dropout on)"
    assert training_label(False) == "training (during the epoch)"
