"""The one boundary of scale: observations leave the environment through here and rewards enter learning through here."""

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from spikedream.nodes import Standardise, numbers
from spikedream.replay.spread import LONGEST, RewardSpread, cycle, horizon, no_spread
from spikedream.types import Transition

FAINTEST = 1e-6  # deviation of an observation's entry, or magnitude of a reward, below which it counts as none


class Normalizer(eqx.Module):
    """Scales in use. They change only when a world model is fitted, so that between two fits everything keeps one scale.

    Rewards are divided by the largest magnitude seen, so that every normalised reward lies in [-1, 1] and `reward_low`,
    `reward_high` bound what a step can give; a value function can then be clipped to its possible range. Where the scale follows
    their spread, single ones may be larger.
    """

    mean: Array  # (obs_size,)
    scale: Array  # (obs_size,) standard deviation, or 1 where an entry never changed
    reward_scale: Array  # ()
    reward_low: Array  # () smallest normalised reward seen
    reward_high: Array  # () largest
    horizon: Array | None = None  # () steps that count ahead, where that is measured
    dread: Array | None = None  # () 1 where an ending costs: episodes have ended, and steps that end none pay as a rule; likewise

    def obs(self, obs: Array) -> Array:
        """Environment units to normalised; the last axis is (obs_size,), leading axes are kept."""
        shape = (1,) * (obs.ndim - 1) + self.mean.shape
        return (obs - self.mean.reshape(shape)) / self.scale.reshape(shape)

    def describe(self) -> Standardise:
        """`obs`, for export."""
        return Standardise(numbers(self.mean), numbers(self.scale))

    def raw_obs(self, obs: Array) -> Array:
        """The inverse of `obs`."""
        shape = (1,) * (obs.ndim - 1) + self.mean.shape
        return obs * self.scale.reshape(shape) + self.mean.reshape(shape)

    def reward_range(self) -> tuple[Array, Array]:
        """Least and largest normalised reward that counts, () each: those seen, and zero, which follows the end of an episode."""
        return jnp.minimum(self.reward_low, 0), jnp.maximum(self.reward_high, 0)


def identity(obs_size: int, spread: bool = False) -> Normalizer:
    """For the time before any experience; `spread` as in `no_moments`."""
    one, measured = jnp.ones(()), (jnp.full((), LONGEST, jnp.float32), jnp.zeros(())) if spread else (None, None)
    return Normalizer(jnp.zeros(obs_size), jnp.ones(obs_size), one, jnp.zeros(()), jnp.ones(()), *measured)


