"""Test that a dataclass defines flags and that flags are parsed into its fields."""

import importlib
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.__main__ import COMMANDS
from jaxlab.cli import flags
from jaxlab.config import Config as FineTuning
from jaxlab.errors import UsageError, in_python


@dataclass(frozen=True)
class Config:
    size: int = flags.flag(3, "a size", at_least=1)
    rate: float | None = flags.flag(None, "a rate", above=0, below=1)
    store: bool = flags.flag(True, "do not store")
    loud: bool = flags.flag(False, "be loud", synonyms=("noisy",))
    name: str = flags.flag("it", "a name")

    def __post_init__(self):
        flags.validate(self)


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
        ({"size": 3.0}, "--size: 3.0 is not a whole number"),
        ({"size": None}, "--size: None is not a whole number"),
        ({"rate": [0.5]}, "--rate: [0.5] is not a number; pass a number"),
        ({"loud": 1}, "--loud: 1 is not True or False; pass True or False"),
        ({"size": True}, "--size: True is not a whole number; pass a whole number"),
        ({"name": 3}, "--name: 3 is not a string; pass a string"),
    ],
)
def test_a_wrong_value_has_one_text_in_python_and_as_a_flag(values, message):
    with pytest.raises(UsageError) as raised:
        Config(**values)
    assert raised.value.text.startswith(message)
    assert str(raised.value) == raised.value.text.replace("--", "")


def test_values_become_those_of_the_field():
    config = Config(size=np.int64(4), rate=None, store=False, name=Path("a/b"))
    assert (config.size, config.name) == (4, "a/b") and type(config.size) is int
    rate = Config(rate=np.float32(0.5)).rate
    assert rate == 0.5 and type(rate) is float


def test_flags_become_typed_fields_with_defaults():
    assert parse() == Config(3, None, True, False, "it")
    assert parse("--size", "5", "--rate=0.5", "--no-store", "--loud") == Config(
        5, 0.5, False, True
    )


def test_bounds_are_told_whole():
    with pytest.raises(
        UsageError, match="1 is out of range; pass a number that is above 0 and"
    ):
        parse("--rate", "1")


def test_an_unknown_name_is_guessed_by_meaning_before_spelling():
    with pytest.raises(UsageError) as raised:
        parse("--noisy")
    assert raised.value.text == "--noisy: unknown flag; did you mean --loud?"
    with pytest.raises(UsageError) as raised:
        flags.require_known(Config, ["sise"])
    assert str(raised.value) == "sise: unknown setting; did you mean size?"
    with pytest.raises(UsageError, match="xyz: unknown setting; see help"):
        flags.require_known(Config, ["xyz"])


KINDS = {field.name: str(field.type) for field in fields(FineTuning)}
NUMBERS = [name for name, kind in KINDS.items() if "int" in kind or "float" in kind]
ABSURD = {
    "huge": 10**400,
    "hugely negative": -(10**400),
    "of more digits than Python prints": 10**5000,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "numpy's nan": np.float32("nan"),
    "numpy's inf": np.float64("inf"),
    "a fraction": Fraction(10**400, 3),
    "True": True,
    "numpy's False": np.False_,
    "JAX's True": jnp.array(True),
    "complex": 1j,
    "bytes": b"1",
    "a list": [1],
    "a matrix": np.zeros((3, 3)),
    "a long text": "1" * 10_000,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_an_absurd_number_has_the_usual_text(name):
    for case, value in ABSURD.items():
        with pytest.raises(UsageError) as raised:
            FineTuning(**{name: value})
        text = str(raised.value)
        assert text.startswith(f"{name}: "), case
        assert " is " in text and "; pass a" in text, case
        assert len(text) < 200 and "\n" not in text, case


@pytest.mark.parametrize(
    "number", [np.int8(2), np.uint64(2), np.array(2), jnp.int32(2)]
)
def test_whole_numbers_of_any_kind_are_taken(number):
    for name in NUMBERS:
        if name != "image_size" and "int" in KINDS[name]:
            value = getattr(FineTuning(**{name: number}), name)
            assert value == 2 and type(value) is int


def test_a_number_that_is_just_too_large_is_told_the_bound():
    with pytest.raises(UsageError) as raised:
        Config(size=2**63)
    assert raised.value.text == (
        "--size: 9223372036854775808 is out of range; pass a number that is at least 1 "
        "and at most 9223372036854775807"
    )
    assert Config(size=2**63 - 1).size == 2**63 - 1


def test_numpy_s_truth_is_a_switch_s():
    assert Config(loud=np.True_).loud is True


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_every_command_is_in_a_group(command, capsys):
    module = importlib.import_module(f"jaxlab.{command}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    sections = capsys.readouterr().out.split("\n\n")
    (options,) = (text for text in sections if text.startswith("options:"))
    assert options.split()[1:3] == ["-h,", "--help"] and options.count("\n") == 1
    assert not any(text.startswith("positional") for text in sections)
    groups = [f.metadata["group"] for f in fields(module.Config) if f.metadata["group"]]
    assert len(groups) == len(set(groups)) > 1


def test_switches_are_spelled_as_arguments_in_python():
    text = "--out: it is not empty; pass --overwrite, --no-feature-cache or --l2 3"
    assert in_python(text) == (
        "out: it is not empty; pass overwrite=True, feature_cache=False or l2 3"
    )
    assert in_python("a--b: c -- d") == "a--b: c -- d"


def test_a_home_folder_is_replaced_where_the_shell_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert parse("--name=~/a").name == "/home/me/a" == Config(name="~/a").name
    with pytest.raises(UsageError, match="name: ~no-one/a: the home folder ~no-one is"):
        parse("--name", "~no-one/a")
    (tmp_path / "~a.jpg").touch()  # a name may begin so
    assert parse("--name", "~a.jpg").name == "~a.jpg"
