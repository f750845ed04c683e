"""What every command does with errors, interruptions and the terminal."""

import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass

import pytest

from jaxlab import cli
from jaxlab.errors import InputError, UsageError
from pretrained import IntegrityError


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--a: why; do b"), 2, "error: --a: why; do b"),
        (InputError("file: why\nand so"), 3, "error: file: why and so"),
        (IntegrityError("file: why"), 4, "error: file: why"),
        (InputError("a\x1b[2Jb: why"), 3, "error: a?[2Jb: why"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            3,
            "error: /a/b: Permission denied; check the path, its permissions and the "
            "free space",
        ),
        (OSError("odd"), 3, "error: a file: odd; check the path, its permissions and"),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, line, capsys):
    assert cli.run(raising(error)) == code
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()))


@dataclass(frozen=True)
class Config:
    size: int = cli.flag(3, "a size", at_least=1)
    rate: float | None = cli.flag(None, "a rate", above=0, below=1)
    store: bool = cli.flag(True, "do not store")
    loud: bool = cli.flag(False, "be loud")


def parse(*argv):
    return cli.parse(Config, argv, prog="test", about="About.")


def test_flags_become_typed_fields_with_defaults():
    assert parse() == Config(3, None, True, False)
    assert parse("--size", "5", "--rate=0.5", "--no-store", "--loud") == Config(
        5, 0.5, False, True
    )


def test_bounds_are_told_whole():
    with pytest.raises(
        UsageError, match="1 is out of range; pass a number above 0 and"
    ):
        parse("--rate", "1")


def test_a_terminal_of_80_columns_shows_the_whole_bar():
    script = (
        "from jaxlab import cli\n"
        "with cli.progress(4000, 'epoch 10') as bar:\n"
        "    bar.set_postfix_str('loss 0.123 acc 98.7% lr 0.0001', refresh=False)\n"
        "    bar.update(2000)\n"
        "    bar.refresh()\n"
    )
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    subprocess.run([sys.executable, "-c", script], stderr=child, check=True)
    os.set_blocking(parent, False)
    shown = os.read(parent, 10_000).decode()
    os.close(child)
    os.close(parent)
    assert " 50%|" in shown
    assert "loss 0.123 acc 98.7% lr 0.0001" in shown
