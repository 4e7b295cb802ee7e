"""The cross-entropy method with what made it sample-efficient: memory between iterations and steps, and coloured noise."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.planners.plan import Plan, Score, check_proposals, draw, mode, shift_mean, start_mean
from spikedream.spec import Spec


class CEMMemory(NamedTuple):
    mean: Array  # (horizon, action_size)
    elites: Array  # (kept, horizon, action_size)
    warm: Array  # () bool, False while `elites` holds none yet


class CEMSearch(NamedTuple):
    """What one iteration hands to the next."""

    mean: Array  # (horizon, action_size)
    spread: Array  # (horizon, action_size)
    elites: Array  # (kept, horizon, action_size), best first
    warm: Array  # () bool
    best: Array  # (horizon, action_size)
    score: Array  # () of `best`


@dataclass(frozen=True)
class CEM:
    """Draws candidates, refits mean and spread to the best of them, and repeats (de Boer et al. 2005; for model-based control
    Chua et al. 2018, PETS).

    From iCEM (Pinneri et al. 2020): coloured noise over the horizon; a share of the elites stays among the candidates in the next
    iteration and, shifted by one step with its last action repeated, in the next plan; the mean is shifted, the spread starts anew.
    Discrete actions are refitted by the elites' frequencies.
    """

    candidates: int = 125  # scored in each iteration: drawn, kept and proposed ones together
    iterations: int = 4
    elites: int = 12
    momentum: float = 0.1  # share of the old mean and spread in the new ones
    spread: float = 0.5  # at first: standard deviation of continuous actions, uniform share of discrete draws
    min_spread: float = 0.05  # no refit goes below; above 0 it keeps every category alive
    keep_elites: float = 0.3  # share of the elites, rounded up
    noise_beta: float = 1.0  # the noise's power falls with frequency^-noise_beta: 0 is white, 2 is Brownian
    execute: Literal["best", "mean"] = "best"  # of all candidates in all iterations; the mean is safer where scores are noisy

    def __post_init__(self) -> None:
        check_bounds(self, candidates=(2, None), iterations=(1, None), momentum=(0, 0.99), spread=(1e-3, 1), keep_elites=(0, 1))
        check_bounds(self, elites=(1, self.candidates - 1), min_spread=(0, self.spread), noise_beta=(0, None))

    @property
    def kept(self) -> int:
        return math.ceil(self.keep_elites * self.elites - 1e-6)  # 0.28 x 25 is 7.000000000000001

    @property
    def places(self) -> int:
        """Of the candidates, for drawn and proposed sequences together."""
        return self.candidates - self.kept

    def start(self, spec: Spec, horizon: int) -> CEMMemory:
        shape = (self.kept, horizon, spec.action_size)
        return CEMMemory(start_mean(spec, horizon), jnp.zeros(shape), jnp.zeros((), bool))

    def plan(self, spec: Spec, memory: CEMMemory, score: Score, proposals: Array, key: Array) -> Plan:
        check_proposals(proposals.shape[0], self.places)
        mean, count = memory.mean, self.candidates - proposals.shape[0]

        def improve(search: CEMSearch, key: Array) -> tuple[CEMSearch, None]:
            noise_key, score_key = jax.random.split(key)
            drawn = draw(spec, search.mean, search.spread, coloured_noise(noise_key, count, mean, self.noise_beta))
            first = jnp.where(search.warm, search.elites, drawn[: self.kept])
            candidates = jnp.concatenate([first, drawn[self.kept :], proposals])
            scores = score(candidates, score_key)
            return self._refit(spec, search, candidates, scores), None

        worst = jnp.full((), -jnp.inf, mean.dtype)
        search = CEMSearch(mean, jnp.full_like(mean, self.spread), memory.elites, memory.warm, mean, worst)
        sample_key, key = jax.random.split(key)
        search, _ = jax.lax.scan(improve, search, jax.random.split(key, self.iterations))
        sample = draw(spec, search.mean, search.spread, coloured_noise(sample_key, 1, mean, self.noise_beta))[0]
        actions = search.best if self.execute == "best" else mode(spec, search.mean)
        later = jnp.concatenate([search.elites[:, 1:], search.elites[:, -1:]], axis=1)
        return Plan(actions, sample, search.score, CEMMemory(shift_mean(spec, search.mean), later, search.warm))

    def _refit(self, spec: Spec, search: CEMSearch, candidates: Array, scores: Array) -> CEMSearch:
        """Candidates (candidates, horizon, action_size), scores (candidates,)."""
        scores, order = jax.lax.top_k(scores, self.elites)
        elites = candidates[order]
        # Discrete elites' own variety is in their mean already, so the uniform share of the draws decays to its floor.
        spread = jnp.zeros_like(search.spread) if spec.discrete else elites.std(axis=0)
        better = scores[0] > search.score
        return CEMSearch(
            self.momentum * search.mean + (1 - self.momentum) * elites.mean(axis=0),
            jnp.maximum(self.momentum * search.spread + (1 - self.momentum) * spread, self.min_spread),
            elites[: self.kept],
            jnp.ones((), bool),
            jnp.where(better, elites[0], search.best),
            jnp.maximum(scores[0], search.score),
        )


def coloured_noise(key: Array, count: int, like: Array, beta: float) -> Array:
    """Normal noise with power spectrum frequency^-beta along the horizon and variance 1 at each step (Timmer & Koenig 1995),
    (count, horizon, action_size) for a sequence `like` (horizon, action_size). It is periodic; the constant part has the power of
    the lowest frequency, as in iCEM."""
    horizon = like.shape[0]
    frequency = jnp.maximum(jnp.abs(jnp.fft.fftfreq(horizon)), 1 / horizon)
    amplitude = frequency ** (-beta / 2)
    # White noise filtered by `amplitude` has, at each step, the mean power over all frequencies, negative ones too.
    amplitude = (amplitude / jnp.sqrt(jnp.square(amplitude).mean()))[: horizon // 2 + 1]
    spectrum = jnp.fft.rfft(jax.random.normal(key, (count, *like.shape)), axis=1)
    return jnp.fft.irfft(spectrum * amplitude[None, :, None], n=horizon, axis=1)
