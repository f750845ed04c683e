"""From the start of the process to its first finished step, beside PyTorch's.

    python -m benchmarks.startup

The default job on 64 digits. Cold: ours with an empty cache folder, so all is compiled;
warm: with the folder a run has left. PyTorch's compiles nothing. Both end right after
the step.
"""

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.harness.pairs import summary
from benchmarks.whole_run import run

SIZES = ("--train-size", "64", "--test-size", "64")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print, and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--first-step", nargs="*", help="ours alone, with these flags")
    options, flags = parser.parse_known_args(argv)
    if options.first_step is not None:
        first_step(flags)
        return []
    rows = []
    torch_flags = (*SIZES, "--channels-last", "--first-step")
    run("benchmarks.harness.peers", *torch_flags)  # so that all files are in memory
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
    """Run the command up to the first finished step."""
    from jaxlab import finetune
    from jaxlab.training import fit

    class Finished(Exception):
        pass

    def stop(*_):
        raise Finished

    fit._update_bar = stop  # what the command calls after each step
    with tempfile.TemporaryDirectory() as out:
        try:
            finetune.main([*flags, "--epochs", "1", "--out", f"{out}/run"])
        except Finished:
            return
    sys.exit("no step was taken")


if __name__ == "__main__":
    main()
