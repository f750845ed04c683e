"""Run both columns of docs/from-pytorch.md and compare them, block by block."""

import ast
import re

import jax
import numpy as np
import pytest
import torch

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "from-pytorch.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
# The two sides sum products in different orders.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def sections():
    """Return the title and the two programs of each section."""
    _, *parts = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return [(part.partition("\n")[0], *BLOCK.findall(part)) for part in parts]


def value_of(code, names):
    """Run a block of code; return the value of its last line."""
    *statements, last = ast.parse(code).body
    assert isinstance(last, ast.Expr), "the last line of a block is a value"
    exec(compile(ast.Module(statements, []), str(PAGE), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)


def as_numpy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return np.asarray(value) if isinstance(value, jax.Array) else value


def are_equal(one, other):
    """Return whether arrays and floats are close, and all else is the same."""
    parts = one if isinstance(one, list) else [one]
    if not all(isinstance(part, (float, np.ndarray)) for part in parts):
        return one == other
    close = np.allclose(one, other, RELATIVE, ABSOLUTE)
    return np.shape(one) == np.shape(other) and close


@pytest.mark.slow
def test_both_columns_give_the_same_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs, ours = {}, {}
        for title, left, right in sections():
            expected = as_numpy(value_of(left, theirs))
            found = as_numpy(value_of(right, ours))
            assert are_equal(expected, found), (title, expected, found)


def test_a_difference_is_noticed():
    assert are_equal(np.ones(3), np.ones(3)) and are_equal([0.1, 0.2], [0.1, 0.2])
    assert not are_equal(np.ones(3), np.ones((3, 1)))
    assert not are_equal(np.ones(3), np.ones(3) + 1e-3)
    assert not are_equal(["a"], ["b"]) and not are_equal((4, 5), (4, 6))
    with pytest.raises(AssertionError, match="is a value"):
        value_of("a = 3", {})
