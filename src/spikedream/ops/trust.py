"""Which imagined steps are trusted: rules that bound a step's uncertainty, by how far into the dream it is.

A rule is a frozen dataclass. It is given what uncertainty meant on real stretches, and how uncertain the dreams are. What it must
never do is to chase a share of accepted steps: such a bound follows the model's errors wherever they go.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.types import check_bounds


class Evidence(NamedTuple):
    """Of dreams along the actions of real stretches."""

    uncertainty: Array  # (horizon, stretches) of each step
    error: Array  # (horizon, stretches) root mean square error of the observation after it, in its standard deviations
    valid: Array  # (horizon, stretches) float, 0 beyond the end of a stretch


@dataclass(frozen=True)
class Tightening:
    """At most `limit` in the first step, and in each later one `factor` times as much as in the one before it."""

    limit: float = 0.5
    factor: float = 0.85

    def __post_init__(self) -> None:
        check_bounds(self, limit=(0, None), factor=(0, 1))

    def bounds(self, evidence: Evidence, uncertainty: Array) -> Array:
        """(horizon,) from the uncertainty of dreams (horizon, trajectories)."""
        return self.limit * self.factor ** jnp.arange(uncertainty.shape[0], dtype=jnp.float32)


@dataclass(frozen=True)
class FirstStep:
    """At most `factor` times the `quantile` of the first steps' uncertainty (after Frauenknecht et al. 2024, MACURA): there the
    model is asked where it has data."""

    quantile: float = 0.95
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, quantile=(0, 1), factor=(0, None))

    def bounds(self, evidence: Evidence, uncertainty: Array) -> Array:
        bound = self.factor * jnp.quantile(uncertainty[0], self.quantile)
        return jnp.full(uncertainty.shape[0], bound)


@dataclass(frozen=True)
class Calibrated:
    """For each step the largest bound under which the real stretches' mean error is at most `error`; none where there is none."""

    error: float = 0.3  # in standard deviations of the observations

    def __post_init__(self) -> None:
        check_bounds(self, error=(0, None))

    def bounds(self, evidence: Evidence, uncertainty: Array) -> Array:
        def of_step(uncertainty: Array, error: Array, valid: Array) -> Array:
            order = jnp.argsort(jnp.where(valid > 0, uncertainty, jnp.inf))
            counts = valid[order]
            mean = jnp.cumsum(error[order] * counts) / jnp.maximum(jnp.cumsum(counts), 1)
            good = (mean <= self.error) & (counts > 0)
            return jnp.where(good, uncertainty[order], -1.0).max()

        return jax.vmap(of_step)(*evidence)


AnyTrust = Tightening | FirstStep | Calibrated
