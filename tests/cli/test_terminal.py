"""Test how commands report errors and interruptions and draw progress bars."""

import io
import os
import pty
import subprocess
import sys
import termios

import pytest

from jaxlab.cli import terminal
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
        (
            KeyboardInterrupt(),
            130,
            "interrupted while reading the flags: nothing new was saved; run the",
        ),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            3,
            "error: /a/b: Permission denied; check the path, its permissions and the "
            "free space",
        ),
        (OSError("odd"), 3, "error: while reading the flags: odd; check the path"),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, line, capsys):
    assert terminal.run(raising(error)) == code
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_a_bug_is_one_line_and_help_is_no_error(capsys):
    assert terminal.run(raising(ZeroDivisionError())) == 1
    assert capsys.readouterr().err == (
        "error: while reading the flags: ZeroDivisionError; this is a fault of the "
        "program; run again with --debug to see where\n"
    )
    with pytest.raises(SystemExit):
        terminal.run(raising(SystemExit(0)))


def test_too_many_open_files_are_said(capsys):
    assert terminal.run(raising(OSError(24, "Too many open files", "/a"))) == 3
    assert "/a: Too many open files; raise the limit" in capsys.readouterr().err


def test_a_terminal_of_80_columns_shows_the_whole_bar():
    script = (
        "from jaxlab.cli import terminal\n"
        "with terminal.progress_bar(4000, 'epoch 10') as bar:\n"
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


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_warning_that_cannot_be_shown_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    terminal.log("warning: a")
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError):
        terminal.log("a result")


def test_no_setting_of_matplotlib_reaches_a_command(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delenv("MATPLOTLIBRC", raising=False)
    seen = []

    def main():
        seen.append({name: os.environ[name] for name in ("MPLBACKEND", "MATPLOTLIBRC")})

    assert terminal.run(main) == 0
    assert seen == [{"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}]
    assert os.environ["MPLBACKEND"].startswith("module://")
    assert "MATPLOTLIBRC" not in os.environ
