"""Test what the first page promises: length, words, links and figures."""

import json
import re

import pytest

from jaxlab.figures.text import at_best, comparison_line, percent
from tests.conftest import (
    FORWARD_FLOAT32,
    FORWARD_FLOAT64,
    ROOT,
    TRAJECTORY_FLOAT64,
)

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def sentences(text):
    """Return the sentences of a page's prose, each as its words."""
    text = FENCE.sub("", text)
    lines = [re.sub(r"^(#+|- )", ". ", line) for line in text.splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("|"))
    parts = re.split(r"[.:!?](?:\s|$)|\n\n", text)
    return [part.split() for part in parts if part.split()]


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 180
    assert len(README.split()) <= 1500
    longest = max(sentences(README), key=len)
    assert len(longest) <= 30, " ".join(longest)
    assert not re.findall(r"\b(kill|fuzz|cache|exit code)", README, re.IGNORECASE)


def test_a_long_sentence_is_noticed():
    text = (
        "# Title\n\n" + "word " * 31 + "end. Short.\n\n```\n" + "code " * 99 + "\n```\n"
    )
    assert max(map(len, sentences(text))) == 32


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text()))
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]


def test_the_log_on_the_first_page_is_that_of_the_run_in_its_pictures():
    log = (ROOT / "docs" / "first-run" / "log.txt").read_text("utf-8").splitlines()
    (block,) = re.findall(
        r"^```\n(mnist5k: .*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    lines = block.splitlines()
    assert len(lines) == 8 and [line for line in lines if line not in log] == []


def test_the_compared_networks_on_the_first_page_are_those_of_their_results():
    results = json.loads((ROOT / "benchmarks" / "compare.json").read_text("utf-8"))
    table = README[README.index("| network |") :]
    rows = [
        [cell.strip() for cell in row.split("|")]
        for row in table.split("\n\n")[0].splitlines()[2:]
    ]
    published = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for row, (name, found) in zip(rows, results["networks"].items(), strict=True):
        line = comparison_line(name, found)
        assert line in published
        _, _, accuracy, epochs, trained, _ = row
        measured = percent(at_best(found, "test_accuracy"))
        assert [accuracy, trained] == [f"{measured} %", line.split()[1]]
        assert epochs == line.split()[3]


def test_the_tables_of_the_lab_are_what_the_command_printed():
    printed = [
        (ROOT / "benchmarks" / f"overfit-{count}.txt").read_text("utf-8").splitlines()
        for count in (200, 4000)
    ]
    page = (ROOT / "docs" / "lab.md").read_text("utf-8")
    tables = re.findall(r"^```\n(variant .*?)^```$", page, re.DOTALL | re.MULTILINE)
    for table, log in zip(tables, printed, strict=True):
        rows = table.splitlines()
        assert len(rows) == 9 and [row for row in rows if row not in log] == []


# What the rows of the first page's table of speed were measured by.
MEASURED_BY = {
    "an epoch, convolutions frozen": ["finetune_epoch/features"],
    "an epoch, all but the head frozen": ["finetune_epoch/backbone"],
    "an epoch, nothing frozen": ["finetune_epoch/none"],
    "the default run, first and second time": ["whole_run/first", "whole_run/second"],
    "start to first step, everything compiled anew": ["startup/cold"],
}
NUMBER = r"\d[\d,]*(?:\.\d+)?"


def rows_below(header):
    """Return the rows of the first page's table with this header, as their cells."""
    table = README.partition(f"{header}\n")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in table.splitlines()[1:]
    ]


def as_written(value, text):
    """Return a value with as many decimals as a text has."""
    return f"{value:,.{len(text.partition('.')[2])}f}"


def test_each_speed_on_the_first_page_was_measured():
    lines = (ROOT / "benchmarks" / "results.jsonl").read_text("utf-8").splitlines()
    results = {result["name"]: result for result in map(json.loads, lines)}
    rows = rows_below("| what | ours | PyTorch | ratio |")
    assert [what for what, *_ in rows] == list(MEASURED_BY)
    for what, *cells in rows:
        found = [results[name] for name in MEASURED_BY[what]]
        for cell, key in zip(cells, ("ours", "torch", "ratio"), strict=True):
            numbers = re.findall(NUMBER, cell)
            values = [result[key] for result in found][: len(numbers)]
            assert numbers == list(map(as_written, values, numbers)), what


def test_each_accuracy_on_the_first_page_was_measured():
    published = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    (means,) = re.findall(r"^\| mean (.*)$", published, re.MULTILINE)
    cells = [cell for *_, cell in rows_below("| test images | n | accuracy |")]
    numbers = re.findall(NUMBER, " ".join(cells))
    values = map(float, re.findall(NUMBER, means))
    assert numbers == list(map(as_written, values, numbers))


def test_each_error_on_the_first_page_is_a_bar_of_the_tests():
    cells = [cell for _, cell in rows_below("| what | largest error |")]
    errors = [float(error) for error in re.findall(r"\d+e-\d+", " ".join(cells))]
    assert errors == [FORWARD_FLOAT32, FORWARD_FLOAT64, TRAJECTORY_FLOAT64]


def test_the_certificates_on_the_page_of_equality_are_whole_and_what_was_printed():
    page = (ROOT / "docs" / "equality.md").read_text("utf-8")
    cpu, gpu = (
        (ROOT / "docs" / "certificates" / f"{name}.txt").read_text("utf-8").splitlines()
        for name in ("cpu", "h100")
    )
    (block,) = re.findall(r"^```\n(precision .*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = block.splitlines()
    assert len(lines) == 7 and [line for line in lines if line not in cpu] == []
    rows = [line.split() for line in gpu if line.startswith("float")]
    assert len(rows) == 54 and {row[-1] for row in rows} == {"equal"}
    largest = {}
    for precision, *_, error, _ in rows:
        largest[precision] = max(float(error), largest.get(precision, 0))
    said = re.search(r"largest\s+error is (\S+) in float32 and (\S+) in float64", page)
    assert [float(x) for x in said.groups()] == list(largest.values())


def test_the_log_of_a_validated_run_is_what_was_printed():
    log = (ROOT / "docs" / "first-run" / "validated.txt").read_text("utf-8")
    page = (ROOT / "docs" / "pictures.md").read_text("utf-8")
    (block,) = re.findall(
        r"--validation-fraction .*\n\n(mnist5k: .*?)^```$",
        page,
        re.DOTALL | re.MULTILINE,
    )
    lines = [line for line in block.splitlines() if line != "…"]
    assert len(lines) == 5
    assert [line for line in lines if line not in log.splitlines()] == []


def test_each_ratio_on_the_first_page_was_measured():
    table = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    ratios = re.findall(r"\d+\.\d+×", README)
    assert len(ratios) >= 6
    assert [ratio for ratio in ratios if f"**{ratio}**" not in table] == []
