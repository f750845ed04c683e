"""Tests that the published results are those that were measured."""

import json

import pytest

from benchmarks.__main__ import table
from benchmarks.harness.pairs import compare, summary


def test_a_ratio_is_that_of_the_medians_and_the_range_that_of_the_pairs(capsys):
    rows = [(1.0, 2.0), (2.0, 2.0), (4.0, 10.0)]
    result = summary("job", rows, images=8, torch_way="eager")
    assert (result["ours"], result["torch"]) == (4.0, 4.0)  # 8 images in 2 s each
    assert result["ratio"] == 1.0 and result["range"] == [1.0, 2.5]
    assert json.loads(capsys.readouterr().out) == result


def test_sides_take_turns_after_a_warm_up():
    calls = []

    def side(name, seconds):
        def measure():
            calls.append(name)
            return seconds

        return measure

    result = compare("job", side("ours", 1.0), side("torch", 3.0), pairs=2, floor=0.25)
    assert calls == ["ours", "torch"] + ["ours", "torch"] + ["torch", "ours"]
    assert result["ratio"] == 3.0 and result["of_roofline"] == 0.25


@pytest.mark.parametrize("measured", [False, True])
def test_what_was_not_measured_is_said_in_the_table(measured):
    result = {"name": "step/gpu/float32/batch 128", "unit": "s", "ours": 1, "torch": 2}
    result |= {"ratio": 2.0, "range": [1, 3], "date": "today", "machine": "one"}
    rows = table([result] if measured else []).splitlines()
    assert any("**2.00×** (1.00–3.00)" in row for row in rows) == measured
    assert any(row.startswith("| step/gpu | unmeasured") for row in rows) != measured
    assert any(row.startswith("| forward/gpu | unmeasured") for row in rows)
