"""Compare the time from process start to the end of the first step with PyTorch's.

    python -m benchmarks.startup

The default job runs on 64 digits. Cold: ours has an empty cache folder, so everything
is compiled. Warm: ours has the cache folder of an earlier run. PyTorch's side compiles
nothing. Both sides end right after the step.
"""

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.harness.pairs import summary
from benchmarks.whole_run import run

SIZES = ("--train-size", "64", "--test-size", "64")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--first-step", nargs="*", help="run only our first step")
    options, flags = parser.parse_known_args(argv)
    if options.first_step is not None:
        first_step(flags)
        return []
    rows = []
    torch_flags = (*SIZES, "--channels-last", "--first-step")
    run("benchmarks.harness.peers", *torch_flags)  # fills the file cache
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as home:
            ours = ("benchmarks.startup", "--first-step", *SIZES)
            cold, _ = run(*ours, JAXLAB_HOME=home)
            warm, _ = run(*ours, JAXLAB_HOME=home)
        theirs, _ = run("benchmarks.harness.peers", *torch_flags)
        rows.append((cold, warm, theirs))
        print(
            f"{pair:>3}  cold {cold:.2f} s, warm {warm:.2f} s, torch {theirs:.2f} s",
            flush=True,
        )
    return [
        summary(f"startup/{name}", [(row[place], row[2]) for row in rows])
        for place, name in enumerate(("cold", "warm"))
    ]


def first_step(flags: list[str]) -> None:
    """Run our command up to the end of the first step."""
    from jaxlab import finetune
    from jaxlab.training import fit

    class Finished(Exception):
        pass

    def stop(*_):
        raise Finished

    fit._update_bar = stop  # the command calls it after each step
    with tempfile.TemporaryDirectory() as out:
        try:
            finetune.main([*flags, "--epochs", "1", "--out", f"{out}/run"])
        except Finished:
            return
    sys.exit("the command ended before its first step")


if __name__ == "__main__":
    main()
