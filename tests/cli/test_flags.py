"""A dataclass becomes flags, and flags a dataclass."""

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
    return flags.parse(Config, argv, prog="test", about="About.")


def test_flags_become_typed_fields_with_defaults():
    assert parse() == Config(3, None, True, False)
    assert parse("--size", "5", "--rate=0.5", "--no-store", "--loud") == Config(
        5, 0.5, False, True
    )


def test_bounds_are_told_whole():
    with pytest.raises(
        UsageError, match="1 is out of range; pass a number above 0 and"
    ):
        parse("--rate", "1")
