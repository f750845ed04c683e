"""python -m tests.stress NAME [FLAGS]: what the suite has no time for.

    chaos   SIGKILL at random moments and at named points of the writing, then --resume
    stops   SIGTERM in every phase of a run, then --resume
    fuzz    broken and hostile .pth files
    broken  one line of each part broken, which the short loop must notice
    cases   every case of every test, those included that the suite leaves out; FLAGS
            are pytest's

Each ends with exit code 0 when nothing was found.
"""

import importlib
import sys

import pytest

SCRIPTS = ("chaos", "stops", "fuzz", "broken")


def main(argv: list[str]) -> int:
    """Run what is named; return the exit code."""
    name, *flags = argv or ["--help"]
    if name == "cases":
        return pytest.main(["--stress", *flags])
    if name in SCRIPTS:
        importlib.import_module(f"tests.stress.{name}").main(flags)
        return 0
    print(__doc__)
    return 0 if name == "--help" else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
