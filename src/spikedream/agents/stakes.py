"""What rewards are worth to a critic. Once that has changed, what it learned before says nothing any more, and an actor that still
learns from it is led to wherever it has not yet forgotten.

The functions are methods of a `Dreamer`: `_renewed = stakes.renewed`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.types import PyTree
from spikedream.world import World

RATIO = 2.0  # of two scales of rewards, from which on they are not the same
LEAP = 1.0  # of the largest bonus, in normalised rewards, likewise


class Stakes(eqx.Module):
    """When the critic began to learn."""

    unit: Array  # () normalised reward of 1, in the environment's units; 0 before it has begun
    bonus: Array  # () largest normalised bonus
    rest: Array  # () int32, updates that are still the critic's alone


def none_yet() -> Stakes:
    return Stakes(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def renewed(self: Any, state: Any, world: World, key: Array) -> Any:
    """The state before an update, with a critic that knows nothing where what rewards are worth has changed."""
    if not self.critic_first:
        return state
    stakes, unit, bonus = state.stakes, world.normalizer.reward_scale, jnp.asarray(world.largest_bonus)
    begun = stakes.unit > 0
    scaled = jnp.abs(jnp.log(unit / jnp.where(begun, stakes.unit, unit))) > jnp.log(RATIO)
    changed = scaled | (begun & (jnp.abs(bonus - stakes.bonus) > LEAP))
    critic = self._networks.init(world.model.feature_size(state.spec), state.distribution, jax.random.fold_in(key, 0))[1]
    fresh = critic, critic, self._optimizers[1].init(critic), unit, bonus, jnp.asarray(self.critic_first, jnp.int32)

    def learned(s: Any) -> tuple:
        return s.critic, s.target, s.critic_optimizer, s.stakes.unit, s.stakes.bonus, s.stakes.rest

    def those(which: Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(which, a, b), new, old)

    begins = Stakes(unit, bonus, stakes.rest)
    state = eqx.tree_at(lambda s: s.stakes, state, those(begun, stakes, begins))
    return eqx.tree_at(learned, state, those(changed, fresh, learned(state)))


def rested(self: Any, before: Any, after: Any) -> Any:
    """The state after an update, with the actor as it was `before` where that was the critic's alone."""
    if not self.critic_first:
        return after
    rest = before.stakes.rest

    def acting(s: Any) -> tuple:
        return s.actor, s.actor_optimizer

    kept = jax.tree.map(lambda old, new: jnp.where(rest > 0, old, new), acting(before), acting(after))
    return eqx.tree_at(lambda s: (*acting(s), s.stakes.rest), after, (*kept, jnp.maximum(rest - 1, 0)))
