"""The one dream: a policy acting inside a world for a number of steps. Agents, planners, reports and tests all use it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.types import Decision, Prediction, PyTree, firing_rates
from spikedream.world import World

Policy = Callable[[PyTree, Array, Array], Decision]  # (policy carry, feature, key) -> decision


class Dream(NamedTuple):
    """Of `batch` dreams of `horizon` steps; field t belongs to the step taken from `obs[t]`."""

    obs: Array  # (horizon, batch, feature_size) what the policy saw
    carry: PyTree  # (horizon, batch, ...) the policy's memory when it saw it
    key: Array  # (horizon, batch) the randomness that it decided with
    decision: Decision  # (horizon, batch, ...); `spikes` reduced to one firing rate per layer, (horizon,)
    prediction: Prediction  # (horizon, batch, ...) what the world answered; `spikes` likewise
    following: Array  # (horizon, batch, feature_size) what the policy sees next


class Ends(NamedTuple):
    """Where dreams stopped; leaves (batch, ...)."""

    memory: Any  # the world's
    carry: PyTree  # the policy's


def playback(carry: tuple[Array, Array], feature: Array, key: Array) -> Decision:
    """A policy that plays a given sequence; its carry is the actions, (horizon, action_size), and the step to take next, ()."""
    actions, step = carry
    return Decision(actions[step], (actions, step + 1), jnp.zeros(()), ())


def dream(
    world: World, policy: Policy, carry: PyTree, memory: Any, horizon: int, key: Array, taken: Array | None = None
) -> tuple[Dream, Ends]:
    """Imagine onward.

    Args:
        world: the world model to imagine in.
        policy: chooses each action; mapped over the batch.
        carry: the policy's memory at the start, leaves (batch, ...).
        memory: the world's memory at the start, leaves (batch, ...).
        horizon: number of steps.
        key: randomness of policy and world.
        taken: () int32, how many of these steps are taken; the others cost nothing and are zero. None: all.
    """
    batch = memory.obs.shape[0]

    def advance(state: tuple[PyTree, PyTree, Array], key: Array):
        memory, carry, obs = state
        policy_key, world_key = jax.random.split(key)
        policy_keys = jax.random.split(policy_key, batch)
        decision = jax.vmap(policy)(carry, obs, policy_keys)
        following, prediction = jax.vmap(world.step)(memory, decision.action, jax.random.split(world_key, batch))
        # Whole spike trains of a dream would be most of its memory traffic.
        decision = decision._replace(spikes=firing_rates(decision.spikes))
        prediction = prediction._replace(spikes=firing_rates(prediction.rates or prediction.spikes), rates=())
        seen = jax.vmap(world.feature)(following)
        return (following, decision.carry, seen), Dream(obs, carry, policy_keys, decision, prediction, seen)

    def stay(state: tuple[PyTree, PyTree, Array], key: Array):
        return state, jax.tree.map(jnp.zeros_like, jax.eval_shape(advance, state, key)[1])

    def step(state: tuple[PyTree, PyTree, Array], number_and_key: tuple[Array, Array]):
        number, key = number_and_key
        return advance(state, key) if taken is None else jax.lax.cond(number < taken, advance, stay, state, key)

    start = (memory, carry, jax.vmap(world.feature)(memory))
    (memory, carry, _), steps = jax.lax.scan(step, start, (jnp.arange(horizon), jax.random.split(key, horizon)))
    return steps, Ends(memory, carry)
