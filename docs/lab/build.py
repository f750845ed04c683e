"""Write the notebooks of the lab from their sources, or check them.

    python docs/lab/build.py [NAME …]     # such as over_fitting; all by default
    python docs/lab/build.py --text       # only text has changed; nothing is run
    python docs/lab/build.py --check

A source is a script whose cells begin with `# %%`, as Jupytext reads them. It becomes
two notebooks: NAME.ipynb, in which the cells tagged `solution` are left out, and
NAME_solutions.ipynb, in which those tagged `task` are left out, with its outputs. The
last cell of a source prints `answers`, a dict of numbers, as a line of JSON.
answers.json has those of the published settings, which the saved outputs show, and
those of the small settings, with which `--check` runs each notebook (JAXLAB_FAST=1).
"""

import argparse
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
ANSWERS = HERE / "answers.json"
SOURCES = sorted(path for path in HERE.glob("*.py") if path.name != "build.py")
# Another processor rounds differently, and then classifies a few images differently.
# The smallest split that the small settings test has thirty; this is two of them.
TOLERANCE = 0.07
LEAST_ANSWERS = 5  # in each notebook
# A state of a progress bar, which the next one, or an empty one, overwrites.
BAR = re.compile(r"\r[^\r\n]*(?=\r|\Z)")


def read_source(source: Path, left_out: str) -> NotebookNode:
    """Return the notebook of a source without the cells that are tagged `left_out`."""
    notebook = jupytext.read(source, fmt="py:percent")
    cells = [c for c in notebook.cells if left_out not in tags(c)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # Jupytext draws random ones
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python})


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def notebooks_of(source: Path) -> dict[Path, NotebookNode]:
    """Return the two notebooks of a source by their files, without outputs."""
    return {
        source.with_suffix(".ipynb"): read_source(source, "solution"),
        solutions_file(source): read_source(source, "task"),
    }


def solutions_file(source: Path) -> Path:
    """Return the file of the notebook with solutions."""
    return source.with_name(f"{source.stem}_solutions.ipynb")


def until_first_task(notebook: NotebookNode) -> NotebookNode:
    """Return the part of a student's notebook that runs as it stands."""
    first = next(i for i, cell in enumerate(notebook.cells) if "task" in tags(cell))
    return nbformat.v4.new_notebook(
        cells=notebook.cells[:first], metadata=notebook.metadata
    )


def execute(notebook: NotebookNode, **environment: str) -> NotebookNode:
    """Run a notebook in an empty folder; return it with its outputs.

    Raises CellExecutionError, which shows the cell that failed.
    """
    env = {**os.environ, **environment}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=900,  # seconds for each cell
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        return tidied(client.execute(env=env), os.path.realpath(folder))


def tidied(notebook: NotebookNode, folder: str) -> NotebookNode:
    """Return a notebook that ran in `folder` without progress bars and its name."""
    for cell in notebook.cells:
        kept: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                text = BAR.sub("", output.text).replace("\r", "")
                output.text = text.replace(f"{folder}/", "")
                if not output.text:
                    continue
                if kept and kept[-1].get("name") == output.name:
                    kept[-1].text += output.text
                    continue
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return notebook


def printed_answers(notebook: NotebookNode) -> dict[str, float]:
    """Return the numbers that the last cell has printed as a line of JSON."""
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    return json.loads(printed.splitlines()[-1])


def different_cells(source: Path) -> list[str]:
    """Return the names of the notebooks whose cells are not those of their source."""

    def content(notebook):
        return [(cell.cell_type, cell.source, tags(cell)) for cell in notebook.cells]

    return [
        file.name
        for file, notebook in notebooks_of(source).items()
        if content(nbformat.read(file, as_version=4)) != content(notebook)
    ]


