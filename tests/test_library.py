"""Test the public functions: what they return, and that they equal the commands.

It is one file because most of its tests share the finished narrow run below.
"""

import contextlib
import dataclasses
import doctest
import io
import json
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jaxlab
from jaxlab import finetune, overfit
from jaxlab.cli import signals
from jaxlab.config import Config
from jaxlab.errors import InputError, JaxlabError, UsageError
from jaxlab.metrics import accuracy_text
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.runs import folder as run_folder
from jaxlab.training import initial_weights, inputs
from pretrained.errors import DownloadError, WeightsError
from tests.conftest import TRAJECTORY_FLOAT64, relative_error
from tests.stress.narrow import narrow

JOB = {
    "train_size": 40,
    "test_size": 20,
    "image_size": 63,
    "epochs": 2,
    "batch_size": 16,
    "weights": "none",
    "checkpoint_every": 0,
}


def as_flags(settings):
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False:
            yield flag.replace("--", "--no-")
        elif value is True:
            yield flag
        else:
            yield from (flag, str(value))


@contextlib.contextmanager
def compilations():
    """Count the programs that are compiled, or read from the compilation cache."""
    events = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def data():
    return jaxlab.load_data("mnist5k", train_size=40, test_size=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished narrow run, with what it printed."""
    out = tmp_path_factory.mktemp("library") / "run"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        narrow(patch.setitem)
        run = jaxlab.fine_tune("mnist5k", **JOB, out=out)
        run.classifier  # noqa: B018 - it is read while the network is narrow
    return run, printed.getvalue()


@pytest.fixture
def run(narrowed, finished):
    return finished[0]


@pytest.mark.slow
def test_fine_tune_is_the_command(run, tmp_path, capsys):
    result = finetune.main([*as_flags(JOB), "--out", str(tmp_path / "run")])
    model = (run.folder / "model.safetensors").read_bytes()
    assert (result.folder / "model.safetensors").read_bytes() == model
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (run.folder, result.folder)
    ]
    for config in configs:
        del config["settings"]["out"]
    assert configs[0] == configs[1]
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in each.history]
        for each in (run, result)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2


TIMES = ("seconds", "examples_per_second")


def test_a_run_has_its_history_its_accuracy_and_one_line(finished):
    run, printed = finished
    assert run.test_accuracy == run.history[-1]["test_accuracy"]
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert run.history == [json.loads(line) for line in lines]
    assert repr(run) == (
        f"Run({str(run.folder)!r}, 2 epochs, test "
        f"{accuracy_text(run.test_accuracy, 20)})"
    )
    assert printed.startswith("mnist5k: 40 training, 20 test images, ")
    assert f"test_accuracy={run.test_accuracy:.4f} run={run.folder}" in printed


@pytest.mark.slow
def test_nothing_is_printed_without_log(narrowed, tmp_path, capfd):
    job = {**JOB, "epochs": 1, "freeze": "features"}  # which is worth a warning
    run = jaxlab.fine_tune(**job, out=tmp_path / "run", log=False)
    data = jaxlab.load_data("mnist5k", train_size=20, test_size=20, log=False)
    jaxlab.fit(jaxlab.MLP((4, 4)), data, epochs=1, log=False)
    run.classifier.predict(data.test.images[0])
    assert capfd.readouterr() == ("", "")


DOWNLOADS = {
    "create_model": lambda **log: jaxlab.create_model(
        "alexnet", weights="imagenet", **log
    ),
    "Classifier.load": lambda **log: jaxlab.Classifier.load("imagenet", **log),
    "fine_tune": lambda **log: jaxlab.fine_tune(
        **{**JOB, "weights": "imagenet"}, **log
    ),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_download_is_as_silent_as_its_caller(
    name, narrowed, monkeypatch, tmp_path, capfd
):
    asked = []

    def open_published(source, **settings):
        asked.append(settings)
        raise DownloadError("no network")

    monkeypatch.setattr(initial_weights, "open_published", open_published)
    monkeypatch.chdir(tmp_path)
    for log in ({}, {"log": True}, {"log": False}):
        capfd.readouterr()
        with pytest.raises(DownloadError, match="no network"):
            DOWNLOADS[name](**log)
    assert [each["log"] for each in asked] == [True, True, False]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_with_its_own_settings(narrowed, tmp_path):
    job = {**JOB, "checkpoint_every": 1, "seed": 3, "lr_step": 2, "log": False}
    whole = jaxlab.fine_tune(**job, out=tmp_path / "whole")
    jaxlab.fine_tune(**{**job, "epochs": 1}, out=tmp_path / "part")
    resumed = jaxlab.fine_tune(
        resume="last", epochs=2, out=tmp_path / "part", log=False
    )
    model = (whole.folder / "model.safetensors").read_bytes()
    assert (resumed.folder / "model.safetensors").read_bytes() == model
    with pytest.raises(UsageError, match="different settings: seed was 3, is now 4"):
        jaxlab.fine_tune(resume="last", seed=4, out=tmp_path / "part")


def test_fit_and_fine_tune_are_one_training(narrowed, data, tmp_path):
    settings = {"epochs": 2, "batch_size": 16, "lr": 0.01, "l2": 1e-3, "seed": 5}
    settings |= {"lr_step": 1, "lr_gamma": 0.5, "optimizer": "sgd"}
    run = jaxlab.fine_tune(
        **{**JOB, **settings, "freeze": "conv2", "weights": "none"},
        feature_cache=False,
        out=tmp_path / "run",
        log=False,
    )
    model, variables = jaxlab.create_model("alexnet", num_classes=10, seed=5)
    patterns = ARCHITECTURES["alexnet"].freezing_patterns("conv2")
    history = jaxlab.fit(
        model,
        data,
        variables=variables,
        trainable=jaxlab.trainable_tree(variables["params"], patterns),
        preprocess=jaxlab.Preprocess(63),
        **settings,
        log=False,
    )
    saved = initial_weights.whole_network(
        str(run.folder / "model.safetensors"), "alexnet"
    ).params
    jax.tree.map(np.testing.assert_array_equal, history.variables["params"], saved)
    for ours, theirs in zip(history.rows, run.history, strict=True):
        assert ours["test_loss"] == theirs["test_loss"]
        assert ours["learning_rate"] == theirs["learning_rate"]


@pytest.mark.parametrize(
    ("name", "model", "settings"),
    [
        ("dropout", jaxlab.MLP(dropout_rate=0.5), {}),
        pytest.param("l2", jaxlab.MLP(), {"l2": 0.02}, marks=pytest.mark.stress),
        pytest.param(
            "batchnorm+step-decay",
            jaxlab.MLP(batch_norm=True),
            {"lr_step": 2},
            marks=pytest.mark.stress,
        ),
    ],
)
@pytest.mark.slow
def test_fit_is_the_lab_s_training_of_one_seed(name, model, settings, data):
    config = overfit.Config(
        seeds=2, epochs=3, lr_step=2, lr=1e-3, l2=0.01, l1=0.01, test_size=20
    )
    splits = {
        split: (jnp.asarray(part.images) / 255.0, jnp.asarray(part.labels))
        for split, part in data.splits.items()
    }
    program = jax.jit(overfit.variant_program(overfit.VARIANTS[name], config, 10))
    orders = overfit.epoch_orders(config, 40)
    curves, _ = program(jnp.arange(2), orders, splits)
    history = jaxlab.fit(model, data, epochs=3, lr=1e-3, seed=1, log=False, **settings)
    for key in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        ours = [row[key] for row in history.rows]
        # float32 roundoff, amplified by 12 steps of Adam.
        np.testing.assert_allclose(ours, curves[key][1], rtol=1e-4)


def test_fit_has_torch_s_trajectory(data, x64):
    import torch

    model = jaxlab.MLP(features=(8, 6))
    shapes = model.init(jax.random.key(0), jnp.zeros((1, 784)), train=False)["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda p: random.uniform(-0.1, 0.1, p.shape), shapes)
    history = jaxlab.fit(
        model,
        data,
        epochs=2,
        batch_size=7,  # the last batch has five images
        optimizer="sgd",
        lr=0.1,
        l2=0.01,
        lr_step=1,
        variables={"params": params},
        log=False,
    )
    layers = [torch.nn.Linear(i, o) for i, o in ((784, 8), (8, 6), (6, 10))]
    oracle = torch.nn.Sequential(
        layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]
    ).double()
    with torch.no_grad():
        for layer, leaves in zip(layers, params.values(), strict=True):
            layer.weight.copy_(torch.from_numpy(leaves["kernel"].T))
            layer.bias.copy_(torch.from_numpy(leaves["bias"]))
    optimizer = torch.optim.SGD(
        oracle.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    # XLA multiplies by 1/255 where torch divides, which differs in the last bit.
    images = np.array(
        jax.jit(lambda x: inputs.to_input(x, None, False))(data.train.images)
    )
    images = torch.from_numpy(images).flatten(1).double()
    labels = torch.from_numpy(data.train.labels).long()
    for epoch in range(2):
        order = np.random.RandomState([0, epoch]).permutation(40)
        for indices in torch.from_numpy(order).split(7):
            loss = torch.nn.functional.cross_entropy(
                oracle(images[indices]), labels[indices]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(oracle(images), labels)
    assert relative_error(history.rows[-1]["train_loss"], loss) <= TRAJECTORY_FLOAT64
    for layer, leaves in zip(layers, history.variables["params"].values(), strict=True):
        weight = layer.weight.detach().numpy().T
        assert relative_error(leaves["kernel"], weight) <= TRAJECTORY_FLOAT64


class WithoutTrain(nn.Module):
    """A module that is the same in training and in evaluation."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))


class OfFlax(nn.Module):
    """A module with Flax's own Dropout and BatchNorm."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x)


class OfOurs(nn.Module):
    """The same in our layers."""

    @nn.compact
    def __call__(self, x, *, train, weights=None):
        x = jaxlab.layers.Dense(16)(jaxlab.layers.Flatten()(x))
        x = jaxlab.layers.BatchNorm()(x, train=train, weights=weights)
        x = jaxlab.layers.Dropout(0.2)(jaxlab.layers.ReLU()(x), train=train)
        return jaxlab.layers.Dense(10)(x)


@pytest.mark.slow
@pytest.mark.parametrize("module", [WithoutTrain(), OfFlax(), OfOurs()])
def test_a_student_s_module_trains(module, data):
    history = jaxlab.fit(
        module, data, epochs=25, batch_size=16, optimizer=optax.adam(3e-3), log=False
    )
    assert history.rows[-1]["train_accuracy"] > 0.9
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]
    assert "learning_rate" not in history.rows[0]
    has_statistics = "batch_stats" in history.variables
    assert has_statistics == (not isinstance(module, WithoutTrain))


@pytest.mark.slow
def test_flax_s_batch_norm_sees_no_padding(data):
    """The running mean is that of 16, 16 and 8 images, as Flax alone computes it."""
    norm = nn.Sequential([lambda x: x.reshape(len(x), -1), Average()])
    history = jaxlab.fit(norm, data, epochs=1, batch_size=16, lr=1e-30, log=False)
    found = history.variables["batch_stats"]
    mean = np.zeros(784)
    order = np.random.RandomState([0, 0]).permutation(40)
    images = data.train.images.reshape(40, -1) / 255
    for start in (0, 16, 32):
        batch = images[order[start : start + 16]]
        mean = 0.5 * mean + 0.5 * batch.mean(0)
    (running,) = (leaf for leaf in jax.tree.leaves(found) if leaf.shape == (784,))
    np.testing.assert_allclose(running, mean, rtol=1e-5, atol=1e-6)


class Average(nn.Module):
    """Keep the running mean of the batches, and return ten logits."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[1:])
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0)
        return nn.Dense(10)(x - mean.value)


