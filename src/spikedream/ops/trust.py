"""Which imagined steps are trusted: rules that bound a step's uncertainty, by how far into the dream it is.

A rule is a frozen dataclass, with a state of what it remembers of the dreams before. It is given how uncertain the dreams are, and
what uncertainty meant on real stretches, to which the model must not have been fitted where the rule `asks_evidence`. What it must
never do is to chase a share of accepted steps: such a bound follows the model's errors wherever they go.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.types import PyTree


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

    asks_evidence = False

    def __post_init__(self) -> None:
        check_bounds(self, limit=(0, None), factor=(0, 1))

    def init(self) -> PyTree:
        return ()

    def bounds(self, state: PyTree, evidence: Evidence, uncertainty: Array) -> tuple[Array, PyTree]:
        """(horizon,) from the uncertainty of dreams (horizon, trajectories), and the state after them."""
        return self.limit * self.factor ** jnp.arange(uncertainty.shape[0], dtype=jnp.float32), state


class FirstSteps(NamedTuple):
    """Of all dreams so far, a time that it dreamed counting once."""

    times: Array  # () int32
    mean: Array  # () of the quantiles of the first steps' uncertainty


@dataclass(frozen=True)
class FirstStep:
    """At most `factor` times the mean, over all times that it dreamed until now, of the `quantile` of the first steps' uncertainty
    (Frauenknecht et al. 2024, MACURA; the present time counts, as in the released code): there the model is asked where it has
    data. What has become less certain than it used to be is trusted less. Uncertainty is in typical changes, as each fit found
    them: the mean is over slightly different units."""

    quantile: float = 0.95
    factor: float = 1.0

    asks_evidence = False

    def __post_init__(self) -> None:
        check_bounds(self, quantile=(0, 1), factor=(0, None))

    def init(self) -> FirstSteps:
        return FirstSteps(jnp.zeros((), jnp.int32), jnp.zeros(()))

    def bounds(self, state: FirstSteps, evidence: Evidence, uncertainty: Array) -> tuple[Array, FirstSteps]:
        times = state.times + 1
        mean = state.mean + (jnp.quantile(uncertainty[0], self.quantile) - state.mean) / times
        return jnp.full(uncertainty.shape[0], self.factor * mean), FirstSteps(times, mean)


@dataclass(frozen=True)
class Calibrated:
    """For each step the largest bound under which the real stretches' mean error is at most `error`; none where there is none."""

    error: float = 0.3  # in standard deviations of the observations

    asks_evidence = True

    def __post_init__(self) -> None:
        check_bounds(self, error=(0, None))

    def init(self) -> PyTree:
        return ()

    def bounds(self, state: PyTree, evidence: Evidence, uncertainty: Array) -> tuple[Array, PyTree]:
        def of_step(uncertainty: Array, error: Array, valid: Array) -> Array:
            order = jnp.argsort(jnp.where(valid > 0, uncertainty, jnp.inf))
            counts = valid[order]
            mean = jnp.cumsum(error[order] * counts) / jnp.maximum(jnp.cumsum(counts), 1)
            good = (mean <= self.error) & (counts > 0)
            return jnp.where(good, uncertainty[order], -1.0).max()

        return jax.vmap(of_step)(*evidence), state


AnyTrust = Tightening | FirstStep | Calibrated