class Moments(eqx.Module):
    """Running statistics of every transition ever added, in the environment's units; what they cost does not depend on how many."""

    count: Array  # () int32
    mean: Array  # (obs_size,) of the observations acted in
    variance: Array  # (obs_size,) likewise
    change: Array  # (obs_size,) mean square of the change from an observation to the next
    low: Array  # (obs_size,) smallest next observation
    high: Array  # (obs_size,) largest
    reward_low: Array  # ()
    reward_high: Array  # ()
    terminated: Array  # () int32, transitions that ended their task
    rewards: RewardSpread | None = None  # where scales follow the spread of rewards
    passing: RewardSpread | None = None  # of the steps that ended no task; likewise
    truncated: Array | None = None  # () int32, transitions at which a limit cut their episode short; likewise
    moved: Array | None = None  # (obs_size,) mean magnitude of the change from an observation to the next; likewise

    def add(self, steps: Transition, valid: Array) -> "Moments":
        """With the transitions where `valid`, (rows, environments), is 1; fields of `steps` (rows, environments, ...).

        Two sets are merged as Chan et al. 1979 do ("Updating formulae and a pairwise algorithm for computing sample variances"). A
        batch is summed about its first row: a large constant would otherwise leave rounding errors that look like variation.
        """
        seen = valid[..., None] > 0
        number = valid.sum()
        total = self.count + number.astype(jnp.int32)
        share = number / jnp.maximum(total, 1)
        first = steps.obs[0, 0]
        about = jnp.where(seen, steps.obs - first[None, None], 0)
        mean = about.sum((0, 1)) / jnp.maximum(number, 1)
        variance = jnp.where(seen, jnp.square(about - mean[None, None]), 0).sum((0, 1)) / jnp.maximum(number, 1)
        delta = first + mean - self.mean
        change = jnp.where(seen, jnp.square(steps.next_obs - steps.obs), 0).sum((0, 1)) / jnp.maximum(number, 1)
        moved = jnp.where(seen, jnp.abs(steps.next_obs - steps.obs), 0).sum((0, 1)) / jnp.maximum(number, 1)
        terminated, passing = self.terminated + (steps.terminated * valid).sum().astype(jnp.int32), valid * (1 - steps.terminated)
        return Moments(
            count=total,
            mean=self.mean + share * delta,
            variance=self.variance + share * (variance - self.variance) + share * (1 - share) * jnp.square(delta),
            change=self.change + share * (change - self.change),
            low=jnp.minimum(self.low, jnp.where(seen, steps.next_obs, jnp.inf).min((0, 1))),
            high=jnp.maximum(self.high, jnp.where(seen, steps.next_obs, -jnp.inf).max((0, 1))),
            reward_low=jnp.minimum(self.reward_low, jnp.where(valid > 0, steps.reward, jnp.inf).min()),
            reward_high=jnp.maximum(self.reward_high, jnp.where(valid > 0, steps.reward, -jnp.inf).max()),
            terminated=terminated,
            rewards=None if self.rewards is None else self.rewards.add(share, steps.reward, valid),
            passing=None
            if self.passing is None
            else self.passing.add(passing.sum() / jnp.maximum(total - terminated, 1), steps.reward, passing),
            truncated=None if self.truncated is None else self.truncated + (steps.truncated * valid).sum().astype(jnp.int32),
            moved=None if self.moved is None else self.moved + share * (moved - self.moved),
        )

    def normalizer(self, reward_floor: float = 0.0) -> Normalizer:
        """The scale of rewards is at least `reward_floor`, the largest bonus: where only small costs have been seen, bonuses must
        not dwarf the scale."""
        deviation = jnp.sqrt(self.variance)
        known = self.count > 0
        low, high = jnp.where(known, self.reward_low, 0), jnp.where(known, self.reward_high, 0)
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        if self.rewards is not None:
            largest = self.rewards.scale(largest)
        largest = jnp.maximum(largest, reward_floor)
        reward_scale = jnp.where(largest > FAINTEST, largest, 1.0)
        return Normalizer(
            mean=jnp.array(self.mean),
            scale=jnp.where(deviation > FAINTEST, deviation, 1.0),
            reward_scale=reward_scale,
            reward_low=low / reward_scale,
            reward_high=high / reward_scale,
            horizon=self._horizon(low, high),
            dread=self._dread(),
        )

    def _dread(self) -> Array | None:
        if self.passing is None:
            return None
        pays = self.passing.mean > jnp.sqrt(self.passing.variance)  # shaping that comes to little is no reason to stay for ever
        return ((self.terminated > 0) & pays).astype(jnp.float32)

    def _horizon(self, low: Array, high: Array) -> Array | None:
        if self.rewards is None or self.truncated is None:
            return None
        fixed = (self.terminated == 0) & (self.truncated > 0)
        length = jnp.where(fixed, self.count / jnp.maximum(self.truncated, 1), jnp.inf)
        found = horizon(cycle(self.variance, self.change), self.rewards.rarity(low, high), length)
        return jnp.where(self.count > 0, found, LONGEST)


def no_moments(obs_size: int, spread: bool = False) -> Moments:
    """Of no transitions; `spread`: scales are to follow the spread of rewards."""

    def zeros() -> Array:
        return jnp.zeros(obs_size)  # every field its own buffer: the phases donate them

    return Moments(
        count=jnp.zeros((), jnp.int32),
        mean=zeros(),
        variance=zeros(),
        change=zeros(),
        low=jnp.full(obs_size, jnp.inf, jnp.float32),
        high=jnp.full(obs_size, -jnp.inf, jnp.float32),
        reward_low=jnp.asarray(jnp.inf, jnp.float32),
        reward_high=jnp.asarray(-jnp.inf, jnp.float32),
        terminated=jnp.zeros((), jnp.int32),
        rewards=no_spread() if spread else None,
        passing=no_spread() if spread else None,
        truncated=jnp.zeros((), jnp.int32) if spread else None,
        moved=zeros() if spread else None,
    )
