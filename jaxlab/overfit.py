"""python -m jaxlab.overfit: over-fit a small MLP and compare cures.

An MLP with two hidden layers trains on 200 images without a cure, with L2, L1, dropout,
batch normalisation or a step-decayed learning rate, and with any combination of them.
The run's folder then has every seed's curves in results.json, the figure overfit.png,
and in models/ the network of each variant's first seed, for `jaxlab.predict`.

All seeds of a variant are one compiled program: `vmap` over seeds of a `scan` over
epochs of a `scan` over steps. It is one file because the lab is read as a whole:
settings, training, files.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab import environment, runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import UsageError, shown
from jaxlab.models.widths import whole_numbers
from jaxlab.runs import folder as run_folder
from jaxlab.training.variants import BASELINE, VARIANTS, Variant, variants_of
from jaxlab.verdict import RULE, verdict
from pretrained import stages
from pretrained.errors import counted

if TYPE_CHECKING:
    from jaxlab.runs.writer import RunWriter

NETWORK = "mlp"  # in ARCHITECTURES
MOST_HIDDEN = 4  # layers


@dataclass(frozen=True)
class Config:
    """The flags of the command and their defaults."""

    variants: str = flag(
        "all",
        "comma-separated variants: baseline (no cure), any combination of l2, l1, "
        "step-decay, dropout and batchnorm, such as dropout+l2, or all: "
        + ", ".join(VARIANTS),
        group="comparison",
        metavar="NAMES",
    )
    seeds: int = flag(10, "runs of each variant, one per seed", at_least=1)
    hidden: str = flag(
        "512,128",
        "units of each hidden layer, of one to four; batchnorm and dropout act between "
        "them",
        group="network",
        metavar="N,N",
        synonyms=("features", "hidden-sizes", "hidden-size", "hidden-layers")
        + ("hidden-units", "hidden-dims", "widths", "width", "layers", "units"),
    )
    epochs: int = flag(
        40, "passes over the training images", group="training", at_least=1
    )
    batch_size: int = flag(10, "images per step", at_least=1)
    optimizer: str = flag("adam", "update rule", choices=("adam", "sgd"))
    lr: float = flag(1e-4, "learning rate", above=0)
    momentum: float = flag(0.9, "momentum of sgd", at_least=0, below=1)
    lr_step: int = flag(
        20, "step-decay: epochs between decays", group="cures", at_least=1
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
        """Check every argument and their combination."""
        flags.validate(self)
        _check_combination(self)

    @property
    def features(self) -> tuple[int, ...]:
        """The units of the hidden layers; raises UsageError if they are invalid."""
        words = [word.strip() for word in self.hidden.split(",")]
        units = [int(word) if word.isdecimal() else word for word in words]
        try:
            if len(units) <= MOST_HIDDEN:
                return whole_numbers("--hidden", units)
        except UsageError:  # its message shows a list, which nobody has written
            pass
        raise UsageError(
            f"--hidden: expected one to {MOST_HIDDEN} whole numbers of at least 1, got "
            f"{shown(self.hidden)}; pass them separated by commas, such as 512,128"
        )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the flags, run the lab and return the content of results.json.

    Raises JaxlabError with the message that the user sees.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.overfit", about=__doc__)
    return overfit(Config(**given))


def _check_combination(config: Config) -> None:
    """Raise UsageError for unknown variants, and for those that are impossible.

    Batch normalisation needs batches of several images. It and dropout act behind each
    hidden layer but the last.
    """
    variants = variants_of(config.variants)
    possible = [n for n, v in variants.items() if not (v.batch_norm or v.dropout)]
    if len(config.features) < 2 and len(possible) < len(variants):
        others = ",".join(possible) or BASELINE
        raise UsageError(
            f"--hidden: {shown(config.hidden)} is one hidden layer, and dropout and "
            f"batchnorm act between two; pass two widths, or --variants {others}"
        )
    last = config.train_size % config.batch_size or config.batch_size
    is_single = min(last, config.train_size) == 1
    if is_single and any(variant.batch_norm for variant in variants.values()):
        raise UsageError(
            f"--batch-size: {config.batch_size} leaves a batch of one image, for which "
            "batch normalisation has no variance; pass another batch size, or leave "
            "batchnorm out of --variants"
        )


def overfit(config: Config) -> dict[str, Any]:
    """Run the lab, print and write its results, and return results.json's content."""
    folder = run_folder.resolve_folder(config.out, config.overwrite)

    # JAX is imported here, so that `--help` and a mistyped flag do not wait for it.
    console = terminal.SHELL
    console.wait("starting JAX")
    device = runtime.set_up()
    from jaxlab.data.load import load

    console.wait("loading the data")
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
        return _lab(config, data, device, folder, console)


