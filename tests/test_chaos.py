"""The short form of `python -m benchmarks.chaos`."""

from benchmarks import chaos


def test_killed_at_every_point_and_at_random_a_run_ends_with_the_same_bits(capsys):
    result = chaos.main(["--kills", "4", "--times", "1"])
    assert result["resumed"] == 13
    in_saves = [moment for moment in result["at_random"] if "in a save" in moment]
    assert sum(result["at_random"][moment] for moment in in_saves) >= 1
    assert result["moments"]["in a deletion"] and result["moments"]["in the export"]
