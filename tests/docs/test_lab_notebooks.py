"""Check the notebooks in docs/lab without running them; docs/lab/build.py runs them."""

import importlib.util
import json
import re
import shutil

import nbformat
import pytest

from tests.conftest import ROOT

LAB = ROOT / "docs" / "lab"
SPEC = importlib.util.spec_from_file_location("lab_build", LAB / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

NAMES = [source.stem for source in build.SOURCES]
MOST_LINES = 40  # of code in the solutions of a notebook: what a student has to write
NUMBER = re.compile(r"\d[\d,]*\.\d+")


def read(file):
    return nbformat.read(file, as_version=4)


def solutions(name):
    return read(LAB / f"{name}_solutions.ipynb")


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(output):
    """Return what an output says, as a stream, as a value or in a figure's place."""
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_notebooks_are_what_their_source_gives(name):
    assert build.different_cells(LAB / f"{name}.py") == []
    student = read(LAB / f"{name}.ipynb")
    assert outputs(student) == []
    tasks = [cell for cell in student.cells if "task" in build.tags(cell)]
    assert tasks and all("# TODO" in cell.source for cell in tasks)


def test_a_notebook_that_was_edited_is_noticed(tmp_path):
    for file in LAB.glob("over_fitting*"):
        shutil.copy(file, tmp_path)
    source = tmp_path / "over_fitting.py"
    assert build.different_cells(source) == []
    notebook = read(tmp_path / "over_fitting.ipynb")
    notebook.cells[0].source += "."
    nbformat.write(notebook, tmp_path / "over_fitting.ipynb")
    assert build.different_cells(source) == ["over_fitting.ipynb"]
    source.write_text(source.read_text("utf-8") + "\n# %%\n1\n", "utf-8")
    assert len(build.different_cells(source)) == 2


def test_text_is_replaced_without_a_run_but_code_is_not(tmp_path):
    for file in LAB.glob("over_fitting*"):
        shutil.copy(file, tmp_path)
    source = tmp_path / "over_fitting.py"
    saved = outputs(read(build.solutions_file(source)))
    source.write_text(
        source.read_text("utf-8") + "\n# %% [markdown]\n# Text.\n", "utf-8"
    )
    build.replace_text(source)
    assert build.different_cells(source) == []
    assert outputs(read(build.solutions_file(source))) == saved
    code = source.read_text("utf-8").replace("BATCH = 1e-2", "BATCH = 1e-1")
    source.write_text(code, "utf-8")
    with pytest.raises(ValueError, match="its code has changed; build without --text"):
        build.replace_text(source)


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_outputs_show_the_published_answers(name):
    expected = json.loads(build.ANSWERS.read_text("utf-8"))[name]
    assert build.printed_answers(solutions(name)) == expected["published"]
    assert len(expected["published"]) >= build.LEAST_ANSWERS
    assert expected["fast"].keys() == expected["published"].keys()


def test_another_answer_is_noticed():
    expected = {"accuracy": 0.81, "epoch": 8}
    assert build.different_answers({"accuracy": 0.83, "epoch": 8}, expected, 0.05) == []
    found = {"accuracy": 0.87, "epoch": 9, "more": 1}
    assert build.different_answers(found, expected, 0.05) == [
        "accuracy: 0.87, expected 0.81",
        "epoch: 9, expected 8",
        "more: not in both",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_saved_outputs_are_small_and_quiet(name):
    saved = outputs(solutions(name))
    assert [output for output in saved if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in saved)
    said = "".join(map(text, saved))
    assert not re.search(r"/(home|root|tmp|usr)/|Traceback|\r", said)
    assert (LAB / f"{name}_solutions.ipynb").stat().st_size < 1_000_000


def test_progress_bars_and_the_folder_of_a_run_are_not_saved():
    written = ["\r 50%|##  |", "\r100%|####|\r         \r", "\rwarning: few images\n"]
    streams = [("stderr", text) for text in written]
    streams[1:1] = [("stdout", "run=/somewhere/"), ("stdout", "runs/digits\n")]
    cell = nbformat.v4.new_code_cell()
    cell.outputs = [
        nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    saved = outputs(build.tidied(notebook, "/somewhere"))
    assert [(output.name, output.text) for output in saved] == [
        ("stdout", "run=runs/digits\n"),
        ("stderr", "warning: few images\n"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_the_text_are_those_of_the_outputs_or_settings(name):
    notebook = solutions(name)
    shown = "".join(map(text, outputs(notebook)))
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    known = set(NUMBER.findall(shown + "".join(code)))
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert [n for n in NUMBER.findall("".join(words)) if n not in known] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_newcomer_has_few_lines_to_write(name):
    written = [
        line
        for cell in solutions(name).cells
        if "solution" in build.tags(cell) and cell.cell_type == "code"
        for line in cell.source.splitlines()
        if line.strip()
    ]
    assert 0 < len(written) <= MOST_LINES
