"""Command-line flags that are declared as the fields of a dataclass.

The same dataclass is the configuration of the Python function behind the command: it
validates itself, so that a wrong value has one check and one message. It is one file
because a flag's declaration, its help, its parsing and its check belong together.
"""

import argparse
import dataclasses
import functools
import math
import numbers
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from jaxlab.errors import UsageError, did_you_mean, shown


def flag(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    default_help: str | None = None,
    positional: bool = False,
    const: str | None = None,
    synonyms: Sequence[str] = (),
    value_synonyms: Mapping[str, str] = {},
    on_resume: str | None = None,
) -> Any:
    """Declare one flag as a dataclass field: its default, help text and valid values.

    The field `lr_step` becomes `--lr-step`. A bool is a switch: `--name` where the
    default is False, `--no-name` where it is True. `group` begins a group of flags in
    the help text, `metavar` stands there for the value, and `default_help` replaces the
    default. A `positional` argument is given without a name; if its default is a tuple,
    it takes all remaining arguments. A flag with `const` may be given without a value,
    and its value is `const` then. `synonyms` are the names of this flag in other
    programs, for the guess in an error, and `value_synonyms` map other programs' words
    to choices. `on_resume` specifies how a resumed run treats
    the flag; only `jaxlab.config` uses it.
    """
    bounds = {
        "at least": at_least,
        "above": above,
        "below": below,
        "at most": at_most,
    }
    return dataclasses.field(
        default=default,
        metadata=dict(
            help=help,
            group=group,
            metavar=metavar,
            choices=choices,
            bounds={word: bound for word, bound in bounds.items() if bound is not None},
            default_help=default_help,
            positional=positional,
            const=const,
            synonyms=synonyms,
            value_synonyms=value_synonyms,
            on_resume=on_resume,
        ),
    )


# Flags of the commands that load a dataset by name.
data_dir = functools.partial(
    flag,
    None,
    "folder of the original files of mnist or fashion_mnist, or of prepared TFDS "
    "datasets",
    metavar="FOLDER",
    default_help="TFDS_DATA_DIR, else ~/tensorflow_datasets",
)
order = functools.partial(
    flag,
    "balanced",
    "which images the sizes take: balanced (a fixed choice with as many of each class) "
    "or file (the first in the source's own order, whose classes are rarely balanced)",
    choices=("balanced", "file"),
)
manual_dir = functools.partial(
    flag,
    None,
    "folder with the original files of a TFDS dataset, instead of a download",
    metavar="FOLDER",
    default_help="none",
)


def parse(
    config_type: type, argv: Sequence[str] | None, *, prog: str, about: str
) -> dict[str, Any]:
    """Return the flags given in `argv` as values by field name of `config_type`.

    Every field of the dataclass is a flag; flags that are not given are absent from the
    result. `argv` is sys.argv[1:] if None. `about` is the description in the help text.
    Raises UsageError for an unknown flag or a missing value. A text that is not a value
    of its field's type is returned as it is: `validate` refuses it.
    """
    hints = typing.get_type_hints(config_type)
    fields = dataclasses.fields(config_type)
    places = [_metavar(f, hints[f.name]) for f in fields if f.metadata["positional"]]
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *places, "[FLAGS]"]),
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group: Any = parser
    for field in fields:
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        _add(group, field, hints[field.name])
    # Intermixed, so that a flag may stand between a run and its pictures.
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]}: unexpected argument; see --help")
        raise _unknown(config_type, unknown[0])
    return {
        field.name: _from_text(hints[field.name], getattr(values, field.name))
        for field in fields
        if getattr(values, field.name) is not None
    }


