"""The one boundary of scale: observations leave the environment through here and rewards enter learning through here."""

import equinox as eqx
import jax.numpy as jnp
from jax import Array


class Normalizer(eqx.Module):
    """Statistics of all experience so far.

    Rewards are divided by the largest magnitude seen, so that every normalised reward lies in [-1, 1] and `reward_low`,
    `reward_high` bound what a step can give; a value function can then be clipped to its possible range.
    """

    mean: Array  # (obs_size,)
    scale: Array  # (obs_size,) standard deviation, or 1 where an entry never changed
    reward_scale: Array  # ()
    reward_low: Array  # () smallest normalised reward seen
    reward_high: Array  # () largest

    def obs(self, obs: Array) -> Array:
        """Environment units to normalised; the last axis is (obs_size,), leading axes are kept."""
        shape = (1,) * (obs.ndim - 1) + self.mean.shape
        return (obs - self.mean.reshape(shape)) / self.scale.reshape(shape)

    def raw_obs(self, obs: Array) -> Array:
        """The inverse of `obs`."""
        shape = (1,) * (obs.ndim - 1) + self.mean.shape
        return obs * self.scale.reshape(shape) + self.mean.reshape(shape)


def identity(obs_size: int) -> Normalizer:
    """For the time before any experience."""
    one = jnp.ones(())
    return Normalizer(jnp.zeros(obs_size), jnp.ones(obs_size), one, jnp.zeros(()), one)


def measure(obs: Array, reward: Array, valid: Array, reward_floor: float = 0.0) -> Normalizer:
    """Statistics of the rows where `valid` (capacity,) is 1: `obs` (capacity, obs_size), `reward` (capacity,). The scale of rewards
    is at least `reward_floor`, the largest bonus: where only small costs have been seen, bonuses must not dwarf the scale."""
    count = jnp.maximum(valid.sum(), 1)
    # Summed about the first row: a large constant would otherwise leave rounding errors that look like variation.
    mean = obs[0] + ((obs - obs[:1]) * valid[:, None]).sum(0) / count
    variance = (jnp.square(obs - mean[None]) * valid[:, None]).sum(0) / count
    deviation = jnp.sqrt(variance)
    low = jnp.where(valid > 0, reward, jnp.inf).min()
    high = jnp.where(valid > 0, reward, -jnp.inf).max()
    largest = jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), reward_floor)
    reward_scale = jnp.where(largest > 1e-6, largest, 1.0)
    return Normalizer(mean, jnp.where(deviation > 1e-6, deviation, 1.0), reward_scale, low / reward_scale, high / reward_scale)
