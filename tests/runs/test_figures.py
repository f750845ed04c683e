"""Test the pictures of a run: its mistakes, and the curves while it trains."""

import numpy as np
import pytest

from jaxlab.data.dataset import Dataset, Split
from jaxlab.data.preprocess import Preprocess
from jaxlab.runs import figures, writer
from jaxlab.runs.writer import RunWriter
from jaxlab.training.step import Predictions

ROWS = [{"epoch": 1, "test_accuracy": 0.5}]
LABELS = np.array([0, 1, 2, 0, 1], np.int32)


@pytest.fixture(scope="module")
def data():
    """Return five grey images, of which each has another shade."""
    images = np.stack([np.full((8, 8, 1), 40 * n, np.uint8) for n in range(5)])
    split = Split(images, LABELS)
    return Dataset("shades", split, split, ("cat", "dog", "a very long name" * 3))


def mistakes(data, classes, probabilities):
    """Return the figure of mistakes for these predictions."""

    class Writer:
        def draw(self, name, draw):
            self.name, self.figure = name, draw()

    taken = Writer()
    predictions = Predictions(np.array(classes), np.array(probabilities, np.float32))
    names = ["mistakes.png"]
    preprocess = Preprocess(16)
    figures.draw(taken, None, data, preprocess, ROWS, predictions, names)
    assert taken.name == "mistakes.png"
    return taken.figure


def test_mistakes_are_the_wrong_images_with_both_names_most_confident_first(data):
    # The third and fourth are wrong, the fourth with more confidence.
    figure = mistakes(data, [0, 1, 1, 2, 1], [0.9, 0.9, 0.35, 0.8, 0.9])
    # Long names are broken into lines.
    titles = ["".join(axes.get_title().split()) for axes in figure.axes]
    long = "a very long name" * 3
    expected = [
        f"predicted {long}, 80.0 % true cat",
        f"predicted dog, 35.0 % true {long}",
    ]
    assert titles == ["".join(title.split()) for title in expected]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    # As the network saw them, of the size and with the channels of its input.
    assert [image.shape for image in shown] == [(16, 16, 3)] * 2
    assert [np.unique(image).tolist() for image in shown] == [[120], [80]]
    assert figure.texts[0].get_text().splitlines()[-1] == (
        "2 mistakes on 5 test images, the most confident first"
    )


def test_at_most_24_mistakes_are_shown_of_all(data):
    many = np.arange(150) % 5
    more = Split(data.test.images[many], LABELS[many])
    data = Dataset("shades", more, more, data.class_names)
    figure = mistakes(data, (LABELS[many] + 1) % 3, np.linspace(0, 1, 150))
    assert len(figure.axes) == 24
    assert "24 of 150 mistakes on 150 test images" in figure.texts[0].get_text()
    assert "100.0\u00a0%" in figure.axes[0].get_title()


def test_a_run_without_a_mistake_says_so(data):
    figure = mistakes(data, LABELS, [0.9] * 5)
    assert not figure.axes
    said = figure.texts[0].get_text().splitlines()
    assert said[-1] == "No mistake was made on 5 test images."


class Curves:
    """Stands for the function that draws curves; counts the figures it has drawn."""

    def __init__(self, error=None):
        self.drawn, self.error = [], error

    def __call__(self, rows):
        self.drawn.append(len(rows))
        if self.error:
            raise self.error
        return self

    def savefig(self, path, **_):
        path.write_bytes(b"a picture")


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only item is the time of the writer, in seconds."""
    now = [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    return now


def test_curves_are_renewed_every_few_seconds_and_when_training_stops(tmp_path, clock):
    curves, lines = Curves(), []
    run = RunWriter(tmp_path, None, lines.append, curves)
    for epoch, seconds in enumerate((1, 4.9, 5.1, 6, 9, 10.2), 1):
        clock[0] = seconds
        run.renew_curves([{}] * epoch)
    assert curves.drawn == [3, 6]
    run.renew_curves([{}] * 7)
    run.renew_curves([{}] * 7, stopping=True)
    run.renew_curves([{}] * 7, stopping=True)  # they are complete already
    assert curves.drawn == [3, 6, 7] and not lines
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    # Before the first epoch has ended, there is nothing to draw.
    RunWriter(tmp_path, None, lines.append, curves).renew_curves([], stopping=True)
    assert curves.drawn == [3, 6, 7]


def test_slow_drawing_takes_a_twentieth_of_the_time(tmp_path, clock):
    curves = Curves()

    def slow(rows):
        clock[0] += 2
        return curves(rows)

    run = RunWriter(tmp_path, None, print, slow)
    for epoch in range(1, 101):
        clock[0] += 1
        run.renew_curves([{}] * epoch)
    assert len(curves.drawn) in (2, 3)


def test_curves_that_fail_are_one_warning_and_the_run_goes_on(tmp_path, clock):
    lines = []
    curves = Curves(RuntimeError("no\nfont"))
    run = RunWriter(tmp_path, None, lines.append, curves)
    for epoch in (1, 2, 3):
        clock[0] += 60
        run.renew_curves([{}] * epoch)
    assert curves.drawn == [1] and lines == [
        f"warning: {tmp_path / 'curves.png'}: not renewed: RuntimeError: no font; the "
        "run goes on"
    ]
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_finished_run_are_never_those_of_an_earlier_epoch(
    tmp_path, monkeypatch
):
    """A process that is killed before it draws leaves none, so that resume does."""
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        (tmp_path / name).touch()
    left = []
    monkeypatch.setattr(
        writer, "write_safetensors", lambda *_: left.extend(tmp_path.iterdir())
    )
    RunWriter(tmp_path, None, print).write_model({}, {})
    assert left == []
