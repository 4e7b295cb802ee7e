"""The world as agents see it, in which they dream and through which they follow real episodes; and what an agent and a bonus offer.

Shapes are given for ONE sample, as in `spikedream.types`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.knowledge import Knowledge
from spikedream.spec import Spec
from spikedream.types import (
    Decision,
    Experience,
    Judged,
    Metrics,
    Prediction,
    PyTree,
    Sequence,
    Transition,
    WorldModel,
)


class Belief(NamedTuple):
    """What is known while an episode runs: the world model's memory when it last acted."""

    memory: Any
    obs: Array  # (obs_size,) seen then, in the environment's units: the normaliser may change while an episode runs
    action: Array  # (action_size,) taken then
    begun: Array  # () float, 0 before the first observation


class Intention(NamedTuple):
    """What an agent that plans is about to do."""

    memory: Any  # the world's, where it stands
    actions: Array  # (horizon, action_size)


class Bonus(Protocol):
    """Intrinsic reward for curiosity; `spikedream.bonuses` holds the implementations."""

    @property
    def reward_floor(self) -> float:
        """What all rewards are divided by at the least, in the environment's units, so that weighted ones stay within 1: the
        largest that these can be; 0 where they follow the scale of the environment's own, whatever that is."""
        ...

    def bound(self, state: PyTree, normalizer: Any) -> Array:
        """() no weighted reward is larger as things stand, in units of the normalised reward."""
        ...

    def init(self, spec: Spec, world: "World", key: Array) -> PyTree: ...
    def reward(self, state: PyTree, obs: Array, action: Array, prediction: Prediction) -> Array:
        """() weighted intrinsic reward of a step, in units of the normalised reward; `prediction.obs` is the next observation, of
        a real step the real one."""
        ...

    def update(self, state: PyTree, world: "World", experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """Fit to all experience after the world model has been fitted: one whole phase."""
        ...


class World(eqx.Module):
    """A world model, its learned state, an optional bonus and the scale of what goes in and out: all that an agent needs in order
    to dream."""

    model: WorldModel = eqx.field(static=True)
    state: PyTree
    normalizer: Any
    bonus: Bonus | None = eqx.field(static=True, default=None)
    bonus_state: PyTree = ()
    knowledge: Knowledge = eqx.field(static=True, default=Knowledge())
    spec: Spec | None = eqx.field(static=True, default=None)  # needed where something is known

    def start(self, obs: Array, key: Array) -> Any:
        return self.model.start(self.state, obs, key)

    def step(self, memory: Any, action: Array, key: Array) -> tuple[Any, Prediction]:
        following, prediction = self.model.step(self.state, memory, action, key)
        if self.knowledge:
            prediction = self._as_known(memory, action, prediction)
        if self.bonus is not None:
            bonus = self.bonus.reward(self.bonus_state, memory.obs, action, prediction)
            prediction = prediction._replace(bonus=bonus)
        return following, prediction

    def _as_known(self, memory: Any, action: Array, prediction: Prediction) -> Prediction:
        assert self.spec is not None
        scale, raw = self.normalizer.reward_scale, self.normalizer.raw_obs
        outcome = (raw(memory.obs), action, raw(prediction.obs), prediction.reward * scale, prediction.terminated)
        reward, terminated = self.knowledge.outcome(self.spec, *outcome)
        return prediction._replace(reward=reward / scale, terminated=terminated)

    def feature(self, memory: Any) -> Array:
        return self.model.feature(self.state, memory)

    def member(self, memory: Any, index: Array, alone: bool) -> "tuple[World, Any]":
        """The world, and the memory in it, of a trajectory that goes as one member says: that member's `alone`, where nobody
        disagrees, or that of all."""
        if not alone:
            return self, memory._replace(member=index)
        model, state, memory = self.model.member(self.state, memory, index)
        return World(model, state, self.normalizer, self.bonus, self.bonus_state, self.knowledge, self.spec), memory

    def without_bonus(self) -> "World":
        return replace(self, bonus=None, bonus_state=())

    def intrinsic(self, memory: Any, step: Transition, key: Array) -> Array:
        """() weighted intrinsic reward of a real step, taken where the world's memory was `memory`."""
        if self.bonus is None:
            return jnp.zeros(())
        prediction = self.model.step(self.state, memory, step.action, key)[1]
        return self.bonus.reward(self.bonus_state, step.obs, step.action, prediction._replace(obs=step.next_obs))

    @property
    def largest_bonus(self) -> Array | float:
        """() no normalised bonus is larger."""
        return 0.0 / self.normalizer.reward_scale if self.bonus is None else self.bonus.bound(self.bonus_state, self.normalizer)

    # ---- following real episodes

    def blank(self, spec: Spec) -> Belief:
        """Before an episode's first observation."""
        nothing = jnp.zeros(spec.obs_size)
        memory = self.start(nothing, jax.random.key(0))
        return Belief(memory, jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size), jnp.zeros(()))

    def belief(self, memory: Any, action: Array) -> Belief:
        """After `action` was chosen where the memory was `memory`."""
        return Belief(memory, self.normalizer.raw_obs(memory.obs), action, jnp.ones(()))

    def follow(self, belief: Belief, obs: Array, key: Array) -> Any:
        """The memory once `obs` has been seen after the belief's action."""
        if not self.model.recurrent:
            return self.start(obs, key)
        memory = belief.memory._replace(obs=self.normalizer.obs(belief.obs))
        return self._observe(memory, belief.action, belief.begun, obs, key)

    def _observe(self, memory: Any, action: Array, begun: Array, obs: Array, key: Array) -> Any:
        """The memory after `obs`; where an episode begins with it, whatever was before."""
        start_key, observe_key = jax.random.split(key)
        start = self.start(obs, start_key)
        following = self.model.observe(self.state, memory, action, obs, observe_key)
        return jax.tree.map(lambda new, old: jnp.where(begun > 0, new, old), following, start)

    def observe(self, memory: Any, step: Transition, key: Array) -> Any:
        """The memory after a real step that was taken where it was `memory`."""
        return self.model.observe(self.state, memory, step.action, step.next_obs, key)

    def memories(self, sequence: Sequence, key: Array) -> Any:
        """The memory at each step of real experience, before its action; leaves (length, ...)."""
        keys = jax.random.split(key, sequence.first.shape[0])
        if not self.model.recurrent:
            return jax.vmap(self.start)(sequence.steps.obs, keys)

        def step(before: tuple[Any, Array], now: tuple[Transition, Array, Array]) -> tuple[tuple[Any, Array], Any]:
            real, first, key = now
            memory = self._observe(*before, 1 - first, real.obs, key)
            return (memory, real.action), memory

        steps = sequence.steps
        blank = self.start(steps.obs[0], jax.random.key(0))
        return jax.lax.scan(step, (blank, jnp.zeros_like(steps.action[0])), (steps, sequence.first, keys))[1]

    def recall(self, experience: Experience, index: Array, key: Array, by: Array | None = None) -> Any:
        """The memory before the action of each transition at `index`, (rows,); leaves (rows, ...). Where observations are moved,
        `by` (rows, obs_size), a remembered past moves as a whole: it suits only the observation that it led to."""
        keys = jax.random.split(key, index.shape[0])
        if not self.model.recurrent:
            obs = experience.gather(index).obs
            return jax.vmap(self.start)(obs if by is None else obs + by, keys)

        def one(end: Array, key: Array, by: Array | None) -> Any:
            sequence = experience.sequence(end, self.model.warm_up)
            memories = self.memories(sequence if by is None else sequence.moved(by), key)
            return jax.tree.map(lambda x: x[-1], memories)

        return jax.vmap(one)(index, keys, by)


