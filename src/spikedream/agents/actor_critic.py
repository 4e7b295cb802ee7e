"""What agents with an actor and a critic share: deciding, valuing, their lessons, losses and optimisers."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.ops.distributions import ActionDistribution, ValueDistribution
from spikedream.ops.fitting import adam
from spikedream.ops.policy_gradient import probability_ratio
from spikedream.ops.schedule import ImaginedShare
from spikedream.snn.networks import AnyNetwork
from spikedream.snn.sparsity import pruned
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree, firing_rate
from spikedream.world import World


class Lesson(NamedTuple):
    """What one imagined or real step teaches; leaves (samples, ...)."""

    obs: Array  # (samples, feature_size) what the actor saw
    carry: PyTree  # the actor's memory when it saw it
    key: Array  # that it decided with
    action: Array
    log_prob: Array  # under the policy before it learned from this
    value: Array  # under the critic before it learned from this
    target: Array  # lambda-return
    advantage: Array
    weight: Array  # how much it counts


class Learner(Protocol):
    """An actor-critic that another agent may hold: it proposes, judges where a plan ends, and learns in dreams."""

    @property
    def imagined_share(self) -> ImaginedShare: ...
    def init(self, spec: Spec, world: World, key: Array) -> PyTree: ...
    def policy_of(self, state: PyTree) -> PyTree: ...
    def rest(self, policy: PyTree) -> PyTree:
        """The actor's own memory at the start of an episode."""
        ...

    def decide(self, policy: PyTree, carry: PyTree, feature: Array, key: Array, greedy: bool) -> Decision:
        """By the actor alone, whose own memory is `carry`."""
        ...

    def critic_of(self, state: PyTree) -> PyTree:
        """The critic to judge plans by."""
        ...

    def discount(self, world: World) -> Array | float:
        """() gamma, below 1."""
        ...

    def value_of(self, critic: PyTree, feature: Array, key: Array) -> Array:
        """() value of one state, an average of normalised rewards to come."""
        ...

    def update(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]: ...
    @property
    def selects(self) -> bool: ...
    def select(self, state: PyTree, world: World, experience: Experience, key: Array) -> tuple[PyTree, Metrics]: ...
    def errors(self, state: PyTree, world: World, experience: Experience, index: Array, key: Array) -> Array: ...


@dataclass(frozen=True)
class ActorCritic:
    """Two networks and what their outputs mean; an agent makes one of its fields."""

    actor: AnyNetwork
    critic: AnyNetwork
    value: ValueDistribution

    def init(self, features: int, distribution: ActionDistribution, key: Array) -> tuple[PyTree, PyTree]:
        """Parameters of actor and critic, which see `features` numbers."""
        actor_key, critic_key = jax.random.split(key)
        return (
            self.actor.init(features, distribution.parameters, actor_key),
            self.critic.init(features, self.value.parameters, critic_key),
        )

    def decide(
        self, actor: PyTree, distribution: ActionDistribution, carry: PyTree, obs: Array, key: Array, greedy: bool
    ) -> Decision:
        network_key, action_key, _ = jax.random.split(key, 3)
        out = self.actor(actor, obs, carry, network_key)
        if greedy:
            return Decision(distribution.mode(out.value), out.carry, jnp.zeros(()), out.spikes)
        action = distribution.sample(out.value, action_key)
        return Decision(action, out.carry, distribution.log_prob(out.value, action), out.spikes)

    def reconsider(self, actor: PyTree, obs: Array, carry: PyTree, key: Array) -> Any:
        """The actor's output where it decided with `key`: if its encoder is random, with the same draws."""
        return self.actor(actor, obs, carry, jax.random.split(key, 3)[0])

    def criticise(self, critic: PyTree, obs: Array, key: Array) -> Any:
        """The critic's output, with draws of its own, where the actor decided with `key`."""
        return self.critic(critic, obs, self.critic.start(critic), jax.random.split(key, 3)[2])

    def value_of(self, critic: PyTree, obs: Array, key: Array) -> Array:
        """() value of one state, an average of normalised rewards to come."""
        return self.value.mean(self.critic(critic, obs, self.critic.start(critic), key).value)

    def errors(self, critic: PyTree, gamma: Array | float, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """(rows,) squared temporal-difference error, in units of the normalised reward, on the transitions at `index`, (rows,)."""
        recall_key, observe_key, value_key = jax.random.split(key, 3)
        steps, memory = experience.gather(index), world.recall(experience, index, recall_key)
        keys = jax.random.split(observe_key, index.shape[0])
        after = jax.vmap(world.observe)(memory, steps, keys)
        value, following = (jax.vmap(lambda m: self.value_of(critic, world.feature(m), value_key))(m) for m in (memory, after))
        target = (1 - gamma) * steps.reward + gamma * (1 - steps.terminated) * following
        return jnp.square((target - value) / (1 - gamma))

    def ratio(self, actor: PyTree, distribution: ActionDistribution, batch: Lesson) -> tuple[Array, Array, Array, Array]:
        """(samples,) each: probability ratio of the actions taken, their log-probability, the policy's entropy, its firing rate."""

        def reconsider(obs: Array, carry: PyTree, key: Array) -> tuple[Array, Array]:
            out = self.reconsider(actor, obs, carry, key)
            return out.value, firing_rate(out.spikes)

        out, rate = jax.vmap(reconsider)(batch.obs, batch.carry, batch.key)
        log_prob = jax.vmap(distribution.log_prob)(out, batch.action)
        return probability_ratio(log_prob, batch.log_prob), log_prob, jax.vmap(distribution.entropy)(out), rate


def activity_above(target: float, rate: Array) -> Array:
    """() by how much a firing rate, (), is above its target. A penalty on it stands beside gains of the magnitude 1."""
    return jnp.maximum(rate - target, 0)


def networks_of(agent: Any) -> ActorCritic:
    """Of an agent with these fields: a property of it."""
    return ActorCritic(agent.actor, agent.critic, agent.value)


def optimizers_of(agent: Any) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Of its actor and critic, by its fields: a property of it. `gradient_clip` bounds each gradient's global norm."""
    return adam(agent.learning_rate, agent.gradient_clip), adam(agent.critic_learning_rate, agent.gradient_clip)


def apply_gradient(
    optimizer: optax.GradientTransformation, gradient: PyTree, moments: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """New parameters, of which those are left that pruning leaves, and moments."""
    changes, moments = optimizer.update(gradient, moments, params)
    return pruned(params, optax.apply_updates(params, changes)), moments
