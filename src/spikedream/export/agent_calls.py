"""What agents call, in a decision, in their dreams and in an update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.acting import ActorCarry, ActorPolicy
from spikedream.agents.dreamer import Dreamer, DreamerState
from spikedream.agents.evolution import Evolution, EvolutionState
from spikedream.agents.mpc import MPC, AnyPlanner, MPCCarry, MPCPolicy, MPCState
from spikedream.agents.off_policy import OffPolicy, OffPolicyPolicy, OffPolicyState
from spikedream.agents.online import StreamActorCritic, StreamPolicy, StreamState
from spikedream.agents.ppo import PPO, PPOPolicy, PPOState
from spikedream.agents.representation import average_l1
from spikedream.agents.stable_baselines import StableBaselines, StableBaselinesState
from spikedream.export.calls import BOUNDED, Calls, DescribesAgent, Memories, Parts, Totals
from spikedream.export.model_calls import MODELS, of_model
from spikedream.planners.random_shooting import RandomShooting
from spikedream.snn.networks import AnyNetwork
from spikedream.snn.operations import Operations, scaled, summed
from spikedream.types import PyTree
from spikedream.world import Belief, World


def _actor_key(key: Array) -> Array:
    """Of the actor in `ActorCritic.decide`."""
    return jax.random.split(key, 3)[0]


def _actor_and_critic(agent: Dreamer | PPO, state: DreamerState | PPOState) -> Memories:
    return {"actor": (state.actor, agent.actor.state(state.actor)), "critic": (state.critic, agent.critic.state(state.critic))}


class WithoutModel:
    """Has none of its own."""

    def fit(self, totals: Totals) -> dict[str, Calls]:
        return {}


@dataclass(frozen=True)
class OfDreamer(WithoutModel):
    agent: Dreamer

    def memories(self, state: DreamerState) -> Memories:
        return _actor_and_critic(self.agent, state)

    def decision(self, policy: ActorPolicy, world: World, carry: ActorCarry, obs: Array, action: Array, key: Array) -> Parts:
        follow_key, decide_key = jax.random.split(key)
        feature = world.feature(world.follow(carry.belief, obs, follow_key))
        actor = self.agent.actor.operations(policy.acting(greedy=True), feature, carry.actor, _actor_key(decide_key))
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
        """Whether it learns from dreams that begin at single observations, by what it did there, and asks for nothing besides."""
        agent = self.agent
        asks_of_starts = agent.error_limit is not None and agent.start_noise > 0
        return agent.imagined_share.always_one and agent.gradient != "model" and not agent.actor.persistent and not asks_of_starts

    def imagine(self, totals: Totals) -> dict[str, Calls] | None:
        """Not known where dreams also choose what acts greedily: how often they did is not counted."""
        return {"actor": Calls(totals.imagined_steps)} if self._plain and not self.agent.selects else None

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
class OfPPO(WithoutModel):
    agent: PPO

    def memories(self, state: PPOState) -> Memories:
        return _actor_and_critic(self.agent, state)

    def decision(self, policy: PPOPolicy, world: World, carry: PyTree, obs: Array, action: Array, key: Array) -> Parts:
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
class OfOffPolicy(WithoutModel):
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

    def decision(self, policy: OffPolicyPolicy, world: World, carry: tuple[()], obs: Array, action: Array, key: Array) -> Parts:
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
            return found | {"critics": summed(critics)}
        embedded = agent.representation.embed(now.encoder, obs)
        pair = agent.representation.embed_pair(now.encoder, embedded, action)

        def one(critic: Any) -> tuple[Operations, ...]:
            entry = average_l1(critic.entry(seen[None])[0])
            network = agent.critic.operations(critic.network, jnp.concatenate([entry, pair, embedded]), (), key)
            return *critic.entry.operations("entry", seen[None]), *network

        return found | {
            "critics": summed(jax.vmap(one)(now.critics)),
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
        passed = 2 * every if agent.slow is None else every  # in one pass the rows of targets are part of the gradient's program
        found = {
            "actor": Calls(every + acted, acted, totals.updates // agent.policy_delay),
            # Of the target, of what is learned, and, with the gradient of the action alone, for the actor.
            "critics": Calls(2 * every + acted, passed + acted / 2, totals.updates),
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
class OfMPC(WithoutModel):
    agent: MPC

    def _policy(self) -> DescribesAgent | None:
        return None if self.agent.policy is None else of_agent(self.agent.policy)

    def memories(self, state: MPCState) -> Memories:
        policy = self._policy()
        return {} if policy is None else policy.memories(state.policy)

    def decision(self, policy: MPCPolicy, world: World, carry: MPCCarry, obs: Array, action: Array, key: Array) -> Parts:
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
            model = of_model(world.model)
            asked = model.asked(world.state)
            for name, operations in model.step(world.state, memory, action, plan_key).items():
                found[name] = found.get(name, ()) + scaled(operations, steps * asked[name])
        if isinstance(learner, Dreamer):
            actor = learner.actor.operations(policy.policy.acting(greedy=True), feature, carry.policy, plan_key)
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


@dataclass(frozen=True)
class OfStreamActorCritic:
    agent: StreamActorCritic

    def _model(self) -> dict[str, AnyNetwork]:
        """The networks of the model that it imagines with."""
        dyna = self.agent.dyna
        both = {} if dyna is None else {"dynamics": dyna.dynamics, "ending": dyna.ending}
        return {name: network for name, network in both.items() if network is not None}

    def memories(self, state: StreamState) -> Memories:
        networks = {"actor": self.agent.actor, "critic": self.agent.critic} | self._model()
        params = state.params._asdict() | ({} if state.dyna is None else state.dyna.networks._asdict())
        return {name: (params[name], network.state(params[name])) for name, network in networks.items()}

    def decision(self, policy: StreamPolicy, world: World, carry: PyTree, obs: Array, action: Array, key: Array) -> Parts:
        return {"actor": self.agent.actor.operations(self.agent.steady(policy), obs, (), _actor_key(key))}

    def each(self, state: StreamState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        agent, params, obs = self.agent, state.params, memory.obs
        found = {
            "actor": agent.actor.operations(params.actor, obs, (), key),
            "critic": agent.critic.operations(params.critic, obs, (), key),
        }
        inputs = {"dynamics": jnp.concatenate([obs, action]), "ending": obs}
        for name, network in self._model().items():
            assert state.dyna is not None
            found[name] = network.operations(getattr(state.dyna.networks, name), inputs[name], (), key)
        return found

    @property
    def collects_so(self) -> bool:
        return True

    def imagine(self, totals: Totals) -> dict[str, Calls]:
        names = ("actor", *self._model()) if self.agent.dyna is not None else ()
        return {name: Calls(totals.imagined_steps) for name in names}

    def learn(self, totals: Totals) -> dict[str, Calls]:
        """Each step is learned from once, real or imagined, for which the critic values both its ends."""
        every = totals.updates + totals.imagined_steps
        return {"actor": Calls(every, every, every, BOUNDED), "critic": Calls(2 * every, every, every, BOUNDED)}

    def fit(self, totals: Totals) -> dict[str, Calls]:
        fits = 0 if self.agent.dyna is None else totals.updates * (1 + self.agent.dyna.rehearsals)
        looked_at = {"dynamics": fits, "ending": 2 * fits}
        return {name: Calls(looked_at[name], looked_at[name], fits) for name in self._model()}


@dataclass(frozen=True)
class OfEvolution(WithoutModel):
    agent: Evolution

    def memories(self, state: EvolutionState) -> Memories:
        return {"actor": (state.actor, self.agent.actor.state(state.actor))}

    def decision(self, policy: ActorPolicy, world: World, carry: ActorCarry, obs: Array, action: Array, key: Array) -> Parts:
        follow_key, decide_key = jax.random.split(key)
        feature = world.feature(world.follow(carry.belief, obs, follow_key))
        actor = self.agent.actor.operations(policy.actor, feature, carry.actor, jax.random.split(decide_key)[0])
        return {"actor": actor} | of_model(world.model).observe(world.state, carry.belief, obs, follow_key)

    def each(self, state: EvolutionState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        actor = self.agent.actor
        return {"actor": actor.operations(state.actor, world.feature(memory), actor.start(state.actor), key)}

    @property
    def collects_so(self) -> bool:
        return True

    def imagine(self, totals: Totals) -> dict[str, Calls]:
        return {"actor": Calls(totals.imagined_steps)}

    def learn(self, totals: Totals) -> None:
        return None  # a generation draws and adds up noise for each weight and candidate: no network is called


@dataclass(frozen=True)
class OfStableBaselines(WithoutModel):
    agent: StableBaselines

    def memories(self, state: StableBaselinesState) -> Memories:
        return {"actor": (state.actor, self.agent.actor.state(state.actor))}

    def decision(self, policy: StableBaselinesState, world: World, carry: Belief, obs: Array, action: Array, key: Array) -> Parts:
        follow_key, _ = jax.random.split(key)
        feature = world.feature(world.follow(carry, obs, follow_key))
        actor = self.agent.actor.operations(policy.actor, feature, (), key)
        return {"actor": actor} | of_model(world.model).observe(world.state, carry, obs, follow_key)

    def each(self, state: StableBaselinesState, world: World, memory: Any, action: Array, key: Array) -> Parts:
        return {"actor": self.agent.actor.operations(state.actor, world.feature(memory), (), key)}

    @property
    def collects_so(self) -> bool:
        return True

    def imagine(self, totals: Totals) -> dict[str, Calls]:
        return {"actor": Calls(totals.imagined_steps)}

    def learn(self, totals: Totals) -> None:
        return None  # the library does not tell


AGENTS: Mapping[type, Callable[[Any], DescribesAgent]] = {
    Dreamer: OfDreamer, Evolution: OfEvolution, MPC: OfMPC, OffPolicy: OfOffPolicy, PPO: OfPPO, StableBaselines: OfStableBaselines,
    StreamActorCritic: OfStreamActorCritic,
}  # fmt: skip


def of_agent(agent: Any) -> DescribesAgent:
    """Raises KeyError for a kind without a description."""
    return AGENTS[type(agent)](agent)


def described(model: Any, agent: Any) -> bool:
    learner = agent.policy if isinstance(agent, MPC) else None
    return type(model) in MODELS and type(agent) in AGENTS and (learner is None or type(learner) in AGENTS)
