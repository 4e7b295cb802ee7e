"""Fitting a bonus's own networks to replayed experience."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.ops.fitting import adamw, fit
from spikedream.types import Experience, PyTree, Transition

Loss = Callable[[PyTree, Transition, Array], Array]  # (parameters, batch with fields (batch, ...), key) -> ()


def fit_to(
    experience: Experience, params: PyTree, loss: Loss, key: Array, *, rate: float, updates: int, batch: int, clip: float
) -> tuple[PyTree, Array]:
    """One phase of `updates` mini-batches, from `params` on; returns the new parameters and the mean loss, ().

    Every transition is drawn equally often, whatever its priority for others: what has been seen is what a bonus has to know.
    """

    def draw(params: PyTree, key: Array) -> Transition:
        return experience.gather(jax.random.randint(key, (1, batch), 0, jnp.maximum(experience.size, 1)))

    one = jax.tree.map(lambda x: x[None], params)  # the loop fits ensembles: this is one of a single member
    optimizer = adamw(rate, updates, 0.0, clip)
    fitted = fit(one, loss, draw, None, optimizer, updates=updates, block=updates, patience=1, key=key)
    return jax.tree.map(lambda x: x[0], fitted.params), fitted.train_loss
