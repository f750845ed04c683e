"""Test that variables and settings of JAX's do not change results, or are recorded."""

import contextlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlab import AlexNet, Classifier, Preprocess, environment, overfit
from jaxlab.training import fit
from tests.conftest import ROOT, assert_one_line, random_params
from tests.runs.conftest import command
from tests.stress.narrow import NARROW

MODEL = "model.safetensors"
# Each of these changes the model, stops the run, or makes it take very long.
HOSTILE = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_legacy_prng_key": "error",
    "jax_transfer_guard": "disallow",
    "jax_random_seed_offset": 7,
    "jax_check_tracer_leaks": True,
    "jax_disable_most_optimizations": True,
    "jax_optimization_level": "O1",
}
# Those for which a control shows that they have an effect where they are not pinned.
EFFECTIVE = [
    "jax_default_prng_impl",
    pytest.param("jax_enable_x64", marks=pytest.mark.stress),
    pytest.param("jax_random_seed_offset", marks=pytest.mark.stress),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the bytes of the model of a run without any of them."""
    out = tmp_path_factory.mktemp("plain") / "run"
    process = narrow_process(out)
    assert process.returncode == 0, process.stderr
    return (out / MODEL).read_bytes()


def narrow_process(out, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tests.stress.narrow", "--epochs", "1"]
        + ["--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def as_variable(value):
    return str(int(value)) if isinstance(value, bool) else str(value)


@pytest.mark.slow
def test_hostile_variables_give_the_same_bytes(model, tmp_path):
    out = tmp_path / "run"
    variables = {name.upper(): as_variable(value) for name, value in HOSTILE.items()}
    process = narrow_process(out, **variables)
    assert process.returncode == 0 and process.stderr == ""
    assert (out / MODEL).read_bytes() == model


@pytest.mark.stress
@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_variable_gives_the_same_bytes(name, model, tmp_path):
    out = tmp_path / "run"
    process = narrow_process(out, **{name.upper(): as_variable(HOSTILE[name])})
    assert process.returncode == 0 and process.stderr == ""
    assert (out / MODEL).read_bytes() == model


@pytest.fixture
def set_in_python():
    """Return a function that sets JAX's settings until the test ends."""
    before = {}

    def update(settings):
        for name, value in settings.items():
            before.setdefault(name, jax.config.values[name])
            jax.config.update(name, value)

    yield update
    for name, value in before.items():
        jax.config.update(name, value)


def test_settings_of_the_caller_give_the_same_bytes_and_are_left_alone(
    model, narrowed, set_in_python, monkeypatch, tmp_path
):
    set_in_python(HOSTILE)
    assert command(monkeypatch, tmp_path / "run", "--epochs", 1) == 0
    assert (tmp_path / "run" / MODEL).read_bytes() == model
    assert {name: jax.config.values[name] for name in HOSTILE} == HOSTILE


@pytest.mark.slow
@pytest.mark.parametrize("name", EFFECTIVE)
def test_without_pinning_such_a_setting_gives_other_bytes(
    name, model, narrowed, set_in_python, recompiled, monkeypatch, tmp_path
):
    monkeypatch.setattr(environment, "pinned", contextlib.nullcontext)
    set_in_python({name: HOSTILE[name]})
    code = command(monkeypatch, tmp_path / "run", "--epochs", 1)
    same = code == 0 and (tmp_path / "run" / MODEL).read_bytes() == model
    assert not same


@pytest.mark.slow
def test_other_compiler_flags_are_recorded_and_said_on_resume(
    stopped, narrowed, monkeypatch, capsys
):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    _, out = stopped(fit, "_update_bar", 2)
    record = json.loads((out / "config.json").read_text("utf-8"))
    assert record["variables"]["XLA_FLAGS"] == ""
    capsys.readouterr()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert command(monkeypatch, out, "--resume", "--epochs", 1) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        "warning: XLA_FLAGS unset → --xla_cpu_enable_fast_math=true since the run began"
    )
    record = json.loads((out / "config.json").read_text("utf-8"))
    flags = record["resumptions"][0]["variables"]["XLA_FLAGS"]
    assert flags == "--xla_cpu_enable_fast_math=true"
    # A run of before has not recorded them.
    del record["variables"], record["resumptions"][0]["variables"]
    (out / "config.json").write_text(json.dumps(record), "utf-8")
    monkeypatch.delenv("XLA_FLAGS")
    assert command(monkeypatch, out, "--resume", "--epochs", 2) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "JAX_ENABLE_X64",
            "maybe",
            "JAX_ENABLE_X64: JAX does not accept 'maybe'",
        ),
        pytest.param(
            "JAX_NUM_CPU_DEVICES",
            "x",
            "JAX_NUM_CPU_DEVICES: JAX does not accept 'x'",
            marks=pytest.mark.slow,
        ),
        ("JAX_PLATFORMS", "gpuu", "JAX_PLATFORMS: 'gpuu' is not one of cpu, gpu, cuda"),
        pytest.param(
            "JAX_PLATFORM_NAME",
            "cpuu",
            "JAX_PLATFORM_NAME: 'cpuu' is not one of cpu",
            marks=pytest.mark.slow,
        ),
        (
            "XLA_FLAGS",
            "--xla_nope",
            "XLA_FLAGS: XLA does not accept '--xla_nope': Unknown flag in XLA_FLAGS: "
            "--xla_nope; unset it",
        ),
        pytest.param(
            "XLA_FLAGS",
            "fast",
            "XLA does not accept 'fast': Could not open file",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_value_of_a_variable_is_one_line(name, value, message):
    process = subprocess.run(
        [sys.executable, "-m", "jaxlab.overfit"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
        | {name: value},
        capture_output=True,
        text=True,
    )
    assert_one_line(process, 2, message)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("JAX_PLATFORM", "JAX_PLATFORMS"),
        ("JAX_ENABLE_X46", "JAX_ENABLE_X64"),
        ("JAX_DEBUG_NAN", "JAX_DEBUG_NANS"),
        ("JAX_ENABLE_X64", None),
        ("JAX_COORDINATOR_ADDRESS", None),  # no setting, but a variable of JAX's
        ("JAXLAB_HOME", None),
    ],
)
def test_a_variable_whose_name_is_almost_jax_s_is_a_warning(name, meant, monkeypatch):
    monkeypatch.setenv(name, "1")
    said = []
    environment.warn_of_misspelt_variables(said.append)
    if meant is None:
        assert said == []
    else:
        assert said == [
            f"warning: {name}: JAX has no such variable and ignores it; did you mean "
            f"{meant}?"
        ]


@pytest.mark.slow
def test_the_lab_is_the_same_with_settings_of_the_caller(
    run_here, set_in_python, tmp_path
):
    flags = ["--train-size", 20, "--test-size", 10, "--epochs", 1, "--seeds", 1]
    flags += ["--variants", "dropout", "--out"]
    curves = []
    for number, settings in enumerate(({}, HOSTILE)):
        set_in_python(settings)
        done = run_here(overfit.main, *flags, tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        content = json.loads((tmp_path / str(number) / "results.json").read_text())
        curves.append(content["variants"]["dropout"]["curves"])
    assert curves[0] == curves[1]


def test_a_classifier_answers_the_same_with_settings_of_the_caller(set_in_python):
    model = AlexNet(num_classes=3, **NARROW)
    variables = {"params": random_params(model)}
    pictures = np.random.default_rng(0).integers(0, 256, (3, 63, 63, 3), np.uint8)

    def answers():
        classifier = Classifier("alexnet", variables, "abc", Preprocess(63))
        classifier._model = model
        return classifier.probabilities(pictures).tobytes()

    expected = answers()
    set_in_python(HOSTILE)
    assert answers() == expected