class Agent(Protocol):
    """Chooses actions and improves inside the world; `spikedream.agents` holds the implementations.

    Its `spec` is that of the environment; what it sees of a state is `world.feature`, (world.model.feature_size(spec),). What
    acting needs of its state is its policy, a pytree of its own: all that a collector, an evaluator or an exporter is given.
    """

    @property
    def uses_world(self) -> bool:
        """Whether it ever asks the world model anything; where not, none is fitted."""
        ...

    @property
    def acts_in_world(self) -> bool:
        """Whether it asks the world model for predictions in order to act."""
        ...

    @property
    def on_policy_steps(self) -> int | None:
        """How many newest steps, all by the policy that it improves, an update learns from; None where any experience will do."""
        ...

    @property
    def online(self) -> bool:
        """Whether it learns from each real step as it comes, as an `OnlineAgent`."""
        ...

    @property
    def selects(self) -> bool:
        """Whether it chooses anew what acts greedily after each block of updates, as a `SelectingAgent`."""
        ...

    def init(self, spec: Spec, world: World, key: Array) -> PyTree: ...
    def policy_of(self, state: PyTree) -> PyTree: ...
    def start(self, policy: PyTree, world: World) -> PyTree:
        """The policy's memory at the start of an episode."""
        ...

    def act(self, policy: PyTree, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision: ...
    def intended(self, policy: PyTree, world: World, carry: PyTree, obs: Array, key: Array) -> Intention | None:
        """What `act` with the same arguments plans greedily; None where it does not plan."""
        ...

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> "HostLearner | None":
        """What improves it outside compiled programs, in place of `update`; None where `update` does."""
        ...

    def update(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """One dream and what is learned from it; `metrics["imagined_steps"]` counts its steps."""
        ...

    def judged(self, state: PyTree) -> Judged | None:
        """What the last update found of the transitions that it drew; None where it does not tell."""
        ...

    def errors(self, state: PyTree, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """(rows,) squared temporal-difference error on the transitions at `index`, (rows,)."""
        ...


class SelectingAgent(Agent, Protocol):
    """Learns in `update`, and chooses what acts greedily among what came of that."""

    def select(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """The state with another choice, and what decided."""
        ...


class OnlineAgent(Agent, Protocol):
    """Learns inside `collect`, which is all that it learns from."""

    def learn(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]:
        """From the newest real step, as it comes; `metrics["imagined_steps"]` counts those that it imagined beside it."""
        ...


class HostLearner(Protocol):
    """Improves an agent outside compiled programs, with parameters, optimisers and buffers of its own beside the agent's state."""

    def improve(
        self, state: PyTree, world: World, experience: Experience, updates: int, key: Array
    ) -> tuple[PyTree, dict[str, Any]]:
        """So many updates; the agent's state after them, and what `Agent.update` measures too, as plain numbers."""
        ...

    def save(self) -> dict[str, np.ndarray]:
        """All that it holds, by names of its own."""
        ...

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what was saved."""
        ...

    def write(self, directory: Path) -> None:
        """The agent into a run's directory, in the form that its own library reads."""
        ...
