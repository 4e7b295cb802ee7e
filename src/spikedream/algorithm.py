"""The loop's verbs, as pure functions of one TrainState.

    collect   act in the real environment            -> experience (replay)
    fit       fit the world model to the experience  -> world
    dream     improve the agent inside the world     -> agent
    evaluate  act greedily on fresh episodes         -> result

Each method is one compiled call. `spikedream.runners` calls them in this order, each by its own clock; `collect` is `act` for each
step and `remember` for a block of them, or `learn` for each where the agent learns as it goes; `evaluate` is `act` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial, wraps
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.knowledge import Knowledge
from spikedream.nodes import Node, Unexportable, described
from spikedream.replay.normalizer import Normalizer
from spikedream.replay.ring import Priority, Replay, ReplayBuffer
from spikedream.replay.spread import sparse
from spikedream.snn.product import Precision, precisely
from spikedream.spec import Spec
from spikedream.types import Masked, Metrics, PyTree, Transition, WorldModel, firing_rate
from spikedream.world import Agent, Bonus, HostLearner, OnlineAgent, SelectingAgent, World


class Keys(eqx.Module):
    """One for each verb that draws: how often one verb is called changes nothing for the others."""

    collect: Array
    fit: Array
    dream: Array
    evaluate: Array  # never advances


class Counters(eqx.Module):
    updates: Array  # () int32, of the agent
    imagined_steps: Array  # () uint32, begins anew at 2^32


class TrainState(eqx.Module):
    """Everything that learning changes: saving it and the environments' positions saves the run."""

    world: PyTree
    agent: PyTree
    bonus: PyTree
    replay: Replay
    carry: PyTree  # (environments, ...) the policy's memory of the episodes under way
    keys: Keys
    counters: Counters


class PolicyState(eqx.Module):
    """What acting needs and nothing else: a collector, an evaluator and an exporter take this and never the replay."""

    policy: PyTree
    world: World  # without the model's parameters where acting does not ask them


class Act(NamedTuple):
    action: Array  # (batch, action_size), normalised
    carry: PyTree  # (batch, ...)
    log_prob: Array  # (batch,)
    rate: Array  # (batch,) firing rate of the policy's neurons, spikes per tick
    key: Array  # for the next decision


def _moved(tree: PyTree, device: Any) -> PyTree:
    return tree if device == jax.devices()[0] == jax.devices("cpu")[0] else jax.device_put(tree, device)


def _of_block(metric: Any) -> Any:
    """Of a metric of each update, an Array, (updates,), or `Masked`, the mean over those that measured it, or the sum of counts."""
    if isinstance(metric, Masked):
        counts = metric.counts.sum(0)
        return Masked((metric.value * metric.counts).sum(0) / jnp.maximum(counts, 1), jnp.minimum(counts, 1))
    return metric.sum(0) if metric.dtype == jnp.int32 else metric.mean(0)