def test_a_last_batch_of_one_is_refused_where_it_has_no_variance(data):
    with pytest.raises(ValueError, match="BatchNorm: expected more than one value"):
        jaxlab.fit(jaxlab.MLP((8, 8), batch_norm=True), data, batch_size=39)


@pytest.mark.slow
def test_the_second_call_of_fit_compiles_nothing(data):
    def train(seed):
        model = jaxlab.MLP((8, 8), dropout_rate=0.5)
        return jaxlab.fit(model, data, epochs=2, seed=seed, log=False)

    with compilations() as compiled:
        first = train(0)
    assert compiled != []
    with compilations() as compiled:
        second = train(1)
        again = train(0)
    assert compiled == []
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    assert first.rows[-1]["train_loss"] != second.rows[-1]["train_loss"]


@pytest.mark.slow
def test_the_second_call_of_fine_tune_compiles_nothing(narrowed, tmp_path):
    job = {**JOB, "epochs": 1, "log": False, "freeze": "conv2"}
    jaxlab.fine_tune(**job, out=tmp_path / "first")
    with compilations() as compiled:
        jaxlab.fine_tune(**job, seed=1, out=tmp_path / "second")
    assert compiled == []


class Scaled(nn.Module):
    """A module that reads a variable of its Python module."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(SCALE * x.reshape(len(x), -1))


SCALE = 1.0


@pytest.mark.slow
def test_a_module_that_changed_is_traced_again(data, monkeypatch):
    losses = []
    for scale in (1.0, 0.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        history = jaxlab.fit(Scaled(), data, epochs=1, lr=1e-30, log=False)
        losses.append(history.rows[0]["test_loss"])
    assert losses[0] != losses[1]


def test_two_threads_leave_no_state_behind():
    def work():
        with signals.deferred():
            barrier.wait()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert signals._deferred is False
    names = {run_folder.resolve_folder(None, False) for _ in range(3)}
    assert len(names) == 3


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return the paths of twenty pictures of twenty sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(20):
        pixels = random.integers(0, 256, (60 + 7 * i, 200 - 5 * i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def copied(run, folder):
    """Return the run, as if it had been written to another folder."""
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl", "model.safetensors"):
        (folder / name).write_bytes((run.folder / name).read_bytes())
    return finetune.Run(folder, run.history, run.model_sha256, run.test_images)


def test_a_classifier_is_the_run_s_own_in_another_working_directory(
    narrowed, run, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copied(run, tmp_path / "run")
    again = jaxlab.fine_tune(resume="last", epochs=2, out="run", log=False)
    assert again.folder == tmp_path / "run" and again.model_sha256 == run.model_sha256
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    image = data.test.images[0]
    assert again.classifier.predict(image) == run.classifier.predict(image)
    again.folder.rename(tmp_path / "moved")
    assert again.classifier.predict(image) == run.classifier.predict(image)


def test_the_classifier_of_a_folder_that_changed_is_refused(run, tmp_path):
    again = copied(run, tmp_path / "run")
    model = again.folder / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError) as raised:
        again.classifier  # noqa: B018 - reading it raises
    assert str(raised.value) == (
        f"{model}: is not the model of this run, but was written later; run again, or "
        f"read what is there with jaxlab.Classifier.load({str(again.folder)!r})"
    )
    again.folder.rename(tmp_path / "moved")
    with pytest.raises(InputError) as raised:
        again.classifier  # noqa: B018 - reading it raises
    assert str(raised.value) == (
        f"{model}: no longer exists; read the model from where it is now, with "
        "jaxlab.Classifier.load(FOLDER)"
    )
    (tmp_path / "moved" / "model.safetensors").write_bytes(
        (run.folder / "model.safetensors").read_bytes()
    )
    (tmp_path / "moved").rename(again.folder)
    assert again.classifier.class_names == run.classifier.class_names


@pytest.mark.slow
def test_two_threads_fine_tune_as_one_does(narrowed, tmp_path):
    def train(seed, folder, barrier):
        barrier.wait()
        job = {**JOB, "seed": seed, "out": tmp_path / f"{folder}{seed}", "log": False}
        run = jaxlab.fine_tune(**job)
        return (run.folder / "model.safetensors").read_bytes()

    alone = [train(seed, "alone", threading.Barrier(1)) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        barriers = [threading.Barrier(2)] * 2
        at_once = list(pool.map(train, range(2), ["at once"] * 2, barriers))
    assert at_once == alone and alone[0] != alone[1]


def test_two_threads_predict_as_one_does(run, photographs):
    def predict(paths, barrier):
        barrier.wait()
        return classifier.probabilities(paths)

    classifier = run.classifier
    parts = [photographs[:10], photographs[10:]]
    alone = [predict(part, threading.Barrier(1)) for part in parts]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(predict, parts, [threading.Barrier(2)] * 2))
    np.testing.assert_array_equal(np.stack(at_once), np.stack(alone))


def test_twenty_sizes_are_one_program(run, photographs):
    classifier = run.classifier
    classifier.predict(photographs[0])
    with compilations() as compiled:
        one_by_one = [classifier.predict(path) for path in photographs]
        together = classifier.predict(photographs)
    assert compiled == []
    assert one_by_one == together and len(together) == 20


def test_a_picture_has_one_answer_in_any_form(run, photographs):
    classifier = run.classifier
    path = photographs[3]
    image = Image.open(path)
    answer = classifier.predict(path)
    assert answer == classifier.predict(image) == classifier.predict(np.array(image))
    assert answer == classifier.predict(str(path))
    assert [name for name, _ in answer] == sorted(
        dict(answer), key=dict(answer).get, reverse=True
    )
    assert len(answer) == 5 and len(classifier.predict(path, top=10)) == 10
    grey = np.array(image.convert("L"))
    assert classifier.predict(grey) == classifier.predict(grey[:, :, None])
    assert classifier.predict(jnp.asarray(grey)) == classifier.predict(grey)
    filters = list(warnings.filters)
    probabilities = classifier.probabilities([path, grey] * 10)[:2]
    assert warnings.filters == filters
    assert probabilities.shape == (2, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert classifier.predict([]) == []


def test_a_batch_gives_what_single_pictures_give(run, data):
    many = np.concatenate([data.train.images, data.test.images])[:40]
    classifier = run.classifier
    together = classifier.probabilities(many)
    alone = np.concatenate([classifier.probabilities(image) for image in many])
    # The batch is another program, which sums in another order.
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert not np.allclose(together, alone[::-1], atol=1e-6)


def test_the_model_file_alone_is_the_classifier(run, data, tmp_path):
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes((run.folder / "model.safetensors").read_bytes())
    alone = jaxlab.Classifier.load(copy)
    assert alone.class_names == tuple("0123456789")
    assert alone.predict(data.test.images[0]) == run.classifier.predict(
        data.test.images[0]
    )
    assert repr(alone) == "Classifier(alexnet, 10 classes: 0, 1, 2, 3, 4, …)"
    content = copy.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"].pop("jaxlab"))
    assert header["__metadata__"] == {} and list(about) == sorted(about)
    assert about["architecture"] == {"name": "alexnet", "precision": "float32"}


def test_a_run_of_before_is_a_classifier_by_its_config(run, data, tmp_path):
    from safetensors.numpy import save_file

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = jaxlab.Classifier.load(tmp_path)
    image = data.test.images[0]
    assert before.predict(image) == run.classifier.predict(image)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="contains no class names; pass the folder"):
        jaxlab.Classifier.load(tmp_path)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_setting_has_one_text_in_python_and_in_the_shell(name, tmp_path):
    meta, default = FIELDS[name].metadata, FIELDS[name].default
    hint = str(FIELDS[name].type)
    if "bool" in hint:
        wrong = []
        with pytest.raises(UsageError) as raised:
            Config(**{name: "yes"})
        assert str(raised.value).startswith(f"{name}: 'yes' is not True or False")
    elif meta["choices"]:
        wrong = ["odd"]
    elif "int" in hint or "float" in hint:
        wrong = [value for value in (-1, 0, 1e9) if outside(value, meta["bounds"])]
        wrong += ["two"]
    else:
        with pytest.raises(UsageError) as raised:
            Config(**{name: 3.5})
        noun = "a step" if name == "resume" else "a string"
        assert str(raised.value).startswith(f"{name}: 3.5 is not {noun}; pass ")
        wrong = ["odd"] if name == "freeze" else []
    for value in wrong:
        value = int(value) if value == 1e9 and "int" in hint else value
        with pytest.raises(UsageError) as in_python:
            Config(**{name: value})
        with pytest.raises(UsageError) as in_shell:
            finetune.main([f"--{name.replace('_', '-')}", str(value)])
        assert str(in_python.value) == str(in_shell.value)
        assert in_shell.value.text.startswith(f"--{name.replace('_', '-')}: ")
        assert str(in_shell.value).startswith(f"{name}: ")
    assert default is not dataclasses.MISSING


def outside(value, bounds):
    return not all(
        {
            "at least": value >= bound,
            "above": value > bound,
            "below": value < bound,
            "at most": value <= bound,
        }[word]
        for word, bound in bounds.items()
    )


MLP = jaxlab.MLP((4, 4))
WRONG = {
    "Batch": (lambda d: step()(state(), (1, 2, 3), KEY), "expected a Batch"),
    "TrainState": (lambda d: step()({}, BATCH, KEY), "expected a TrainState"),
    "Classifier": (
        lambda d: jaxlab.Classifier.load("nowhere"),
        "nowhere: cannot be read",
    ),
    "Config": (lambda d: jaxlab.Config(lr="fast"), "lr: 'fast' is not a number"),
    "create_model": (
        lambda d: jaxlab.create_model("alexnet", num_classes=0),
        "num_classes: expected a whole number of at least 1, got 0",
    ),
    "create_model field": (
        lambda d: jaxlab.create_model("alexnet", depth=3),
        "unexpected keyword argument 'depth'",
    ),
    "fine_tune": (
        lambda d: jaxlab.fine_tune(learning_rate=1),
        "learning_rate: unknown setting; did you mean lr?",
    ),
    "fit": (lambda d: jaxlab.fit(MLP, "mnist5k"), "data: expected a Dataset, got str"),
    "fit model": (lambda d: jaxlab.fit("mlp", d), "model: expected a Linen module"),
    "fit classes": (
        lambda d: jaxlab.fit(jaxlab.MLP((4, 4), num_classes=5), d),
        "the data have 10 classes",
    ),
    "fit trainable": (
        lambda d: jaxlab.fit(MLP, d, trainable=True),
        "trainable: expected a tree of bool",
    ),
    "fit optimizer": (
        lambda d: jaxlab.fit(MLP, d, optimizer=optax.sgd(1.0), l2=1.0),
        "l2: cannot be combined with an Optax transformation",
    ),
    "load_data": (
        lambda d: jaxlab.load_data("mnist5k", train_size=5000),
        "train_size: 5,000 images requested, but the split has 4,000",
    ),
    "load_data labels": (
        lambda d: jaxlab.load_data((d.train.images, ["a"] * 40)),
        "labels: expected whole numbers, int[n], got <U1[40]",
    ),
    "load_data images": (
        lambda d: jaxlab.load_data((d.train.images / 255, d.train.labels)),
        "images: expected uint8[n, h, w]",
    ),
    "load_data names": (
        lambda d: jaxlab.load_data((d.train.images, d.train.labels), class_names="ab"),
        "names too few classes for labels up to 9",
    ),
    "load_data one image": (
        lambda d: jaxlab.load_data((d.train.images[0], 3)),
        "train images: got one image, uint8[28, 28, 1]",
    ),
    "load_data from 1": (
        lambda d: jaxlab.load_data((d.train.images, d.train.labels + 1)),
        "number the classes from 0",
    ),
    "make_eval_step": (
        lambda d: jaxlab.make_eval_step(MLP.apply)(state(), (1, 2, 3)),
        "expected a Batch",
    ),
    "MLP": (
        lambda d: jaxlab.fit(jaxlab.MLP(dropout_rate=50), d),
        "dropout_rate 50 is out of range",
    ),
    "fit argument": (
        lambda d: jaxlab.fit(MLP, d, learning_rate=0.1),
        "learning_rate: unknown setting; did you mean lr?",
    ),
    "fit preprocess": (
        lambda d: jaxlab.fit(MLP, d, preproces=jaxlab.Preprocess()),
        "preproces: unknown setting; did you mean preprocess?",
    ),
    "fit size": (
        lambda d: jaxlab.fit(
            MLP, dataclasses.replace(d, resized=True), preprocess=jaxlab.Preprocess(32)
        ),
        "has image_size 32, but the pictures were resized to 28",
    ),
    "make_optimizer rate": (
        lambda d: jaxlab.make_optimizer("adam", -0.1, trainable={"w": True}),
        "learning_rate: -0.1 is out of range",
    ),
    "plot_images image": (
        lambda d: jaxlab.plot_images(d.train.images[0]),
        "for one image, pass images[None]",
    ),
    "load_data image_size": (
        lambda d: jaxlab.load_data((d.train.images, d.train.labels), image_size=224),
        "image_size: cannot be combined with arrays, whose images keep their size; "
        "resize them as they are used, with preprocess=jaxlab.Preprocess(224)",
    ),
    "load_data crop": (
        lambda d: jaxlab.load_data((d.train.images, d.train.labels), crop=False),
        "crop: cannot be combined with arrays, whose images keep their size; resize "
        "them as they are used, with preprocess=jaxlab.Preprocess(224, crop=False)",
    ),
    "load_data image_size of digits": (
        lambda d: jaxlab.load_data("mnist5k", image_size=64),
        "image_size: cannot be combined with mnist5k, whose images keep their size; "
        "resize them as they are used, with preprocess=jaxlab.Preprocess(64)",
    ),
    "load_data source": (
        lambda d: jaxlab.load_data("mnist6k"),
        "source: 'mnist6k' is neither mnist5k, nor a folder",
    ),
    "load_data argument": (
        lambda d: jaxlab.load_data(val_fraction=0.1),
        "val_fraction: unknown setting; did you mean validation_fraction?",
    ),
    "load_data argument of fine_tune": (
        lambda d: jaxlab.load_data(learning_rate=0.1),
        "learning_rate: unknown setting; see help(jaxlab.load_data)",
    ),
    "load_data test_fraction": (
        lambda d: jaxlab.load_data("mnist5k", test_fraction=0.3),
        "test_fraction: 0.3, but the data have a test split already; leave it out",
    ),
    "load_data test_fraction of arrays": (
        lambda d: jaxlab.load_data(
            ((d.train.images, d.train.labels), (d.test.images, d.test.labels)),
            test_fraction=0.3,
        ),
        "test_fraction: 0.3, but the data have a test split already; leave it out",
    ),
    "Config argument": (
        lambda d: jaxlab.Config(val_split=0.1),
        "val_split: unknown setting; did you mean validation_fraction?",
    ),
    "load_data folder": (
        lambda d: jaxlab.load_data((d.train.images, d.train.labels), data_dir="a"),
        "data_dir: cannot be combined with arrays; leave it out",
    ),
    "load_data image_size of a folder": (
        lambda d: jaxlab.load_data("mnist5k", image_size=0),
        "image_size: expected at least 1, got 0",
    ),
    "AlexNet channels": (
        lambda d: jaxlab.AlexNet(channels=[4, 4]),
        "channels: expected 5 whole numbers of at least 1, got [4, 4]",
    ),
    "AlexNet channel": (
        lambda d: jaxlab.AlexNet(channels=(4, 4, 4, 4, 0)),
        "channels: expected 5 whole numbers of at least 1, got (4, 4, 4, 4, 0)",
    ),
    "AlexNet hidden": (
        lambda d: jaxlab.AlexNet(hidden=2.5),
        "hidden: expected a whole number of at least 1, got 2.5",
    ),
    "MLP features": (
        lambda d: jaxlab.MLP(features=64),
        "features: expected whole numbers of at least 1, got 64",
    ),
    "MLP num_classes": (
        lambda d: jaxlab.MLP(num_classes=True),
        "num_classes: expected a whole number of at least 1, got True",
    ),
    "create_model channels": (
        lambda d: jaxlab.create_model("alexnet", channels=[1, 2]),
        "channels: expected 5 whole numbers of at least 1, got [1, 2]",
    ),
    "create_model classes": (
        lambda d: jaxlab.create_model("alexnet", num_classes=True),
        "num_classes: expected a whole number of at least 1, got True",
    ),
    "load_data kind": (lambda d: jaxlab.load_data(d), "expected a name, a folder or"),
    "make_optimizer": (
        lambda d: jaxlab.make_optimizer("adam", 0.1, trainable=True),
        "trainable: expected a tree of bool like the params, got bool",
    ),
    "make_train_step": (
        lambda d: jaxlab.make_train_step(MLP.apply, optax.sgd(1.0), True),
        "trainable: expected a tree of bool like the params, got bool",
    ),
    "trainable_tree": (
        lambda d: jaxlab.trainable_tree(
            {"conv1": {"kernel": 1}}, [("conv1", "frozen"), (".*", "trainable")]
        ),
        "'conv1' applies to no leaf (a layer's leaves are 'conv1/.*')",
    ),
    "plot_confusion": (
        lambda d: jaxlab.plot_confusion([0, 3], [0, 1], ["a", "b"]),
        "labels: 0 to 3 do not fit 2 class names",
    ),
    "plot_curves": (lambda d: jaxlab.plot_curves([]), "history: expected what fit or"),
    "plot_images": (
        lambda d: jaxlab.plot_images(d.train.images[0, :, :, 0]),
        "for one image, pass images[None]",
    ),
    "Preprocess": (
        lambda d: jaxlab.Preprocess()(d.train.images[0]),
        "got one image uint8[28, 28, 1]; add a batch axis",
    ),
    "summary": (
        lambda d: jaxlab.summary(MLP, (28, 28, 1), trainable=True),
        "trainable: expected a tree of bool",
    ),
}
KEY = jax.random.key(0)
BATCH = jaxlab.Batch(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), jnp.ones(2))


def state():
    params = MLP.init(KEY, jnp.zeros((1, 4)), train=False)["params"]
    return jaxlab.init_state(params, optax.sgd(1.0))


def step(**options):
    trainable = jax.tree.map(lambda _: True, state().params)
    return jaxlab.make_train_step(MLP.apply, optax.sgd(1.0), trainable, **options)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_fails_at_its_call_with_what_was_expected(name, data):
    call, message = WRONG[name]
    with pytest.raises((JaxlabError, WeightsError, ValueError, TypeError)) as raised:
        call(data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cell_that_is_run_twice_says_that_its_state_is_used_up():
    first = state()
    train_step = step()
    train_step(first, BATCH, KEY)
    with pytest.raises(ValueError, match="state: was used up by an earlier step"):
        train_step(first, BATCH, KEY)
    first, kept = state(), step(donate=False)
    once, again = (kept(first, BATCH, KEY)[0].params for _ in "ab")
    assert jax.tree.all(jax.tree.map(np.array_equal, once, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, once, first.params))


def test_there_are_at_most_28_names():
    assert len(jaxlab.__all__) <= 28 and sorted(jaxlab.__all__) == jaxlab.__all__


@pytest.mark.parametrize("name", jaxlab.__all__)
def test_each_name_has_an_example_that_runs(name, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "fine_tune":  # it begins with the embedded convolutions
        request.getfixturevalue("slim")
    folder = None
    if name == "Classifier":
        folder = request.getfixturevalue("run").folder
    thing = getattr(jaxlab, name)
    module = thing if name == "layers" else sys.modules[thing.__module__]
    names = {**vars(module), "example_run": folder}
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    assert example.examples and "SKIP" not in example.docstring
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)


def test_a_summary_has_every_operation_in_order(narrowed):
    model = ARCHITECTURES["alexnet"].build(10)
    patterns = ARCHITECTURES["alexnet"].freezing_patterns("conv5")
    shapes = initial_weights.variable_shapes(model)["params"]
    table = jaxlab.summary(
        model, (224, 224, 3), jaxlab.trainable_tree(shapes, patterns)
    )
    kinds = [line.split()[1].split("(")[0] for line in table.splitlines()[1:-1]]
    block = ["Conv", "ReLU", "MaxPool"]
    assert kinds == [*block * 2, *["Conv", "ReLU"] * 2, *block, "AdaptiveAvgPool"] + [
        "Flatten",
        *["Dropout", "Dense", "ReLU"] * 2,
        "Dense",
    ]
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert f"{total:,}" in table.splitlines()[-1]
    assert table.splitlines()[1].endswith("frozen")
    assert table.splitlines()[-2].endswith("trained")
    assert repr(table) == str(table)


def test_widths_may_be_lists(data):
    lists = jaxlab.AlexNet(10, channels=[4, 4, 4, 4, 4], hidden=np.int64(8))
    assert lists == jaxlab.AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=8)
    assert hash(lists) == hash(jaxlab.AlexNet(10, channels=(4,) * 5, hidden=8))
    assert initial_weights.variable_shapes(lists)["params"]["fc7"]["bias"].shape == (8,)
    model = jaxlab.MLP(features=[8, np.int32(4)])
    assert model == jaxlab.MLP((8, 4)) and type(model.features[1]) is int
    model, variables = jaxlab.create_model("alexnet", channels=[4] * 5, hidden=8)
    assert variables["params"]["conv5"]["bias"].shape == (4,)


class Own(nn.Module):
    """A module with a parameter of its own beside a layer."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (7,))
        return jaxlab.layers.Dense(3)(x * scale)


