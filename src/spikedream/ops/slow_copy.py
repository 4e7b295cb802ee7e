"""Slow copies of learned parameters, from which the targets of temporal differences are computed, and averages that act."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.types import PyTree


@dataclass(frozen=True)
class Polyak:
    """An average that moves by `rate` towards the parameters at each update (Lillicrap et al. 2016)."""

    rate: float = 0.005

    def __post_init__(self) -> None:
        check_bounds(self, rate=(0, 1))

    def due(self, updates: Array) -> Array:
        """() bool, whether what is copied whole is copied after so many `updates`, () int32."""
        return jnp.asarray(True)

    def follow(self, copy: PyTree, params: PyTree, updates: Array) -> PyTree:
        """The copy after so many `updates`, () int32, the last of which made `params`."""
        return optax.incremental_update(params, copy, self.rate)


@dataclass(frozen=True)
class HardCopy:
    """The parameters as they were at the last multiple of `every` updates (Mnih et al. 2015): a spiking network is copied as it is,
    and never an average of two, which may fire like neither."""

    every: int = 250

    def __post_init__(self) -> None:
        check_bounds(self, every=(1, None))

    def due(self, updates: Array) -> Array:
        return updates % self.every == 0

    def follow(self, copy: PyTree, params: PyTree, updates: Array) -> PyTree:
        return jax.lax.cond(self.due(updates), lambda: params, lambda: copy)


AnySlowCopy = Polyak | HardCopy


@dataclass(frozen=True)
class PolynomialAverage:
    """The parameters' average over all updates, of which those lately count the more the higher the `degree` (Shamir & Zhang 2013,
    "Stochastic gradient descent for non-smooth optimization", polynomial-decay averaging): over about the last
    1 / (degree + 1) of them, however many there were."""

    degree: float = 9.0

    def __post_init__(self) -> None:
        check_bounds(self, degree=(0, None))

    def follow(self, average: PyTree, params: PyTree, updates: Array) -> PyTree:
        """The average after so many `updates`, () int32 from 1 on, the last of which made `params`."""
        share = (self.degree + 1) / (updates + self.degree)
        return jax.tree.map(lambda old, new: old + share * (new - old), average, params)
