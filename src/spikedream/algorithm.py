"""The loop's verbs, as pure functions of one TrainState.

    collect   act in the real environment            -> experience (replay)
    fit       fit the world model to the experience  -> world
    dream     improve the agent inside the world     -> agent
    evaluate  act greedily on fresh episodes         -> result

Each method is one compiled call. `spikedream.runners` calls them in this order, `collect` as `act` and `remember` for each step.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.replay.ring import Replay, ReplayBuffer
from spikedream.types import Agent, Bonus, Metrics, PyTree, Spec, Transition, World, WorldModel, firing_rate


class TrainState(eqx.Module):
    """Everything that learning changes: saving it and the environment's position saves the run."""

    world: PyTree
    agent: PyTree
    bonus: PyTree
    replay: Replay
    key: Array


class Act(NamedTuple):
    action: Array  # (batch, action_size), normalised
    carry: PyTree  # (batch, ...)
    log_prob: Array  # (batch,)
    rate: Array  # (batch,) firing rate of the policy's neurons, spikes per tick


@dataclass(frozen=True)
class Algorithm:
    """A world model and an agent joined for an environment of the given spec.

    Attributes:
        spec: sizes of the environment's spaces.
        world_model: what is fitted.
        agent: what acts, and improves in dreams.
        bonus: intrinsic reward, if any.
        buffer: how experience is kept.
        block: agent updates in one compiled call.
    """

    spec: Spec
    world_model: WorldModel
    agent: Agent
    bonus: Bonus | None
    buffer: ReplayBuffer
    block: int

    def world(self, state: TrainState) -> World:
        return World(self.world_model, state.world, self.bonus, state.bonus)

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array) -> TrainState:
        world_key, agent_key, key = jax.random.split(key, 3)
        fresh, replay = World(self.world_model, self.world_model.init(self.spec, world_key)), self.buffer.init(self.spec)
        bonus = () if self.bonus is None else self.bonus.init(self.spec, fresh, jax.random.fold_in(world_key, 1))
        world = replace(fresh, bonus=self.bonus, bonus_state=bonus)
        agent = self.agent.init(self.spec, world, agent_key)
        if self.buffer.priority == "td_error":
            jax.eval_shape(lambda k: self.agent.errors(agent, world, replay, k), key)  # an agent that cannot tell says so now
        return TrainState(world.state, agent, bonus, replay, key)

    @partial(jax.jit, static_argnums=(0, 2))
    def start(self, state: TrainState, batch: int) -> PyTree:
        """The policy's memory at the start of `batch` episodes."""
        resting = self.agent.start(state.agent, self.world(state))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), resting)

    @partial(jax.jit, static_argnums=(0, 5))
    def act(self, state: TrainState, carry: PyTree, obs: Array, salt: Array, greedy: bool) -> Act:
        """Decide for a batch of raw observations, (batch, obs_size). The state's key does not advance: `salt` () uint32 tells
        apart the decisions between two phases."""
        world = self.world(state)
        obs = state.replay.normalizer.obs(obs)
        keys = jax.random.split(jax.random.fold_in(state.key, salt), obs.shape[0])

        def decide(carry: PyTree, obs: Array, key: Array) -> Act:
            decision = self.agent.act(state.agent, world, carry, obs, key, greedy)
            return Act(decision.action, decision.carry, decision.log_prob, firing_rate(decision.spikes))

        return jax.vmap(decide)(carry, obs, keys)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def remember(self, state: TrainState, step: Transition) -> TrainState:
        """Add one real step, in the environment's own units."""
        return eqx.tree_at(lambda s: s.replay, state, state.replay.add(step))

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def fit(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Measure the normaliser anew, then fit the world model and the bonus, and set priorities."""
        fit_key, key = jax.random.split(state.key)
        bonus_key, error_key = jax.random.split(jax.random.fold_in(fit_key, 1))
        replay = state.replay.normalise(0.0 if self.bonus is None else self.bonus.largest)
        world, metrics = state.world, {}
        if self.agent.uses_world or self.bonus is not None:
            world, metrics = self.world_model.update(world, replay, fit_key)
        fitted, bonus = World(self.world_model, world, self.bonus, state.bonus), state.bonus
        if self.bonus is not None:
            bonus, more = self.bonus.update(bonus, fitted, replay, bonus_key)
            metrics |= more
        if self.buffer.priority == "model_error":
            replay = replay.prioritise(self.world_model.errors(world, replay, error_key))
        elif self.buffer.priority == "td_error":
            replay = replay.prioritise(self.agent.errors(state.agent, fitted, replay, error_key))
        return TrainState(world, state.agent, bonus, replay, key), metrics

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def dream(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """`block` agent updates; metrics are their mean, counts their sum."""
        world = self.world(state)
        dream_key, key = jax.random.split(state.key)

        def update(agent: PyTree, key: Array) -> tuple[PyTree, Metrics]:
            return self.agent.update(agent, world, state.replay, key)

        agent, metrics = jax.lax.scan(update, state.agent, jax.random.split(dream_key, self.block))
        metrics = {name: x.sum(0) if x.dtype == jnp.int32 else x.mean(0) for name, x in metrics.items()}
        return TrainState(state.world, agent, state.bonus, state.replay, key), metrics
