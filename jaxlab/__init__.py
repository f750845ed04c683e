"""Transfer learning for vision in functional JAX, with results proven equal to torch's.

    data = jaxlab.load_data("mnist5k", train_size=200)     # or a folder, or arrays
    history = jaxlab.fit(jaxlab.MLP(dropout_rate=0.5), data, epochs=40)
    jaxlab.plot_curves(history)
    run = jaxlab.fine_tune("mnist5k", epochs=2)            # a pretrained network
    run.classifier.predict("picture.png")

`help(jaxlab.NAME)` has an example for each name:

- data: load_data, Preprocess, Batch, batches
- networks: create_model, MLP, AlexNet, layers, summary
- training: fine_tune, Config (its settings), fit
- what was trained: Classifier, plot_curves, plot_confusion, plot_images
- the pieces of the loop: init_state, TrainState, make_optimizer, step_decay, penalty,
  trainable_tree, make_train_step, make_eval_step, evaluate_split
- errors: JaxlabError, the base class of those with a message for the user
"""

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors, which do not run __getattr__
    from jaxlab.classifier import Classifier as Classifier
    from jaxlab.config import Config as Config
    from jaxlab.data.loaders import Batch as Batch
    from jaxlab.data.loaders import batches as batches
    from jaxlab.data.preprocess import Preprocess as Preprocess
    from jaxlab.errors import JaxlabError as JaxlabError
    from jaxlab.finetune import fine_tune as fine_tune
    from jaxlab.library import create_model as create_model
    from jaxlab.library import load_data as load_data
    from jaxlab.models import layers as layers
    from jaxlab.models.alexnet import AlexNet as AlexNet
    from jaxlab.models.describe import summary as summary
    from jaxlab.models.mlp import MLP as MLP
    from jaxlab.plots import plot_confusion as plot_confusion
    from jaxlab.plots import plot_curves as plot_curves
    from jaxlab.plots import plot_images as plot_images
    from jaxlab.training.epoch import evaluate_split as evaluate_split
    from jaxlab.training.optim import make_optimizer as make_optimizer
    from jaxlab.training.optim import penalty as penalty
    from jaxlab.training.optim import step_decay as step_decay
    from jaxlab.training.optim import trainable_tree as trainable_tree
    from jaxlab.training.step import TrainState as TrainState
    from jaxlab.training.step import init_state as init_state
    from jaxlab.training.step import make_eval_step as make_eval_step
    from jaxlab.training.step import make_train_step as make_train_step
    from jaxlab.training.trainer import fit as fit


def _check_not_hidden() -> None:
    """Raise ImportError if files of the working directory hide packages used here.

    `python -m` and notebooks search it first. (The name "jaxlab" makes `python -m`
    print the message instead of a traceback.)
    """
    spec = importlib.util.find_spec("pretrained")
    places = list(spec.submodule_search_locations or ()) if spec else []
    own = os.path.join(os.path.dirname(__path__[0]), "pretrained")
    hiding = [
        place
        for place in places[:1]
        if os.path.isdir(own) and os.path.realpath(place) != os.path.realpath(own)
    ]
    first = os.path.abspath(sys.path[0] if sys.path else "")
    files = (os.path.join(first, f"{name}.py") for name in _IMPORTED)
    hiding += [file for file in files if os.path.isfile(file)]
    if hiding:
        raise ImportError(
            f"{hiding[0]} hides a package of the same name that jaxlab imports; rename "
            "it, or run in another folder",
            name="jaxlab",
        )


_IMPORTED = (
    *("jax", "flax", "optax", "numpy", "PIL", "safetensors", "matplotlib"),
    *("pretrained", "filelock", "platformdirs", "tqdm"),
)
_check_not_hidden()

# Each public name and the module that defines it.
_HOME = {
    "AlexNet": "jaxlab.models.alexnet",
    "Batch": "jaxlab.data.loaders",
    "batches": "jaxlab.data.loaders",
    "Classifier": "jaxlab.classifier",
    "Config": "jaxlab.config",
    "create_model": "jaxlab.library",
    "evaluate_split": "jaxlab.training.epoch",
    "fine_tune": "jaxlab.finetune",
    "fit": "jaxlab.training.trainer",
    "init_state": "jaxlab.training.step",
    "JaxlabError": "jaxlab.errors",
    "layers": "jaxlab.models",
    "load_data": "jaxlab.library",
    "make_eval_step": "jaxlab.training.step",
    "make_optimizer": "jaxlab.training.optim",
    "make_train_step": "jaxlab.training.step",
    "MLP": "jaxlab.models.mlp",
    "penalty": "jaxlab.training.optim",
    "plot_confusion": "jaxlab.plots",
    "plot_curves": "jaxlab.plots",
    "plot_images": "jaxlab.plots",
    "Preprocess": "jaxlab.data.preprocess",
    "step_decay": "jaxlab.training.optim",
    "summary": "jaxlab.models.describe",
    "trainable_tree": "jaxlab.training.optim",
    "TrainState": "jaxlab.training.step",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    # Names are imported when they are used, so that `--help` does not wait for JAX.
    if name not in _HOME:
        raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")
    if name == "layers":
        return importlib.import_module("jaxlab.models.layers")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
