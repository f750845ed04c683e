"""Checks of the fields of a network that count something, such as its channels."""

import operator
from collections.abc import Iterable
from typing import Any

from jaxlab.errors import UsageError, shown


def whole_number(name: str, value: Any) -> int:
    """Return a module's field as an int; raise UsageError if it is not at least 1."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UsageError(
            f"{name}: expected a whole number of at least 1, got {shown(value)}; pass "
            "one"
        )
    return number


def whole_numbers(
    name: str, values: Iterable[Any], count: int | None = None
) -> tuple[int, ...]:
    """Return a module's field as a tuple, which has a hash, in contrast to a list.

    Raises UsageError if it does not hold `count` whole numbers of at least 1.
    """
    try:
        numbers = tuple(whole_number(name, value) for value in values)
        if count in (None, len(numbers)):
            return numbers
    except (TypeError, UsageError):  # it is no sequence, or holds something else
        pass
    expected = "whole numbers" if count is None else f"{count} whole numbers"
    raise UsageError(
        f"{name}: expected {expected} of at least 1, got {shown(values)}; pass such a "
        "list"
    )
