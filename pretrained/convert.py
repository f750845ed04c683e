"""python -m pretrained.convert: weights files between torchvision's layout and Flax's.

SOURCE is a .pth or a .safetensors file, or the name of published weights, which are
downloaded when they are not in the cache. OUT gets Flax's names and layouts
("conv1/kernel", HWIO), as .safetensors; with --reverse torchvision's, as .safetensors
or .pth. The file says in its metadata which bytes it was made from.
"""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pretrained.errors import WeightsError, one_line
from pretrained.sources import SOURCES


class _UsageError(Exception):
    """What is wrong with the command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise _UsageError(f"{message.removeprefix('argument ')}; see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; return the exit code: 0 done, 2 usage, 3 bad input, 4 network or hash.

    Also 130 for an interruption, 141 where stdout's reader is gone. An error is one
    line on stderr, and leaves OUT as it was.
    """
    argv = sys.argv[1:] if argv is None else argv
    # A terminal without Unicode gets ? for …, instead of a traceback.
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")
    try:
        _convert(_parsed(argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except _UsageError as error:
        return _report(error, argv, 2)
    except WeightsError as error:
        return _report(error, argv, error.exit_code)
    except BrokenPipeError:
        # The reader of stdout is gone; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of stdout, such as a full disk
        return _report(error, argv, 3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m pretrained.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = ", ".join(SOURCES)
    parser.add_argument("source", metavar="SOURCE", help=f"file, or {known}")
    parser.add_argument("out", metavar="OUT", help="file to write", type=Path)
    flags = {
        "--reverse": "write torchvision's names and layouts",
        "--overwrite": "replace OUT when it exists",
        "--offline": "open no connection",
        "--debug": "show tracebacks",
    }
    for flag, help in flags.items():
        parser.add_argument(flag, action="store_true", help=help)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0], flags, n=1)
        advice = f"did you mean {close[0]}?" if close else "see --help"
        raise _UsageError(f"{unknown[0]}: unexpected argument; {advice}")
    endings = (".safetensors", ".pth") if options.reverse else (".safetensors",)
    if options.out.suffix not in endings:
        hint = "" if options.reverse else ", or add --reverse for a .pth"
        raise _UsageError(
            f"{options.out}: cannot tell the format; end it in "
            f"{' or '.join(endings)}{hint}"
        )
    if os.path.lexists(options.out) and not options.overwrite:
        raise _UsageError(
            f"{options.out}: exists already; pass another name, or --overwrite"
        )
    if not options.out.parent.is_dir():
        raise _UsageError(f"{options.out.parent}: is no folder; create it first")
    return options


def _convert(options: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag do not wait for NumPy.
    from pretrained.download import open_published
    from pretrained.files import provenance, read_weights, write_safetensors
    from pretrained.layout import flat_params, to_torch
    from pretrained.tables import TABLES
    from pretrained.torchfile import write_torch_file

    if options.source in SOURCES:
        with open_published(SOURCES[options.source], offline=options.offline) as file:
            weights = read_weights(file)
    else:
        weights = read_weights(options.source)
    convert = to_torch if options.reverse else flat_params
    tensors = convert(weights.params, TABLES[weights.network])
    if options.out.suffix == ".pth":
        write_torch_file(options.out, tensors)
    else:
        metadata = provenance(weights, os.path.basename(options.source))
        write_safetensors(options.out, tensors, metadata)
    origin = weights.source.title if weights.source else "no published file"
    print(
        f"{options.out}: {len(tensors)} tensors, "
        f"{sum(tensor.size for tensor in tensors.values()):,} parameters under "
        f"{'torchvision' if options.reverse else 'Flax'}'s names, from "
        f"{options.source} (SHA-256 {weights.sha256[:16]}…, {origin})"
    )


def _report(error: Exception, argv: Sequence[str], code: int) -> int:
    if "--debug" in argv:
        traceback.print_exception(error)
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
