"""Test how settings complete each other, and how `--resume` treats each of them."""

import json

import numpy as np
import pytest

from jaxlab.config import (
    BY_CONTENT,
    NOT_COMPARED,
    PER_PROCESS,
    RESOLVED_FROM_DATA,
    Config,
    fields_that,
    resolved,
)
from jaxlab.errors import UsageError
from jaxlab.runs import resume

# These sets repeat jaxlab.config on purpose: a setting that may differ when a run is
# resumed must be listed here too, so that none is marked so by accident.
ON_RESUME = {
    PER_PROCESS: {"out", "resume", "overwrite", "debug", "offline", "check"}
    | {"layers"},
    NOT_COMPARED: {"epochs", "patience", "workers", "keep", "checkpoint_every"}
    | {"feature_cache_size", "data_dir", "manual_dir", "exclude"},
    RESOLVED_FROM_DATA: {"train_size", "test_size", "batch_size"},
    BY_CONTENT: {"dataset", "weights"},
}


def test_each_setting_says_what_it_may_do_when_a_run_goes_on():
    for kind, names in ON_RESUME.items():
        assert fields_that(kind) == names
    rest = set(Config.__dataclass_fields__).difference(*ON_RESUME.values())
    assert fields_that(None) == rest
    assert {"seed", "lr", "freeze", "test_fraction"} <= rest


@pytest.mark.parametrize("epochs, lr_step", [(1, 1), (5, 3), (20, 12), (21, 13)])
def test_the_rate_falls_after_three_fifths_of_the_epochs(epochs, lr_step):
    assert resolved(Config(epochs=epochs)).lr_step == lr_step
    assert resolved(Config(epochs=epochs, lr_step=7)).lr_step == 7
    assert resolved(Config(epochs=epochs, schedule="cosine")).lr_step is None


@pytest.mark.parametrize(
    "settings, adam, sgd",
    [
        ({}, 1e-4, 0.01),
        ({"model": "vgg16", "weights": "imagenet", "freeze": "conv5_3"}, 1e-4, 0.01),
        ({"model": "vgg16", "weights": "imagenet", "freeze": "backbone"}, 0.02, 0.1),
        ({"model": "resnet18"}, 0.02, 0.1),
        ({"model": "squeezenet1_1"}, 3e-4, 1e-3),
        ({"model": "squeezenet1_1", "weights": "none"}, 1e-4, 0.01),
        ({"weights": "imagenet", "freeze": "fc7"}, 0.02, 0.1),
        ({"model": "resnet18", "freeze": "layer4"}, 0.02, 0.1),
        ({"model": "resnet18", "freeze": "layer3"}, 1e-3, 0.01),
        ({"model": "resnet18", "weights": "none"}, 1e-3, 0.01),
        ({"model": "densenet121", "freeze": "transition2"}, 1e-3, 0.01),
        ({"model": "mobilenet_v2", "freeze": "none"}, 1e-3, 0.01),
        ({"model": "vgg11_bn", "weights": "none"}, 1e-4, 0.01),
    ],
)
def test_the_rate_depends_on_what_is_trained(settings, adam, sgd):
    assert resolved(Config(**settings)).lr == adam
    assert resolved(Config(**settings, optimizer="sgd")).lr == sgd
    assert resolved(Config(**settings, lr=0.5)).lr == 0.5


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"schedule": "cosine", "lr_step": 2},
            "lr_step: has no effect with",
        ),
        ({"schedule": "constant", "lr_gamma": 0.5}, "lr_gamma: has no effect with"),
        ({"warmup_epochs": 5}, "warmup_epochs: 5 leaves none of 5 epochs"),
    ],
)
def test_settings_of_the_rate_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        Config(**settings)
    assert str(caught.value).startswith(message)


@pytest.fixture
def begun(tmp_path):
    """Return a function that writes the record of a run with these settings."""

    def begin(**settings):
        config = resolved(Config(**settings))
        record = {
            "settings": vars(config) | {"out": str(tmp_path)},
            **dict.fromkeys(("dataset", "weights", "preprocessing"), {}),
            "class_names": [],
            "device": "cpu",
            "versions": {"jaxlab": "0"},
        }
        (tmp_path / "config.json").write_text(json.dumps(record))
        return {"resume": "last", "out": str(tmp_path)}

    return begin


def test_a_resumed_run_keeps_its_schedule_when_it_is_given_more_epochs(begun):
    given = begun(epochs=5)
    assert resume.complete({**given, "epochs": 20}).lr_step == 3
    given = begun(epochs=5, schedule="constant", warmup_epochs=1)
    config = resume.complete({**given, "epochs": 20})
    assert (config.schedule, config.warmup_epochs) == ("constant", 1)


def test_a_cosine_ends_with_its_epochs_and_says_what_can_go_on(begun):
    given = begun(epochs=5, schedule="cosine")
    assert resume.complete(given).epochs == 5
    for epochs in (4, 20):
        with pytest.raises(UsageError, match="cannot have .*schedule step") as caught:
            resume.complete({**given, "epochs": epochs})
        assert caught.value.text.startswith("--epochs: ")


@pytest.mark.parametrize("step", [5, "5", np.int64(5)])
def test_a_step_may_be_a_number(step):
    assert Config(resume=step, out="run").resume == "5"


@pytest.mark.parametrize(
    ("step", "shown"),
    [(-5, "-5"), (True, "True"), (5.0, "5.0"), ("first", "'first'"), (None, None)],
)
def test_what_is_no_step_is_refused_with_what_to_pass(step, shown):
    if step is None:
        assert Config(resume=None, out="run").resume is None
        return
    with pytest.raises(UsageError) as raised:
        Config(resume=step, out="run")
    assert str(raised.value) == (
        f"resume: {shown} is not a step; pass the number of a step, or resume='last' "
        "for the latest checkpoint"
    )
