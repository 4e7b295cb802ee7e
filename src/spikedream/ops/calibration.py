"""Whether predicted uncertainties are right: how often the truth lies inside the intervals that were predicted.

Arguments are standardised errors z = (target - mean) / deviation, (rows, targets), and which rows count, (rows,).
"""

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.types import Metrics

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def half_width(level: float) -> Array:
    """() z of the central interval of a normal distribution that holds the probability `level`."""
    return jax.scipy.stats.norm.ppf(0.5 + level / 2)


def deviation_factor(z: Array, counts: Array, level: float = 0.9) -> Array:
    """(targets,) by which deviations must be multiplied so that central intervals hold `level` of the rows (Levi et al. 2022,
    "Evaluating and calibrating uncertainty prediction in regression tasks", with a quantile in place of the likelihood)."""
    size = jnp.where(counts[:, None] > 0, jnp.abs(z), jnp.nan)
    factor = jnp.nanquantile(size, level, axis=0) / half_width(level)
    return jnp.where(jnp.isfinite(factor), jnp.clip(factor, 0.1, 10.0), 1.0)


def coverage(z: Array, counts: Array) -> Metrics:
    """Share of targets inside their central intervals of each of `LEVELS`, as `coverage_90` for 0.9, and the mean difference
    between share and level (Kuleshov et al. 2018, eq. 9, with absolute differences)."""
    total = jnp.maximum(counts.sum() * z.shape[1], 1)
    inside = {level: ((jnp.abs(z) <= half_width(level)) * counts[:, None]).sum() / total for level in LEVELS}
    error = jnp.stack([jnp.abs(share - level) for level, share in inside.items()]).mean()
    return {f"calibration/coverage_{100 * level:.0f}": share for level, share in inside.items()} | {"calibration/error": error}
