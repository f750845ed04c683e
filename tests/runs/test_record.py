"""Test that config.json and metrics.jsonl are read as written, or refused."""

import dataclasses
import json

import pytest

from jaxlab.config import Config
from jaxlab.data.digits import mnist5k
from jaxlab.data.preprocess import Preprocess
from jaxlab.runs.record import (
    Record,
    finished_rows,
    parse_record,
    read_record,
    read_rows,
    rows_text,
)

HERE = {"device": "cpu (one)", "versions": {"jaxlab": "0.1.0", "jax": "1"}}
THERE = {"device": "cpu (other)", "versions": {"jaxlab": "0.1.0", "jax": "2"}}


@pytest.fixture(scope="module")
def record():
    preprocess = Preprocess(63, crop=True, mean=(0.1, 0.2, 0.3))
    weights = {"name": "none", "layers": {}}
    return Record.of(Config(), mnist5k().first(20, 10), preprocess, weights, HERE)


def text_of(record, **changes):
    return json.dumps({**dataclasses.asdict(record), **changes})


def test_a_record_is_read_as_it_was_written(record):
    assert parse_record(text_of(record)) == record
    assert Preprocess(**record.preprocess_arguments()) == Preprocess(
        63, crop=True, mean=(0.1, 0.2, 0.3)
    )
    assert record.sha256 == mnist5k().first(20, 10).fingerprint()
    assert record.precision == "float32"


def test_a_resumed_run_remembers_every_process(record):
    config = Config(epochs=9)
    again = record.resumed(config, 14, THERE).resumed(config, 21, HERE)
    assert again.settings["epochs"] == 9 and record.settings["epochs"] == 5
    assert list(parse_record(text_of(again)).environments()) == [
        ("began", {"device": "cpu (one)", "jaxlab": "0.1.0", "jax": "1"}),
        (
            "was resumed at step 14",
            {"device": "cpu (other)", "jaxlab": "0.1.0", "jax": "2"},
        ),
        (
            "was resumed at step 21",
            {"device": "cpu (one)", "jaxlab": "0.1.0", "jax": "1"},
        ),
    ]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"settings": None}, "'settings' is missing or has the wrong type"),
        ({"weights": [1]}, "'weights'"),
        ({"versions": {}}, "was not written by jaxlab"),
        ({"resumptions": {}}, "'resumptions'"),
    ],
)
def test_what_is_no_runs_is_named(record, change, reason, tmp_path):
    text = text_of(record, **change)
    with pytest.raises(ValueError, match=reason):
        parse_record(text)
    path = tmp_path / "config.json"
    assert read_record(path) is None
    path.write_text(text)
    assert read_record(path) is None
    path.write_text(text_of(record))
    assert read_record(path) == record  # the control


def test_a_run_of_before_is_read(record):
    content = dataclasses.asdict(record)
    del content["resumptions"]
    assert parse_record(json.dumps({**content, "resumed": []})) == record


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == [] and finished_rows(path, 1, None) == []
    rows = [{"epoch": 1, "test_accuracy": 0.1}, {"epoch": 2, "test_accuracy": 0.3}]
    path.write_text(rows_text(rows))
    assert read_rows(path) == rows
    assert finished_rows(path, 2, None) == rows and finished_rows(path, 3, None) == []
    with pytest.raises(ValueError):
        rows_text([{"test_loss": float("nan")}])
