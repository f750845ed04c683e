"""Test the verdict on curves: over-fits, under-fits or balanced, by the stated rule."""

import numpy as np
import pytest

from jaxlab.verdict import RULE, verdict


def curves(train_accuracy, test_accuracy, train_loss=(1.0, 0.5), test_loss=(1.0, 0.9)):
    """Return curves of two epochs, the means of two seeds that differ."""
    last = {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
    means = {key: (0.1, value) for key, value in last.items()}
    means |= {"train_loss": train_loss, "test_loss": test_loss}
    return {
        key: np.array(values) + np.array([[0.01], [-0.01]])
        for key, values in means.items()
    }


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (1.0, 0.8, "over-fits"),
        (0.94, 0.5, "under-fits"),
        (0.95 + 1e-9, 0.92, "balanced"),
        (0.99, 0.93, "over-fits"),
        (0.2, 0.19, "under-fits"),
    ],
)
def test_the_accuracies_decide_while_the_test_loss_falls(train, test, expected):
    assert verdict(curves(train, test)).word == expected


@pytest.mark.parametrize(
    ("test_loss", "train_loss", "expected"),
    [
        # The baseline at a learning rate of 1e-3: lowest at epoch 8 of 100.
        ((0.8, 0.652, 0.953), (0.7, 0.1, 0.001), ("over-fits", 0.652, 2, True)),
        ((0.8, 0.652, 0.7), (0.7, 0.1, 0.001), ("balanced", 0.652, 2, False)),
        ((0.8, 0.652, 0.6), (0.7, 0.1, 0.001), ("balanced", 0.6, 3, False)),
        # Training that diverges does not over-fit.
        ((0.8, 0.652, 0.953), (0.7, 0.1, 0.2), ("balanced", 0.652, 2, False)),
        # Equal minima: the first one.
        ((0.5, 0.5, 0.5), (0.7, 0.1, 0.001), ("balanced", 0.5, 1, False)),
    ],
)
def test_a_test_loss_that_rose_from_its_minimum_is_over_fitting(
    test_loss, train_loss, expected
):
    found = verdict(curves(0.97, 0.96, train_loss, test_loss))
    word, lowest, *others = expected
    assert (found.word, found.epoch, found.has_risen) == (word, *others)
    assert found.lowest == pytest.approx(lowest)


def test_the_loss_may_rise_before_the_images_are_learned():
    assert verdict(curves(0.9, 0.85, (1.0, 0.5), (0.5, 0.9))).word == "over-fits"
    assert verdict(curves(0.9, 0.85)).word == "under-fits"


def test_a_loss_that_is_no_number_is_no_minimum():
    nan = float("nan")
    found = verdict(curves(0.1, 0.1, (1.0, nan), (1.0, nan)))
    assert found == ("under-fits", pytest.approx(1.0), 1, False)
    assert verdict(curves(0.1, 0.1, (nan, nan), (nan, nan))).word == "under-fits"


def test_the_rule_states_its_numbers():
    for number in ("at least 95 %", "more than 5 points", "more than 10 % above"):
        assert number in RULE
    assert RULE.count(".") == 0 and "\n" not in RULE  # one sentence
