"""The loop's verbs, as pure functions of one TrainState.

    collect   act in the real environment            -> experience (replay)
    fit       fit the world model to the experience  -> world
    dream     improve the agent inside the world     -> agent
    evaluate  act greedily on fresh episodes         -> result

Each method is one compiled call. `spikedream.runners` calls them in this order, `collect` as `act` and `remember` for each step.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.ops.replay import Replay, empty
from spikedream.types import Agent, Metrics, PyTree, Spec, Transition, World, WorldModel, firing_rate


class TrainState(eqx.Module):
    """Everything that learning changes: saving it and the environment's position saves the run."""

    world: PyTree
    agent: PyTree
    replay: Replay
    key: Array


class Act(NamedTuple):
    action: Array  # (batch, action_size), normalised
    carry: PyTree  # (batch, ...)
    rate: Array  # (batch,) firing rate of the policy's neurons, spikes per tick


@dataclass(frozen=True)
class Algorithm:
    """A world model and an agent joined for an environment of the given spec.

    Attributes:
        spec: sizes of the environment's spaces.
        world_model: what is fitted.
        agent: what acts, and improves in dreams.
        capacity: transitions that replay holds.
        block: agent updates in one compiled call.
    """

    spec: Spec
    world_model: WorldModel
    agent: Agent
    capacity: int
    block: int

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array) -> TrainState:
        world_key, agent_key, key = jax.random.split(key, 3)
        world, agent = self.world_model.init(self.spec, world_key), self.agent.init(self.spec, agent_key)
        return TrainState(world, agent, empty(self.spec, self.capacity), key)

    @partial(jax.jit, static_argnums=(0, 2))
    def start(self, state: TrainState, batch: int) -> PyTree:
        """The policy's memory at the start of `batch` episodes."""
        resting = self.agent.start(state.agent)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), resting)

    @partial(jax.jit, static_argnums=(0, 5))
    def act(self, state: TrainState, carry: PyTree, obs: Array, salt: Array, greedy: bool) -> Act:
        """Decide for a batch of raw observations, (batch, obs_size). The state's key does not advance: `salt` () uint32 tells
        apart the decisions between two phases."""
        world = World(self.world_model, state.world)
        obs = state.replay.normalizer.obs(obs)
        keys = jax.random.split(jax.random.fold_in(state.key, salt), obs.shape[0])

        def decide(carry: PyTree, obs: Array, key: Array) -> Act:
            decision = self.agent.act(state.agent, world, carry, obs, key, greedy)
            return Act(decision.action, decision.carry, firing_rate(decision.spikes))

        return jax.vmap(decide)(carry, obs, keys)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def remember(self, state: TrainState, step: Transition) -> TrainState:
        """Add one real step, in the environment's own units."""
        return eqx.tree_at(lambda s: s.replay, state, state.replay.add(step))

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def fit(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Measure the normaliser anew, then fit the world model."""
        fit_key, key = jax.random.split(state.key)
        replay = state.replay.normalise()
        world, metrics = self.world_model.update(state.world, replay, fit_key)
        return TrainState(world, state.agent, replay, key), metrics

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def dream(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """`block` agent updates; metrics are their mean, counts their sum."""
        world = World(self.world_model, state.world)
        dream_key, key = jax.random.split(state.key)

        def update(agent: PyTree, key: Array) -> tuple[PyTree, Metrics]:
            return self.agent.update(agent, world, state.replay, key)

        agent, metrics = jax.lax.scan(update, state.agent, jax.random.split(dream_key, self.block))
        metrics = {name: x.sum(0) if x.dtype == jnp.int32 else x.mean(0) for name, x in metrics.items()}
        return TrainState(state.world, agent, state.replay, key), metrics
