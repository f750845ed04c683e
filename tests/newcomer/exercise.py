"""The over-fitting exercise, as a newcomer wrote it from `help(jaxlab)` alone.

A test runs it. It has at most forty lines of code.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxlab
from jaxlab import layers

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
data = jaxlab.load_data("mnist5k", train_size=200)
variants = {
    "baseline": ({}, {}),
    "l2": ({}, {"l2": 1e-2}),
    "l1": ({}, {"l1": 1e-3}),
    "dropout": ({"dropout_rate": 0.5}, {}),
    "batch norm": ({"batch_norm": True}, {}),
    "step decay": ({}, {"lr_step": 20}),
}
models, histories = {}, {}
for name, (fields, settings) in variants.items():
    models[name] = jaxlab.MLP(features=(512, 128), **fields)
    histories[name] = jaxlab.fit(
        models[name], data, epochs=epochs, log=False, **settings
    )
    row = histories[name].rows[-1]
    train, test = row["train_accuracy"], row["test_accuracy"]
    print(f"{name:<10}  train {train:.3f}  test {test:.3f}  gap {train - test:.3f}")

images, labels = jnp.asarray(data.test.images) / 255, data.test.labels
for train in (True, False):
    logits = models["dropout"].apply(
        histories["dropout"].variables,
        images,
        train=train,
        rngs={"dropout": jax.random.key(0)},
    )
    print(f"dropout, train={train}: {(logits.argmax(-1) == labels).mean():.3f}")

jaxlab.plot_curves(histories["baseline"], "baseline").savefig("curves.png")
logits = models["baseline"].apply(histories["baseline"].variables, images, train=False)
predictions = np.asarray(logits.argmax(-1))
wrong = np.flatnonzero(predictions != labels)[:16]
jaxlab.plot_images(
    data.test.images[wrong], labels[wrong], data.class_names, predictions[wrong]
).savefig("wrong.png")


class Own(nn.Module):
    """A student's own module."""

    @nn.compact
    def __call__(self, x):
        """Return logits."""
        x = layers.ReLU()(layers.Dense(64)(layers.Flatten()(x)))
        return layers.Dense(10)(x)


print(jaxlab.fit(Own(), data, epochs=5, log=False))
