"""Test the confusion matrix, and the colours, names and sizes of its figure."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from jaxlab.figures import fonts
from jaxlab.figures.confusion import (
    NO_IMAGES,
    cell_colors,
    confusion_matrix,
    draw_confusion,
    text_color,
)


def test_rows_are_true_classes_and_columns_predicted_ones():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [0, 0, 1]])


def test_the_confusion_picture_names_classes_counts_and_axes(tmp_path):
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    figure = draw_confusion(labels, predictions, ("cat", "dog"), "Pets")
    figure.savefig(tmp_path / "c.png", dpi=150)
    axes = figure.axes[0]
    assert figure.texts[0].get_text() == "Pets\n1 of 4 wrong"
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class (images)"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat (2)", "dog (2)"]
    cells = {t.get_position(): t.get_text() for t in axes.texts}  # (column, row)
    assert cells == {(0, 0): "1", (1, 0): "1", (1, 1): "2"}
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 400


def luminance(color):
    """Return the relative luminance of an sRGB colour, in [0, 1], after WCAG 2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    """Return WCAG's contrast of two colours, from 1 to 21."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def colors_of(right, wrong):
    """Return the colours of the two cells of a row with so many predictions."""
    return cell_colors(np.array([[right, wrong], [0, 1]]))[0]


def test_one_mistake_of_a_hundred_is_pale_but_not_white():
    assert 0.7 < luminance(colors_of(99, 1)[1]) < 0.95
    assert contrast(colors_of(99, 1)[1], colors_of(0, 100)[1]) > 3


def test_a_class_of_which_none_is_right_has_a_white_cell_on_the_diagonal():
    right, wrong = colors_of(0, 5)
    assert right.tolist() == [1, 1, 1]
    red, green, blue = wrong
    assert red > green > blue and luminance(wrong) < 0.2
    assert cell_colors(np.array([[0, 0], [0, 1]]))[0].tolist() == [[NO_IMAGES] * 3] * 2


def test_right_is_blue_and_wrong_is_orange_and_darker_with_the_share():
    shares = [0.05, 0.2, 0.4, 0.6, 0.8, 0.95]
    pairs = [colors_of(100 * share, 100 - 100 * share) for share in shares]
    for right, _ in pairs:
        assert right[2] == max(right)  # blue, never green
    for cell in (0, 1):
        levels = [luminance(pair[cell]) for pair in pairs]
        assert levels == sorted(levels, reverse=cell == 0)


@pytest.mark.parametrize("share", np.linspace(0, 1, 21))
def test_counts_can_be_read_on_each_colour(share):
    for color in colors_of(100 * share, 100 - 100 * share):
        written = {"black": (0, 0, 0), "white": (1, 1, 1)}[text_color(color)]
        assert contrast(color, written) >= 4.5  # WCAG's minimum for a text


NAMES = {
    "short": "class {}",
    "long": "Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot {}",
    "words": "wheaten terrier {}",
}


SIZES = [
    *itertools.product([2, 10, 37], NAMES),
    pytest.param(200, "long", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("classes", "kind"), SIZES)
def test_all_names_are_whole_and_apart_and_within_the_picture(classes, kind):
    names = [NAMES[kind].format(n) for n in range(classes)]
    labels = np.repeat(np.arange(classes), 3)
    figure = draw_confusion(labels, labels, names, "A title")
    figure.draw_without_rendering()  # it places the labels
    axes, renderer = figure.axes[0], FigureCanvasAgg(figure).get_renderer()
    rows, columns = axes.get_yticklabels(), axes.get_xticklabels()
    # A name may be broken into lines between its words.
    found = ["".join(label.get_text().split()) for label in columns]
    assert found == ["".join(name.split()) for name in names]
    assert [label.get_text() for label in rows] == [f"{name} (3)" for name in names]
    assert min(label.get_size() for label in (*rows, *columns)) >= 6
    whole = figure.bbox
    for labels in (rows, columns):
        boxes = [label.get_window_extent(renderer) for label in labels]
        for box, other in itertools.pairwise(boxes):
            assert not box.overlaps(other)
        for box in (boxes[0], boxes[-1]):
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1
            assert whole.y0 <= box.y0 and box.y1 <= whole.y1
    box = axes.xaxis.label.get_window_extent(renderer)
    assert box.y0 >= 0 and not any(
        box.overlaps(c.get_window_extent(renderer)) for c in columns
    )
    # One count can be read at every size.
    assert {text.get_text() for text in axes.texts} == {"3"}
    side = axes.get_window_extent().width / classes
    assert all(t.get_window_extent(renderer).width < side for t in axes.texts[:3])


def test_counts_that_do_not_fit_are_left_out():
    labels = np.repeat(np.arange(100), [12345, *[1] * 99])
    figure = draw_confusion(labels, labels, [str(n) for n in range(100)], "t")
    assert {text.get_text() for text in figure.axes[0].texts} == {"1"}


@pytest.mark.slow
def test_a_thousand_classes_are_a_picture_that_memory_holds(tmp_path):
    labels = np.arange(1000)
    names = [f"class {n}" for n in labels]
    figure = draw_confusion(labels, labels[::-1], names, "Many")
    figure.savefig(tmp_path / "c.png", dpi=150)
    axes = figure.axes[0]
    assert figure.texts[0].get_text() == (
        "Many\n1,000 of 1,000 wrong; the names are those of every 5th class"
    )
    assert not axes.texts
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == names[::5]
    with Image.open(tmp_path / "c.png") as picture:
        assert 1000 < min(picture.size) and max(picture.size) < 4000
        blues = (np.asarray(picture.convert("RGB"))[..., 2] < 130).sum()
    assert blues > 1000  # each mistake has a cell that can be seen


def test_han_names_are_broken_anywhere_and_whole():
    names = ["東京都庁舎", "猫"]
    labels = np.array([0, 1])
    axes = draw_confusion(labels, labels, names, "t").axes[0]
    found = [label.get_text().replace("\n", "") for label in axes.get_xticklabels()]
    assert found == names


def test_a_line_is_broken_between_words_and_no_letter_is_lost():
    with matplotlib.rc_context({"text.parse_math": False}):
        for text in ("Tomato___Yellow_Leaf_Curl_Virus", "a b c d e f g h", "w" * 50):
            lines = fonts.wrapped(text, 9, 1.0)
            assert "".join(lines) == text.replace(" ", "") or text.count(" ") == 7
            assert all(fonts.width(line, 9) <= 1.0 for line in lines)
        assert fonts.wrapped("Yellow Leaf Curl", 9, 0.8) == ["Yellow Leaf", "Curl"]
        assert fonts.wrapped("", 9, 1.0) == []
