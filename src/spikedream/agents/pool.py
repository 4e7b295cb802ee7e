"""Where dreams begin: where the last ones stopped, or at what was experienced and around it.

The functions are methods of a `Dreamer`: `_starts = pool.starts`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents import acting
from spikedream.ops.dream import Ends
from spikedream.types import Experience, PyTree, Sequence
from spikedream.world import World

NEGLIGIBLE = 0.01  # error, in typical changes, that makes no difference
SURE = 0.5  # of the largest uncertainty that is trusted, up to which noise is added to a start


class Pool(NamedTuple):
    """Where the last dreams stopped; leaves (trajectories, ...)."""

    ends: Ends
    obs: Array  # (obs_size,) in the environment's units: the normaliser may change until the dream goes on
    alive: Array  # () probability that it was still going


def known_error(world: World) -> Array:
    """() root mean squared error of the world's model, of what its confidence is measured on, in typical changes."""
    return jnp.sqrt(-jnp.log(jnp.clip(world.model.confidence(world.state), 1e-6, 1.0)))


def largest_uncertainty(self: Any, world: World) -> Array | float:
    """() of a step that is trusted."""
    return math.inf if self.error_limit is None else self.error_limit * jnp.maximum(known_error(world), NEGLIGIBLE)


def trusted(self: Any, world: World, uncertainty: Array) -> Array:
    """1 where steps of this `uncertainty`, any shape, are within the limit."""
    return (jax.lax.stop_gradient(uncertainty) <= self._largest_uncertainty(world)).astype(jnp.float32)


def starts(self: Any, state: Any, world: World, experience: Experience, key: Array) -> tuple[Ends, Array]:
    """Where dreams begin, leaves (trajectories, ...), and how much each counts, (trajectories,).

    A dream goes on where the last one stopped, if that one was still alive, or starts at a replayed state. So dreams reach
    states that a few real episodes never visited, without a long horizon.
    """
    replay_key, noise_key, alive_key, start_key, relive_key, ask_key = jax.random.split(key, 6)
    pool, count = state.pool, self.trajectories
    go_on = jax.random.uniform(alive_key, (count,)) < pool.alive * (1 - self.restart)
    index = experience.draw(replay_key, (count,))
    importance = jnp.where(go_on, 1.0, experience.importance(index))
    steps = experience.gather(index)
    noise = self.start_noise * jax.random.normal(noise_key, steps.obs.shape)
    pool_obs = experience.normalizer.obs(pool.obs)
    recurrent = world.model.recurrent

    def moved(noise: Array) -> Ends:
        """At the replayed states, each moved by `noise`, (trajectories, obs_size); the world's memory is the observation alone
        where the model remembers nothing."""
        if not recurrent and not jax.tree.leaves(pool.ends.carry):
            return Ends(steps.obs + noise, ())
        sequences = jax.vmap(partial(experience.sequence, length=self.context))(index)
        if recurrent:  # a remembered past suits only the observation that it led to, so it moves as a whole
            sequences = jax.vmap(Sequence.moved)(sequences, noise)
        relived = jax.vmap(partial(acting.relive, self, state.actor, world))(sequences, jax.random.split(relive_key, count))
        memory, carry = jax.tree.map(lambda x: x[:, -1], relived)
        return Ends(memory if recurrent else steps.obs + noise, carry)

    def begun(memory: Any, key: Array) -> Any:
        return memory if recurrent else jax.vmap(world.start)(memory, jax.random.split(key, count))

    fresh = moved(noise)
    if self.error_limit is not None and self.start_noise > 0:
        begin_key, step_key = jax.random.split(ask_key)
        asked = jax.vmap(world.step)(begun(fresh.memory, begin_key), steps.action, jax.random.split(step_key, count))[1]
        sure = asked.uncertainty <= SURE * self._largest_uncertainty(world)
        fresh = _where(sure, fresh, moved(jnp.zeros(noise.shape)))
    stopped = Ends(pool.ends.memory._replace(obs=pool_obs) if recurrent else pool_obs, pool.ends.carry)
    memory, carry = _where(go_on, stopped, fresh)
    return Ends(begun(memory, start_key), carry), importance


def _where(mask: Array, these: PyTree, those: PyTree) -> PyTree:
    """Rows (rows, ...) of `these` where `mask`, (rows,), and of `those` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (b.ndim - 1)), a, b), these, those)
