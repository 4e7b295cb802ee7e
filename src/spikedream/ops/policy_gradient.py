"""The parts of a clipped policy gradient (Schulman et al. 2017, "Proximal policy optimization")."""

import jax.numpy as jnp
from jax import Array


def standardise(x: Array, weight: Array, floor: float) -> Array:
    """`x` with weighted mean 0 and weighted deviation 1, any shape; `floor` keeps noise from being blown up once all is well."""
    mean, size = _moments(x, weight, floor)
    return (x - mean) / size


def deviation(x: Array, weight: Array, floor: float) -> Array:
    """() weighted deviation of `x`, any shape, and `floor` at the least."""
    return _moments(x, weight, floor)[1]


def _moments(x: Array, weight: Array, floor: float) -> tuple[Array, Array]:
    total = jnp.maximum(weight.sum(), 1e-6)
    mean = (x * weight).sum() / total
    return mean, jnp.maximum(jnp.sqrt((jnp.square(x - mean) * weight).sum() / total), floor)


def probability_ratio(log_prob: Array, before: Array) -> Array:
    """Elementwise. A ratio beyond e^10 is clipped by the surrogate anyway, but its exponential could overflow."""
    return jnp.exp(jnp.clip(log_prob - before, -10, 10))


def clipped_gain(ratio: Array, advantage: Array, clip: float) -> Array:
    """min(r A, clip(r, 1 - clip, 1 + clip) A), elementwise (eq. 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def approximate_kl(ratio: Array) -> Array:
    """Elementwise (r - 1) - log r: its mean estimates KL(before, now), it is never negative, and it varies less than -log r."""
    return ratio - 1 - jnp.log(ratio)
