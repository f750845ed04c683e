"""A minimal network with dropout, and the parts of a training job with it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import make_optimizer, make_train_step
from jaxlab.training.step import init_state


class Linear(nn.Module):
    """Dropout and one dense layer: float[b, in] -> logits float[b, 3]."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        return nn.Dense(3, name="head")(x)


def linear_job(rate=0.5, count=10):
    model = Linear(rate)
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.standard_normal((count, 4)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 3, count), jnp.int32)
    params = model.init(jax.random.key(0), inputs[:1], train=False)["params"]
    trainable = jax.tree.map(lambda _: True, params)
    tx = make_optimizer("sgd", 0.1, trainable=trainable)
    step = make_train_step(model.apply, tx, trainable)
    return model, step, init_state(params, tx), inputs, labels
