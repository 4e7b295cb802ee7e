"""The one dream: a policy acting inside a world for a number of steps. Agents, reports and tests all use it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from spikedream.types import Decision, Prediction, PyTree, World

Policy = Callable[[PyTree, Array, Array], Decision]  # (policy carry, obs, key) -> decision


class Dream(NamedTuple):
    """Of `batch` dreams of `horizon` steps; field t belongs to the step taken from `obs[t]`."""

    obs: Array  # (horizon, batch, obs_size) what the policy saw
    carry: PyTree  # (horizon, batch, ...) the policy's memory when it saw it
    key: Array  # (horizon, batch) the randomness that it decided with
    decision: Decision  # (horizon, batch, ...); `spikes` reduced to one firing rate per layer, (horizon,)
    prediction: Prediction  # (horizon, batch, ...) what the world answered; `spikes` likewise


def dream(world: World, policy: Policy, carry: PyTree, obs: Array, horizon: int, key: Array) -> Dream:
    """Imagine onward from real observations.

    Args:
        world: the world model to imagine in.
        policy: chooses each action; mapped over the batch.
        carry: the policy's memory at the start, leaves (batch, ...).
        obs: starting observations, (batch, obs_size).
        horizon: number of steps.
        key: randomness of policy and world.
    """
    batch = obs.shape[0]
    start_key, key = jax.random.split(key)
    memory = jax.vmap(world.start)(obs, jax.random.split(start_key, batch))

    def step(state: tuple[PyTree, PyTree, Array], key: Array):
        memory, carry, obs = state
        policy_key, world_key = jax.random.split(key)
        policy_keys = jax.random.split(policy_key, batch)
        decision = jax.vmap(policy)(carry, obs, policy_keys)
        following, prediction = jax.vmap(world.step)(memory, decision.action, jax.random.split(world_key, batch))
        # Whole spike trains of a dream would be most of its memory traffic.
        decision = decision._replace(spikes=tuple(train.mean() for train in decision.spikes))
        prediction = prediction._replace(spikes=tuple(train.mean() for train in prediction.spikes))
        return (following, decision.carry, prediction.obs), Dream(obs, carry, policy_keys, decision, prediction)

    return jax.lax.scan(step, (memory, carry, obs), jax.random.split(key, horizon))[1]
