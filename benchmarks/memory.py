"""Compare the peak memory of a short run, and the optimizer's, with PyTorch's.

    python -m benchmarks.memory

Each is measured with different layers frozen. The peak is that of the entire process,
which trains one epoch on 640 digits and tests on 100. The optimizer stores two moments
of each trainable parameter, and nothing for a frozen one.
"""

import argparse
import tempfile
from typing import Any

from benchmarks.harness.pairs import published
from benchmarks.whole_run import run
from jaxlab.models.architecture import ARCHITECTURES, FREEZE

SIZES = ("--epochs", "1", "--train-size", "640", "--test-size", "100")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args(argv)
    results = []
    for freeze in ("features", "none"):
        with tempfile.TemporaryDirectory() as folder:
            _, ours = run(
                "jaxlab.finetune",
                *SIZES,
                *("--freeze", freeze, "--out", f"{folder}/run"),
                JAXLAB_HOME=f"{folder}/home",
            )
        _, theirs = run(
            "benchmarks.harness.peers", *SIZES, "--freeze", freeze, "--channels-last"
        )
        result = {"name": f"memory/{freeze}", "unit": "MB"}
        results.append(published({**result, "ours": ours, "torch": theirs}))
    for freeze in FREEZE:
        ours, theirs = optimizer_bytes(freeze)
        result = {"name": f"optimizer memory/{freeze}", "unit": "MB"}
        result |= {"ours": round(ours / 1e6, 1), "torch": round(theirs / 1e6, 1)}
        results.append(published(result))
    return results


def optimizer_bytes(freeze: str) -> tuple[int, int]:
    """Return the size of Adam's state after a step in bytes, ours and PyTorch's."""
    import jax
    import jax.numpy as jnp

    from benchmarks.harness.peers import Lab, torch
    from jaxlab import AlexNet
    from jaxlab.training.optim import make_optimizer, trainable_tree

    def params():
        images = jnp.zeros((1, 224, 224, 3))
        return AlexNet(10).init(jax.random.key(0), images, train=False)["params"]

    shapes = jax.eval_shape(params)
    trainable = trainable_tree(
        shapes, ARCHITECTURES["alexnet"].freezing_patterns(freeze)
    )
    state = jax.eval_shape(
        make_optimizer("adam", 1e-4, trainable=trainable).init, shapes
    )
    ours = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    lab = Lab(freeze=freeze, train_size=10, test_size=10)
    lab.step(torch.zeros(2, 3, 224, 224), torch.zeros(2, dtype=torch.int64))
    tensors = (t for held in lab.optimizer.state.values() for t in held.values())
    return ours, sum(t.numel() * t.element_size() for t in tensors)


if __name__ == "__main__":
    main()
