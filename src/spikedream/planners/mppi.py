"""Model predictive path integral control: every candidate counts, the better the more."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.planners.plan import Plan, Score, check_proposals, draw, mode, shift_mean, start_mean
from spikedream.spec import Spec


class MPPISearch(NamedTuple):
    """What one iteration hands to the next."""

    mean: Array  # (horizon, action_size)
    score: Array  # () of the best candidate so far


@dataclass(frozen=True)
class MPPI:
    """Moves the mean to the candidates' average under softmax weights of their scores (Williams et al. 2017, algorithm 2), several
    times over. Executes the mean; the next plan starts from it, shifted by one step. Discrete actions are refitted by the weighted
    frequencies of their categories.

    `temperature` is in units of the scores' standard deviation over the candidates, so one value serves rewards of any scale. With
    normally distributed scores the weights are worth candidates x exp(-1 / temperature^2) equal ones: 2.3 of 125 at 0.5, 46 at 1.
    """

    candidates: int = 125  # scored in each iteration: drawn and proposed ones together
    iterations: int = 4
    temperature: float = 0.5
    spread: float = 0.3  # in all iterations: standard deviation of continuous actions, uniform share of discrete draws
    smoothing: float = 0.8  # correlation of the noise between one step and the next

    def __post_init__(self) -> None:
        check_bounds(self, candidates=(2, None), iterations=(1, None), temperature=(1e-3, None))
        check_bounds(self, spread=(1e-3, 1), smoothing=(0, 0.999))

    @property
    def places(self) -> int:
        """Of the candidates, for drawn and proposed sequences together."""
        return self.candidates

    def start(self, spec: Spec, horizon: int) -> Array:
        """The mean, (horizon, action_size)."""
        return start_mean(spec, horizon)

    def plan(self, spec: Spec, memory: Array, score: Score, proposals: Array, key: Array) -> Plan:
        check_proposals(proposals.shape[0], self.places)
        count = self.candidates - proposals.shape[0]
        spread = jnp.full_like(memory, self.spread)

        def improve(search: MPPISearch, key: Array) -> tuple[MPPISearch, None]:
            noise_key, score_key = jax.random.split(key)
            drawn = draw(spec, search.mean, spread, smooth_noise(noise_key, count, memory, self.smoothing))
            candidates = jnp.concatenate([drawn, proposals])
            scores = score(candidates, score_key)
            mean = (softmax_weights(scores, self.temperature)[:, None, None] * candidates).sum(axis=0)
            return MPPISearch(mean, jnp.maximum(search.score, scores.max())), None

        sample_key, key = jax.random.split(key)
        start = MPPISearch(memory, jnp.full((), -jnp.inf, memory.dtype))
        (mean, best), _ = jax.lax.scan(improve, start, jax.random.split(key, self.iterations))
        sample = draw(spec, mean, spread, smooth_noise(sample_key, 1, memory, self.smoothing))[0]
        return Plan(mode(spec, mean), sample, best, shift_mean(spec, mean))


def softmax_weights(scores: Array, temperature: float) -> Array:
    """(candidates,), sum 1, from the scores in units of their own standard deviation; equal where all scores are."""
    deviation = scores.std()
    return jax.nn.softmax((scores - scores.max()) / (temperature * jnp.where(deviation > 0, deviation, 1)))


def smooth_noise(key: Array, count: int, like: Array, smoothing: float) -> Array:
    """Normal noise of variance 1 at each step, correlated by `smoothing` between neighbouring ones: e[0] = w[0],
    e[t] = smoothing e[t-1] + sqrt(1 - smoothing^2) w[t] with white w; (count, horizon, action_size) for a sequence `like`
    (horizon, action_size)."""
    white = jnp.moveaxis(jax.random.normal(key, (count, *like.shape)), 1, 0)

    def step(before: Array, w: Array) -> tuple[Array, Array]:
        e = smoothing * before + (1 - smoothing**2) ** 0.5 * w
        return e, e

    following = jax.lax.scan(step, white[0], white[1:])[1]
    return jnp.moveaxis(jnp.concatenate([white[:1], following]), 0, 1)
