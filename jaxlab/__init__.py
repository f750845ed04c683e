"""Transfer learning for vision in functional JAX, tested against torchvision."""

import importlib

_HOME = {
    "AlexNet": "jaxlab.models.alexnet",
    "Batch": "jaxlab.data.loaders",
    "batches": "jaxlab.data.loaders",
    "evaluate_split": "jaxlab.training.epoch",
    "init_state": "jaxlab.training.step",
    "make_eval_step": "jaxlab.training.step",
    "make_optimizer": "jaxlab.training.optim",
    "make_train_step": "jaxlab.training.step",
    "MLP": "jaxlab.models.mlp",
    "penalty": "jaxlab.training.optim",
    "Preprocess": "jaxlab.data.preprocess",
    "step_decay": "jaxlab.training.optim",
    "trainable_tree": "jaxlab.training.optim",
    "TrainState": "jaxlab.training.step",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    # Names are imported on first use, so that `--help` and `import jaxlab` do not
    # wait for JAX.
    if name not in _HOME:
        raise AttributeError(f"module 'jaxlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
