"""Test the lab's figure: panels, lines, bands, colours, and many variants or epochs."""

import colorsys

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxlab.figures.variants import draw_variants
from jaxlab.training.variants import VARIANTS
from jaxlab.verdict import verdict


def results(names, seeds=3, epochs=5):
    random = np.random.default_rng(0)
    found = {}
    for name in names:
        falling = np.linspace(1, 0.1, epochs) + 0.05 * random.random((seeds, epochs))
        curves = {"train_loss": falling, "test_loss": falling + 0.3}
        curves |= {
            "train_accuracy": 1 - falling / 2,
            "test_accuracy": 0.8 - falling / 2,
        }
        said = verdict(curves)
        found[name] = {
            "verdict": said.word,
            "lowest_test_loss": {
                "mean": said.lowest,
                "epoch": said.epoch,
                "has_risen": said.has_risen,
            },
            "curves": {key: values.tolist() for key, values in curves.items()},
        }
    return found


def test_each_variant_has_its_loss_above_its_accuracy():
    found = results(["baseline", "dropout+l2"])
    figure = draw_variants(found, "A title")
    assert figure.get_suptitle() == "A title"
    losses, accuracies = figure.axes[:2], figure.axes[2:]
    assert losses[0].get_ylabel() == "loss (nats)"
    assert accuracies[0].get_ylabel() == "accuracy (%)"
    for name, loss, accuracy in zip(found, losses, accuracies, strict=True):
        result, curves = found[name], found[name]["curves"]
        assert loss.get_title() == f"{name}\n{result['verdict']}, gap 20.0 points"
        lines = {line.get_label(): line for line in loss.lines}
        mean, deviation = (
            np.mean(curves["test_loss"], 0),
            np.std(curves["test_loss"], 0),
        )
        np.testing.assert_allclose(lines["test"].get_ydata(), mean)
        band = loss.collections[1].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx((mean + deviation).max())
        lowest = result["lowest_test_loss"]
        point = lines["lowest test loss"].get_xydata().tolist()
        assert point == [[lowest["epoch"], lowest["mean"]]]
        lines = {line.get_label(): line for line in accuracy.lines}
        mean = np.mean(curves["train_accuracy"], 0)
        np.testing.assert_allclose(lines["training"].get_ydata(), 100 * mean)
    assert losses[0].get_ylim() == losses[1].get_ylim()


def test_one_seed_has_no_band():
    several, one = (draw_variants(results(["l2"], seeds), "") for seeds in (2, 1))
    assert [len(axes.collections) for axes in several.axes] == [2, 2]
    assert [len(axes.collections) for axes in one.axes] == [0, 0]


def test_the_curves_differ_in_hue_in_brightness_and_in_style():
    train, test = draw_variants(results(["l2"]), "").axes[0].lines[:2]
    assert train.get_linestyle() != test.get_linestyle()
    hues = [colorsys.rgb_to_hsv(*to_rgb(x.get_color()))[0] for x in (train, test)]
    # Blue and orange: every kind of colour vision tells them apart; red and green not.
    assert hues[0] == pytest.approx(0.56, abs=0.05)
    assert hues[1] == pytest.approx(0.07, abs=0.05)


@pytest.mark.parametrize(
    ("names", "epochs"),
    [
        (["baseline"], 1),
        (VARIANTS, 5),
        (VARIANTS, 200),
        ([*VARIANTS, "batchnorm+dropout+l2+l1+step-decay"], 40),
    ],
)
def test_no_panel_is_small_and_no_heading_is_cut(names, epochs, tmp_path):
    figure = draw_variants(results(names, epochs=epochs), "A title")
    figure.savefig(tmp_path / "figure.png", dpi=50)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 2 * len(names)
    width, height = figure.get_size_inches()
    for axes in panels:
        box = axes.get_position()
        assert box.width * width > 1.9 and box.height * height > 1.3
        heading = axes.title.get_window_extent()
        assert heading.x0 >= 0 and heading.x1 <= figure.bbox.width
        assert heading.width < 1.25 * axes.bbox.width
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    marked = {line.get_marker() for line in figure.axes[0].lines[:2]}
    assert marked == ({"o", "s"} if epochs <= 10 else {""})
