"""python -m jaxlab.overfit: over-fit a small MLP and compare remedies.

An MLP with two hidden layers trains on 200 images without a remedy, with L2, L1,
dropout, batch normalisation or a step-decayed learning rate, and with two combinations.
All seeds of a variant are one compiled program: `vmap` over seeds of a `scan` over
epochs of a `scan` over steps.

It is one file because the lab is read as a whole: variants, settings, training, files.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import environment, runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import UsageError, did_you_mean
from jaxlab.runs import folder as run_folder
from pretrained import stages
from pretrained.errors import counted


class Variant(NamedTuple):
    """The remedies that are used. Their strengths are flags, equal for all variants."""

    l2: bool = False
    l1: bool = False
    step_decay: bool = False
    dropout: bool = False
    batch_norm: bool = False


VARIANTS = {
    "baseline": Variant(),
    "l2": Variant(l2=True),
    "l1": Variant(l1=True),
    "step-decay": Variant(step_decay=True),
    "dropout": Variant(dropout=True),
    "batchnorm": Variant(batch_norm=True),
    "dropout+step-decay": Variant(dropout=True, step_decay=True),
    "batchnorm+step-decay": Variant(batch_norm=True, step_decay=True),
}
RULE = (
    "under-fits: mean training accuracy below 95 %; over-fits: at least 95 % and "
    "more than 5 points above the mean test accuracy; balanced: all other cases"
)


@dataclass(frozen=True)
class Config:
    """The flags of the command and their defaults."""

    variants: str = flag(
        "all", "comma-separated names: " + ", ".join(VARIANTS), group="comparison"
    )
    seeds: int = flag(10, "runs of each variant, one per seed", at_least=1)
    epochs: int = flag(
        40, "passes over the training images", group="training", at_least=1
    )
    batch_size: int = flag(10, "images per step", at_least=1)
    optimizer: str = flag("adam", "update rule", choices=("adam", "sgd"))
    lr: float = flag(1e-4, "learning rate", above=0)
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    lr_step: int = flag(
        20, "step-decay: epochs between decays", group="remedies", at_least=1
    )
    lr_gamma: float = flag(0.1, "step-decay: factor of each decay", above=0, at_most=1)
    l2: float = flag(1e-3, "l2: the λ of λ·Σw² in the loss", at_least=0)
    l1: float = flag(1e-4, "l1: the λ of λ·Σ|w| in the loss", at_least=0)
    dropout_rate: float = flag(
        0.5, "dropout: fraction of the units to drop", at_least=0, below=1
    )
    dataset: str = flag(
        "mnist5k",
        "mnist5k (embedded), mnist or fashion_mnist (downloaded once), the name of a "
        "TensorFlow Datasets (TFDS) dataset, or a folder with the four IDX files of a "
        "data set like MNIST",
        group="data",
    )
    train_size: int = flag(
        200, "images to train on; always the same, chosen by --order", at_least=1
    )
    test_size: int | None = flag(
        None,
        "images to test on; always the same, chosen by --order",
        at_least=1,
        default_help="all",
    )
    order: str = flags.order()
    data_dir: str | None = flags.data_dir()
    manual_dir: str | None = flags.manual_dir()
    out: str | None = flag(
        None,
        "folder of the run",
        group="run",
        metavar="FOLDER",
        default_help="a new folder in runs/",
    )
    overwrite: bool = flag(False, "replace an earlier run in --out")
    offline: bool = flag(False, "open no network connection")
    debug: bool = flag(False, "show tracebacks")

    def __post_init__(self):
        """Check every argument."""
        flags.validate(self)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the flags, run the lab and return the content of results.json.

    Raises JaxlabError with the message that the user sees.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.overfit", about=__doc__)
    config = Config(**given)
    return overfit(config, _chosen(config))


def _chosen(config: Config) -> dict[str, Variant]:
    """Return the requested variants.

    Raises UsageError for an unknown name, and for batchnorm with a batch of one image.
    """
    names = list(VARIANTS) if config.variants == "all" else config.variants.split(",")
    for name in names:
        if name not in VARIANTS:
            near = did_you_mean(name, list(VARIANTS))
            raise UsageError(f"--variants: unknown variant {name!r}{near}")
    chosen = {name: VARIANTS[name] for name in names}
    last = config.train_size % config.batch_size or config.batch_size
    if min(last, config.train_size) == 1 and any(v.batch_norm for v in chosen.values()):
        raise UsageError(
            f"--batch-size: {config.batch_size} leaves a batch of one image, for which "
            "batch normalisation has no variance; pass another batch size, or leave "
            "batchnorm out of --variants"
        )
    return chosen


def overfit(config: Config, variants: dict[str, Variant]) -> dict[str, Any]:
    """Run the lab, print and write its results, and return results.json's content."""
    folder = run_folder.resolve_folder(config.out, config.overwrite)

    # JAX is imported here, so that `--help` and a mistyped flag do not wait for it.
    stages.begin("starting JAX")
    device = runtime.set_up()
    from jaxlab.data.load import load

    stages.begin("loading the data")
    data = load(
        config.dataset,
        None,
        train_size=config.train_size,
        test_size=config.test_size,
        order=config.order,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        offline=config.offline,
        progress=terminal.progress_bar,
    )
    with run_folder.locked(folder, terminal.log), environment.pinned():
        run_folder.remove_run(folder)
        return _lab(config, variants, data, device, folder)


