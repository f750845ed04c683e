"""Tolerances, torch's AlexNet as the reference, and shared helpers and fixtures.

It is one file because tests in several folders use each of them.
"""

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

# This must be set before torch is imported, here or in a process that a test starts.
# torch's idle threads spin, and a second thread gains nothing beside a second process.
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import numpy as np
import pytest
from hypothesis import settings
from matplotlib.figure import Figure

from jaxlab import AlexNet, runtime
from jaxlab.cli import terminal
from jaxlab.training.initial_weights import variable_shapes
from jaxlab.verify import import_torch
from pretrained.embedded import imagenet_conv
from tests.stress.narrow import NARROW, narrow

# Relative error ‖ours - torch‖ / ‖torch‖ of one forward pass. The two sides sum the
# same products in different orders. The measured errors are 2e-6 and 4e-15, so the
# bounds are less than 10 and less than 1000 times as large. A wrong layer exceeds them
# by orders of magnitude.
FORWARD_FLOAT32 = 1e-5
FORWARD_FLOAT64 = 1e-12
# The same after 30 optimizer steps in float64. The bound is larger, because each step
# amplifies the roundoff of the steps before it.
TRAJECTORY_FLOAT64 = 1e-9
# A few float32 roundings of values below 4, at most 1.2e-7 each: normalised pixels.
ROUNDOFF_FLOAT32 = 1e-6


ROOT = pathlib.Path(__file__).parents[1]

# A checkpoint of the full-size network is half a gigabyte. tests/runs tests checkpoints
# with a narrow network.
NO_CHECKPOINTS = ["--checkpoint-every", "0"]


def relative_error(ours, reference) -> float:
    """Return ‖ours - reference‖ / ‖reference‖ in float64, for arrays of equal shape."""
    ours = np.asarray(ours, np.float64)
    reference = np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def command(*flags, cwd=None, **environment):
    """Run the fine-tuning command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jaxlab.finetune", *map(str, flags)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def assert_one_line(process, code, message):
    """Assert the exit code, and that stderr is one error line containing `message`."""
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    assert message in process.stderr


def torch_alexnet(num_classes: int, seed: int = 0, dropout: float = 0.5, **widths):
    """Return torchvision's AlexNet with its random initial weights, in eval mode.

    `widths` are `channels` and `hidden` of jaxlab's AlexNet, by default torchvision's.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with torch.device("meta" if widths else "cpu"):
            model = torch_alexnet_of(num_classes=num_classes, dropout=dropout)
        if widths:
            narrow_torch(model, num_classes, **widths)
    return model.eval()


def narrow_torch(model, num_classes, channels=AlexNet.channels, hidden=32):
    """Replace the layers of torchvision's AlexNet by layers of other widths."""
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
    """Copy the ImageNet convolution weights into torchvision's AlexNet."""
    convolutions = [m for m in model.features if hasattr(m, "weight")]
    with torch.no_grad():
        for target, layer in zip(convolutions, imagenet_conv().values(), strict=True):
            kernel = layer["kernel"].transpose(3, 2, 0, 1).copy()
            target.weight.copy_(torch.from_numpy(kernel))
            target.bias.copy_(torch.from_numpy(layer["bias"]))
    return model


def random_params(model, dtype=np.float32, seed=0):
    """Return params drawn with NumPy from torch's initial distribution.

    JAX's program that draws them takes longer to compile than most programs to run.
    """
    random = np.random.default_rng(seed)

    def layer(leaves):
        bound = np.prod(leaves["kernel"].shape[:-1]) ** -0.5
        return {
            name: random.uniform(-bound, bound, leaf.shape).astype(dtype)
            for name, leaf in leaves.items()
        }

    return {
        name: layer(leaves) for name, leaves in variable_shapes(model)["params"].items()
    }


def pytest_addoption(parser):
    parser.addoption("--stress", action="store_true", help="also run stress tests")


