"""Tolerances, the torch oracle, and what several rooms' tests share."""

import contextlib
import ctypes
import gc
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

# Before torch is imported, here or in a process that a test starts: its idle threads
# spin, and a second one gains nothing beside another process of tests.
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import numpy as np
import pytest
from hypothesis import settings
from matplotlib.figure import Figure

from jaxlab import AlexNet
from jaxlab.cli import terminal
from jaxlab.training.initial_weights import param_shapes
from jaxlab.verify import import_torch
from pretrained.embedded import imagenet_conv
from tests.stress.narrow import NARROW, narrow

# Relative error ‖ours - torch‖ / ‖torch‖ of one forward pass. Both sides sum the same
# products in another order; measured 2e-6 and 4e-15, so these leave less than 10 and
# less than 1000 times that, and a wrong layer misses them by orders of magnitude.
FORWARD_FLOAT32 = 1e-5
FORWARD_FLOAT64 = 1e-12
# The same after 30 optimiser steps in float64, where each step's roundoff is amplified
# by the next.
TRAJECTORY_FLOAT64 = 1e-9
# One rounding of a float32 multiply or divide, on values of order 1.
ROUNDOFF_FLOAT32 = 1e-6


ROOT = pathlib.Path(__file__).parents[1]

# A checkpoint of the full-size network is half a gigabyte; tests/runs has those of a
# narrow one.
NO_CHECKPOINTS = ["--checkpoint-every", "0"]


def relative_error(ours, reference) -> float:
    """‖ours - reference‖ / ‖reference‖ in float64, of arrays of equal shape."""
    ours = np.asarray(ours, np.float64)
    reference = np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def command(*flags, cwd=None, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jaxlab.finetune", *map(str, flags)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def assert_one_line(process, code, message):
    """A process ended with an exit code, and one line of error that says so much."""
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    assert message in process.stderr


def torch_alexnet(num_classes: int, seed: int = 0, dropout: float = 0.5, **widths):
    """torchvision's own AlexNet with its own random initial weights, in eval mode.

    `widths` are `channels` and `hidden`, as of jaxlab's; torchvision's by default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with torch.device("meta" if widths else "cpu"):
            model = torch_alexnet_of(num_classes=num_classes, dropout=dropout)
        if widths:
            narrow_torch(model, num_classes, **widths)
    return model.eval()


def narrow_torch(model, num_classes, channels=AlexNet.channels, hidden=32):
    """Give torchvision's AlexNet layers of other widths."""
    convolutions = [i for i, m in enumerate(model.features) if hasattr(m, "weight")]
    before = 3
    for index, after in zip(convolutions, channels, strict=True):
        old = model.features[index]
        window = old.kernel_size, old.stride, old.padding
        model.features[index] = torch.nn.Conv2d(before, after, *window)
        before = after
    sizes = (before * 36, hidden), (hidden, hidden), (hidden, num_classes)
    for index, size in zip((1, 4, 6), sizes, strict=True):
        model.classifier[index] = torch.nn.Linear(*size)


def with_imagenet_convolutions(model):
    """Put the real convolution weights into torchvision's AlexNet."""
    convolutions = [m for m in model.features if hasattr(m, "weight")]
    with torch.no_grad():
        for target, layer in zip(convolutions, imagenet_conv().values(), strict=True):
            kernel = layer["kernel"].transpose(3, 2, 0, 1).copy()
            target.weight.copy_(torch.from_numpy(kernel))
            target.bias.copy_(torch.from_numpy(layer["bias"]))
    return model


def random_params(model, dtype=np.float32, seed=0):
    """Params for images, as wide as torch's init draws them, by NumPy.

    The program that draws them by JAX takes longer to compile than most to run.
    """
    random = np.random.default_rng(seed)

    def layer(leaves):
        bound = np.prod(leaves["kernel"].shape[:-1]) ** -0.5
        return {
            name: random.uniform(-bound, bound, leaf.shape).astype(dtype)
            for name, leaf in leaves.items()
        }

    return {name: layer(leaves) for name, leaves in param_shapes(model).items()}


def pytest_addoption(parser):
    parser.addoption("--stress", action="store_true", help="run the stress cases too")


def pytest_configure(config):
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        # In processes that run tests, before these import torchvision: beside some
        # builds of torch it needs help.
        global torch, torchvision, torch_alexnet_of
        torch, torchvision = import_torch()
        torch_alexnet_of = torchvision.models.alexnet  # which some tests replace
    settings.register_profile("stress", max_examples=1000)
    if config.getoption("--stress"):
        settings.load_profile("stress")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--stress"):
        left_out = [item for item in items if item.get_closest_marker("stress")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("stress")]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Cache folders for this run of the tests, its worker processes' and commands'.

    A program that one test has compiled is there for all others, whoever runs them.
    """
    base = tmp_path_factory.getbasetemp()
    # Of a worker process, the base is one folder below the run's own.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    # What is left among temporary files is somebody's fault.
    temporary = base / "temporary"
    temporary.mkdir()
    compiled = {
        "jax_compilation_cache_dir": str(run / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLAB_HOME", str(run / "jaxlab"))
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        for name, value in compiled.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield
        assert [path.name for path in temporary.iterdir()] == []


@pytest.fixture
def x64():
    """64-bit JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are files that nobody draws, which takes a second of a run."""

    def savefig(self, path, **_):
        pathlib.Path(path).write_bytes(b"a picture")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def narrowed(monkeypatch, undrawn):
    """The command, in this process, with few channels and hidden units."""
    narrow(monkeypatch.setitem)


# AlexNet's own convolutions, for which there are real weights, and few hidden units.
SLIM = {"hidden": NARROW["hidden"]}


@pytest.fixture
def slim(monkeypatch, undrawn):
    """The command, in this process, with the widths of SLIM."""
    narrow(monkeypatch.setitem, **SLIM)


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory):
    """A file of weights for the narrow command, as torch writes them."""
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    torch.save(torch_alexnet(1000, **NARROW).state_dict(), path)
    return str(path)


def give_memory_back():
    """Return freed memory to the system; the commands ask the C library to keep it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def memory_of_a_test(request):
    """What a full-size network took is not kept for the next test."""
    yield
    if request.node.get_closest_marker("slow"):
        give_memory_back()


@pytest.fixture(autouse=True, scope="module")
def memory_of_a_module():
    """Nor are a module's programs, which lie on the disk for the next."""
    yield
    jax.clear_caches()
    give_memory_back()


@pytest.fixture
def run_here(monkeypatch, capsys):
    """A function: run a command's main in this process as if it were one of its own."""

    def run(main, *arguments):
        arguments = ["command", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", arguments)
        code = terminal.run(main)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def recompiled():
    """A function that forgets compiled programs, for a control that patches the code.

    They are forgotten once more after the test, so that nobody else meets wrong ones.
    """
    yield jax.clear_caches
    jax.clear_caches()


@pytest.fixture
def small_disk():
    """A function that lets no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
