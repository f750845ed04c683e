"""Run the README's Python as a script and as cells of a notebook, in a real kernel."""

import ast
import importlib
import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from jaxlab.cli import terminal
from tests.conftest import ROOT

# Small enough for the suite; `python -m tests.stress cases` also runs the full sizes.
SMALLER = {
    "epochs=40": "epochs=2",
    "test_size=1000, epochs=2": "test_size=20, image_size=63, epochs=1",
}
NARROW = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
NARROW += "from tests.stress.narrow import narrow, NARROW\n"
NARROW += "narrow(hidden=NARROW['hidden'])  # with all channels of the convolutions\n"


def library_code() -> str:
    """Return the first block of Python in the README."""
    text = (ROOT / "README.md").read_text()
    return re.search(r"```python\n(import jaxlab\n.*?)```", text, re.DOTALL)[1]


def smaller(code: str) -> str:
    for size, small in SMALLER.items():
        assert size in code
        code = code.replace(size, small)
    return code


def run_cells(cells: list[str], folder, timeout: int = 600):
    """Run cells in a kernel that starts in `folder`; return them with their outputs."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = NotebookClient(
        notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute().cells


def printed(cell, stream="stdout") -> str:
    return "".join(
        output.text for output in cell.outputs if output.get("name") == stream
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "code", "epochs"),
    [
        pytest.param(NARROW, smaller(library_code()), 2, id="smaller"),
        pytest.param("", library_code(), 40, id="whole", marks=pytest.mark.stress),
    ],
)
def test_each_cell_of_the_readme_runs_twice(first, code, epochs, tmp_path):
    statements = [ast.unparse(node) for node in ast.parse(code).body]
    cells = [first, *(cell for cell in statements for _ in range(2))]
    cells += ["data", "history"]
    done = run_cells([*cells, "run"], tmp_path)
    by_source = {cell.source: cell for cell in done}
    fit = next(cell for cell in done if "jaxlab.fit" in cell.source)
    lines = [line.split()[:2] for line in printed(fit).splitlines()]
    assert lines == [["epoch", f"{i}/{epochs}"] for i in range(1, epochs + 1)]
    figure = next(cell for cell in done if "plot_curves" in cell.source)
    assert [sorted(o.data) for o in figure.outputs if "data" in o] == [
        ["image/png", "text/plain"]
    ]
    for name in ("data", "history", "run"):
        (result,) = by_source[name].outputs
        assert len(result.data["text/plain"].splitlines()) == 1
    # Beside progress bars and what is waited for, nothing is printed to stderr.
    bars = "".join(printed(cell, "stderr") for cell in done)
    rest = re.sub(r"\r[^\r\n]*(images?/s|\?|…)[^\r\n]*|\r *(?=\r|$)", "", bars)
    assert rest.strip() == "" and "\repoch 1/" in bars


def test_a_process_that_starts_kernels_is_no_notebook():
    assert importlib.import_module("ipykernel").__name__ in sys.modules
    assert not terminal.bars_are_shown()


@pytest.mark.slow
def test_the_readme_is_a_script(tmp_path):
    code = NARROW + smaller(library_code())
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    history, run, answer = process.stdout.splitlines()[-3:]
    assert history.startswith("History(2 epochs, train accuracy ")
    assert re.fullmatch(r"Run\('\S+/runs/\S+', 1 epoch, test accuracy 0\.\d+ .*\)", run)
    assert re.fullmatch(r"\[\('\d', .*\)\]", answer)


@pytest.mark.slow
def test_the_exercise_of_a_newcomer_runs(tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "tests" / "newcomer" / "exercise.py", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines.pop(0).startswith("mnist5k: training images: a class-balanced choice")
    assert len(lines) == 9 and lines[-1].startswith("History(5 epochs, train accuracy")
    in_training, in_evaluation = (float(line.split()[-1]) for line in lines[6:8])
    assert in_training != in_evaluation
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "wrong.png"}


# The notebook of transfer learning, which is run with small settings, has the same
# steps.
@pytest.mark.stress
def test_the_transfer_exercise_of_a_newcomer_runs(tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "tests" / "newcomer" / "transfer.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    (accuracy,) = [x for x in lines if x.startswith("test accuracy on 0-4: ")]
    assert 0 <= float(accuracy.split()[-1]) <= 1
    assert "head: (4096, 5) (4096, 10)" in lines
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"curves.png", "mistakes.png"} | {
        f"at{size}.png" for size in (224, 320)
    }


@pytest.mark.parametrize("name", ["exercise", "transfer"])
def test_a_newcomers_exercise_is_short(name):
    tree = ast.parse((ROOT / "tests" / "newcomer" / f"{name}.py").read_text("utf-8"))
    text = ast.unparse(tree.body[1:])  # without comments and the docstring
    code = [line for line in text.splitlines() if line and '"""' not in line]
    assert len(code) <= 40
