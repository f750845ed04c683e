"""Test the writer of a run and the silent writer, which writes nothing."""

import inspect

import pytest

from jaxlab.runs import writer
from jaxlab.runs.writer import RunWriter, SilentWriter
from tests.runs.conftest import command


def public(kind):
    members = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in members
        if not name.startswith("_") or name in ("__enter__", "__exit__")
    }


def test_the_silent_twin_has_every_method():
    assert public(SilentWriter) == public(RunWriter)


@pytest.mark.slow
def test_a_silent_run_is_the_same_run_and_leaves_nothing(
    narrowed, monkeypatch, tmp_path, capsys
):
    flags = ["--epochs", 1]
    assert command(monkeypatch, tmp_path / "run", *flags) == 0
    loud = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(writer, "RunWriter", lambda *_: SilentWriter())
    assert command(monkeypatch, tmp_path / "silent", *flags) == 0
    silent = capsys.readouterr().out.splitlines()
    accuracy = [lines[-1].split()[0] for lines in (loud, silent)]
    assert accuracy[0] == accuracy[1] and accuracy[0].startswith("test_accuracy=")
    assert not (tmp_path / "silent").exists()
