"""python -m jaxlab.compare: what pretrained convolutions are worth, on 200 digits.

An MLP, AlexNet with random weights, and AlexNet with ImageNet's convolutions, which
stay frozen, learn from the same images. Each trains until the loss on validation images
no longer falls, and those choose its learning rate and its best epoch; the test images
choose nothing. The folder of the run has all curves in results.json, and a picture of
them. AlexNet with random weights takes hours on a CPU, and minutes on a GPU.
"""

# It is one file so that a comparison can be read from its settings to its choices.

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab import environment, runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import DivergedError, UsageError, did_you_mean, shown
from jaxlab.metrics import best_epoch
from jaxlab.models.architecture import ARCHITECTURES
from jaxlab.runs import folder as run_folder
from pretrained import disk, stages
from pretrained.errors import counted

ALEXNET = "alexnet"  # in ARCHITECTURES


class Start(NamedTuple):
    """How AlexNet begins: the values of `--weights` and `--freeze`."""

    weights: str
    freeze: str


# The networks in the order of the table; the MLP is not AlexNet, and has no Start.
NETWORKS: dict[str, Start | None] = {
    "mlp": None,
    "alexnet-scratch": Start("none", "none"),
    "alexnet-frozen": Start("imagenet-conv", "features"),
}
RULE = (
    "the learning rate and the epoch of each network are those with the lowest loss on "
    "the validation images; the rate is chosen with the first seed"
)


