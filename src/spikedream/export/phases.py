"""Which networks a decision, a fit of the world model and an update of the agent call, and how often.

A description stands beside each kind of world model and agent, since what they call is theirs; what a call costs, each network says
of itself (`Network.operations`). A kind without a description is not counted: its figures are null.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.dreamer import Dreamer, DreamerCarry, DreamerPolicy, DreamerState
from spikedream.agents.mpc import MPC, AnyPlanner, MPCCarry, MPCPolicy, MPCState
from spikedream.agents.off_policy import OffPolicy, OffPolicyPolicy, OffPolicyState
from spikedream.agents.ppo import PPO, PPOPolicy, PPOState
from spikedream.agents.representation import average_l1
from spikedream.planners.random_shooting import RandomShooting
from spikedream.snn.operations import Operations, scaled, together
from spikedream.types import PyTree
from spikedream.world import Belief, World
from spikedream.world_models.ensemble import Ensemble, EnsembleState
from spikedream.world_models.recurrent import Recurrent, RecurrentState
from spikedream.world_models.true_environment import TrueEnvironment

Parts = dict[str, tuple[Operations, ...]]  # of each network, by its name
Memories = dict[str, tuple[PyTree, PyTree]]  # of each network: its parameters, and what it holds between ticks or steps


class Calls(NamedTuple):
    forward: float = 0.0
    backward: float = 0.0  # of these, how many are differentiated by weights and inputs; by one of the two counts half
    steps: float = 0.0  # of the optimiser on its parameters


class Totals(NamedTuple):
    """What a run has counted; None where it has not."""

    decisions: int | None  # of the policy's own while it collected
    fits: int | None
    fit_steps: int | None  # gradient steps of all fits
    updates: int
    imagined_steps: int
    gradient_steps: int | None  # that PPO says it made
    surveyed: int  # transitions on which a fit is judged


class DescribesModel(Protocol):
    def memories(self, state: PyTree) -> Memories: ...
    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> Parts:
        """Of one call of each network, of all members, as in an imagined step."""
        ...

    def asked(self, state: PyTree) -> dict[str, Array | float]:
        """How often an imagined step calls each network."""
        ...

    def informed(self, state: PyTree, by: PyTree) -> PyTree:
        """`state` with what `by` has seen that decides how much is computed."""
        ...

    def observe(self, state: PyTree, belief: Belief, obs: Array, key: Array) -> Parts:
        """Of following one real step; nothing where nothing is remembered."""
        ...

    def fit(self, totals: Totals) -> dict[str, Calls] | None: ...


class DescribesAgent(Protocol):
    def memories(self, state: PyTree) -> Memories: ...
    def decision(self, policy: PyTree, world: World, carry: Any, obs: Array, key: Array) -> Parts:
        """Of one greedy decision on the normalised `obs`."""
        ...

    def each(self, state: PyTree, world: World, memory: Any, action: Array, key: Array) -> Parts:
        """Of one call of each network that it learns, where the world's memory is `memory` and `action` was taken."""
        ...

    @property
    def collects_so(self) -> bool:
        """Whether it decides in the same way while it collects."""
        ...

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        """Of all its dreams, apart from the world model's steps."""
        ...

    def learn(self, totals: Totals) -> dict[str, Calls] | None: ...


# ---- world models


@dataclass(frozen=True)
class OfEnsemble:
    model: Ensemble

    def memories(self, state: EnsembleState) -> Memories:
        model, members = self.model, state.members
        return {
            "dynamics": (members.dynamics, jax.vmap(model.dynamics.state)(members.dynamics)),
            "ending": (members.ending, jax.vmap(model.ending.state)(members.ending)),
        }

    def step(self, state: EnsembleState, memory: Any, action: Array, key: Array) -> Parts:
        following = self.model.step(state, memory, action, key)[0].obs
        return self.predict(state, jnp.concatenate([memory.obs, action]), following, key)

    def predict(self, state: EnsembleState, inputs: Array, following: Array, key: Array) -> Parts:
        model, members = self.model, state.members
        dynamics = jax.vmap(lambda m: model.dynamics.operations(m.dynamics, inputs, key=key))(members)
        ending = jax.vmap(lambda m: model.ending.operations(m.ending, following, key=key))(members)
        return {"dynamics": together(dynamics), "ending": together(ending)}

    def asked(self, state: EnsembleState) -> dict[str, Array | float]:
        # As long as no episode has terminated, none is predicted.
        return {"dynamics": 1.0, "ending": (state.endings > 0).astype(jnp.float32)}

    def informed(self, state: EnsembleState, by: EnsembleState) -> EnsembleState:
        return replace(state, endings=by.endings)

    def observe(self, state: EnsembleState, belief: Belief, obs: Array, key: Array) -> Parts:
        return {}

    def fit(self, totals: Totals) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None or (self.model.gaussian and self.model.holdout):
            return None  # with calibration, which goes over held-out data as often as it needs
        model, steps = self.model, totals.fit_steps
        samples, checked = steps * model.batch, 256 * steps / model.check_every if model.holdout else 0
        # The worst perturbation is found by the gradient of the inputs alone.
        perturbed = samples if model.adversarial else 0
        return {
            "dynamics": Calls(samples + perturbed + checked + totals.surveyed * totals.fits, samples + perturbed / 2, steps),
            "ending": Calls(2 * (samples + checked), 2 * samples, steps),
        }