def test_a_summary_counts_every_parameter():
    table = jaxlab.summary(Own(), (7,)).splitlines()
    assert [line.split()[0] for line in table] == ["layer", "Dense_0", "scale", "total"]
    assert table[-1].endswith("31 trained, 0 frozen")
    biases = {"scale": False, "Dense_0": {"kernel": False, "bias": True}}
    table = jaxlab.summary(Own(), (7,), trainable=biases).splitlines()
    assert table[-1].endswith("3 trained, 28 frozen")
    table = jaxlab.summary(jaxlab.layers.Dense(3), (7,)).splitlines()
    assert [line.split()[0] for line in table] == ["layer", "Dense", "total"]
    assert table[-1].endswith("24 trained, 0 frozen")


def test_plots_undo_the_normalisation_and_mark_the_wrong(data):
    preprocess = jaxlab.Preprocess(32)
    images = preprocess(data.train.images[:3])
    figure = jaxlab.plot_images(
        images, [0, 1, 2], "abc", predictions=[0, 2, 2], preprocess=preprocess
    )
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["a", "c, not b", "c"]
    shown = figure.axes[0].images[0].get_array()
    expected = preprocess.resize(Image.fromarray(data.train.images[0, :, :, 0]))
    np.testing.assert_array_equal(shown, expected)
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["Dataset", "tuple"])
def test_data_in_memory_are_not_fine_tuned_on(kind):
    images, labels = np.zeros((4, 28, 28), np.uint8), np.array([0, 1, 0, 1])
    data = (images, labels)
    if kind == "Dataset":
        data = jaxlab.load_data(data, test_fraction=0.5, log=False)
    with pytest.raises(UsageError, match=f"^dataset: expected a name or .*got {kind};"):
        jaxlab.fine_tune(data)