@dataclass(frozen=True)
class Config:
    """The flags of the command and their defaults."""

    networks: str = flag(
        "all",
        f"comma-separated networks, or all: {', '.join(NETWORKS)}",
        group="comparison",
        metavar="NAMES",
        synonyms=("models", "model", "network"),
    )
    seeds: int = flag(5, "runs of each network, one per seed", at_least=1)
    rates: str = flag(
        "1e-4,3e-4,1e-3",
        "learning rates to choose from, separated by commas",
        metavar="X,X",
        synonyms=("lr", "lrs", "learning-rate", "learning-rates"),
    )
    epochs: int = flag(
        200, "most passes over the training images", group="training", at_least=1
    )
    patience: int = flag(
        15, "epochs without a lower validation loss that end a run", at_least=1
    )
    batch_size: int = flag(20, "images per step", at_least=1)
    image_size: int = flag(
        224,
        "height and width of AlexNet's input in pixels",
        at_least=ARCHITECTURES[ALEXNET].min_image_size,
        at_most=2048,
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
    test_size: int = flag(
        1000, "images to test on; always the same, chosen by --order", at_least=1
    )
    validation_fraction: float = flag(
        0.125,
        "part of the training split to validate on; none of it is trained on",
        at_least=0,
        below=1,
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
        _ = self.names, self.learning_rates

    @property
    def names(self) -> tuple[str, ...]:
        """The networks, in the order of NETWORKS; raises UsageError for another."""
        words = [word.strip() for word in self.networks.split(",")]
        if words == ["all"]:
            return tuple(NETWORKS)
        for word in words:
            if word not in NETWORKS:
                raise UsageError(
                    f"--networks: unknown network {shown(word)}"
                    f"{did_you_mean(word, list(NETWORKS))}; pass some of "
                    f"{', '.join(NETWORKS)}, or all"
                )
        return tuple(name for name in NETWORKS if name in words)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates to try, ascending; raises UsageError if one is invalid."""
        try:
            rates = {float(word) for word in self.rates.split(",")}
        except ValueError:
            rates = set()
        if not rates or not all(0 < rate < np.inf for rate in rates):
            raise UsageError(
                f"--rates: expected numbers above 0, got {shown(self.rates)}; pass "
                "them separated by commas, such as 1e-4,1e-3"
            )
        return tuple(sorted(rates))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the flags, run the comparison and return the content of results.json.

    Raises JaxlabError or WeightsError with the message that the user sees.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.compare", about=__doc__)
    return compare(Config(**given))


def compare(config: Config) -> dict[str, Any]:
    """Train the networks, print and write the results, and return them."""
    folder = run_folder.resolve_folder(config.out, config.overwrite)

    # JAX is imported here, so that `--help` and a mistyped flag do not wait for it.
    console = terminal.SHELL
    console.wait("starting JAX")
    device = runtime.set_up(console.log)
    from jaxlab.data.load import load

    console.wait("loading the data")
    data = load(
        config.dataset,
        None,
        train_size=config.train_size,
        test_size=config.test_size,
        validation_fraction=config.validation_fraction,
        order=config.order,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        offline=config.offline,
        progress=console.progress,
    )
    if data.validation is None:
        raise UsageError(
            "--validation-fraction: 0 leaves no validation images, which choose the "
            "learning rate and the epoch; pass a larger fraction, such as 0.125"
        )
    with (
        run_folder.locked(folder, console.log),
        environment.pinned(),
        runtime.memory_errors_explained(
            f"{device} does not have enough memory for batches of {config.batch_size} "
            f"images of {config.image_size}×{config.image_size}; lower --batch-size or "
            "--image-size"
        ),
    ):
        run_folder.remove_run(folder)
        return _compare(Task(config, data, folder, console), device)


class Task(NamedTuple):
    """What every run needs."""

    config: Config
    data: Any
    folder: Path
    console: terminal.Console


def _compare(task: Task, device: str) -> dict[str, Any]:
    """Train every network, print the table, write the files; return the results."""
    from jaxlab.figures.text import COMPARISON_HEADER, comparison_line
    from jaxlab.runs.figures import draw_comparison
    from jaxlab.runs.writer import RunWriter

    config, data, folder, console = task
    note = f"; {data.note}" if data.note else ""
    console.log(
        f"{data.name}: {data.sizes_text()}, {counted(len(config.names), 'network')}, "
        f"{counted(config.seeds, 'seed')}, on {device}{note}"
    )
    writer = RunWriter(folder, None, console.log)
    networks: dict[str, Any] = {}
    content = {
        "settings": dataclasses.asdict(config),
        "dataset": {"name": data.name, "sha256": data.fingerprint()},
        "images": {name: len(split) for name, split in data.splits.items()},
        **environment.recorded(device),
        "rule": RULE,
        "networks": networks,
    }
    for name in config.names:
        what = f"training {name}"
        rates = counted(len(config.learning_rates), "rate")
        console.wait(what, f"{what} at {rates}, {counted(config.seeds, 'seed')}")
        networks[name] = _best_of(name, task)
        writer.write_json(run_folder.RESULTS, content)
        stages.describe_saved(functools.partial(_what_is_saved, task, len(networks)))
    console.log("")
    console.log(COMPARISON_HEADER)
    for name, found in networks.items():
        console.log(comparison_line(name, found))
    console.log(RULE)
    console.wait("drawing the picture")
    title = (
        f"{counted(len(data.train), 'image')} of {data.name}, "
        f"{counted(config.seeds, 'seed')}"
    )
    draw_comparison(writer, networks, title)
    console.log(f"run={folder}")
    return content


def _what_is_saved(task: Task, finished: int) -> str:
    """Return what is kept if the comparison stops now."""
    all_of_them = counted(len(task.config.names), "network")
    results = task.folder / run_folder.RESULTS
    return f"the results of {finished} of {all_of_them} are in {results}"


def _best_of(name: str, task: Task) -> dict[str, Any]:
    """Choose a network's learning rate with the first seed, and train all seeds."""
    config, console = task.config, task.console
    tried: dict[float, Outcome] = {}
    for rate in config.learning_rates:
        try:
            tried[rate] = _logged_run(name, task, 0, rate)
        except DivergedError as error:
            console.log(f"{name}  lr {rate:<7g} seed 0  {error.text.split(';')[0]}")
    if not tried:
        raise DivergedError(
            f"{name}: the loss was not finite at any learning rate of --rates "
            f"{config.rates}; pass lower ones"
        )
    losses = {rate: outcome.best["validation_loss"] for rate, outcome in tried.items()}
    chosen = min(losses, key=lambda rate: losses[rate])
    if len(losses) > 1 and chosen in (min(losses), max(losses)):
        extreme = "lowest" if chosen == min(losses) else "highest"
        console.log(
            f"{name}: lr {chosen:g} is the {extreme} that was tried; --rates may "
            "contain no better one"
        )
    outcomes = [tried[chosen]]
    outcomes += [_logged_run(name, task, s, chosen) for s in range(1, config.seeds)]
    return {
        "parameters": outcomes[0].parameters,
        "trained_parameters": outcomes[0].trained,
        "learning_rate": chosen,
        "tried": {f"{rate:g}": loss for rate, loss in losses.items()},
        "runs": [
            {
                "seed": seed,
                "best_epoch": outcome.best["epoch"],
                "seconds": outcome.seconds,
                "rows": outcome.rows,
            }
            for seed, outcome in enumerate(outcomes)
        ],
    }


class Outcome(NamedTuple):
    """A finished run: a row of metrics for each epoch, and its parameters."""

    rows: list[dict[str, float]]
    parameters: int
    trained: int

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch."""
        best = best_epoch(self.rows)
        return next(row for row in self.rows if row["epoch"] == best)

    @property
    def seconds(self) -> float:
        """The time of all epochs, without that of compiling and of storing features."""
        return sum(row["seconds"] for row in self.rows)


def _logged_run(name: str, task: Task, seed: int, rate: float) -> Outcome:
    """Train a network once, and log its best epoch."""
    what = f"{name}  lr {rate:<7g} seed {seed}"
    task.console.wait(f"training {name} with lr {rate:g} and seed {seed}")
    start = NETWORKS[name]
    # The lines of an epoch are many; a terminal has the bars.
    quiet = task._replace(console=task.console._replace(log=lambda line: None))
    if start is None:
        rows, params, trainable = _mlp(quiet, seed, rate)
    else:
        rows, params, trainable = _alexnet(quiet, seed, rate, start)
    outcome = Outcome(rows, *_sizes(params, trainable))
    best = outcome.best
    task.console.log(
        f"{what}  epoch {best['epoch']:>3} of {len(rows):<3}  validation loss "
        f"{best['validation_loss']:.4f} accuracy {best['validation_accuracy']:.3f}  "
        f"test accuracy {best['test_accuracy']:.3f}  {outcome.seconds:.0f} s"
    )
    return outcome


def _mlp(task: Task, seed: int, rate: float) -> tuple[list[Any], Any, Any]:
    """Train the lab's MLP; return its rows, its params and which are trained."""
    from jaxlab.models.mlp import MLP
    from jaxlab.training import trainer

    config, data, _, console = task
    settings = trainer.Settings(
        epochs=config.epochs, batch_size=config.batch_size, lr=rate, seed=seed
    )
    training = trainer.prepared(MLP(num_classes=len(data.class_names)), data, settings)
    history = trainer.train(
        training,
        settings,
        "adam",
        console,
        patience=config.patience,
        also=("test",),
    )
    return history.rows, history.variables["params"], training.trainable


def _alexnet(
    task: Task, seed: int, rate: float, start: Start
) -> tuple[list[Any], Any, Any]:
    """Train AlexNet; return its rows, its params and which of them are trained."""
    from jaxlab.config import Config as FineTuning
    from jaxlab.config import resolved
    from jaxlab.data.preprocess import Preprocess
    from jaxlab.training.feature_store import ArrayStore
    from jaxlab.training.fit import NoWriter, Progress, ValidatedState, run_epochs
    from jaxlab.training.initial_weights import initial_variables
    from jaxlab.training.job import job_of, network_of
    from jaxlab.training.step import init_state

    config, data, _, console = task
    settings = resolved(
        FineTuning(
            model=ALEXNET,
            weights=start.weights,
            freeze=start.freeze,
            lr=rate,
            schedule="constant",
            epochs=config.epochs,
            patience=config.patience,
            batch_size=min(config.batch_size, len(data.train)),
            image_size=config.image_size,
            seed=seed,
            checkpoint_every=0,
        )
    )
    network = network_of(settings, data)
    variables, _ = initial_variables(
        ARCHITECTURES[ALEXNET], network.model, network.init_key, settings.weights
    )
    state = init_state(variables["params"], network.optimizer)
    state = ValidatedState.of(state, network.trainable)
    size = int(settings.feature_cache_size * 1e9)
    with contextlib.closing(runtime.Clock()) as clock:
        job = job_of(
            settings,
            data,
            Preprocess(config.image_size),
            network,
            state,
            clock,
            console,
            store=ArrayStore(disk.cache_folder() / "features", size),
        )
        job = job._replace(also=("test",))
        best, rows, _ = run_epochs(job, state, Progress(), NoWriter())
    return rows, best.params, network.trainable


def _sizes(params: Any, trainable: Any) -> tuple[int, int]:
    """Return the numbers of parameters and of trained parameters."""
    import jax

    sizes = jax.tree.map(np.size, params)
    trained = jax.tree.map(lambda size, is_trained: size * is_trained, sizes, trainable)
    return sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(trained))


if __name__ == "__main__":
    sys.exit(terminal.run(main))