def _lab(
    config: Config,
    data: Any,
    device: str,
    folder: Path,
    console: terminal.Console,
) -> dict[str, Any]:
    """Train every variant, print the table, write the files; return the results."""
    import jax.numpy as jnp

    from jaxlab.figures.text import risen_line, variant_header, variant_line
    from jaxlab.runs.figures import draw_lab
    from jaxlab.runs.writer import RunWriter

    variants = variants_of(config.variants)
    splits = {
        name: (jnp.asarray(split.images) / 255.0, jnp.asarray(split.labels))
        for name, split in (("train", data.train), ("test", data.test))
    }
    inputs = int(np.prod(data.train.images.shape[1:]))
    sizes = (inputs, *config.features, len(data.class_names))
    network = f"MLP {'-'.join(map(str, sizes))}"
    note = f"; {data.note}" if data.note else ""
    console.log(
        f"{data.name}: {data.sizes_text()}, {network}, "
        f"{counted(len(variants), 'variant')}, {counted(config.seeds, 'seed')}, "
        f"{counted(config.epochs, 'epoch')}, on {device}{note}"
    )
    width = max(map(len, (*variants, BASELINE)))
    console.log(variant_header(width))
    results, models = {}, {}
    for name, variant in variants.items():
        results[name], models[name] = _train(
            name, variant, config, sizes[-1], splits, console
        )
        console.log(variant_line(name, results[name], width))
    console.log("")
    console.log(RULE)
    for name, result in results.items():
        if line := risen_line(name, result):
            console.log(line)
    content = {
        "settings": dataclasses.asdict(config),
        "dataset": {"name": data.name, "sha256": data.fingerprint()},
        **environment.recorded(device),
        "rule": RULE,
        "variants": results,
    }
    title = f"{network} on {counted(len(data.train), 'image')} of {data.name}"
    if config.seeds > 1:
        title += f"\nmean and standard deviation of {config.seeds} seeds"
    writer = RunWriter(folder, None, console.log)
    console.wait("writing the results")
    writer.write_json(run_folder.RESULTS, content)
    stages.describe_saved(
        lambda: f"the results are in {folder}, without all models and the picture"
    )
    console.wait("writing the models")
    _write_models(writer, config, variants, models, data)
    stages.describe_saved(lambda: f"the results are in {folder}, without a picture")
    console.wait("drawing the picture")
    draw_lab(writer, results, title)
    console.log(f"run={folder}")
    return content


def _train(
    name: str,
    variant: Variant,
    config: Config,
    num_classes: int,
    splits: Any,
    console: terminal.Console,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train all seeds of a variant.

    Returns its verdict, curves and seconds, and the variables of its first seed.
    """
    import jax
    import jax.numpy as jnp

    runs = f"{name}, {counted(config.seeds, 'seed')}"
    compiling = f"compiling the training of {runs}"
    console.wait(compiling, compiling)
    started = time.perf_counter()
    seeds = jnp.arange(config.seeds)
    orders = epoch_orders(config, len(splits["train"][1]))
    program = jax.jit(variant_program(variant, config, num_classes))
    compiled_program = program.lower(seeds, orders, splits).compile()
    compiled = time.perf_counter()
    console.wait(f"training {runs}, {counted(config.epochs, 'epoch')}")
    curves, variables = jax.device_get(compiled_program(seeds, orders, splits))
    finished = time.perf_counter()
    found = verdict(curves)
    result = {
        "verdict": found.word,
        "lowest_test_loss": {
            "mean": found.lowest,
            "epoch": found.epoch,
            "has_risen": found.has_risen,
        },
        "seconds": finished - compiled,
        "compile_seconds": compiled - started,
        "curves": {key: values.tolist() for key, values in curves.items()},
    }
    return result, variables


def _write_models(
    writer: "RunWriter",
    config: Config,
    variants: dict[str, Variant],
    models: dict[str, Any],
    data: Any,
) -> None:
    """Write the network of each variant's first seed; log what they are.

    A file says by itself how its network is built and what it was trained on.
    """
    from jaxlab.classifier import metadata
    from jaxlab.data.preprocess import Preprocess
    from jaxlab.models.architecture import ARCHITECTURES
    from pretrained.layout import state_dict_of

    image = data.train.images.shape[1:]  # height, width, channels
    if image[0] != image[1]:
        writer.log(
            f"warning: {run_folder.MODELS}: not written: images of {image[0]}×"
            f"{image[1]} are not square, and pictures are predicted as squares"
        )
        return
    # Pixels are scaled to [0, 1], and not normalised.
    as_trained = Preprocess(image[0], mean=(0.0,) * image[2], std=(1.0,) * image[2])
    for name, variables in models.items():
        fields = {"features": config.features, "batch_norm": variants[name].batch_norm}
        table = ARCHITECTURES[NETWORK].table(image, **fields)
        about = metadata(NETWORK, data.class_names, as_trained, "float32", fields)
        writer.write_variant(name, state_dict_of(variables, table), about)
    writer.log(
        f"models: the network of the first seed of each variant, in "
        f"{writer.folder / run_folder.MODELS}"
    )


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
) -> Callable[[Any, Any, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """Return `(seeds int[s], orders, splits) -> (curves, variables)`, for jit.

    `orders` are those of `epoch_orders`; `splits` maps "train" and "test" to (images
    float[n, ...], labels int32[n]). The curves are float[s, epochs]: `loss` and
    `accuracy` of both splits, such as `train_loss`, measured in eval mode after each
    epoch. `variables` are those of the first seed after the last epoch. Seeds differ in
    their initial weights, the order of the images and dropout, and each is the training
    that `jaxlab.fit` does with the same seed. It is a pure function.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab.data.loaders import Batch
    from jaxlab.models.mlp import MLP
    from jaxlab.training.initial_weights import keys
    from jaxlab.training.step import init_state, make_eval_step

    model = MLP(
        features=config.features,
        num_classes=num_classes,
        dropout_rate=config.dropout_rate if variant.dropout else 0.0,
        batch_norm=variant.batch_norm,
    )
    eval_step = make_eval_step(model.apply)

    def one_seed(seed, orders, splits):
        images, labels = splits["train"]
        count = len(labels)
        size = min(config.batch_size, count)
        init_key, dropout_key = keys(seed)
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
        state, curves = jax.lax.scan(epoch, state, orders)
        return curves, state

    def all_seeds(seeds, orders, splits):
        curves, states = jax.vmap(one_seed, in_axes=(0, 0, None))(seeds, orders, splits)
        first = jax.tree.map(lambda leaf: leaf[0], states)
        return curves, {"params": first.params, **first.other_variables}

    return all_seeds


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
