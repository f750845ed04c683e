"""The short form of `python -m benchmarks.chaos`."""

from benchmarks import chaos


def test_killed_at_every_point_and_at_random_a_run_ends_with_the_same_bits(capsys):
    result = chaos.main(["--kills", "4", "--times", "1"])
    assert result["resumed"] == 12
    moments = result["moments"].items()
    assert sum(n for moment, n in moments if moment.startswith("in a save")) >= 4
