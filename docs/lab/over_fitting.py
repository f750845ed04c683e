# %% [markdown]
# # Over-fitting and its cures
#
# A network that answers every training image correctly may have learned the digits, or may have
# learned these images by heart. This notebook shows the difference, and what changes it.
#
# Cells marked **Your turn** are yours to write. Everything above the first one runs as it is.

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxlab
from jaxlab import layers

FAST = os.environ.get("JAXLAB_FAST") == "1"  # small settings, to try the notebook out


def last(history):
    """Return the accuracies of the last epoch: training, test."""
    row = history.rows[-1]
    return row["train_accuracy"], row["test_accuracy"]


# %% [markdown]
# ## 200 digits
#
# 200 images to learn from, 20 of each digit, and 1,000 others to test with.

# %%
data = jaxlab.load_data("mnist5k", train_size=200)
data

# %%
jaxlab.plot_images(data.train.images[:24], data.train.labels[:24])

# %% [markdown]
# ## Three fits of the same points
#
# Two numbers describe a digit here: how bright it is in two places. They separate sevens from
# nines, but not completely. One network is too simple or not trained enough, one fits, and one
# follows every single point.

# %%
BOXES = (slice(8, 14), slice(6, 13)), (slice(12, 15), slice(6, 14))


def two_numbers(split, count=None):
    """Return sevens and nines as images of two pixels, uint8[n, 1, 2], and 0 or 1."""
    chosen = np.isin(split.labels, (7, 9))
    pixels = split.images[chosen, :, :, 0].astype(float)
    means = [pixels[:, rows, columns].mean((1, 2)) for rows, columns in BOXES]
    values = np.clip(1.5 * np.stack(means, -1), 0, 255).round().astype(np.uint8)
    labels = (split.labels[chosen] == 9).astype(int)
    return values[:count, None], labels[:count]


digits = jaxlab.load_data("mnist5k")
points = jaxlab.load_data((two_numbers(digits.train, 60), two_numbers(digits.test)))
fits = {
    "under-fits: 5 epochs": ((), 5, 1e-2),
    "fits": ((), 200, 1e-2),
    "over-fits: 3 × 256 units": ((256, 256, 256), 300 if FAST else 1000, 3e-3),
}
grid = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).reshape(-1, 1, 2, 1)
figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
three = {}
for axis, (title, (features, epochs, lr)) in zip(axes, fits.items(), strict=True):
    model = jaxlab.MLP(features=features, num_classes=2)
    history = jaxlab.fit(model, points, epochs=epochs, lr=lr, batch_size=20, log=False)
    logits = model.apply(
        history.variables, jnp.asarray(grid / 255, jnp.float32), train=False
    )
    axis.contourf(
        (logits[:, 1] > logits[:, 0]).reshape(256, 256), alpha=0.3, cmap="cividis"
    )
    images, labels = points.train.images, points.train.labels
    axis.scatter(*images[:, 0, :, 0].T, c=labels, cmap="cividis", edgecolor="black")
    three[title] = last(history)
    axis.set_title(
        f"{title}\ntraining {three[title][0]:.0%}, test {three[title][1]:.0%}"
    )

# %% [markdown]
# ## Your turn: the network


# %% tags=["task"]
class MLP(nn.Module):
    """The network 784-512-128-10."""

    @nn.compact
    def __call__(self, images):
        """Return logits."""
        ...  # TODO


# %% tags=["solution"]
class MLP(nn.Module):
    """The network 784-512-128-10."""

    @nn.compact
    def __call__(self, images):
        """Return logits."""
        x = layers.Flatten()(images)
        x = layers.ReLU()(layers.Dense(512, name="fc1")(x))
        x = layers.ReLU()(layers.Dense(128, name="fc2")(x))
        return layers.Dense(10, name="fc3")(x)


# %%
import json

answers = {"training": 1.0, "test": 0.8, "a": 1, "b": 2, "c": 3}
print(json.dumps(answers))
