"""An actor-critic that learns only from dreams (Hafner et al. 2020, 2023; here on the normalised state itself).

Spiking or conventional by the fields `actor` and `critic`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.ops.distributions import ActionDistribution, TwoHot, ValueDistribution, action_distribution
from spikedream.ops.dream import Dream, Ends, dream
from spikedream.ops.fitting import adam
from spikedream.ops.policy_gradient import clipped_gain, probability_ratio, standardise
from spikedream.ops.returns import lambda_returns, survival, vtrace
from spikedream.ops.schedule import ImaginedShare
from spikedream.snn.codings import MembraneReadout, PopulationReadout
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.types import Belief, Decision, Experience, Metrics, PyTree, Spec, World, check_bounds, firing_rate


class Pool(NamedTuple):
    """Where the last dreams stopped; leaves (trajectories, ...)."""

    ends: Ends
    obs: Array  # (obs_size,) in the environment's units: the normaliser may change until the dream goes on
    alive: Array  # () probability that it was still going


class DreamerCarry(NamedTuple):
    belief: Belief
    actor: PyTree


class DreamerState(eqx.Module):
    actor: PyTree
    critic: PyTree
    target: PyTree  # slow copy of the critic, for the bootstrap values
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    pool: Pool
    distribution: ActionDistribution = eqx.field(static=True)
    spec: Spec = eqx.field(static=True)


class Lesson(NamedTuple):
    """What one imagined or real step teaches; leaves (samples, ...)."""

    obs: Array
    carry: PyTree
    key: Array  # that the actor's encoder, if random, drew from
    action: Array
    log_prob: Array  # under the policy before it learned from this
    advantage: Array
    target: Array  # lambda-return
    weight: Array  # probability that the dream was still alive, times the share of such data


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
    context: int = 16  # replayed steps that warm up a memory, where world model or actor have one, before it dreams on
    imagined_share: ImaginedShare = ImaginedShare()  # the rest is learned from replayed real steps
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
        check_bounds(
            self,
            trajectories=at_least_one,
            horizon=at_least_one,
            context=at_least_one,
            passes=at_least_one,
            minibatches=at_least_one,
        )
        check_bounds(
            self,
            context=at_least_one,
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
        if self.gradient == "model" and not self.imagined_share.always_one:
            raise ValueError(
                'imagined_share is below 1, but gradient = "model" learns from dreams alone; use "clipped" or "reinforce"'
            )

    @property
    def uses_world(self) -> bool:
        return True

    @property
    def on_policy_steps(self) -> None:
        return None

    def init(self, spec: Spec, world: World, key: Array) -> DreamerState:
        if self.gradient == "model" and spec.discrete:
            raise ValueError(
                'agent.gradient = "model" differentiates through the action and needs a continuous action space;'
                ' use "clipped" or "reinforce" for discrete actions'
            )
        distribution = action_distribution(spec)
        actor_key, critic_key = jax.random.split(key)
        features = world.model.feature_size(spec)
        actor: PyTree = self.actor.init(features, distribution.parameters, actor_key)
        critic: PyTree = self.critic.init(features, self.value.parameters, critic_key)
        slow = jax.tree.map(jnp.array, critic)  # own buffers: the phases donate the state
        actor_optimizer, critic_optimizer = self._optimizers()
        ends = Ends(world.blank(spec).memory, self.actor.start(actor))
        pool = jax.tree.map(
            lambda x: jnp.zeros((self.trajectories, *x.shape), x.dtype), Pool(ends, jnp.zeros(spec.obs_size), jnp.zeros(()))
        )
        return DreamerState(
            actor, critic, slow, actor_optimizer.init(actor), critic_optimizer.init(critic), pool, distribution, spec
        )

    def _optimizers(self) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
        return adam(self.learning_rate, self.gradient_clip), adam(self.critic_learning_rate, self.gradient_clip)

    def start(self, state: DreamerState, world: World) -> DreamerCarry:
        return DreamerCarry(world.blank(state.spec), self.actor.start(state.actor))

    def act(self, state: DreamerState, world: World, carry: DreamerCarry, obs: Array, key: Array, greedy: bool) -> Decision:
        memory = world.follow(carry.belief, obs, jax.random.fold_in(key, 1))
        decision = self.decide(state, carry.actor, world.feature(memory), key, greedy)
        return decision._replace(carry=DreamerCarry(Belief(memory, decision.action, jnp.ones(())), decision.carry))

    def decide(self, state: DreamerState, carry: PyTree, feature: Array, key: Array, greedy: bool) -> Decision:
        """The actor alone; `carry` is its own memory."""
        network_key, action_key = jax.random.split(key)
        out = self.actor(state.actor, feature, carry, network_key)
        if greedy:
            return Decision(state.distribution.mode(out.value), out.carry, jnp.zeros(()), out.spikes)
        action = state.distribution.sample(out.value, action_key)
        return Decision(action, out.carry, state.distribution.log_prob(out.value, action), out.spikes)

    def value_of(self, critic: PyTree, feature: Array, key: Array) -> Array:
        """() value of one state under `critic` (or `target`), an average of normalised rewards to come."""
        return self.value.mean(self.critic(critic, feature, self.critic.start(critic), key).value)

    def update(self, state: DreamerState, world: World, experience: Experience, key: Array) -> tuple[DreamerState, Metrics]:
        start_key, dream_key, learn_key = jax.random.split(key, 3)
        starts = self._starts(state, world, experience, start_key, dream_key)
        if self.gradient == "model":
            gradient, (imagined, ends, lessons) = jax.grad(self._imagined_loss, has_aux=True)(
                state.actor, state, world, starts, experience, dream_key
            )
            state = self._step_actor(state, gradient)
        else:
            _, (imagined, ends, lessons) = self._imagined_loss(state.actor, state, world, starts, experience, dream_key)
        alive, share = lessons.weight, self.imagined_share(experience.count)
        if not self.imagined_share.always_one:
            real = self._real_lessons(state, world, experience, jax.random.fold_in(key, 1))
            lessons = lessons._replace(weight=lessons.weight * share)
            real = real._replace(weight=real.weight * (1 - share))
            lessons = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), lessons, real)
        lessons = lessons._replace(advantage=standardise(lessons.advantage, lessons.weight, self.advantage_floor))
        state, (actor_loss, critic_loss, entropy, critic_rate) = self._learn(state, lessons, learn_key)
        last = imagined.prediction
        pool = Pool(ends, experience.normalizer.raw_obs(last.obs[-1]), alive[-1] * (1 - last.terminated[-1]))
        metrics = {
            "imagined_steps": jnp.asarray(self.trajectories * self.horizon, jnp.int32),
            "imagined_share": share,
            "dream_return": (imagined.prediction.reward * alive).sum(0).mean(),
            "dream_survival": alive[-1].mean(),
            "dream_uncertainty": imagined.prediction.uncertainty.mean(),
            "dream_noise": imagined.prediction.noise.mean(),
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "entropy": entropy,
            "firing_rate/actor": firing_rate(imagined.decision.spikes),
            "firing_rate/critic": critic_rate,
            "firing_rate/world_model": firing_rate(imagined.prediction.spikes),
        }
        if world.bonus is not None:
            metrics["dream_bonus"] = (imagined.prediction.bonus * alive).mean()
        return eqx.tree_at(lambda s: s.pool, state, pool), metrics

    def errors(self, state: DreamerState, world: World, experience: Experience, key: Array) -> Array:
        steps = experience.gather(jnp.arange(experience.capacity))
        features = (jax.vmap(lambda obs: world.feature(world.start(obs, key)))(obs) for obs in (steps.obs, steps.next_obs))
        before, after = (jax.vmap(lambda x: self.value_of(state.target, x, key))(x) for x in features)
        target = (1 - self.gamma) * steps.reward + self.gamma * (1 - steps.terminated) * after
        return jnp.square((target - before) / (1 - self.gamma))

    # ---- dreaming

    def _starts(self, state: DreamerState, world: World, experience: Experience, key: Array, dream_key: Array) -> Ends:
        """A dream goes on where the last one stopped, if that one was still alive, or starts at a replayed state; leaves
        (trajectories, ...). So dreams reach states that a few real episodes never visited, without a long horizon."""
        replay_key, noise_key, alive_key = jax.random.split(key, 3)
        pool, count = state.pool, self.trajectories
        go_on = jax.random.uniform(alive_key, (count,)) < pool.alive * (1 - self.restart)
        ends = experience.draw(replay_key, (count,))
        fresh_obs = experience.gather(ends).obs
        fresh_obs = fresh_obs + self.start_noise * jax.random.normal(noise_key, fresh_obs.shape)
        pool_obs = experience.normalizer.obs(pool.obs)
        start_keys = jax.random.split(jax.random.split(dream_key)[0], count)

        def choose(old: Array, new: Array) -> Array:
            return jnp.where(go_on.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

        fresh = Ends((), ())
        if world.model.recurrent or jax.tree.leaves(pool.ends.carry):
            sequences = jax.vmap(partial(experience.sequence, length=self.context))(ends)
            memory, carry = jax.vmap(partial(self._relive, state, world))(sequences, start_keys)
            fresh = jax.tree.map(lambda x: x[:, -1], Ends(memory, carry))
        carry = jax.tree.map(choose, pool.ends.carry, fresh.carry)
        if not world.model.recurrent:
            return Ends(jax.vmap(world.start)(choose(pool_obs, fresh_obs), start_keys), carry)
        # A remembered past suits only the observation that it led to, so no noise is added here.
        return Ends(jax.tree.map(choose, pool.ends.memory._replace(obs=pool_obs), fresh.memory), carry)

    def _relive(self, state: DreamerState, world: World, sequence: Any, key: Array) -> tuple[Any, PyTree]:
        """The world's and the actor's memory at each step of a real sequence, before its action; leaves (length, ...)."""
        memory = world.memories(sequence, key)
        resting = self.actor.start(state.actor)

        def step(carry: PyTree, now: tuple[Any, Array, Array]) -> tuple[PyTree, PyTree]:
            memory, first, key = now
            carry = jax.tree.map(lambda rest, old: jnp.where(first > 0, rest, old), resting, carry)
            return self.actor(state.actor, world.feature(memory), carry, key).carry, carry

        keys = jax.random.split(key, sequence.first.shape[0])
        return memory, jax.lax.scan(step, resting, (memory, sequence.first, keys))[1]

    def _real_lessons(self, state: DreamerState, world: World, experience: Experience, key: Array) -> Lesson:
        """What replayed real steps teach, corrected for the policies that took them; leaves (horizon, trajectories, ...)."""
        draw_key, key = jax.random.split(key)
        context = self.context if world.model.recurrent or jax.tree.leaves(state.pool.ends.carry) else 0
        ends = experience.draw(draw_key, (self.trajectories,))
        sequences = jax.vmap(partial(experience.sequence, length=context + self.horizon))(ends)

        def teach(sequence: Any, key: Array) -> Lesson:
            memory, carry = self._relive(state, world, sequence, key)
            steps, keys = sequence.steps, jax.random.split(key, sequence.first.shape[0])
            feature = jax.vmap(world.feature)(memory)
            out = jax.vmap(lambda x, c, k: self.actor(state.actor, x, c, jax.random.split(k)[0]).value)(feature, carry, keys)
            log_prob = jax.vmap(state.distribution.log_prob)(out, steps.action)
            after = jax.vmap(lambda m, a, o, k: world.feature(world.follow(Belief(m, a, jnp.ones(())), o, k)))(
                memory, steps.action, steps.next_obs, keys
            )
            value, following = (
                jax.vmap(partial(self.value_of, c))(x, keys) for c, x in ((state.critic, feature), (state.target, after))
            )
            reward = (1 - self.gamma) * (steps.reward + jax.vmap(world.intrinsic)(steps, keys))
            discount = self.gamma * (1 - steps.terminated)
            ratio = probability_ratio(log_prob, steps.log_prob)
            goes_on = jnp.concatenate([(1 - sequence.first) * sequence.valid, jnp.zeros(1)])[1:]
            target = vtrace(reward, discount, value, following, ratio, goes_on, self.return_lambda)
            later = jnp.where(goes_on > 0, jnp.concatenate([target[1:], target[-1:]]), following)
            advantage = reward + discount * later - value
            weight = sequence.valid * jnp.minimum(ratio, 1.0)
            return Lesson(feature, carry, keys, steps.action, log_prob, advantage, target, weight)

        lessons = jax.vmap(teach, out_axes=1)(sequences, jax.random.split(key, self.trajectories))
        return jax.lax.stop_gradient(jax.tree.map(lambda x: x[context:], lessons))

    def _imagined_loss(
        self, actor: PyTree, state: DreamerState, world: World, starts: Ends, experience: Experience, key: Array
    ) -> tuple[Array, tuple[Dream, Ends, Lesson]]:
        """Minus the mean lambda-return of dreams from `starts`, with the dreams, where they ended and their lessons, leaves
        (horizon, trajectories, ...). Its gradient by `actor` flows through the model (stochastic value gradients)."""
        state = eqx.tree_at(lambda s: s.actor, state, actor)
        policy = partial(self.decide, state, greedy=False)
        imagined, ends = dream(
            world, lambda c, o, k: policy(c, o, k), starts.carry, starts.memory, self.horizon, jax.random.split(key)[1]
        )
        value = self._values(state.target, imagined.following, imagined.key)
        low, high = jnp.minimum(experience.normalizer.reward_low, 0), jnp.maximum(experience.normalizer.reward_high, 0)
        prediction = imagined.prediction
        penalty = self.uncertainty_penalty * prediction.uncertainty
        reward = (1 - self.gamma) * (jnp.clip(prediction.reward, low, high) - penalty + prediction.bonus)
        discount = self.gamma * (1 - prediction.terminated)
        returns = jax.vmap(partial(lambda_returns, lambda_=self.return_lambda), in_axes=1, out_axes=1)(
            reward, discount, jnp.clip(value, low, high + world.largest_bonus / experience.normalizer.reward_scale)
        )
        weight = jax.lax.stop_gradient(jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated))
        decision = imagined.decision
        advantage = returns - self._values(state.critic, imagined.obs, imagined.key)
        lessons = Lesson(imagined.obs, imagined.carry, imagined.key, decision.action, decision.log_prob, advantage, returns, weight)
        entropy_bonus = self.entropy * (decision.log_prob * weight).mean()
        return entropy_bonus - (returns * weight).mean(), (imagined, ends, jax.lax.stop_gradient(lessons))

    def _values(self, critic: PyTree, feature: Array, key: Array) -> Array:
        """(horizon, trajectories, feature_size) -> (horizon, trajectories)."""
        return jax.vmap(jax.vmap(partial(self.value_of, critic)))(feature, key)

    # ---- learning

    def _learn(self, state: DreamerState, lessons: Lesson, key: Array):
        """Several passes of shuffled mini-batches over the lessons; returns the losses of the last."""
        samples = lessons.weight.size
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
            gain = clipped_gain(probability_ratio(log_prob, batch.log_prob), batch.advantage, self.clip)
        else:
            gain = log_prob * batch.advantage
        total = batch.weight.sum() + 1e-6
        entropy = (entropy * batch.weight).sum() / total
        return -(gain * batch.weight).sum() / total - self.entropy * entropy, entropy

    def _critic_loss(self, critic: PyTree, batch: Lesson) -> tuple[Array, Array]:
        out = jax.vmap(lambda obs, key: self.critic(critic, obs, self.critic.start(critic), key))(batch.obs, batch.key)
        losses = jax.vmap(self.value.loss)(out.value, batch.target)
        return (losses * batch.weight).sum() / (batch.weight.sum() + 1e-6), firing_rate(out.spikes)
