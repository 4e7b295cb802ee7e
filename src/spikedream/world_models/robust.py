"""Errors of a fit that rare events do not set.

Errors count in units of a typical change. Where that is a root mean square, and errors count by their square, a few impacts decide
what is learned of all the steps between them. Here the unit follows the mean magnitude where that says less, and an error far
beyond the others of its entry counts by its logarithm: a Cauchy likelihood about the median of their magnitudes (Holland & Welsch
1977, "Robust regression using iteratively reweighted least-squares").
"""

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.replay.normalizer import Moments

RARE = 2.0  # mean magnitudes in a root mean square, from which on few changes set it; a normal deviate's has 1.25
WIDTH = 3.5  # median magnitudes of errors, from which on they count less: 2.385 standard deviations of a normal deviate
CLOSE = 0.3  # in typical changes, up to which no error is far from the others


def usual_change(moments: Moments) -> Array:
    """(obs_size,) in the environment's units, the root mean square or less. Raises ValueError where nothing measures it."""
    if moments.moved is None:
        raise ValueError(
            "world_model.robust goes by how far the observation moves on average, which is measured where replay.scale is"
            ' "spread"; set that, or world_model.robust to false'
        )
    return jnp.minimum(jnp.sqrt(moments.change), RARE * moments.moved)


def rare_changes(moments: Moments) -> Array:
    """() share of the entries of the observation of which few changes set the root mean square; likewise."""
    return (usual_change(moments) < jnp.sqrt(moments.change)).mean()


def bounded_squares(missed: Array, counts: Array) -> Array:
    """Of errors (rows, entries) in typical changes: c^2 log(1 + (error / c)^2), nearly the square where that is below c^2. The
    median is of the rows where `counts`, (rows,), is more than 0."""
    square = jnp.square(width(missed, counts))
    return square * jnp.log1p(jnp.square(missed) / square)


def width(missed: Array, counts: Array) -> Array:
    """(1, entries) from which on errors (rows, entries) count less; likewise."""
    return jnp.maximum(WIDTH * _median(jnp.abs(jax.lax.stop_gradient(missed)), counts > 0)[None], CLOSE)


def _median(size: Array, counts: Array) -> Array:
    """(entries,) of `size`, (rows, entries), over the rows that count, (rows,) bool; 0 where none does. The smaller half is found,
    not all sorted: XLA's sort on CPUs takes five times as long."""
    smaller = -jax.lax.top_k(-jnp.where(counts[:, None], size, jnp.inf).T, counts.size // 2 + 1)[0]
    number = counts.sum()
    middle = smaller[:, jnp.stack([jnp.maximum(number - 1, 0) // 2, number // 2])].mean(1)
    return jnp.where(number > 0, middle, 0.0)


def huber(missed: Array, weight: Array | float, entries: int) -> Array:
    """(rows,) of the reward's errors, which count with `weight` beside all `entries` of the observation: the square, but beyond a
    fraction of the unit which that makes theirs in a straight line (Huber 1964). A rare reward is all that there is to learn in
    some worlds, so that it counts however far it is from what was told."""
    close = CLOSE * jnp.sqrt(entries / jnp.maximum(weight, 1e-6))
    size = jnp.abs(missed)
    return jnp.where(size < close, jnp.square(missed), 2 * close * size - jnp.square(close))