def validate(config: Any) -> None:
    """Check every field of a dataclass of flags, for use as its `__post_init__`.

    Paths become strings, and integers in a float field become floats. Raises UsageError
    with the flag, its value and what was expected.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = _checked(field, hints[field.name], getattr(config, field.name))
        object.__setattr__(config, field.name, value)  # the dataclass is frozen


def require_known(
    config_type: type,
    names: Iterable[str],
    others: Sequence[str] = (),
    *,
    only: Container[str] | None = None,
) -> None:
    """Raise UsageError for the first of the names that is not a field.

    `others` are further arguments, which may be meant. With `only`, the other fields
    are not known either.
    """
    known = {field.name for field in dataclasses.fields(config_type)}
    for name in names:
        if name not in known or (only is not None and name not in only):
            flag_name = f"--{name.replace('_', '-')}"
            raise _unknown(config_type, flag_name, others, only)


def names_checked(init: Callable[..., None]) -> Callable[..., None]:
    """Return the `__init__` of a dataclass that refuses unknown names with a guess.

    Python itself would raise TypeError, without one. Help and type checkers still see
    the dataclass's own signature.
    """

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        require_known(type(self), given)
        init(self, *args, **given)

    return checked


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of exiting with a usage text."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see --help")


def _unknown(
    config_type: type,
    name: str,
    others: Sequence[str] = (),
    only: Container[str] | None = None,
) -> UsageError:
    fields = [
        f
        for f in dataclasses.fields(config_type)
        if not f.metadata["positional"] and (only is None or f.name in only)
    ]
    synonyms = {
        f"--{synonym}": _flag_of(field)
        for field in fields
        for synonym in field.metadata["synonyms"]
    }
    known = [*map(_flag_of, fields), *(f"--{other}" for other in others)]
    guess = did_you_mean(name, known, synonyms)
    return UsageError(f"{name}: unknown flag{guess}")


def _flag_of(field: dataclasses.Field) -> str:
    negated = "no-" if field.default is True else ""
    return f"--{negated}{field.name.replace('_', '-')}"


def _add(parser: Any, field: dataclasses.Field, hint: Any) -> None:
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
            metavar=_metavar(field, hint),
            help=meta["help"] + default,
        )
        return
    parser.add_argument(
        _flag_of(field),
        dest=field.name,
        metavar=_metavar(field, hint),
        nargs="?" if meta["const"] else None,
        const=meta["const"],
        help=f"{meta['help']} (default: {meta['default_help'] or field.default})",
    )


def _metavar(field: dataclasses.Field, hint: Any) -> str:
    meta = field.metadata
    if meta["choices"] and meta["metavar"] is None:
        return "{" + ",".join(meta["choices"]) + "}"
    if meta["positional"]:
        return meta["metavar"] or field.name.upper()
    return meta["metavar"] or {int: "N", float: "X", str: "NAME"}[_plain(hint)]


def _plain(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    return hint


def _from_text(hint: Any, text: Any) -> Any:
    if not isinstance(text, str):
        return text if isinstance(text, bool) else tuple(text)
    try:
        return _plain(hint)(text)
    except ValueError:
        return text


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    name, meta, kind = _flag_of(field), field.metadata, _plain(hint)
    if (value is None and kind is not hint) or isinstance(field.default, tuple):
        return value
    try:
        value = _typed(kind, value)
        if isinstance(value, str):
            value = expanded(name, value)
    except TypeError:
        noun = _NOUNS[kind]
        raise UsageError(f"{name}: {shown(value)} is not {noun}; pass {noun}") from None
    if meta["choices"] and value not in meta["choices"]:
        options = ", ".join(meta["choices"])
        raise UsageError(
            f"{name}: {shown(value)} is not one of {options}"
            f"{did_you_mean(value, meta['choices'], meta['value_synonyms'])}"
        )
    bounds = meta["bounds"]
    if kind is int and value > sys.maxsize and not bounds.keys() & {"at most", "below"}:
        bounds = {**bounds, "at most": sys.maxsize}  # NumPy's largest
    expected = " and ".join(f"{word} {bound}" for word, bound in bounds.items())
    text = f"{value:g}" if kind is float else shown(value)
    if kind is float and not math.isfinite(value):
        raise UsageError(
            f"{name}: {text} is not finite; pass a number that is {expected}"
        )
    if not all(_HOLDS[word](value, bound) for word, bound in bounds.items()):
        raise UsageError(
            f"{name}: {text} is out of range; pass a number that is {expected}"
        )
    return value


def expanded(name: str, path: str) -> str:
    """Return a path with its "~" replaced; a shell does not do so in `--out=~/a`.

    The name of a file that exists is left alone. Raises UsageError, which names the
    flag, if the user or the home folder is unknown.
    """
    if os.path.lexists(path):
        return path
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        user = path.split(os.sep)[0]
        raise UsageError(
            f"{name}: {path}: the home folder {user} is unknown; pass the whole path"
        )
    return whole


def _typed(kind: type, value: Any) -> Any:
    """Return a value as `kind`; raises TypeError if it has another type."""
    # NumPy's and JAX's bools are not Python's, but their arrays have a dtype, too.
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == "bool"
    if is_bool or kind is bool:
        if is_bool and kind is bool and not getattr(value, "shape", ()):
            return bool(value)
    elif kind is int:
        return operator.index(value)
    elif kind is float and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:  # an integer or a fraction of hundreds of digits
            return math.inf if operator.gt(value, 0) else -math.inf
    elif kind is str and isinstance(value, (str, os.PathLike)):
        return os.fsdecode(value)
    raise TypeError


_NOUNS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
}
_HOLDS = {
    "at least": operator.ge,
    "above": operator.gt,
    "below": operator.lt,
    "at most": operator.le,
}
