"""python -m tests.stress NAME [FLAGS]: run a stress test that the suite leaves out.

    chaos   kill runs at random moments and at named points of writing, then resume them
    stops   stop runs with SIGTERM in every phase, then resume them
    fuzz    read thousands of damaged and hostile .pth files
    families  compare every network with torchvision's; FLAGS are names
    broken  break one line in each part of the code; the quick tests must detect it
    tfds    ask for every TFDS dataset by name, offline; FLAGS are names
    duplicates  count the near-duplicates that are found and those reported wrongly
    cases   run every case of every test, including those that the suite leaves out;
            FLAGS are passed to pytest

The exit code is 0 if no fault was found.
"""

import importlib
import sys

import pytest

SCRIPTS = ("chaos", "stops", "fuzz", "families", "broken", "tfds", "duplicates")


def main(argv: list[str]) -> int:
    """Run the named stress test and return the exit code."""
    name, *flags = argv or ["--help"]
    if name == "cases":
        return pytest.main(["--stress", *flags])
    if name in SCRIPTS:
        found = importlib.import_module(f"tests.stress.{name}").main(flags)
        return found if isinstance(found, int) else 0
    print(__doc__)
    return 0 if name == "--help" else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