def _lab(
    config: Config,
    variants: dict[str, Variant],
    data: Any,
    device: str,
    folder: Path,
) -> dict[str, Any]:
    """Train every variant, print the table, write the files; return the results."""
    import jax.numpy as jnp

    from jaxlab.figures.text import VARIANT_HEADER, variant_line
    from jaxlab.runs.figures import draw_lab
    from jaxlab.runs.writer import RunWriter

    splits = {
        name: (jnp.asarray(split.images) / 255.0, jnp.asarray(split.labels))
        for name, split in (("train", data.train), ("test", data.test))
    }
    note = f"; {data.note}" if data.note else ""
    terminal.log(
        f"{data.name}: {data.sizes_text()}, {counted(config.seeds, 'seed')}, "
        f"{counted(config.epochs, 'epoch')}, on {device}{note}"
    )
    print(VARIANT_HEADER, flush=True)
    results = {}
    with terminal.progress_bar(len(variants), "variants", unit="variant") as bar:
        for name, variant in variants.items():
            results[name] = _train(variant, config, len(data.class_names), splits)
            bar.write(variant_line(name, results[name]), file=sys.stdout)
            bar.update()
    print(f"\n{RULE}")
    content = {
        "settings": dataclasses.asdict(config),
        "dataset": {"name": data.name, "sha256": data.fingerprint()},
        **environment.recorded(device),
        "rule": RULE,
        "variants": results,
    }
    title = (
        f"MLP on {counted(len(data.train), 'image')} of {data.name}, "
        f"{'mean and range of ' if config.seeds > 1 else ''}"
        f"{counted(config.seeds, 'seed')}"
    )
    writer = RunWriter(folder, None, terminal.log)
    stages.begin("writing the results")
    writer.write_json(run_folder.RESULTS, content)
    stages.describe_saved(lambda: f"the results are in {folder}, without a picture")
    draw_lab(writer, results, title)
    terminal.log(f"run={folder}")
    return content


def _train(
    variant: Variant, config: Config, num_classes: int, splits: Any
) -> dict[str, Any]:
    """Train all seeds of a variant; return its verdict, curves and seconds."""
    import jax
    import jax.numpy as jnp

    stages.begin("compiling")
    started = time.perf_counter()
    seeds = jnp.arange(config.seeds)
    orders = epoch_orders(config, len(splits["train"][1]))
    program = jax.jit(variant_program(variant, config, num_classes))
    compiled_program = program.lower(seeds, orders, splits).compile()
    compiled = time.perf_counter()
    stages.begin("training")
    curves = jax.device_get(compiled_program(seeds, orders, splits))
    finished = time.perf_counter()
    return {
        "verdict": verdict(
            curves["train_accuracy"][:, -1].mean(),
            curves["test_accuracy"][:, -1].mean(),
        ),
        "seconds": finished - compiled,
        "compile_seconds": compiled - started,
        "curves": {key: values.tolist() for key, values in curves.items()},
    }


