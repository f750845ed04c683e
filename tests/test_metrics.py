"""Test what is said about metrics, by values that are known or computed by hand."""

import pytest

from jaxlab.metrics import accuracy_text, best_epoch, patience_ended, wilson_interval


def rows(*losses):
    return [{"epoch": i, "validation_loss": loss} for i, loss in enumerate(losses, 1)]


def test_the_best_epoch_has_the_lowest_loss_and_of_equal_ones_the_later_counts():
    assert best_epoch(rows(0.5, 0.3, 0.4)) == 2
    assert best_epoch(rows(0.3, 0.5, 0.3)) == 3
    assert best_epoch([]) is None
    assert best_epoch([{"epoch": 1, "test_loss": 0.1}]) is None


def test_patience_counts_epochs_since_the_best_one():
    assert not patience_ended(rows(0.3, 0.4), 2)
    assert patience_ended(rows(0.3, 0.4, 0.4), 2)
    assert not patience_ended(rows(0.3, 0.4, 0.3), 1)  # an equal loss is as good
    assert not patience_ended(rows(0.3, 0.4, 0.5), None)
    assert not patience_ended([], 1)


@pytest.mark.parametrize(
    "correct, count, low, high",
    [  # published values of Wilson's interval
        (57, 58, 0.9086, 0.9969),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilsons_interval(correct, count, low, high):
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_an_accuracy_of_few_images_says_of_how_many():
    assert accuracy_text(0.5, 10) == "accuracy 0.5000 (5 of 10; 23.7–76.3 %)"
    assert accuracy_text(0.5, 1000) == "accuracy 0.5000"


def test_aligned_accuracies_have_one_length_and_say_the_same():
    texts = [accuracy_text(n / 800, 800, aligned=True) for n in (0, 7, 80, 791, 800)]
    assert len({len(text) for text in texts}) == 1
    assert texts[1].rstrip() == "accuracy 0.0088 (  7 of 800; 0.4–1.8 %)"
    assert texts[4].rstrip() == "accuracy 1.0000 (800 of 800; 99.5–100.0 %)"
    assert accuracy_text(0.5, 1000, aligned=True) == "accuracy 0.5000"
