"""How an actor acts that sees what the world model makes of an episode: what agents have in common that learn in dreams alone.

The functions are methods of such an agent: `start = acting.start`.
"""

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.nodes import Node, described
from spikedream.ops.distributions import ActionDistribution
from spikedream.snn.networks import AnyNetwork
from spikedream.spec import Spec
from spikedream.types import Decision, PyTree, Sequence
from spikedream.world import Belief, World


class ActorPolicy(eqx.Module):
    """What acting needs."""

    actor: PyTree
    distribution: ActionDistribution = eqx.field(static=True)
    spec: Spec = eqx.field(static=True)
    chosen: PyTree = None  # the actor that acts greedily; None where that is the same

    def acting(self, greedy: bool) -> PyTree:
        return self.actor if self.chosen is None or not greedy else self.chosen


class ActorCarry(NamedTuple):
    belief: Belief
    actor: PyTree  # the actor's own memory


class HasActor(Protocol):
    """Whose methods the functions are."""

    @property
    def actor(self) -> AnyNetwork: ...
    def decide(self, policy: Any, carry: PyTree, feature: Array, key: Array, greedy: bool) -> Decision:
        """By the actor alone, whose own memory is `carry`."""
        ...


def start(self: HasActor, policy: ActorPolicy, world: World) -> ActorCarry:
    return ActorCarry(world.blank(policy.spec), self.actor.start(policy.actor))


def act(self: HasActor, policy: ActorPolicy, world: World, carry: ActorCarry, obs: Array, key: Array, greedy: bool) -> Decision:
    follow_key, decide_key = jax.random.split(key)
    memory = world.follow(carry.belief, obs, follow_key)
    decision = self.decide(policy, carry.actor, world.feature(memory), decide_key, greedy)
    return decision._replace(carry=ActorCarry(world.belief(memory, decision.action), decision.carry))


def intended(self: HasActor, policy: ActorPolicy, world: World, carry: ActorCarry, obs: Array, key: Array) -> None:
    """It does not plan."""


def describe(self: HasActor, policy: ActorPolicy) -> tuple[Node, ...]:
    return *described(self.actor, policy.acting(greedy=True)), described(policy.distribution)


def relive(self: HasActor, actor: PyTree, world: World, sequence: Sequence, key: Array) -> tuple[Any, PyTree]:
    """The world's and the actor's memory at each step of a real sequence, before its action; leaves (length, ...)."""
    memory_key, actor_key = jax.random.split(key)
    memory, resting = world.memories(sequence, memory_key), self.actor.start(actor)

    def step(carry: PyTree, now: tuple[Any, Array, Array]) -> tuple[PyTree, PyTree]:
        memory, first, key = now
        carry = jax.tree.map(lambda rest, old: jnp.where(first > 0, rest, old), resting, carry)
        return self.actor(actor, world.feature(memory), carry, key).carry, carry

    keys = jax.random.split(actor_key, sequence.first.shape[0])
    return memory, jax.lax.scan(step, resting, (memory, sequence.first, keys))[1]
