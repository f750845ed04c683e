"""Tolerances, the torch oracle, and what several rooms' tests share."""

import os
import resource
import signal

import numpy as np
import pytest

from jaxlab.verify import import_torch
from pretrained.tables import ALEXNET, flattened_chw

# Before any test imports torchvision: beside some builds of torch it needs help.
torch, torchvision = import_torch()

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


# A checkpoint of the full-size network is half a gigabyte; test_resume.py has a narrow
# one's.
NO_CHECKPOINTS = ["--checkpoint-every", "0"]


def relative_error(ours, reference) -> float:
    """‖ours - reference‖ / ‖reference‖ in float64, of arrays of equal shape."""
    ours = np.asarray(ours, np.float64)
    reference = np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def torch_alexnet(num_classes: int, seed: int = 0, dropout: float = 0.5):
    """torchvision's own AlexNet with its own random initial weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torchvision.models.alexnet(num_classes=num_classes, dropout=dropout)
    return model.eval()


def narrow_table(channels: tuple[int, int, int, int, int], hidden: int):
    """AlexNet's conversion table for a copy with other widths."""
    before = (3, *channels[:-1])
    convolutions = zip(channels, before, (11, 5, 3, 3, 3), strict=True)
    weights = [(out, inside, k, k) for out, inside, k in convolutions]
    weights += [(hidden, channels[-1] * 36), (hidden, hidden), ("num_classes", hidden)]
    shapes = [shape for weight in weights for shape in (weight, weight[:1])]
    flatten = flattened_chw(channels[-1], 6, 6)
    return tuple(
        row._replace(
            shape=shape,
            transform=flatten if row.flax == "fc6/kernel" else row.transform,
        )
        for row, shape in zip(ALEXNET, shapes, strict=True)
    )


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """A cache folder for this run of the tests, its worker processes' and commands'."""
    base = tmp_path_factory.getbasetemp()
    # Of a worker process, the base is one folder below the run's own.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLAB_HOME", str(run / "jaxlab"))
        yield


@pytest.fixture
def x64():
    """64-bit JAX for one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def recompiled():
    """A function that forgets compiled programs, for a control that patches the code.

    They are forgotten once more after the test, so that nobody else meets wrong ones.
    """
    import jax

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
