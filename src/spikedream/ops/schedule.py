"""Quantities that change with the real steps taken."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds


@dataclass(frozen=True)
class ImaginedShare:
    """Share of imagined data in an agent's updates: `start` until `begin` real steps, then along a line to `end` after `begin` +
    `steps`. From 1 to 0 it leads from model-based to model-free learning."""

    start: float = 1.0
    end: float = 1.0
    begin: int = 0
    steps: int = 1000

    def __post_init__(self) -> None:
        check_bounds(self, start=(0, 1), end=(0, 1), begin=(0, None), steps=(1, None))

    @property
    def always_one(self) -> bool:
        return self.start == self.end == 1

    def __call__(self, real_steps: Array) -> Array:
        """() from the number of real steps, ()."""
        progress = jnp.clip((real_steps - self.begin) / self.steps, 0, 1)
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class HorizonSchedule:
    """Imagined steps of a dream: `first` until `begin` real steps, then along a line, rounded down, to the longest after `begin` +
    `steps` (Janner et al. 2019, MBPO, appendix C)."""

    first: int = 1  # imagined steps
    begin: int = 20_000  # real steps until which the horizon is that
    steps: int = 80_000  # real steps from there until it is the longest

    def __post_init__(self) -> None:
        check_bounds(self, first=(1, None), begin=(0, None), steps=(1, None))

    def __call__(self, longest: int, real_steps: Array) -> Array:
        """() int32 from the number of real steps, ()."""
        past = jnp.clip(real_steps - self.begin, 0, self.steps)
        # In whole numbers: rounding errors would hold steps back.
        return self.first + (past * (longest - self.first)) // self.steps
