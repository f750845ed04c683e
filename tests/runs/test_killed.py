"""Run `python -m tests.stress chaos` with a single kill."""

import pytest

from tests.stress import chaos


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "resnet18"])
def test_killed_amid_a_save_a_run_ends_with_the_same_bits(model, capsys):
    result = chaos.main(
        ["--kills", "0", "--point", "amid the arrays:2", "--model", model]
    )
    assert result["resumed"] == 1
    assert result["moments"] == {"in a save": 1}
