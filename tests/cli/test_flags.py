"""Test that a dataclass defines flags and that flags are parsed into its fields."""

from dataclasses import dataclass

import pytest

from jaxlab.cli import flags
from jaxlab.errors import UsageError


@dataclass(frozen=True)
class Config:
    size: int = flags.flag(3, "a size", at_least=1)
    rate: float | None = flags.flag(None, "a rate", above=0, below=1)
    store: bool = flags.flag(True, "do not store")
    loud: bool = flags.flag(False, "be loud")


def parse(*argv):
    return Config(**flags.parse(Config, argv, prog="test", about="About."))


def test_only_what_was_given_is_returned():
    argv = ["--size", "3", "--no-store"]
    given = flags.parse(Config, argv, prog="test", about="About.")
    assert given == {"size": 3, "store": False}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": 0}, "--size: 0 is out of range; pass a number that is at least 1"),
        ({"size": "three"}, "--size: 'three' is not a whole number"),
        ({"rate": [0.5]}, "--rate: '[0.5]' is not a number"),
        ({"loud": 1}, "--loud: 1 has the wrong type"),
        ({"size": True}, "--size: True has the wrong type"),
    ],
)
def test_values_from_elsewhere_are_checked_as_flags_are(values, message):
    with pytest.raises(UsageError) as raised:
        flags.check(Config, values)
    assert str(raised.value).startswith(message)
    good = {"size": 4, "rate": None, "store": False, "of another command": 1}
    assert flags.check(Config, good) == {"size": 4, "rate": None, "store": False}


def test_flags_become_typed_fields_with_defaults():
    assert parse() == Config(3, None, True, False)
    assert parse("--size", "5", "--rate=0.5", "--no-store", "--loud") == Config(
        5, 0.5, False, True
    )


def test_bounds_are_told_whole():
    with pytest.raises(
        UsageError, match="1 is out of range; pass a number that is above 0 and"
    ):
        parse("--rate", "1")
