"""Compare a head alone, trained with the default settings, with logistic regression.

    python -m benchmarks.heads [--model NAME --weights FILE] [--epochs N]

Both learn four fifths of the 4,000 training digits from the same frozen features, the
averages of the last convolution's channels at 64×64 pixels, and are measured on the
others; the test images are not used. By default the features are those of VGG-16's
ImageNet convolutions. The head is a linear layer without dropout. It is trained with
the other defaults of `jaxlab.finetune`, at a grid of learning rates for each optimizer.
The last line is JSON.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlab
from jaxlab import runtime
from jaxlab.config import Config
from jaxlab.data.digits import mnist5k
from jaxlab.data.loaders import InMemory, epoch_order
from jaxlab.models.architecture import ARCHITECTURES, FINE_TUNED, HEAD_RATES
from jaxlab.training.epoch import evaluate_split, train_epoch
from jaxlab.training.initial_weights import initial_variables
from jaxlab.training.optim import Schedule
from jaxlab.verify import import_torch

SIZE, HELD_OUT, CLASSES, BATCH = 64, 800, 10, 50
RATES = {
    "adam": (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 3e-2, 1e-1),
    "sgd": (1e-2, 3e-2, 1e-1, 3e-1),
}
PENALTIES = (0.0, 5e-4, 1e-3, 1e-2)  # of the logistic regression


def main() -> None:
    """Print the accuracies on the held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vgg16", choices=FINE_TUNED)
    parser.add_argument("--weights", default="imagenet-conv", metavar="FILE")
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    options = parser.parse_args()
    inputs, labels = features(options.model, options.weights)
    order = np.random.default_rng(0).permutation(len(labels))
    train, held_out = (
        InMemory(jnp.asarray(inputs[part]), jnp.asarray(labels[part]))
        for part in (order[HELD_OUT:], order[:HELD_OUT])
    )
    result = {"name": f"heads/{options.model}", "epochs": options.epochs}
    for penalty in PENALTIES:
        accuracy = logistic_regression(train, held_out, penalty)
        result[f"logistic regression, l2 {penalty:g}"] = round(accuracy, 4)
    for optimizer, rates in RATES.items():
        for rate in rates:
            accuracy = head(train, held_out, optimizer, rate, options.epochs)
            chosen = ", default" if rate == HEAD_RATES[optimizer] else ""
            result[f"{optimizer} {rate:g}{chosen}"] = round(accuracy, 4)
    for name, value in result.items():
        print(f"{name:<34}{value}")
    print(json.dumps(result))


def features(name: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features float32[n, c] of the training digits, and their labels."""
    architecture = ARCHITECTURES[name]
    model = architecture.build(CLASSES)
    variables, _ = initial_variables(architecture, model, jax.random.key(0), weights)
    preprocess = jaxlab.Preprocess(image_size=SIZE)

    @jax.jit
    def run(variables: Any, images: jax.Array) -> jax.Array:
        until = architecture.features
        x = model.apply(variables, preprocess(images), train=False, until=until)
        return x if x.ndim == 2 else x.mean((1, 2))

    split = mnist5k().splits["train"]
    images = np.asarray(split.images).reshape(-1, BATCH, *split.images.shape[1:])
    outputs = [run(variables, jnp.asarray(each)) for each in images]
    return np.concatenate(outputs), np.asarray(split.labels)


def head(
    train: InMemory, held_out: InMemory, optimizer: str, rate: float, epochs: int
) -> float:
    """Train a fresh head with the defaults of `Config`; return its accuracy."""
    config = Config(optimizer=optimizer)
    model = jaxlab.layers.Dense(CLASSES)
    params = model.init(jax.random.key(0), train.inputs[:1])["params"]
    trainable = jax.tree.map(lambda _: True, params)
    count = len(train.labels)
    schedule = Schedule(rate, config.schedule, -(-3 * epochs // 5), config.lr_gamma)
    update = jaxlab.make_optimizer(
        optimizer,
        schedule.of_steps(-(-count // config.batch_size)),
        trainable=trainable,
        momentum=config.momentum,
        l2=config.l2,
    )

    def apply_fn(variables: Any, inputs: jax.Array, *, train: bool, **_: Any) -> Any:
        logits = model.apply({"params": variables["params"]}, inputs)
        return (logits, {}) if train else logits

    step = jaxlab.make_train_step(apply_fn, update, trainable)
    state = jaxlab.init_state(params, update)
    for epoch in range(epochs):
        order = epoch_order(count, 0, epoch)
        state, _ = train_epoch(
            step,
            state,
            train,
            order=order,
            batch_size=config.batch_size,
            key=jax.random.key(0),
        )
    score, _ = evaluate_split(
        jaxlab.make_eval_step(apply_fn),
        state,
        held_out,
        count=len(held_out.labels),
        batch_size=BATCH,
    )
    return score.accuracy


def logistic_regression(train: InMemory, held_out: InMemory, l2: float) -> float:
    """Return the accuracy of torch's L-BFGS on the same loss, in float64."""
    torch, _ = import_torch()
    x, y = (torch.from_numpy(np.array(part)) for part in (train.inputs, train.labels))
    x, y = x.double(), y.long()
    linear = torch.nn.Linear(x.shape[1], CLASSES).double()
    torch.nn.init.zeros_(linear.weight)
    optimizer = torch.optim.LBFGS(
        linear.parameters(),
        max_iter=300,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Any:
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(linear(x), y)
        total = total + l2 / 2 * (linear.weight**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    unseen = torch.from_numpy(np.array(held_out.inputs)).double()
    with torch.no_grad():
        found = linear(unseen).argmax(1).numpy()
    return float(np.mean(found == np.asarray(held_out.labels)))


if __name__ == "__main__":
    runtime.set_up()
    main()
