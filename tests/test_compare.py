"""Test the comparison of networks: its runs, choices, files and messages."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import jaxlab
from jaxlab import compare
from jaxlab.compare import Config, Start, main
from jaxlab.errors import DivergedError, UsageError
from jaxlab.figures.comparison import draw_comparison
from jaxlab.figures.text import comparison_line
from tests.conftest import assert_one_line

EPOCHS, SIZE = 3, 63
SMALL = {"train_size": 30, "test_size": 20, "validation_fraction": 0.01}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
FLAGS += [f"--image-size={SIZE}", f"--epochs={EPOCHS}", "--batch-size=10", "--seeds=2"]
TIMES = ("seconds", "examples_per_second")


def measured(rows, *splits):
    return [
        {key: value for key, value in row.items() if key.split("_")[0] in splits}
        for row in rows
    ]


@pytest.fixture
def compared(narrowed, monkeypatch, tmp_path):
    """Return the results of narrow networks; no frozen ImageNet layers are narrow."""
    frozen = {"alexnet-frozen": Start("none", "features")}
    monkeypatch.setattr(compare, "NETWORKS", compare.NETWORKS | frozen)
    rates = ["--rates", "1e-3, 1e-2"]
    return main([*FLAGS, *rates, "--out", str(tmp_path / "run")])


@pytest.mark.slow
def test_each_run_is_the_one_that_the_library_does(compared, tmp_path):
    networks, folder = compared["networks"], tmp_path / "run"
    assert list(networks) == ["mlp", "alexnet-scratch", "alexnet-frozen"]
    assert json.loads((folder / "results.json").read_text()) == compared
    for found in networks.values():
        # The rate with the lowest validation loss of the first seed.
        tried = found["tried"]
        assert f"{found['learning_rate']:g}" == min(tried, key=tried.__getitem__)
        assert [run["seed"] for run in found["runs"]] == [0, 1]
        for run in found["runs"]:
            losses = [row["validation_loss"] for row in run["rows"]]
            assert losses[run["best_epoch"] - 1] == min(losses)
    data = jaxlab.load_data("mnist5k", **SMALL, log=False)
    assert compared["images"] == {k: len(split) for k, split in data.splits.items()}

    mlp = networks["mlp"]
    settings = {"epochs": EPOCHS, "batch_size": 10, "lr": mlp["learning_rate"]}
    history = jaxlab.fit(jaxlab.MLP(), data, **settings, seed=1, log=False)
    rows = mlp["runs"][1]["rows"]
    assert measured(rows, "validation") == measured(history.rows, "validation")
    best = rows[mlp["runs"][1]["best_epoch"] - 1]
    assert best["test_accuracy"] == history.test_accuracy

    for name, freeze in (("alexnet-scratch", "none"), ("alexnet-frozen", "features")):
        settings["lr"] = networks[name]["learning_rate"]
        run = jaxlab.fine_tune(
            **SMALL,
            **settings,
            image_size=SIZE,
            weights="none",
            freeze=freeze,
            schedule="constant",
            checkpoint_every=0,
            seed=1,
            out=tmp_path / name,
            log=False,
        )
        ours = networks[name]["runs"][1]
        both = ("train", "validation")
        assert measured(ours["rows"], *both) == measured(run.history, *both)
        best = ours["rows"][ours["best_epoch"] - 1]
        assert best["test_accuracy"] == run.test_accuracy
    frozen, scratch = networks["alexnet-frozen"], networks["alexnet-scratch"]
    assert frozen["trained_parameters"] < scratch["trained_parameters"]
    assert frozen["parameters"] == scratch["parameters"]


# A run of the MLP alone compiles two small programs.
MLP = ["--networks", "mlp", *FLAGS, "--seeds", "1", "--rates", "1e-3"]


def test_the_log_has_a_line_for_each_run_and_the_table(run_here, undrawn, tmp_path):
    out = tmp_path / "run"
    done = run_here(main, *MLP, "--patience", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "mnist5k: 30 training, 40 validation, 20 test images, 1 network, 1 seed, on cpu"
    )
    assert lines[1] == "training mlp at 1 rate, 1 seed …"
    assert lines[2].startswith("mlp  lr 0.001   seed 0  epoch   3 of 3")
    assert lines[4].split()[:3] == ["network", "trained", "parameters"]
    assert lines[5].split()[:4] == ["mlp", "468,874", "0.001", "3"]
    assert lines[6] == compare.RULE
    assert lines[-1] == f"run={out}"
    assert {path.name for path in out.iterdir()} >= {"results.json", "compare.png"}
    # Another run takes its place, and a run of the lab may.
    done = run_here(main, *MLP, "--out", out)
    assert_one_line(done, 2, "is not empty; pass another folder")
    assert run_here(main, *MLP, "--out", out, "--overwrite").returncode == 0


def test_training_ends_after_so_many_epochs_without_a_better_one(undrawn, tmp_path):
    flags = ["--networks", "mlp", *FLAGS, "--seeds", "1", "--epochs", "40"]
    flags += ["--rates", "1e-2", "--patience", "2", "--out", str(tmp_path / "run")]
    (run,) = main(flags)["networks"]["mlp"]["runs"]
    assert run["best_epoch"] + 2 == len(run["rows"]) < 40


def test_rates_that_diverge_are_not_chosen(undrawn, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--overwrite"]
    results = main([*MLP, "--rates", "1e-3,1e30", *out])
    assert results["networks"]["mlp"]["tried"].keys() == {"0.001"}
    said = capsys.readouterr().out
    assert re.search(
        r"^mlp  lr 1e\+30   seed 0  training: the loss is nan ", said, re.M
    )
    with pytest.raises(DivergedError, match="mlp: the loss was not finite at any"):
        main([*MLP, "--rates", "1e30,1e31", *out])


def test_a_rate_at_the_end_of_the_range_is_told(undrawn, tmp_path, capsys):
    main([*MLP, "--rates", "1e-6,1e-3", "--out", str(tmp_path / "run")])
    assert "mlp: lr 0.001 is the highest that was tried" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"networks": "alexnet-frzen"},
            "networks: unknown network 'alexnet-frzen'; did",
        ),
        ({"rates": "1e-3,x"}, "rates: expected numbers above 0, got '1e-3,x'; pass"),
        ({"rates": "0"}, "rates: expected numbers above 0"),
        ({"rates": "inf"}, "rates: expected numbers above 0"),
        ({"image_size": 62}, "image_size: 62 is out of range"),
    ],
)
def test_wrong_settings_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        Config(**flags)


def test_names_and_rates_are_read_in_any_order():
    config = Config(networks=" alexnet-frozen, mlp", rates="1e-3, 1e-4,1e-3")
    assert config.names == ("mlp", "alexnet-frozen")
    assert config.learning_rates == (1e-4, 1e-3)


def test_without_validation_images_nothing_could_choose(run_here, tmp_path):
    flags = [*MLP, "--validation-fraction", 0, "--out", tmp_path / "run"]
    assert_one_line(run_here(main, *flags), 2, "--validation-fraction: 0 leaves no")
    assert not (tmp_path / "run").exists()


def found(epochs, seeds=2):
    """Return the results of a network whose accuracy rises to its best epoch."""
    rows = [
        {"test_accuracy": share, "validation_accuracy": share / 2}
        for share in np.linspace(0.1, 0.9, epochs)
    ]
    runs = [
        {"rows": rows, "best_epoch": epochs - seed, "seconds": 1.0, "seed": seed}
        for seed in range(seeds)
    ]
    return {"trained_parameters": 1000, "learning_rate": 3e-4, "runs": runs}


def test_a_row_shows_the_best_epochs_and_what_was_measured_there():
    line = comparison_line("mlp", found(epochs=9))
    assert line.split() == ["mlp", "1,000", "0.0003", "8–9"] + [
        *("42.5", "±", "2.5"),
        *("85.0", "±", "5.0"),
        "1.0",
    ]
    assert comparison_line("mlp", found(epochs=9, seeds=1)).split()[4:6] == [
        "45.0",
        "90.0",
    ]


@pytest.mark.parametrize("epochs", [(2, 2, 2), (40, 120, 12)])
def test_the_figure_marks_the_best_epoch_of_each_run(epochs, tmp_path):
    networks = {
        name: found(count) for name, count in zip(compare.NETWORKS, epochs, strict=True)
    }
    figure = draw_comparison(networks, "200 images")
    figure.savefig(tmp_path / "figure.png", dpi=50)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (450, 250)
    (axes,) = figure.axes
    assert len(axes.lines) == 6
    for i, line in enumerate(axes.lines):
        network = networks[list(networks)[i // 2]]
        run = network["runs"][i % 2]
        (marked,) = line.get_markevery()
        shown = 100 * run["rows"][run["best_epoch"] - 1]["test_accuracy"]
        assert line.get_ydata()[marked] == pytest.approx(shown)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].startswith("mlp: ") and "±" in labels[0]
