"""python -m pretrained.tables NAME: print the key table of a network.

A line for each tensor: its name and shape in torch, and its path and shape in Flax.
"""

import sys

from pretrained import console
from pretrained.errors import printable
from pretrained.layout import flax_shape
from pretrained.tables import TABLES

NAMES = ", ".join(TABLES)


def main(argv: list[str]) -> int:
    """Print the table, and return the exit code."""
    if argv in (["--help"], ["-h"]):
        print(f"{__doc__}\nNAME is one of {NAMES}.")
        return 0
    if len(argv) != 1 or argv[0] not in TABLES:
        given = " ".join(argv) or "nothing"
        print(
            printable(f"error: NAME: got {given}; pass one of {NAMES}"), file=sys.stderr
        )
        return 2
    table = TABLES[argv[0]]
    rows = [("torch", "shape", "Flax", "shape")]
    rows += [
        (
            row.torch,
            _text(row.shape),
            f"{row.collection}/{row.flax}",
            _text(flax_shape(row)),
        )
        for row in table
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    return 0


def _text(shape: tuple[int | str, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


if __name__ == "__main__":
    console.open_streams()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has read enough, as `| head` does
        code = 141
    console.finish()
    sys.exit(code)
