"""From a raw novelty to a reward: brought to one scale, capped, and weighted the less the better the external return gets."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bonuses.blind import WhileBlind
from spikedream.bounds import check_bounds
from spikedream.types import Experience, Metrics, Transition


class WeightState(eqx.Module):
    beta: Array  # () the weight, in the environment's units of reward
    reward_scale: Array  # () of the normaliser when it was last measured
    scale: Array  # () running root mean square of the raw bonus on all experience; 0 until it has been measured
    recent: Array  # () fast running mean of the episodes' returns, in the environment's units
    usual: Array  # () slow one
    lowest: Array  # () smallest return measured so far
    highest: Array  # () largest
    known: Array  # () float, 1 once an episode's return has been measured


@dataclass(frozen=True)
class AdaptiveWeight:
    """Reward beta x min(raw / scale, cap), in the environment's units, where beta follows the trend of the external return.

    Once in each fit, R being the mean return of the episodes that ended since the last one: recent += fast (R - recent),
    usual += slow (R - usual), and beta is multiplied by exp(-rate x (recent - usual) / (highest - lowest)), then clipped to
    [low, high]. So curiosity weakens while returns rise and grows while they fall; how fast depends neither on the returns'
    unit nor on a constant in them. Where they stand still, be it at success or because no reward was ever found, beta stays as
    it is; so it does while no episode ends. With low = high the weight is constant.

    No weighted bonus is larger than high x cap, and rewards are normalised by no less than that: so a normalised bonus lies in
    [0, 1].
    """

    start: float = 0.05  # beta before the first measurement
    low: float = 0.005  # positive, or beta could never rise again
    high: float = 0.1
    rate: float = 0.5  # change of log beta at the steepest possible trend
    fast: float = 0.5  # share of the newest measurement in `recent`
    slow: float = 0.1  # and in `usual`
    cap: float = 5.0  # largest bonus before weighting, in root mean squares of the bonus on all experience
    scale_rate: float = 0.1  # share of the newest measurement in the scale: so the bonus fades as ever more is known

    def __post_init__(self) -> None:
        positive, share = (1e-9, None), (0, 1)
        check_bounds(self, low=positive, high=(self.low, None), start=(self.low, self.high), rate=(0, None))
        check_bounds(self, fast=share, slow=share, cap=positive, scale_rate=share)
        if self.slow >= self.fast:
            raise ValueError(f"slow is {self.slow:g}; it must be less than fast ({self.fast:g}): their difference is the trend")

    @property
    def reward_floor(self) -> float:
        """No weighted bonus is larger, in the environment's units."""
        return self.high * self.cap

    def bound(self, state: WeightState, normalizer: Any) -> Array:
        """() no weighted bonus is larger, in units of the normalised reward."""
        return self.reward_floor / normalizer.reward_scale

    def init(self) -> WeightState:
        beta = jnp.asarray(self.start, jnp.float32)
        return WeightState(beta, jnp.ones(()), *(jnp.zeros(()) for _ in range(6)))  # each its own buffer: the phases donate them

    def reward(self, state: WeightState, raw: Array) -> Array:
        """Weighted and normalised reward of a raw bonus, any shape."""
        scale = jnp.where(state.scale > 0, state.scale, 1)
        return state.beta / state.reward_scale * jnp.minimum(raw / scale, self.cap)

    def update(
        self, state: WeightState, raw: Array, steps: Transition, counts: Array, experience: Experience
    ) -> tuple[WeightState, Metrics]:
        """From the bonus `raw` of stored transitions, (rows,), these themselves, and which of them count, (rows,)."""
        number = jnp.maximum(counts.sum(), 1)
        measured = jnp.sqrt((jnp.square(raw) * counts).sum() / number)
        scale = jnp.where(state.scale > 0, state.scale + self.scale_rate * (measured - state.scale), measured)
        state = self._follow(state, experience.episodes.mean(), experience.episodes.number > 0)
        reward_scale = jnp.array(experience.normalizer.reward_scale)  # its own buffer: the phases donate both
        state = eqx.tree_at(lambda s: (s.scale, s.reward_scale), state, (scale, reward_scale))
        return state, {
            "bonus_mean": (self.reward(state, raw) * counts).sum() / number,
            "extrinsic_mean": (steps.reward * counts).sum() / number,
            "beta": state.beta,
        }

    def _follow(self, state: WeightState, latest: Array, ended: Array) -> WeightState:
        """The state after a mean return of `latest`, (); the same state where no episode `ended`, () bool."""
        first = state.known == 0
        recent = jnp.where(first, latest, state.recent + self.fast * (latest - state.recent))
        usual = jnp.where(first, latest, state.usual + self.slow * (latest - state.usual))
        lowest = jnp.where(first, latest, jnp.minimum(state.lowest, latest))
        highest = jnp.where(first, latest, jnp.maximum(state.highest, latest))
        width = highest - lowest
        trend = jnp.where(width > 0, (recent - usual) / jnp.where(width > 0, width, 1), 0.0)
        beta = jnp.clip(state.beta * jnp.exp(-self.rate * trend), self.low, self.high)
        after = WeightState(beta, state.reward_scale, state.scale, recent, usual, lowest, highest, jnp.ones(()))
        return jax.tree.map(lambda new, old: jnp.where(ended, new, old), after, state)


AnyWeight = AdaptiveWeight | WhileBlind