def _at_its_precision(verb: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(verb)
    def traced(algorithm: "Algorithm", *arguments: Any) -> Any:
        with precisely(algorithm.precision):
            return verb(algorithm, *arguments)

    return traced


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
        environments: that are played side by side.
        knowledge: what need not be learned.
        precision: of matrix products while it learns; it acts in float32.
    """

    spec: Spec
    world_model: WorldModel
    agent: Agent
    bonus: Bonus | None
    buffer: ReplayBuffer
    block: int
    environments: int = 1
    knowledge: Knowledge = Knowledge()
    precision: Precision = "float32"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all that it holds, which each call of a compiled verb asks for."""
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    def world(self, state: TrainState) -> World:
        return self._world(state.world, state.replay.normalizer, state.bonus)

    def _world(self, fitted: PyTree, normalizer: Normalizer, bonus: PyTree) -> World:
        return World(self.world_model, fitted, normalizer, self.bonus, bonus, self.knowledge, self.spec)

    def policy(self, state: TrainState) -> PolicyState:
        """Shares the state's buffers: it ends with the next verb."""
        world = self.world(state)
        if not (self.agent.acts_in_world or self.world_model.recurrent):
            world = World(self.world_model, (), state.replay.normalizer)
        return PolicyState(self.agent.policy_of(state.agent), world)

    def to_act(self, tree: PyTree) -> PyTree:
        """Moved to where decisions are computed: to the host's processor, which has the environments, since a single decision is
        not worth the way to an accelerator; but planning and beliefs are, and what learns from each step stays where it learns."""
        heavy = self.agent.acts_in_world or self.world_model.recurrent or self.agent.online
        return tree if heavy else _moved(tree, jax.devices("cpu")[0])

    def to_learn(self, tree: PyTree) -> PyTree:
        """Moved back from there."""
        return _moved(tree, jax.devices()[0])

    def describe(self, policy: PolicyState) -> tuple[Node, ...]:
        """The greedy policy, from a raw observation to a choice or to an action in [-1, 1], for export.

        Raises:
            Unexportable: a part of it cannot leave Python.
        """
        if self.world_model.recurrent:
            raise Unexportable(
                f"a policy that sees what {type(self.world_model).__name__} remembers cannot be exported; one that learned with"
                " Ensemble sees the observation alone and can"
            )
        return described(policy.world.normalizer), *described(self.agent, policy.policy)

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array) -> TrainState:
        world_key, agent_key, bonus_key, *keys = jax.random.split(key, 7)
        replay = self.buffer.init(self.spec, self.environments)
        world = World(self.world_model, self.world_model.init(self.spec, world_key), replay.normalizer)
        if self.bonus is not None:
            world = replace(world, bonus=self.bonus, bonus_state=self.bonus.init(self.spec, world, bonus_key))
        agent = self.agent.init(self.spec, world, agent_key)
        if self.buffer.priority == "td_error":  # an agent that cannot tell says so now
            jax.eval_shape(lambda k: self.agent.errors(agent, world, replay, jnp.zeros(1, jnp.int32), k), key)
        counters = Counters(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32))
        state = TrainState(world.state, agent, world.bonus_state, replay, (), Keys(*keys), counters)
        return replace(state, carry=self._start(self.policy(state), self.environments))

    def _start(self, policy: PolicyState, batch: int) -> PyTree:
        resting = self.agent.start(policy.policy, policy.world)
        return jax.tree.map(lambda x: jnp.array(jnp.broadcast_to(x, (batch, *x.shape))), resting)

    @partial(jax.jit, static_argnums=(0, 2))
    def start(self, policy: PolicyState, batch: int) -> PyTree:
        """The policy's memory at the start of `batch` episodes."""
        return self._start(policy, batch)

    @partial(jax.jit, static_argnums=0)
    def restart(self, policy: PolicyState, carry: PyTree, begins: Array) -> PyTree:
        """The policy's memory, at the start of an episode where one `begins`, (batch,) bool."""
        fresh = self._start(policy, begins.shape[0])
        return jax.tree.map(lambda new, old: jnp.where(begins.reshape(-1, *(1,) * (new.ndim - 1)), new, old), fresh, carry)

    @partial(jax.jit, static_argnums=(0, 5))
    def act(self, policy: PolicyState, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Act:
        """Decide for a batch of raw observations, (batch, obs_size)."""
        after, use = jax.random.split(key)
        obs = policy.world.normalizer.obs(obs)

        def decide(carry: PyTree, obs: Array, key: Array) -> tuple[Array, PyTree, Array, Array]:
            decision = self.agent.act(policy.policy, policy.world, carry, obs, key, greedy)
            return decision.action, decision.carry, decision.log_prob, firing_rate(decision.spikes)

        return Act(*jax.vmap(decide)(carry, obs, jax.random.split(use, obs.shape[0])), after)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def remember(self, replay: Replay, steps: Transition, number: Array) -> Replay:
        """Add the first `number` () real steps of all environments, fields (rows, environments, ...), in their own units."""
        return replay.add(self.knowledge.retold(self.spec, steps), number)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    @_at_its_precision
    def learn(self, state: TrainState, step: Transition) -> tuple[TrainState, Metrics]:
        """Remember one real step, fields (1, 1, ...) in their own units, take into use the scales that it changes, and let an
        online agent learn from it."""
        key, learn_key = jax.random.split(state.keys.dream)
        replay = state.replay.add(self.knowledge.retold(self.spec, step), 1)
        replay = replay.normalise(0.0 if self.bonus is None else self.bonus.reward_floor)
        world = self._world(state.world, replay.normalizer, state.bonus)
        agent, metrics = cast(OnlineAgent, self.agent).learn(state.agent, world, replay, learn_key)
        imagined = state.counters.imagined_steps + metrics.pop("imagined_steps").astype(jnp.uint32)
        counters, keys = Counters(state.counters.updates + 1, imagined), replace(state.keys, dream=key)
        return replace(state, agent=agent, replay=replay, keys=keys, counters=counters), metrics

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    @_at_its_precision
    def fit(self, state: TrainState, updates: Array) -> tuple[TrainState, Metrics]:
        """Take the scales of all experience into use, fit the world model, in about `updates` () gradient steps, and the bonus, and
        set priorities."""
        key, fit_key, bonus_key, error_key, survey_key = jax.random.split(state.keys.fit, 5)
        replay = state.replay.normalise(0.0 if self.bonus is None else self.bonus.reward_floor)
        fitted, metrics = state.world, {}
        if self.agent.uses_world or self.bonus is not None:
            fitted, metrics = self.world_model.update(fitted, replay, fit_key, updates)
        world = self._world(fitted, replay.normalizer, state.bonus)
        if self.bonus is not None:
            bonus, more = self.bonus.update(state.bonus, world, replay, bonus_key)
            world, metrics = replace(world, bonus_state=bonus), metrics | more
        if self.buffer.measured_in_fit:
            index, counts = replay.survey(survey_key)
            if self.buffer.priority == "model_error":
                errors = self.world_model.errors(fitted, replay, index, error_key)
            else:
                errors = self.agent.errors(state.agent, world, replay, index, error_key)
            if self.buffer.priority_while == "sparse":
                matters = sparse(replay.gather(index), counts)
                errors = jnp.where(matters, errors, 1.0)  # all alike, and like those of the steps to come
                metrics = metrics | {"sparse": matters.astype(jnp.float32)}
            replay = replay.prioritise(index, errors, counts)
        if replay.normalizer.horizon is not None:
            metrics = metrics | {"scale/reward": replay.normalizer.reward_scale, "scale/horizon": replay.normalizer.horizon}
        keys = replace(state.keys, fit=key)
        after = replace(state, world=fitted, bonus=world.bonus_state, replay=replay.forget_episodes(), keys=keys)
        return after, metrics

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    @_at_its_precision
    def dream(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """`block` agent updates, and a choice of what acts greedily where the agent makes one; metrics are their mean, counts
        their sum."""
        world = self.world(state)
        key, block_key = jax.random.split(state.keys.dream)

        def update(learning: tuple[PyTree, Priority | None], key: Array) -> tuple[tuple[PyTree, Priority | None], Metrics]:
            agent, priority = learning
            replay = replace(state.replay, priority=priority)
            agent, metrics = self.agent.update(agent, world, replay, key)
            if self.buffer.priority == "loss" and (judged := self.agent.judged(agent)) is not None:
                replay = replay.prioritise(*judged)
            return (agent, replay.priority), metrics

        learning = (state.agent, state.replay.priority)
        (agent, priority), metrics = jax.lax.scan(update, learning, jax.random.split(block_key, self.block))
        metrics = {name: _of_block(x) for name, x in metrics.items()}
        counters = self._counted(state.counters, metrics.pop("imagined_steps"))
        if self.agent.selects:
            *_, select_key = jax.random.split(state.keys.dream, 3)  # updates take the first two
            agent, selected = cast(SelectingAgent, self.agent).select(agent, world, state.replay, select_key)
            metrics |= selected
        replay = replace(state.replay, priority=priority)
        return replace(state, agent=agent, replay=replay, keys=replace(state.keys, dream=key), counters=counters), metrics

    def _counted(self, counters: Counters, imagined_steps: Array) -> Counters:
        """After a block of updates."""
        return Counters(counters.updates + self.block, counters.imagined_steps + imagined_steps.astype(jnp.uint32))

    def host_learner(self, state: TrainState) -> HostLearner | None:
        """What improves the agent outside compiled programs: then `dream_on_host` is called with it, in place of `dream`."""
        *_, key = jax.random.split(state.keys.dream, 3)  # dreams take the first two
        return self.agent.host_learner(self.spec, self.world(state), state.replay, key)

    def dream_on_host(self, learner: HostLearner, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """`dream`, by a learner outside."""
        key, block_key = jax.random.split(state.keys.dream)
        agent, metrics = learner.improve(state.agent, self.world(state), state.replay, self.block, block_key)
        counters = self._counted(state.counters, metrics.pop("imagined_steps"))
        return replace(state, agent=agent, keys=replace(state.keys, dream=key), counters=counters), metrics
