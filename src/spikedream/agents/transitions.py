"""What an off-policy agent learns from: mini-batches of real steps, of imagined ones, or of both."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.types import Experience
from spikedream.world import World


class Batch(NamedTuple):
    """Leaves (rows, ...); observations are normalised."""

    obs: Array
    action: Array
    next_obs: Array  # one step later
    reward: Array  # discounted sum over the steps that count, in the environment's own units
    later: Array  # (rows, obs_size) where the target bootstraps
    discount: Array  # of the value there; 0 where the task has ended
    weight: Array


def real(world: World, experience: Experience, index: Array, gamma: float, n_step: int, key: Array) -> Batch:
    """The steps at `index`, (rows,), and what follows them within `n_step` steps. A bonus counts in single steps only."""
    steps, scale = experience.gather(index), experience.normalizer.reward_scale
    importance = experience.importance(index)
    if n_step == 1:
        reward = steps.reward * scale
        if world.bonus is not None:
            start_key, bonus_key = jax.random.split(key)
            memory = jax.vmap(world.start)(steps.obs, jax.random.split(start_key, index.size))
            reward += scale * jax.vmap(world.intrinsic)(memory, steps, jax.random.split(bonus_key, index.size))
        discount = gamma * (1 - steps.terminated)
        return Batch(steps.obs, steps.action, steps.next_obs, reward, steps.next_obs, discount, importance)
    sequence = jax.vmap(partial(experience.onward, length=n_step))(index)
    counts, ahead = sequence.valid, gamma ** jnp.arange(n_step, dtype=jnp.float32)
    reward = scale * (sequence.steps.reward * counts * ahead[None]).sum(1)
    last = counts.sum(1).astype(jnp.int32) - 1
    rows = jnp.arange(index.size)
    discount = gamma ** (last + 1) * (1 - sequence.steps.terminated[rows, last])
    return Batch(steps.obs, steps.action, steps.next_obs, reward, sequence.steps.next_obs[rows, last], discount, importance)


def mixed(first: Batch, second: Batch, chosen: Array) -> Batch:
    """The rows of `first` where `chosen`, (rows,) bool, and those of `second` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b), first, second)
