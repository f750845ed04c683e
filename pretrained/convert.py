"""python -m pretrained.convert: convert weights between torchvision's and Flax's names.

SOURCE is a .pth or .safetensors file, or the name of published weights, which are
downloaded if they are not in the cache. OUT is a .safetensors file with Flax's names
and layouts ("conv1/kernel", HWIO). With --reverse, it is a .safetensors or .pth file
with torchvision's. The metadata of a .safetensors file names the file it was made from.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrained import console, stages
from pretrained.errors import WeightsError, one_line, printable
from pretrained.sources import PUBLISHED


class _UsageError(Exception):
    """Raised for an invalid command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise _UsageError(f"{message.removeprefix('argument ')}; see --help")


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Convert SOURCE to OUT, and return the exit code.

    It is 0 for success, 1 for an error that nobody foresaw, 2 for a usage error, 3 for
    bad input or a failed write, 4 for a failed download or a wrong hash, 130 after an
    interrupt, and 141 if the reader of stdout has closed it. An error is one line on
    stderr; a failed conversion leaves OUT unchanged.
    """
    argv = sys.argv[1:] if argv is None else argv
    console.open_streams()
    stages.start()
    try:
        return _outcome(argv)
    finally:
        console.finish()


def _outcome(argv: Sequence[str]) -> int:
    try:
        _convert(_parsed(argv))
        stages.begin("exiting")
        sys.stdout.flush()
        return 0
    except _UsageError as error:
        return _report(error, argv, 2)
    except WeightsError as error:
        return _report(error, argv, error.exit_code)
    except KeyboardInterrupt:
        console.say(one_line(f"interrupted while {stages.current()}: {stages.saved()}"))
        return 130
    except SystemExit:  # of --help
        raise
    # The command's outermost frame; Rust's panics are no Exception.
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and console.reader_is_gone():
            return 141
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            return _report(error, argv, 3)  # for example of a full disk
        if "--debug" in argv:
            console.show(error)
        console.say(f"error: {console.unforeseen(error, '--debug' in argv)}")
        return 1


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m pretrained.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = " or ".join(PUBLISHED)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"file to read, or {known}",
        type=os.path.expanduser,
    )
    parser.add_argument("out", metavar="OUT", help="file to write", type=_path)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="network, such as resnet50 (default: that of SOURCE; of published weights "
        "alexnet)",
    )
    flags = {
        "--reverse": "write torchvision's names and layouts",
        "--overwrite": "replace OUT if it exists",
        "--offline": "do not use the network",
        "--debug": "show tracebacks",
    }
    for flag, help in flags.items():
        parser.add_argument(flag, action="store_true", help=help)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0], ["--model", *flags], n=1)
        advice = f"did you mean {close[0]}?" if close else "see --help"
        raise _UsageError(f"{unknown[0]}: unexpected argument; {advice}")
    if options.model is not None:
        from pretrained.tables import TABLES

        if options.model not in TABLES:
            raise _UsageError(
                f"--model: {options.model!r} is not one of {', '.join(TABLES)}"
            )
    endings = (".safetensors", ".pth") if options.reverse else (".safetensors",)
    if options.out.suffix not in endings:
        hint = "" if options.reverse else ", or add --reverse to write a .pth file"
        raise _UsageError(
            f"{options.out}: unknown file format; end the name in "
            f"{' or '.join(endings)}{hint}"
        )
    if os.path.lexists(options.out) and not options.overwrite:
        raise _UsageError(
            f"{options.out}: already exists; pass another name, or pass --overwrite to "
            "replace it"
        )
    if not options.out.parent.is_dir():
        raise _UsageError(f"{options.out.parent}: not a directory; create it first")
    return options


def _convert(options: argparse.Namespace) -> None:
    # These are imported here, so that --help and a mistyped flag do not load NumPy.
    from pretrained.download import open_published
    from pretrained.files import (
        provenance,
        read_weights,
        with_flax_names,
        write_safetensors,
    )
    from pretrained.layout import flat, to_state_dict
    from pretrained.sources import published
    from pretrained.tables import DEFAULT, TABLES
    from pretrained.torchfile import write_torch_file

    stages.begin("reading the weights")
    if options.source in PUBLISHED:
        source = published(options.model or DEFAULT, options.source)
        with open_published(source, offline=options.offline) as file:
            weights = read_weights(file, source.network)._replace(source=source)
    else:
        weights = read_weights(options.source, options.model)
    stages.begin("converting")
    if options.reverse:
        tensors = to_state_dict(weights.variables, weights.network)
    else:
        tensors = with_flax_names(weights.variables, TABLES[weights.network])
    stages.begin("writing the weights")
    if options.out.suffix == ".pth":
        write_torch_file(options.out, tensors)
    else:
        metadata = provenance(weights, os.path.basename(options.source))
        write_safetensors(options.out, tensors, metadata)
    stages.describe_saved(lambda: f"{options.out} is complete")
    origin = weights.source.title if weights.source else "not a published file"
    count = sum(array.size for array in flat(weights.params).values())
    line = (
        f"{options.out}: {len(tensors)} tensors, "
        f"{count:,} parameters with "
        f"{'torchvision' if options.reverse else 'Flax'}'s names, from "
        f"{options.source} (SHA-256 {weights.sha256[:16]}…, {origin})"
    )
    print(printable(line))


def _report(error: Exception, argv: Sequence[str], code: int) -> int:
    if "--debug" in argv:
        console.show(error)
    console.say(f"error: {one_line(str(error))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