def verdict(train_accuracy: float, test_accuracy: float) -> str:
    """Return the verdict of RULE for mean accuracies in [0, 1] after the last epoch."""
    if train_accuracy < 0.95:
        return "under-fits"
    return "over-fits" if train_accuracy - test_accuracy > 0.05 else "balanced"


def epoch_orders(config: Config, count: int) -> np.ndarray:
    """Return the order of the images for each seed and epoch, int32[s, epochs, n]."""
    from jaxlab.data.loaders import epoch_order

    return np.array(
        [
            [epoch_order(count, seed, epoch) for epoch in range(config.epochs)]
            for seed in range(config.seeds)
        ],
        np.int32,
    )


def variant_program(
    variant: Variant, config: Config, num_classes: int
) -> Callable[[Any, Any, Any], dict[str, Any]]:
    """Return `(seeds int[s], orders, splits) -> curves`, a pure function for jit.

    `orders` are those of `epoch_orders`; `splits` maps "train" and "test" to (images
    float[n, ...], labels int32[n]). The curves are float[s, epochs]: `loss` and
    `accuracy` of both splits, such as `train_loss`, measured in eval mode after each
    epoch. Seeds differ in their initial weights, the order of the images and dropout,
    and each is the training that `jaxlab.fit` does with the same seed.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab.data.loaders import Batch
    from jaxlab.models.mlp import MLP
    from jaxlab.training.step import init_state, make_eval_step

    model = MLP(
        num_classes=num_classes,
        dropout_rate=config.dropout_rate if variant.dropout else 0.0,
        batch_norm=variant.batch_norm,
    )
    eval_step = make_eval_step(model.apply)

    def one_seed(seed, orders, splits):
        images, labels = splits["train"]
        count = len(labels)
        size = min(config.batch_size, count)
        init_key, dropout_key = jax.random.split(jax.random.key(seed))
        variables = model.init(init_key, images[:1], train=False)
        optimizer, train_step = _optimizer_and_step(
            variant, config, model, variables["params"], -(-count // size)
        )

        def step(state, indices):
            batch = Batch(images[indices], labels[indices], jnp.ones(len(indices)))
            return train_step(state, batch, dropout_key)

        def epoch(state, order):
            whole = count - count % size
            state, _ = jax.lax.scan(step, state, order[:whole].reshape(-1, size))
            if whole < count:  # the last batch is shorter, as in torch's DataLoader
                state, _ = step(state, order[whole:])
            point = {}
            for name, (inputs, targets) in splits.items():
                batch = Batch(inputs, targets, jnp.ones(len(targets)))
                metrics, _ = eval_step(state, batch)
                point[f"{name}_loss"] = metrics.loss / metrics.count
                point[f"{name}_accuracy"] = metrics.correct / metrics.count
            return state, point

        state = init_state(variables["params"], optimizer, variables.get("batch_stats"))
        return jax.lax.scan(epoch, state, orders)[1]

    return jax.vmap(one_seed, in_axes=(0, 0, None))


def _optimizer_and_step(
    variant: Variant, config: Config, model: Any, params: Any, steps_per_epoch: int
) -> tuple[Any, Callable]:
    """Return the optimizer and the training step of a variant, with its cures on."""
    import jax

    from jaxlab.training import optim
    from jaxlab.training.step import make_train_step

    rate: float | Callable[[Any], Any] = config.lr
    if variant.step_decay:
        rate = optim.step_decay(
            config.lr, config.lr_step, config.lr_gamma, steps_per_epoch
        )
    trainable = jax.tree.map(lambda _: True, params)
    optimizer = optim.make_optimizer(
        config.optimizer, rate, trainable=trainable, momentum=config.momentum
    )
    penalty = functools.partial(
        optim.penalty,
        l1=config.l1 if variant.l1 else 0.0,
        l2=config.l2 if variant.l2 else 0.0,
    )
    step = make_train_step(model.apply, optimizer, trainable, penalty=penalty)
    return optimizer, step


if __name__ == "__main__":
    sys.exit(terminal.run(main))