@dataclass(frozen=True)
class OfRecurrent:
    model: Recurrent

    def memories(self, state: RecurrentState) -> Memories:
        memory = {"memory": (state.network, self.model.network.state(state.network))}
        return memory | OfEnsemble(self.model.ensemble).memories(state.ensemble)

    def step(self, state: RecurrentState, memory: Any, action: Array, key: Array) -> Parts:
        following = self.model.step(state, memory, action, key)[0].obs
        inputs = jnp.concatenate([memory.obs, memory.latent, action])
        return self._read(state, memory, action, following, key) | OfEnsemble(self.model.ensemble).predict(
            state.ensemble, inputs, following, key
        )

    def asked(self, state: RecurrentState) -> dict[str, Array | float]:
        return {"memory": 1.0} | OfEnsemble(self.model.ensemble).asked(state.ensemble)

    def informed(self, state: RecurrentState, by: RecurrentState) -> RecurrentState:
        return replace(state, ensemble=OfEnsemble(self.model.ensemble).informed(state.ensemble, by.ensemble))

    def _read(self, state: RecurrentState, memory: Any, action: Array, obs: Array, key: Array) -> Parts:
        seen = jnp.concatenate([obs, (obs - memory.obs) / state.ensemble.scale, action])
        return {"memory": self.model.network.operations(state.network, seen, memory.carry, key)}

    def observe(self, state: RecurrentState, belief: Belief, obs: Array, key: Array) -> Parts:
        return self._read(state, belief.memory, belief.action, obs, key)

    def fit(self, totals: Totals) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None:
            return None
        model, steps, surveyed = self.model, totals.fit_steps, min(totals.surveyed, 1000) * totals.fits
        samples = steps * model.ensemble.batch * (model.context + model.open_loop)
        perturbed = samples if model.ensemble.adversarial else 0
        return {
            "memory": Calls(samples + surveyed * model.warm_up, samples, steps),
            # Along the sequence, and again where the loss is taken.
            "dynamics": Calls(2 * samples + perturbed + surveyed, 2 * samples + perturbed / 2, steps),
            "ending": Calls(2 * samples, 2 * samples, steps),
        }


@dataclass(frozen=True)
class OfTrueEnvironment:
    """Physics, not a network: what it computes stands for the world."""

    model: TrueEnvironment

    def memories(self, state: PyTree) -> Memories:
        return {}

    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> Parts:
        return {}

    def asked(self, state: PyTree) -> dict[str, Array | float]:
        return {}

    def informed(self, state: PyTree, by: PyTree) -> PyTree:
        return state

    def observe(self, state: PyTree, belief: Belief, obs: Array, key: Array) -> Parts:
        return {}

    def fit(self, totals: Totals) -> dict[str, Calls]:
        return {}


# ---- agents


def _actor_key(key: Array) -> Array:
    """Of the actor in `ActorCritic.decide`."""
    return jax.random.split(key, 3)[0]


def _actor_and_critic(agent: Dreamer | PPO, state: DreamerState | PPOState) -> Memories:
    return {"actor": (state.actor, agent.actor.state(state.actor)), "critic": (state.critic, agent.critic.state(state.critic))}


