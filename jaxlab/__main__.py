"""python -m jaxlab: list the commands, or run one of them.

`python -m jaxlab COMMAND`, `jaxlab COMMAND` and `python -m jaxlab.COMMAND` are the
same.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxlab.cli import terminal
from jaxlab.errors import UsageError, did_you_mean

COMMANDS = {
    "finetune": "fine-tune a pretrained network on images",
    "overfit": "train an MLP on 200 digits, with and without cures for over-fitting",
    "compare": "compare an MLP with AlexNet, random and pretrained, on 200 digits",
    "predict": "classify pictures with a trained network",
    "verify": "check that weights give torchvision's results",
}
# What they are called elsewhere.
_MEANT = dict.fromkeys(("train", "fit", "tune"), "finetune")
_MEANT |= dict.fromkeys(("classify", "infer", "inference"), "predict")
_MEANT |= {"lab": "overfit", "mlp": "overfit", "parity": "verify"}


def main(argv: Sequence[str] | None = None) -> object:
    """Run the command in `argv`, or list the commands; return the command's result."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: jaxlab COMMAND [FLAGS]\n\ncommands:")
        for command, about in COMMANDS.items():
            print(f"  {command:<10}{about}")
        print("\njaxlab COMMAND --help lists the flags of a command.")
        return None
    if name not in COMMANDS:
        guess = did_you_mean(name, list(COMMANDS), _MEANT)
        raise UsageError(f"{name}: unknown command{guess}")
    return importlib.import_module(f"jaxlab.{name}").main(flags)


def run() -> int:
    """Run as the console script; return the exit code."""
    return terminal.run(main)


if __name__ == "__main__":
    sys.exit(run())
