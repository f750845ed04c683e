"""Command-line flags that are declared as the fields of a dataclass."""

import argparse
import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.errors import UsageError, did_you_mean


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    default_help: str | None = None,
    positional: bool = False,
    const: str | None = None,
    on_resume: str | None = None,
) -> Any:
    """Declare one flag as a dataclass field: its default, help text and valid values.

    The field `lr_step` becomes `--lr-step`. A bool is a switch: `--name` where the
    default is False, `--no-name` where it is True. `default_help` replaces the default
    in the help text. A `positional` argument is given without a name; if its default is
    a tuple, it takes all remaining arguments. A flag with `const` may be given without
    a value, and its value is `const` then. `on_resume` specifies how a resumed run
    treats the flag; only `jaxlab.config` uses it.
    """
    return dataclasses.field(
        default=default,
        metadata=dict(
            help=help,
            choices=choices,
            bounds={
                word: bound
                for word, bound in (
                    ("at least", at_least),
                    ("above", above),
                    ("below", below),
                    ("at most", at_most),
                )
                if bound is not None
            },
            default_help=default_help,
            positional=positional,
            const=const,
            on_resume=on_resume,
        ),
    )


# Flags of the commands that can load a TensorFlow Datasets (TFDS) dataset.
data_dir = functools.partial(
    flag,
    None,
    "folder of prepared TFDS datasets",
    default_help="TFDS_DATA_DIR, else ~/tensorflow_datasets",
)
manual_dir = functools.partial(
    flag,
    None,
    "folder with the original files of a TFDS dataset, instead of a download",
    default_help="none",
)


def parse(
    config_type: type, argv: Sequence[str] | None, *, prog: str, about: str
) -> dict[str, Any]:
    """Return the flags given in `argv` as values by field name of `config_type`.

    Every field of the dataclass is a flag; flags that are not given are absent from the
    result. `argv` is sys.argv[1:] if None. `about` is the description in the help text.
    Raises UsageError with the flag, what was expected and the closest known name.
    """
    parser = _Parser(prog=prog, description=about, allow_abbrev=False)
    hints = typing.get_type_hints(config_type)
    fields = dataclasses.fields(config_type)
    for field in fields:
        _add(parser, field, hints[field.name])
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [
            _flag_of(field) for field in fields if not field.metadata["positional"]
        ]
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]}: unexpected argument; see --help")
        raise UsageError(f"{unknown[0]}: unknown flag{did_you_mean(unknown[0], known)}")
    return {
        field.name: _convert(field, hints[field.name], getattr(values, field.name))
        for field in fields
        if getattr(values, field.name) is not None
    }


def check(config_type: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved values of flags, checked in the same way as given flags.

    Names that are not fields of `config_type` are left out. Raises UsageError for a
    value that is invalid.
    """
    hints = typing.get_type_hints(config_type)
    return {
        field.name: _checked(field, hints[field.name], values[field.name])
        for field in dataclasses.fields(config_type)
        if field.name in values
    }


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of exiting with a usage text."""

    def error(self, message: str):
        raise UsageError(f"{message.removeprefix('argument ')}; see --help")


def _flag_of(field: dataclasses.Field) -> str:
    negated = "no-" if field.default is True else ""
    return f"--{negated}{field.name.replace('_', '-')}"


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any) -> None:
    meta = field.metadata
    if hint is bool:
        parser.add_argument(
            _flag_of(field),
            dest=field.name,
            action="store_const",
            const=not field.default,
            help=meta["help"],
        )
        return
    if meta["positional"]:
        many = isinstance(field.default, tuple)
        default = "" if many else f" (default: {meta['default_help'] or field.default})"
        parser.add_argument(
            field.name,
            nargs="*" if many else "?",
            metavar=field.name.upper(),
            help=meta["help"] + default,
        )
        return
    kind = _plain_type(hint).__name__.upper()
    parser.add_argument(
        _flag_of(field),
        dest=field.name,
        metavar="{" + ",".join(meta["choices"]) + "}" if meta["choices"] else kind,
        nargs="?" if meta["const"] else None,
        const=meta["const"],
        help=f"{meta['help']} (default: {meta['default_help'] or field.default})",
    )


def _plain_type(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    return hint


def _convert(field: dataclasses.Field, hint: Any, text: Any) -> Any:
    if hint is bool or isinstance(field.default, tuple):
        return text if hint is bool else tuple(text)
    name, meta, kind = _flag_of(field), field.metadata, _plain_type(hint)
    if meta["choices"] and text not in meta["choices"]:
        options = ", ".join(meta["choices"])
        raise UsageError(
            f"{name}: {text!r} is not one of {options}"
            f"{did_you_mean(text, meta['choices'])}"
        )
    try:
        value = kind(text)
    except ValueError:
        noun = "whole number" if kind is int else "number"
        raise UsageError(f"{name}: {text!r} is not a {noun}; pass a {noun}") from None
    expected = " and ".join(f"{word} {bound}" for word, bound in meta["bounds"].items())
    if kind is float and not math.isfinite(value):
        raise UsageError(
            f"{name}: {text} is not finite; pass a number that is {expected}"
        )
    if not all(_HOLDS[word](value, bound) for word, bound in meta["bounds"].items()):
        raise UsageError(
            f"{name}: {text} is out of range; pass a number that is {expected}"
        )
    return value


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    if value is None and field.default is None:
        return None
    if isinstance(value, bool) or hint is bool:
        if hint is bool and isinstance(value, bool):
            return value
        raise UsageError(f"{_flag_of(field)}: {value!r} has the wrong type")
    return _convert(field, hint, str(value))


_HOLDS = {
    "at least": operator.ge,
    "above": operator.gt,
    "below": operator.lt,
    "at most": operator.le,
}
