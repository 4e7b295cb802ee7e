"""Scales of rewards and of time that no single event sets, and whether rewards are sparse, measured on experience."""

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from spikedream.types import Transition

LARGEST = 4.0  # root mean squares of the reward, by which rewards are divided where a single one is larger
NOTHING = 1e-9  # variance of scaled rewards that is none
EVEN = 6.0  # deviations that the rewards' whole range spans, up to which they tell of every step; a sine's spans 2.8
RARE = 12.0  # from which on few events tell
LONGEST = 100.0  # steps that count ahead where rewards are rare, or never differ
DECISIONS = 25.0  # in a cycle of the observation, enough to steer it
CYCLES = 1.5  # of the observation, that count ahead where every step has its reward
UNEXPLAINED = 0.01  # share of the rewards' variance, from which on they tell of the state
REMAINING = 0.5  # of an episode of a given length, on average over its steps


class RewardSpread(eqx.Module):
    """Running moments of the reward, in the environment's units."""

    mean: Array  # ()
    variance: Array  # ()

    def add(self, share: Array, reward: Array, valid: Array) -> "RewardSpread":
        """With the rewards where `valid`, (rows, environments) each, which are the `share` () of all since then; merged as
        `Moments` are."""
        number = jnp.maximum(valid.sum(), 1)
        mean = (reward * valid).sum() / number
        variance = (jnp.square(reward - mean) * valid).sum() / number
        delta = mean - self.mean
        mixed = self.variance + share * (variance - self.variance) + share * (1 - share) * jnp.square(delta)
        return RewardSpread(self.mean + share * delta, mixed)

    def scale(self, largest: Array) -> Array:
        """() what rewards are divided by: the `largest` magnitude seen, (), or a multiple of their root mean square where that is
        less. By Chebyshev's inequality no more than a sixteenth of all rewards are then larger than 1."""
        return jnp.minimum(largest, LARGEST * self.size())

    def size(self) -> Array:
        """() root mean square."""
        return jnp.sqrt(jnp.square(self.mean) + self.variance)

    def precision(self, scale: Array) -> Array:
        """() one over the variance of rewards that are divided by `scale`, (); where a few events are all that varies no more than
        that scale leaves of them, and 0 where nothing varies."""
        variance = self.variance / jnp.square(scale)
        return jnp.where(variance > NOTHING, jnp.minimum(1 / jnp.maximum(variance, NOTHING), LARGEST**2), 0.0)

    def share_of(self, rewards: "RewardSpread") -> Array:
        """() from 0 to 1, of the variance of all `rewards`, of which these are some."""
        return jnp.clip(self.variance / jnp.where(rewards.variance > 0, rewards.variance, 1.0), 0, 1)

    def rarity(self, low: Array, high: Array) -> Array:
        """() from 0, where every step's reward tells something, to 1, where few events do or none has: by how many deviations the
        rewards' range from `low` to `high`, () each, spans."""
        deviation = jnp.sqrt(self.variance)
        known = deviation > 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))
        spans = jnp.where(known, (high - low) / jnp.where(known, deviation, 1.0), RARE)
        return jnp.clip((spans - EVEN) / (RARE - EVEN), 0, 1)


def no_spread() -> RewardSpread:
    """Of no rewards."""
    return RewardSpread(jnp.zeros(()), jnp.zeros(()))


def cycle(variance: Array, change: Array) -> Array:
    """() steps in which the observation would go round once, the median over its entries, from their variance and the mean square
    of their change in a step, (obs_size,) each: 2 pi sqrt(variance / change), exact for slow sines. Entries that never change do
    not count; 1 where none does."""
    moves = (change > 1e-12) & (variance > 1e-12)
    steps = 2 * jnp.pi * jnp.sqrt(variance / jnp.where(moves, change, 1.0))
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(moves, steps, jnp.nan)), nan=1.0)


def repeat_for(cycle: float) -> int:
    """Own steps of an environment whose observation goes round in `cycle` of them, for which an action is held."""
    return max(1, round(cycle / DECISIONS))


def horizon(cycle: Array, rarity: Array, length: Array) -> Array:
    """() steps that count ahead, 1 / (1 - gamma): a few cycles of the observation where every step's reward tells something, since
    what an action does shows within them, and more, the rarer rewards are. Never more than remain on average of episodes that go
    on for `length` () steps whatever is done; infinite where they do not."""
    even = jnp.clip(CYCLES * cycle, 1.0, LONGEST)
    return jnp.maximum(jnp.minimum(even + rarity * (LONGEST - even), REMAINING * length), 1.0)


def left_by_action(steps: Transition, counts: Array) -> Array:
    """() share of the rewards' variance that a quadratic function of the action, without products of its entries, leaves; 0 where
    they do not vary. Fields of `steps` (rows, ...), of which those count where `counts`, (rows,), is 1."""
    number = jnp.maximum(counts.sum(), 1)
    features = jnp.concatenate([steps.action, jnp.square(steps.action)], axis=1)
    features = (features - (features * counts[:, None]).sum(0, keepdims=True) / number) * counts[:, None]
    reward = (steps.reward - (steps.reward * counts).sum() / number) * counts
    size = features.shape[1]
    ridge = 1e-5 * number * jnp.eye(size)  # one-hot actions are linearly dependent
    weights = jnp.linalg.solve(features.T @ features + ridge, features.T @ reward)
    variance, left = jnp.square(reward).sum(), jnp.square(reward - features @ weights).sum()
    varies = variance > 1e-10 * number
    return jnp.where(varies, left / jnp.where(varies, variance, 1.0), 0.0)


def sparse(steps: Transition, counts: Array) -> Array:
    """() bool, whether few rewards tell of the state, or none does: whether their range spans so many deviations that they are
    rather rare than even, or they depend on the action alone. Fields of `steps` (rows, ...), of which those count where `counts`,
    (rows,), is 1."""
    counted = counts > 0
    low, high = (jnp.where(counted, steps.reward, edge) for edge in (jnp.inf, -jnp.inf))
    rarity = no_spread().add(jnp.ones(()), steps.reward, counts).rarity(low.min(), high.max())
    return (rarity > 0.5) | (left_by_action(steps, counts) < UNEXPLAINED)
