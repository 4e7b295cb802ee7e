"""An actor-critic that learns only from dreams (Hafner et al. 2020, 2023; here on the normalised state itself).

Spiking or conventional by the fields `actor` and `critic`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.ops.distributions import ActionDistribution, Categorical, TanhNormal, TwoHot, ValueDistribution
from spikedream.ops.dream import Dream, dream
from spikedream.ops.returns import lambda_returns, survival
from spikedream.snn.codings import MembraneReadout, PopulationReadout
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.types import Decision, Experience, Metrics, PyTree, Spec, World, check_bounds, firing_rate


class DreamerState(eqx.Module):
    actor: PyTree
    critic: PyTree
    target: PyTree  # slow copy of the critic, for the bootstrap values
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    pool: Array  # (trajectories, obs_size) where the last dreams stopped, in the environment's units
    pool_alive: Array  # (trajectories,) probability that they were still going
    distribution: ActionDistribution = eqx.field(static=True)


class Lesson(NamedTuple):
    """What one imagined step teaches; leaves (samples, ...)."""

    obs: Array
    carry: PyTree
    key: Array  # that the actor's encoder, if random, drew from
    action: Array
    log_prob: Array  # when it was dreamed
    advantage: Array
    target: Array  # lambda-return
    weight: Array  # probability that the dream was still alive


@dataclass(frozen=True)
class Dreamer:
    """Hyper-parameters. Rewards are scaled by 1 - gamma, so that values are averages of rewards to come and lie in [-1, 1]."""

    actor: AnyNetwork = SpikingNetwork(ticks=5, readout=PopulationReadout())
    critic: AnyNetwork = SpikingNetwork(ticks=5, readout=MembraneReadout(gain=0.1))
    value: ValueDistribution = TwoHot()
    gradient: Literal["clipped", "reinforce", "model"] = "clipped"
    trajectories: int = 64
    horizon: int = 16
    restart: float = 0.1  # share of the dreams that begin at a replayed state even though their predecessor could go on
    start_noise: float = 0.5  # standard deviation, in those of the observations, of what is added to a replayed start
    gamma: float = 0.99
    return_lambda: float = 0.95
    passes: int = 2  # over each dream ("clipped" only; the others take one)
    minibatches: int = 2
    clip: float = 0.2  # of the probability ratio
    entropy: float = 3e-3
    learning_rate: float = 2e-3
    critic_learning_rate: float = 2e-3
    gradient_clip: float = 1.0  # global norm
    target_rate: float = 0.05  # of the slow critic, per update
    uncertainty_penalty: float = 1.0  # reward lost per unit of ensemble disagreement
    advantage_floor: float = 0.01  # smallest deviation that advantages are divided by

    def __post_init__(self) -> None:
        at_least_one, not_negative, share = (1, None), (0, None), (0, 1)
        check_bounds(self, trajectories=at_least_one, horizon=at_least_one, passes=at_least_one, minibatches=at_least_one)
        check_bounds(
            self,
            restart=share,
            start_noise=not_negative,
            gamma=(0, 0.99999),
            return_lambda=share,
            clip=(1e-6, 1),
            target_rate=share,
        )
        check_bounds(self, entropy=not_negative, learning_rate=not_negative, critic_learning_rate=not_negative)
        check_bounds(self, gradient_clip=(1e-9, None), uncertainty_penalty=not_negative, advantage_floor=(1e-9, None))
        if self.trajectories * self.horizon % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, which does not divide the {self.trajectories * self.horizon} imagined steps"
                " (trajectories x horizon)"
            )

    def init(self, spec: Spec, key: Array) -> DreamerState:
        if self.gradient == "model" and spec.discrete:
            raise ValueError(
                'agent.gradient = "model" differentiates through the action and needs a continuous action space;'
                ' use "clipped" or "reinforce" for discrete actions'
            )
        distribution: ActionDistribution = Categorical(spec.action_size) if spec.discrete else TanhNormal(spec.action_size)
        actor_key, critic_key = jax.random.split(key)
        actor: PyTree = self.actor.init(spec.obs_size, distribution.parameters, actor_key)
        critic: PyTree = self.critic.init(spec.obs_size, self.value.parameters, critic_key)
        slow = jax.tree.map(jnp.array, critic)  # own buffers: the phases donate the state
        actor_optimizer, critic_optimizer = self._optimizers()
        return DreamerState(
            actor,
            critic,
            slow,
            actor_optimizer.init(actor),
            critic_optimizer.init(critic),
            jnp.zeros((self.trajectories, spec.obs_size)),
            jnp.zeros(self.trajectories),
            distribution,
        )

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        def adam(rate: float) -> optax.GradientTransformation:
            return optax.chain(optax.clip_by_global_norm(self.gradient_clip), optax.adam(rate))

        return adam(self.learning_rate), adam(self.critic_learning_rate)

    def start(self, state: DreamerState) -> PyTree:
        return self.actor.start(state.actor)

    def act(self, state: DreamerState, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision:
        network_key, action_key = jax.random.split(key)
        out = self.actor(state.actor, obs, carry, network_key)
        if greedy:
            return Decision(state.distribution.mode(out.value), out.carry, jnp.zeros(()), out.spikes)
        action = state.distribution.sample(out.value, action_key)
        return Decision(action, out.carry, state.distribution.log_prob(out.value, action), out.spikes)

    def update(self, state: DreamerState, world: World, experience: Experience, key: Array) -> tuple[DreamerState, Metrics]:
        start_key, dream_key, learn_key = jax.random.split(key, 3)
        obs = self._starts(state, experience, start_key)
        if self.gradient == "model":
            gradient, (imagined, lessons) = jax.grad(self._imagined_loss, has_aux=True)(
                state.actor, state, world, obs, experience, dream_key
            )
            state = self._step_actor(state, gradient)
        else:
            _, (imagined, lessons) = self._imagined_loss(state.actor, state, world, obs, experience, dream_key)
        state, (actor_loss, critic_loss, entropy, critic_rate) = self._learn(state, lessons, learn_key)
        alive = lessons.weight
        last = imagined.prediction
        state = eqx.tree_at(
            lambda s: (s.pool, s.pool_alive),
            state,
            (experience.normalizer.raw_obs(last.obs[-1]), alive[-1] * (1 - last.terminated[-1])),
        )
        metrics = {
            "imagined_steps": jnp.asarray(self.trajectories * self.horizon, jnp.int32),
            "dream_return": (imagined.prediction.reward * alive).sum(0).mean(),
            "dream_survival": alive[-1].mean(),
            "dream_uncertainty": imagined.prediction.uncertainty.mean(),
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": entropy,
            "firing_rate/actor": firing_rate(imagined.decision.spikes),
            "firing_rate/critic": critic_rate,
            "firing_rate/world_model": firing_rate(imagined.prediction.spikes),
        }
        return state, metrics

    # ---- dreaming

    def _starts(self, state: DreamerState, experience: Experience, key: Array) -> Array:
        """A dream goes on where the last one stopped, if that one was still alive, or starts at a replayed state: (trajectories,
        obs_size). So dreams reach states that a few real episodes never visited, without a long horizon."""
        replay_key, noise_key, alive_key = jax.random.split(key, 3)
        fresh = experience.sample(replay_key, (self.trajectories,)).obs
        fresh = fresh + self.start_noise * jax.random.normal(noise_key, fresh.shape)
        go_on = jax.random.uniform(alive_key, (self.trajectories,)) < state.pool_alive * (1 - self.restart)
        return jnp.where(go_on[:, None], experience.normalizer.obs(state.pool), fresh)

    def _imagined_loss(
        self, actor: PyTree, state: DreamerState, world: World, obs: Array, experience: Experience, key: Array
    ) -> tuple[Array, tuple[Dream, Lesson]]:
        """Minus the mean lambda-return of dreams from `obs` (trajectories, obs_size), with the dreams and their lessons, leaves
        (horizon, trajectories, ...). Its gradient by `actor` flows through the model (stochastic value gradients)."""
        state = eqx.tree_at(lambda s: s.actor, state, actor)
        resting = self.start(state)
        carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.trajectories, *x.shape)), resting)
        policy = partial(self.act, state, world, greedy=False)
        imagined = dream(world, lambda c, o, k: policy(c, o, k), carry, obs, self.horizon, key)

        value = self._values(state.target, imagined.prediction.obs, imagined.key)
        low, high = jnp.minimum(experience.normalizer.reward_low, 0), jnp.maximum(experience.normalizer.reward_high, 0)
        prediction = imagined.prediction
        penalty = self.uncertainty_penalty * prediction.uncertainty
        reward = (1 - self.gamma) * (jnp.clip(prediction.reward, low, high) - penalty)
        discount = self.gamma * (1 - prediction.terminated)
        returns = jax.vmap(partial(lambda_returns, lambda_=self.return_lambda), in_axes=1, out_axes=1)(
            reward, discount, jnp.clip(value, low, high)
        )
        weight = jax.lax.stop_gradient(jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated))
        lessons = jax.lax.stop_gradient(
            Lesson(
                imagined.obs,
                imagined.carry,
                imagined.key,
                imagined.decision.action,
                imagined.decision.log_prob,
                self._advantage(returns - self._values(state.critic, imagined.obs, imagined.key), weight),
                returns,
                weight,
            )
        )
        entropy_bonus = self.entropy * (imagined.decision.log_prob * weight).mean()
        return entropy_bonus - (returns * weight).mean(), (imagined, lessons)

    def _values(self, critic: PyTree, obs: Array, key: Array) -> Array:
        """(horizon, trajectories, obs_size) -> (horizon, trajectories)."""

        def value(obs: Array, key: Array) -> Array:
            return self.value.mean(self.critic(critic, obs, self.critic.start(critic), key).value)

        return jax.vmap(jax.vmap(value))(obs, key)

    def _advantage(self, raw: Array, weight: Array) -> Array:
        """Weighted to zero mean and unit deviation; `advantage_floor` keeps noise from being blown up once all is well."""
        total = weight.sum()
        mean = (raw * weight).sum() / total
        deviation = jnp.sqrt((jnp.square(raw - mean) * weight).sum() / total)
        return (raw - mean) / jnp.maximum(deviation, self.advantage_floor)

    # ---- learning

    def _learn(self, state: DreamerState, lessons: Lesson, key: Array):
        """Several passes of shuffled mini-batches over the lessons; returns the losses of the last."""
        samples = self.horizon * self.trajectories
        flat = jax.tree.map(lambda x: x.reshape(samples, *x.shape[2:]), lessons)
        passes = self.passes if self.gradient == "clipped" else 1

        def one_pass(state: DreamerState, key: Array):
            order = jax.random.permutation(key, samples).reshape(self.minibatches, -1)
            return jax.lax.scan(lambda s, rows: self._learn_batch(s, jax.tree.map(lambda x: x[rows], flat)), state, order)

        state, losses = jax.lax.scan(one_pass, state, jax.random.split(key, passes))
        return state, jax.tree.map(lambda x: x[-1, -1], losses)

    def _learn_batch(self, state: DreamerState, batch: Lesson):
        (critic_loss, critic_rate), critic_gradient = jax.value_and_grad(self._critic_loss, has_aux=True)(state.critic, batch)
        (actor_loss, entropy), actor_gradient = jax.value_and_grad(self._actor_loss, has_aux=True)(
            state.actor, state.distribution, batch
        )
        if self.gradient != "model":
            state = self._step_actor(state, actor_gradient)
        changes, optimizer = self._optimizers()[1].update(critic_gradient, state.critic_optimizer, state.critic)
        critic = optax.apply_updates(state.critic, changes)
        slow = optax.incremental_update(critic, state.target, self.target_rate)
        state = eqx.tree_at(lambda s: (s.critic, s.target, s.critic_optimizer), state, (critic, slow, optimizer))
        return state, (actor_loss, critic_loss, entropy, critic_rate)

    def _step_actor(self, state: DreamerState, gradient: PyTree) -> DreamerState:
        changes, optimizer = self._optimizers()[0].update(gradient, state.actor_optimizer, state.actor)
        actor = optax.apply_updates(state.actor, changes)
        return eqx.tree_at(lambda s: (s.actor, s.actor_optimizer), state, (actor, optimizer))

    def _actor_loss(self, actor: PyTree, distribution: ActionDistribution, batch: Lesson) -> tuple[Array, Array]:
        """REINFORCE with the advantage as given, or PPO's clipped surrogate (Schulman et al. 2017, eq. 7)."""
        out = jax.vmap(lambda obs, carry, key: self.actor(actor, obs, carry, jax.random.split(key)[0]).value)(
            batch.obs, batch.carry, batch.key
        )
        log_prob = jax.vmap(distribution.log_prob)(out, batch.action)
        entropy = jax.vmap(distribution.entropy)(out)
        if self.gradient == "clipped":
            # A ratio beyond e^10 is clipped by the surrogate anyway, but its exponential could overflow.
            ratio = jnp.exp(jnp.clip(log_prob - batch.log_prob, -10, 10))
            clipped = jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
            gain = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
        else:
            gain = log_prob * batch.advantage
        total = batch.weight.sum() + 1e-6
        entropy = (entropy * batch.weight).sum() / total
        return -(gain * batch.weight).sum() / total - self.entropy * entropy, entropy

    def _critic_loss(self, critic: PyTree, batch: Lesson) -> tuple[Array, Array]:
        out = jax.vmap(lambda obs, key: self.critic(critic, obs, self.critic.start(critic), key))(batch.obs, batch.key)
        losses = jax.vmap(self.value.loss)(out.value, batch.target)
        return (losses * batch.weight).sum() / (batch.weight.sum() + 1e-6), firing_rate(out.spikes)
