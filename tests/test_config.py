"""The settings of a run."""

from jaxlab.config import NOT_COMPARED, RESOLVED_FROM_DATA, Config


def test_flags_that_may_differ_are_flags():
    names = Config.__dataclass_fields__.keys()
    assert NOT_COMPARED <= names and RESOLVED_FROM_DATA <= names
