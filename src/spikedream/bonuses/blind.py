"""Curiosity while nothing that was seen tells good states from bad ones."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.replay.spread import UNEXPLAINED, left_by_action
from spikedream.types import Experience, Metrics, Transition


class BlindState(eqx.Module):
    beta: Array  # () the weight, in units of the normalised reward
    scale: Array  # () root mean square of the raw bonus on all experience; 0 until it has been measured


@dataclass(frozen=True)
class WhileBlind:
    """Reward beta x min(raw / scale, cap). While the agent is blind, beta is `awake`, in root mean squares of the rewards seen.
    Once it sees there is no bonus, which would speak against ending a task where that is what pays.

    It is blind while no episode has terminated and the reward depends on the action alone, if on anything: while of the rewards'
    variance a quadratic function of the action leaves less than `unexplained`. So it is where the only reward stands at a goal
    that nobody has reached yet, whatever a step or an effort costs.
    """

    awake: float = 1.0  # beta while blind, in root mean squares of the rewards, or in rewards where all have been zero
    unexplained: float = UNEXPLAINED  # share of the rewards' variance, from which on they tell of the state
    cap: float = 5.0  # largest bonus before weighting, in root mean squares of the bonus on all experience

    def __post_init__(self) -> None:
        check_bounds(self, awake=(0, None), unexplained=(1e-6, 1), cap=(1e-9, None))

    @property
    def reward_floor(self) -> float:
        """The scale of rewards stays what they make it."""
        return 0.0

    def bound(self, state: BlindState, normalizer: Any) -> Array:
        """() no weighted bonus is larger, in units of the normalised reward."""
        return state.beta * self.cap

    def init(self) -> BlindState:
        return BlindState(jnp.zeros(()), jnp.zeros(()))

    def reward(self, state: BlindState, raw: Array) -> Array:
        """Weighted and normalised reward of a raw bonus, any shape."""
        scale = jnp.where(state.scale > 0, state.scale, 1)
        return state.beta * jnp.minimum(raw / scale, self.cap)

    def update(
        self, state: BlindState, raw: Array, steps: Transition, counts: Array, experience: Experience
    ) -> tuple[BlindState, Metrics]:
        """From the bonus `raw` of stored transitions, (rows,), these themselves, and which of them count, (rows,)."""
        number = jnp.maximum(counts.sum(), 1)
        size = jnp.sqrt((jnp.square(steps.reward) * counts).sum() / number)
        blind = (experience.moments.terminated == 0) & (left_by_action(steps, counts) < self.unexplained)
        awake = self.awake * jnp.where(size > 1e-6, size, 1.0)
        beta = jnp.where(blind, awake, 0.0)
        state = BlindState(beta, jnp.sqrt((jnp.square(raw) * counts).sum() / number))
        return state, {
            "bonus_mean": (self.reward(state, raw) * counts).sum() / number,
            "extrinsic_mean": (steps.reward * counts).sum() / number,
            "beta": state.beta,
            "blind": blind.astype(jnp.float32),
        }
