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
from pretrained import IntegrityError, stages


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


def on_a_terminal(script):
    """Return what a script shows on a terminal of 80 columns."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    subprocess.run([sys.executable, "-c", script], stderr=child, check=True)
    os.set_blocking(parent, False)
    shown = os.read(parent, 10_000).decode()
    os.close(child)
    os.close(parent)
    return shown


# The widest bar of a run: 200 epochs, a high rate and hours to go.
EPOCH_BAR = """
from jaxlab.cli import terminal
from jaxlab.training import fit
from jaxlab.training.epoch import Score
with terminal.progress_bar(4000, "epoch  12/200", eta=False) as bar:
    bar._ema_dn, bar._ema_dt = (lambda *_: 41.0), (lambda *_: 0.03)
    fit._update_bar(bar, 18_800, Score(12.345, 1.0), 2000)
    bar.refresh()
"""


def test_a_terminal_of_80_columns_shows_the_whole_bar():
    shown = on_a_terminal(EPOCH_BAR)
    line = shown.rpartition("epoch  12/200")[1:]
    line = "".join(line).partition("\r")[0]
    assert " 50%|" in line and line.endswith("loss 12.345 acc 100.0%, ETA 15:17:05")
    assert len(line) <= 80


def test_bars_of_other_work_end_with_the_time_until_they_are_full():
    shown = on_a_terminal(
        "from jaxlab.cli import terminal\n"
        "with terminal.progress_bar(4000, 'features') as bar:\n"
        "    bar.update(2000)\n"
        "    bar.refresh()\n"
    )
    assert " 50%|" in shown and ", ETA 00:00" in shown


WAITING = """
from jaxlab.cli import terminal
terminal.SHELL.wait("starting JAX")
terminal.SHELL.wait("compiling the training step", "compilation: the training step")
with terminal.progress_bar(10, "epoch 1/2"):
    pass
terminal.SHELL.wait("writing the model")
terminal.show_status("")
"""


def test_a_terminal_shows_what_a_command_waits_for_in_one_line():
    shown = on_a_terminal(WAITING)
    texts = [part.strip() for part in shown.split("\r") if part.strip()]
    assert [text.partition("|")[0] for text in texts] == [
        "starting JAX …",
        "compilation: the training step …",
        "epoch 1/2   0%",
        "writing the model …",
    ]
    assert "\n" not in shown


def test_elsewhere_there_is_a_line_only_for_what_is_named_so(capsys):
    terminal.SHELL.wait("starting JAX")  # the line about the data is the first one
    terminal.SHELL.wait("computing features", "features: 5 images")
    terminal.SILENT.wait("computing features", "features: 5 images")
    assert capsys.readouterr() == ("features: 5 images …\n", "")
    assert stages.current() == "computing features"


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


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_waited_for_is_a_status_on_a_terminal_and_else_a_line(
    shown, monkeypatch, capsys
):
    monkeypatch.setattr(terminal, "bars_are_shown", lambda: shown)
    terminal.SHELL.wait("loading the data")
    terminal.SHELL.wait("compiling", "compiling the step")
    terminal.SILENT.wait("training", "training for long")
    assert stages.current() == "training"
    terminal.show_status("")
    written = capsys.readouterr()
    if shown:
        assert written.out == ""
        assert [text.strip() for text in written.err.split("\r") if text.strip()] == [
            "loading the data …",
            "compiling the step …",
        ]
        assert written.err.endswith("\r")  # over blanks, so that nothing is left
    else:
        assert written.out == "compiling the step …\n" and written.err == ""
