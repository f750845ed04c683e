"""Test that a figure is drawn with any name, any setting and any font of the user."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxlab.figures import fonts
from jaxlab.figures.confusion import draw_confusion
from jaxlab.figures.curves import draw_curves
from jaxlab.figures.images import draw_images
from jaxlab.figures.variants import draw_variants

ROW = {"epoch": 1, "train_loss": 0.7, "test_loss": 0.9}
ROW |= {"train_accuracy": 0.8, "test_accuracy": 0.7}
CURVES = {key: [[value]] for key, value in ROW.items() if key != "epoch"}
LOWEST = {"mean": 0.9, "epoch": 1, "has_risen": False}
RESULT = {"curves": CURVES, "verdict": "balanced", "lowest_test_loss": LOWEST}
NAMES = {
    "mathematics": "$a_x^$",
    "TeX": r"\frac{ % & # ~",
    "long": "w" * 200,
    "an escape": "a\x1b[2J\n",
    "not UTF-8": "a\udcff",
    "another script": "猫",
}
QUICK = ("mathematics", "not UTF-8")


def figures(name):
    """Return one of each kind of figure, with the name in its texts."""
    labels = np.array([0, 1])
    return [
        draw_confusion(labels, labels, (name, "dog"), "title"),
        draw_curves([ROW], "title"),
        draw_variants({"baseline": RESULT}, "title"),
        draw_images(np.zeros((2, 8, 8, 1), np.uint8), [name, "dog"]),
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind, name in NAMES.items()
    ],
)
def test_any_name_is_text_and_leaves_space_for_the_axes(name, tmp_path):
    for figure in figures(name):
        figure.savefig(tmp_path / "a.png")  # a warning would be an error here
        assert figure.axes[0].get_window_extent().width > 50


def test_names_are_printable_and_short():
    labels = np.array([0, 1])
    names = ["$a\x1b[2J$", "w" * 200]
    axes = draw_confusion(labels, labels, names, "title").axes[0]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ["$a?[2J$", "w" * 79 + "…"]


def test_the_users_settings_change_no_pixel(tmp_path):
    def pixels(name):
        content = []
        for figure in figures("cat"):
            figure.savefig(tmp_path / name, format="png")
            with Image.open(tmp_path / name) as picture:
                content.append(np.asarray(picture).tobytes())
        return content

    expected = pixels("a.png")
    users = {"text.usetex": True, "font.family": "no such font", "lines.linewidth": 9}
    users |= {"savefig.dpi": 7, "axes.facecolor": "black", "font.size": 40}
    with matplotlib.rc_context(users):
        assert pixels("b.png") == expected
        assert {name: matplotlib.rcParams[name] for name in users} == {
            **users,
            "font.family": ["no such font"],
        }


@pytest.fixture
def installed(monkeypatch):
    """Return a function that says which fonts are installed, and their letters."""

    def install(letters):
        monkeypatch.setattr(fonts, "_files", lambda: dict.fromkeys(letters, "file"))
        monkeypatch.setattr(
            fonts, "_letters", lambda name: frozenset(map(ord, letters.get(name, "")))
        )

    return install


def test_letters_are_taken_from_an_installed_font_or_named(installed):
    installed({fonts.OWN: "cat", "Han": "猫", "Other": "猫 犬"})
    assert fonts.fonts_for("cat c") == ([fonts.OWN], "")
    assert fonts.fonts_for("猫 cat")[1] == ""
    # One font for the whole word, where one has all that any has.
    assert fonts.fonts_for("犬猫鳥") == ([fonts.OWN, "Other"], "鳥")


def test_the_real_font_has_latin_and_no_han_letters():
    assert fonts.fonts_for("Ärger") == ([fonts.OWN], "")
    assert ord("猫") not in fonts._letters(fonts.OWN)


def test_letters_that_are_missing_are_known(installed, tmp_path):
    installed({fonts.OWN: "".join(map(chr, range(32, 0x2100)))})
    figure = draw_confusion(np.array([0, 1]), np.array([0, 1]), ("猫", "犬"), "t")
    figure.savefig(tmp_path / "a.png")
    assert figure.missing == "犬猫"