def different_answers(
    found: dict[str, float], expected: dict[str, float], tolerance: float
) -> list[str]:
    """Return a line for each number that is missing, or farther away than `tolerance`.

    Whole numbers are counts, which must be equal.
    """
    lines = [f"{name}: not in both" for name in found.keys() ^ expected.keys()]
    for name in found.keys() & expected.keys():
        is_count = isinstance(expected[name], int)
        allowed = 0 if is_count else tolerance
        if not math.isclose(found[name], expected[name], rel_tol=0, abs_tol=allowed):
            lines.append(f"{name}: {found[name]}, expected {expected[name]}")
    return sorted(lines)


def build(sources: Iterable[Path]) -> None:
    """Write the notebooks and answers.json; those with solutions are run."""
    answers = json.loads(ANSWERS.read_text("utf-8")) if ANSWERS.exists() else {}
    for source in sources:
        student, solutions = notebooks_of(source).values()
        nbformat.write(student, source.with_suffix(".ipynb"))
        published = execute(solutions)
        nbformat.write(published, solutions_file(source))
        fast = execute(read_source(source, "task"), JAXLAB_FAST="1")
        answers[source.stem] = {
            "published": printed_answers(published),
            "fast": printed_answers(fast),
        }
        ANSWERS.write_text(json.dumps(answers, indent=2) + "\n", "utf-8")
        print(f"{source.stem}: {answers[source.stem]}")


def replace_text(source: Path) -> None:
    """Write the notebooks of a source of which only text has changed.

    The outputs stay. Raises ValueError if a cell with code has changed.
    """
    student, solutions = notebooks_of(source).values()
    saved = nbformat.read(solutions_file(source), as_version=4)
    cells, before = (
        [cell for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (solutions, saved)
    )
    if [cell.source for cell in cells] != [cell.source for cell in before]:
        raise ValueError(f"{source.name}: its code has changed; build without --text")
    for cell, run in zip(cells, before, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    solutions.metadata = saved.metadata
    nbformat.write(student, source.with_suffix(".ipynb"))
    nbformat.write(solutions, solutions_file(source))


def check(sources: Iterable[Path]) -> list[str]:
    """Run the notebooks with small settings; return a line for each difference.

    Two sources are checked at a time, since compiling occupies one core. What they
    compile is kept meanwhile, because both notebooks of a source need it.
    """
    with tempfile.TemporaryDirectory() as compiled:
        fast = {
            "JAXLAB_FAST": "1",
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with ThreadPoolExecutor(max_workers=2) as pool:
            found = pool.map(lambda source: faults_of(source, fast), sources)
            return [line for lines in found for line in lines]


def faults_of(source: Path, fast: dict[str, str]) -> list[str]:
    """Run both notebooks of a source with small settings; return each difference."""
    faults = [
        f"{file}: is not what {source.name} gives" for file in different_cells(source)
    ]
    expected = json.loads(ANSWERS.read_text("utf-8"))[source.stem]
    if len(expected["published"]) < LEAST_ANSWERS:
        faults.append(f"{source.stem}: fewer than {LEAST_ANSWERS} answers")
    student, solutions = notebooks_of(source).values()
    execute(until_first_task(student), **fast)
    saved = printed_answers(nbformat.read(solutions_file(source), as_version=4))
    found = printed_answers(execute(solutions, **fast))
    print(f"{source.stem}: {found}", flush=True)
    for kind, numbers, tolerance in (
        ("published", saved, 0.0),
        ("fast", found, TOLERANCE),
    ):
        differences = different_answers(numbers, expected[kind], tolerance)
        faults += [f"{source.stem}, {kind}: {line}" for line in differences]
    return faults


def main() -> None:
    """Write or check the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--text", action="store_true", help="keep the saved outputs")
    how.add_argument("--check", action="store_true", help="run them, write nothing")
    options = parser.parse_args()
    known = {source.stem for source in SOURCES}
    if unknown := sorted(set(options.names) - known):
        parser.error(
            f"NAME: {', '.join(unknown)} is not one of {', '.join(sorted(known))}"
        )
    sources = [s for s in SOURCES if not options.names or s.stem in options.names]
    if options.check:
        if faults := check(sources):
            raise SystemExit("\n".join(faults))
    elif options.text:
        for source in sources:
            replace_text(source)
    else:
        build(sources)


if __name__ == "__main__":
    main()
