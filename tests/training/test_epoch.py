"""Test that an epoch counts each example once, for any batch size and dispatch."""

import jax
import numpy as np
import pytest

from jaxlab import make_eval_step
from jaxlab.data.loaders import InMemory, epoch_order
from jaxlab.training import epoch
from jaxlab.training.epoch import evaluate_split, train_epoch
from jaxlab.training.step import make_prediction_step
from tests.training.linear import linear_job


def test_the_last_short_batch_does_not_recompile_and_loses_nothing():
    _, step, state, inputs, labels = linear_job()
    seen = []
    programs = epoch._steps._cache_size()
    state, score = train_epoch(
        step,
        state,
        InMemory(inputs, labels),
        order=epoch_order(10, seed=0, epoch=0),
        batch_size=4,
        key=jax.random.key(0),
        on_batch=lambda score, count: seen.append(count),
    )
    assert sum(seen) == 10
    assert int(state.step) == 3
    assert epoch._steps._cache_size() == programs + 1
    assert np.isfinite(score.loss)


def test_steps_give_the_same_bits_by_one_and_by_many(monkeypatch):
    def job(load_of, seconds_away):
        monkeypatch.setattr(epoch, "MAX_DISPATCH_SECONDS", seconds_away)
        _, step, state, inputs, labels = linear_job(count=50)
        calls = []
        state, score = train_epoch(
            step,
            state,
            load_of(InMemory(inputs, labels)),
            order=epoch_order(50, seed=0, epoch=0),
            batch_size=4,
            key=jax.random.key(0),
            on_batch=lambda score, count: calls.append(count),
        )
        return jax.tree.leaves(jax.device_get(state)), score, calls

    whole, score, calls = job(lambda data: data, np.inf)
    assert calls == [4, 8, 16, 22]  # 1, 2, 4, 6 batches; the last has 2 examples
    # A plain function stands for all other loaders, whose batches come from the host.
    loaders = {"one": lambda data: data, "host": lambda data: data.__call__}
    for name, load_of in loaders.items():
        found, found_score, calls = job(load_of, 0)
        assert calls == [4] * 12 + [2], name
        # Batches from the host run in another program, which may round differently.
        tolerance = {"one": 0, "host": 1e-6}[name]
        np.testing.assert_allclose(found_score, score, rtol=tolerance)
        for ours, theirs in zip(found, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance)


def test_predictions_have_the_probability_of_the_predicted_class():
    model, _, state, inputs, labels = linear_job()
    sizes = {"count": 10, "batch_size": 4}
    load = InMemory(inputs, labels)
    steps = [make_eval_step(model.apply), make_prediction_step(model.apply)]
    (score, classes), (same_score, predictions) = (
        evaluate_split(step, state, load, **sizes) for step in steps
    )
    logits = np.asarray(model.apply({"params": state.params}, inputs, train=False))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert same_score == pytest.approx(score, rel=1e-6)
    np.testing.assert_array_equal(predictions.classes, classes)
    np.testing.assert_allclose(
        predictions.probabilities, probabilities.max(-1), rtol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_evaluation_counts_every_example_exactly_once(batch_size):
    model, _, state, inputs, labels = linear_job()
    score, predictions = evaluate_split(
        make_eval_step(model.apply),
        state,
        InMemory(inputs, labels),
        count=10,
        batch_size=batch_size,
    )
    logits = np.asarray(model.apply({"params": state.params}, inputs, train=False))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(predictions, logits.argmax(-1))
    assert score.accuracy == (logits.argmax(-1) == labels).mean()
    np.testing.assert_allclose(
        score.loss, -logs[np.arange(10), labels].mean(), rtol=1e-6
    )