@dataclass(frozen=True)
class OfDreamer:
    agent: Dreamer

    def memories(self, state: DreamerState) -> Memories:
        return _actor_and_critic(self.agent, state)

    def decision(self, policy: DreamerPolicy, world: World, carry: DreamerCarry, obs: Array, key: Array) -> Parts:
        follow_key, decide_key = jax.random.split(key)
        feature = world.feature(world.follow(carry.belief, obs, follow_key))
        actor = self.agent.actor.operations(policy.actor, feature, carry.actor, _actor_key(decide_key))
        return {"actor": actor} | of_model(world.model).observe(world.state, carry.belief, obs, follow_key)

    def each(self, state: DreamerState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        feature, agent = world.feature(memory), self.agent
        return {
            "actor": agent.actor.operations(state.actor, feature, agent.actor.start(state.actor), key),
            "critic": agent.critic.operations(state.critic, feature, agent.critic.start(state.critic), key),
        }

    @property
    def collects_so(self) -> bool:
        return True

    @property
    def _plain(self) -> bool:
        """Whether it learns from dreams that begin at single observations, by what it did there."""
        return self.agent.imagined_share.always_one and self.agent.gradient != "model" and not self.agent.actor.persistent

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        return {"actor": Calls(totals.imagined_steps)} if self._plain else None

    def learn(self, totals: Totals) -> dict[str, Calls] | None:
        if not self._plain:
            return None
        agent = self.agent
        passes = agent.passes if agent.gradient == "clipped" else 1
        samples, steps = passes * totals.imagined_steps, passes * agent.minibatches * totals.updates
        # Values of both ends of each imagined step, by the critic and its slow copy.
        return {
            "actor": Calls(samples, samples, steps),
            "critic": Calls(samples + 2 * totals.imagined_steps, samples, steps),
        }


@dataclass(frozen=True)
class OfPPO:
    agent: PPO

    def memories(self, state: PPOState) -> Memories:
        return _actor_and_critic(self.agent, state)

    def decision(self, policy: PPOPolicy, world: World, carry: PyTree, obs: Array, key: Array) -> Parts:
        return {"actor": self.agent.actor.operations(policy.actor, obs, (), _actor_key(key))}

    def each(self, state: PPOState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        return {
            "actor": self.agent.actor.operations(state.actor, memory.obs, (), key),
            "critic": self.agent.critic.operations(state.critic, memory.obs, (), key),
        }

    @property
    def collects_so(self) -> bool:
        return True

    def imagine(self, totals: Totals) -> dict[str, Calls]:
        return {"actor": Calls(totals.imagined_steps)}

    def learn(self, totals: Totals) -> dict[str, Calls] | None:
        if totals.gradient_steps is None:
            return None
        agent, steps, real = self.agent, totals.gradient_steps, self.agent.rollout * totals.updates
        samples = steps * agent.batch
        return {
            "actor": Calls(samples + real, samples, steps),
            "critic": Calls(samples + 3 * real + 2 * totals.imagined_steps, samples, steps),
        }


@dataclass(frozen=True)
class OfOffPolicy:
    agent: OffPolicy

    def memories(self, state: OffPolicyState) -> Memories:
        agent, now = self.agent, state.now
        found: Memories = {
            "actor": (now.actor, agent.actor.state(now.actor)),
            "critics": (now.critics, jax.vmap(agent.critic.state)(now.critics.network)),
        }
        if agent.representation is not None:
            states, pairs = agent.representation.state, agent.representation.pair
            found["representation of states"] = (now.encoder.state, states.state(now.encoder.state))
            found["representation of pairs"] = (now.encoder.pair, pairs.state(now.encoder.pair))
        return found

    def decision(self, policy: OffPolicyPolicy, world: World, carry: tuple[()], obs: Array, key: Array) -> Parts:
        return self._actor(policy.actor, policy.encoder, obs, jax.random.split(key)[0])

    def _actor(self, actor: PyTree, encoder: PyTree, obs: Array, key: Array) -> Parts:
        agent = self.agent
        if agent.representation is None or agent.actor_sees == "observation":
            return {"actor": agent.actor.operations(actor, obs, (), key)}
        embedded = agent.representation.embed(encoder, obs)
        seen = embedded if agent.actor_sees == "representation" else jnp.concatenate([obs, embedded])
        return {
            "actor": agent.actor.operations(actor, seen, (), key),
            "representation of states": agent.representation.state.operations(encoder.state, obs, (), key),
        }

    def each(self, state: OffPolicyState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        agent, now, obs = self.agent, state.now, memory.obs
        seen, found = jnp.concatenate([obs, action]), self._actor(now.actor, now.encoder, obs, key)
        if agent.representation is None:
            critics = jax.vmap(lambda c: agent.critic.operations(c.network, seen, (), key))(now.critics)
            return found | {"critics": together(critics)}
        embedded = agent.representation.embed(now.encoder, obs)
        pair = agent.representation.embed_pair(now.encoder, embedded, action)

        def one(critic: Any) -> tuple[Operations, ...]:
            entry = average_l1(critic.entry(seen[None])[0])
            network = agent.critic.operations(critic.network, jnp.concatenate([entry, pair, embedded]), (), key)
            return *critic.entry.operations("entry", seen[None]), *network

        return found | {
            "critics": together(jax.vmap(one)(now.critics)),
            "representation of states": agent.representation.state.operations(now.encoder.state, obs, (), key),
            "representation of pairs": agent.representation.pair.operations(
                now.encoder.pair, jnp.concatenate([embedded, action]), (), key
            ),
        }

    @property
    def collects_so(self) -> bool:
        return True

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        if self.agent.dreams is not None:
            return None  # what is dreamed along real stretches, and what is cut short, is not known from the run's totals
        return {}

    def learn(self, totals: Totals) -> dict[str, Calls] | None:
        agent, every = self.agent, totals.updates * self.agent.batch
        acted = totals.updates // agent.policy_delay * agent.batch
        found = {
            "actor": Calls(every + acted, acted, totals.updates // agent.policy_delay),
            # Of the target, of what is learned, and, with the gradient of the action alone, for the actor.
            "critics": Calls(2 * every + acted, every + acted / 2, totals.updates),
        }
        if agent.representation is None:
            return found
        seen = agent.actor_sees != "observation"
        return found | {
            "representation of states": Calls(4 * every + acted + seen * (every + acted), every, totals.updates),
            "representation of pairs": Calls(3 * every + acted, every + acted / 2, totals.updates),
        }


def _scored(search: AnyPlanner) -> int:
    """Sequences of one plan."""
    return search.candidates if isinstance(search, RandomShooting) else search.candidates * search.iterations


@dataclass(frozen=True)
class OfMPC:
    agent: MPC

    def _policy(self) -> DescribesAgent | None:
        return None if self.agent.policy is None else of_agent(self.agent.policy)

    def memories(self, state: MPCState) -> Memories:
        policy = self._policy()
        return {} if policy is None else policy.memories(state.policy)

    def decision(self, policy: MPCPolicy, world: World, carry: MPCCarry, obs: Array, key: Array) -> Parts:
        """The spikes of all imagined steps of a plan are those of its first: the whole search is not followed."""
        agent, learner = self.agent, self.agent.policy
        follow_key, _, plan_key = jax.random.split(key, 3)
        memory = world.follow(carry.belief, obs, follow_key)
        feature, found = world.feature(memory), of_model(world.model).observe(world.state, carry.belief, obs, follow_key)
        plans, members = agent.when != "collect", world.model.members
        scored = _scored(agent.search) if plans else 0
        judged = scored if agent.particles == "one" else scored * members  # sequences, each by one member
        alone = agent.uncertainty_penalty == 0 or members == 1
        proposed = agent.proposals * agent.horizon if plans and learner is not None else 0
        steps = agent.horizon * judged / (members if alone else 1) + proposed
        if plans:
            action = agent.act(policy, world, carry, obs, key, True).action
            model = of_model(world.model)
            asked = model.asked(world.state)
            for name, operations in model.step(world.state, memory, action, plan_key).items():
                found[name] = found.get(name, ()) + scaled(operations, steps * asked[name])
        if isinstance(learner, Dreamer):
            actor = learner.actor.operations(policy.policy.actor, feature, carry.policy, plan_key)
            found["actor"] = scaled(actor, 1 + proposed)
            if plans and agent.terminal_value:
                critic = learner.critic.operations(policy.critic, feature, learner.critic.start(policy.critic), plan_key)
                found["critic"] = scaled(critic, judged)
        return found

    def each(self, state: MPCState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        policy = self._policy()
        return {} if policy is None else policy.each(state.policy, world, memory, action, key)

    @property
    def collects_so(self) -> bool:
        return self.agent.when == "always"

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        policy = self._policy()
        return {} if policy is None else policy.imagine(totals)

    def learn(self, totals: Totals) -> dict[str, Calls] | None:
        policy = self._policy()
        return {} if policy is None else policy.learn(totals)


MODELS: Mapping[type, Callable[[Any], DescribesModel]] = {
    Ensemble: OfEnsemble, Recurrent: OfRecurrent, TrueEnvironment: OfTrueEnvironment,
}  # fmt: skip
AGENTS: Mapping[type, Callable[[Any], DescribesAgent]] = {
    Dreamer: OfDreamer, MPC: OfMPC, OffPolicy: OfOffPolicy, PPO: OfPPO,
}  # fmt: skip


def of_model(model: Any) -> DescribesModel:
    """Raises KeyError for a kind without a description."""
    return MODELS[type(model)](model)


def of_agent(agent: Any) -> DescribesAgent:
    """Raises KeyError for a kind without a description."""
    return AGENTS[type(agent)](agent)


def described(model: Any, agent: Any) -> bool:
    learner = agent.policy if isinstance(agent, MPC) else None
    return type(model) in MODELS and type(agent) in AGENTS and (learner is None or type(learner) in AGENTS)
