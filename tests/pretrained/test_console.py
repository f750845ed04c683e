"""Test that commands work with closed, odd and full streams, in any locale."""

import io
import os
import subprocess
import sys

import pytest

from pretrained import console
from tests.conftest import ROOT

# Runs a command's outermost frame: prints a letter that Latin 1 lacks, then a file is
# opened, and a library writes to stderr's number.
SCRIPT = """
import os, sys
from jaxlab.cli import terminal
def main():
    print("\\u732b \\xe4")
    with open(sys.argv[1], "wb") as file:
        os.write(2, b"a library's message")
        file.write(b"data")
    sys.stderr.write("warning")
sys.exit(terminal.run(main))
"""


def run(redirections, path, script=SCRIPT, **environment):
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", sys.executable, "-c"]
        + [script, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("redirections", "said"),
    [("2>&-", "猫 ä\n"), (">&-", ""), ("<&- >&- 2>&-", "")],
)
def test_nothing_is_written_into_a_file_in_place_of_a_closed_stream(
    redirections, said, tmp_path
):
    process = run(redirections, tmp_path / "file")
    assert process.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"data"
    # What is said to a closed stderr is not said to stdout.
    assert process.stdout == said.encode()


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("locale", LOCALES)
def test_a_redirected_stdout_is_utf_8_in_any_locale(locale, tmp_path):
    process = run("", tmp_path / "file", **locale)
    assert process.stdout == "猫 ä\n".encode()


FAILING = """
import sys
from jaxlab.cli import terminal
from jaxlab.errors import InputError
def main():
    print("a line", end="")
    raise InputError("FILE: why; what to do")
sys.exit(terminal.run(main))
"""


def test_an_error_keeps_its_exit_code_where_stdout_is_full_or_gone(tmp_path):
    for redirection in ("> /dev/full", "| true; exit ${PIPESTATUS}"):
        process = run(redirection, tmp_path, FAILING)
        assert process.returncode == 3
        assert process.stderr == b"error: FILE: why; what to do\n"
    assert run("2> /dev/full", tmp_path, FAILING).returncode == 3


def test_a_stream_of_a_notebook_is_written_to(monkeypatch):
    class OutStream(io.StringIO):
        """As a kernel's: it has neither `reconfigure` nor a file number."""

    monkeypatch.setattr(sys, "stdout", OutStream())
    console.open_streams()
    print("a line")
    console.finish()
    assert sys.stdout.getvalue() == "a line\n"


def test_a_pipe_that_is_open_has_its_reader():
    assert not console.reader_is_gone()


HIDDEN = ("numpy.py", "pretrained/__init__.py")


@pytest.mark.parametrize("name", HIDDEN)
def test_a_file_that_hides_a_package_is_named_in_one_line(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for module in ("jaxlab", "jaxlab.finetune"):
        process = subprocess.run(
            [sys.executable, "-m", module],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 1 and process.stderr.count("\n") == 1
        hidden = tmp_path / name.removesuffix("/__init__.py")
        assert f"{hidden} hides a package of the same name" in process.stderr