def pytest_configure(config):
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        # Only processes that run tests need torch. import_torch must run before a test
        # imports torchvision, which fails with some builds of torch if it is not used.
        global torch, torchvision, torch_alexnet_of
        torch, torchvision = import_torch()
        torch_alexnet_of = torchvision.models.alexnet  # some tests replace it
    if not hasattr(config, "workerinput"):
        # A process that a test killed may have left part of a program.
        compiled_programs(config).mkdir(parents=True, exist_ok=True)
        runtime.remove_unfinished(compiled_programs(config))
    settings.register_profile("stress", max_examples=1000)
    if config.getoption("--stress"):
        settings.load_profile("stress")


def compiled_programs(config):
    """Return the folder of compiled programs, which later test runs use again.

    Compiling is half of the time of the tests that are not slow.
    """
    return config.rootpath / ".pytest_cache" / "compiled"


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--stress"):
        left_out = [item for item in items if item.get_closest_marker("stress")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("stress")]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory, pytestconfig):
    """Share cache folders among the worker processes and commands of a test run.

    A program that one test has compiled is available to all other tests.
    """
    base = tmp_path_factory.getbasetemp()
    # The base folder of a worker process is a subfolder of the test run's folder.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    # The folder must be empty at the end: each test has to remove its temporary files.
    temporary = base / "temporary"
    temporary.mkdir()
    compiled = {
        "jax_compilation_cache_dir": str(compiled_programs(pytestconfig)),
        "jax_compilation_cache_max_size": 1 << 29,  # bytes
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
    """Enable 64-bit types in JAX for one test."""
    with jax.enable_x64(True):
        yield


@contextlib.contextmanager
def compiled_quickly():
    """Turn most of XLA's optimisations off: programs compile in a third of the time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def slow_is_compiled_quickly(request):
    """Turn most of XLA's optimisations off in a slow case of a test.

    The other cases of the test, and all cases under stress, are optimised as users'
    programs are.
    """
    slow = request.node.get_closest_marker("slow")
    quickly = slow and not request.config.getoption("--stress")
    with compiled_quickly() if quickly else contextlib.nullcontext():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Write a placeholder instead of each figure; drawing takes a second per run."""

    def savefig(self, path, **_):
        pathlib.Path(path).write_bytes(b"a picture")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def narrowed(monkeypatch, undrawn):
    """Give commands in this process a network with few channels and hidden units."""
    narrow(monkeypatch.setitem)


# AlexNet's full-size convolutions, for which ImageNet weights are embedded, and few
# hidden units.
SLIM = {"hidden": NARROW["hidden"]}


@pytest.fixture
def slim(monkeypatch, undrawn):
    """Give commands in this process a network with the widths of SLIM."""
    narrow(monkeypatch.setitem, **SLIM)


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory):
    """Return the path of a weights file of the narrow network, written by torch."""
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    torch.save(torch_alexnet(1000, **NARROW).state_dict(), path)
    return str(path)


def give_memory_back():
    """Return freed memory to the system; commands make the C library keep it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def memory_of_a_test(request):
    """Return the memory of a full-size network to the system after its test."""
    yield
    if request.node.get_closest_marker("slow"):
        give_memory_back()


@pytest.fixture(autouse=True, scope="module")
def memory_of_a_module():
    """Free a module's compiled programs; later modules load them from the disk."""
    yield
    jax.clear_caches()
    give_memory_back()


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Return a function that runs a command's main here and returns its outcome.

    The outcome is a CompletedProcess, as if the command had run in its own process.
    """

    def run(main, *arguments):
        arguments = ["command", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", arguments)
        code = terminal.run(main)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def recompiled():
    """Return a function that clears JAX's caches, for controls that patch the code.

    The caches are cleared again after the test, so that no other test uses the programs
    compiled from patched code.
    """
    yield jax.clear_caches
    jax.clear_caches()


@pytest.fixture
def small_disk():
    """Return a function that limits the size of each file, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Handle SIGINT, which a process that a shell runs in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
