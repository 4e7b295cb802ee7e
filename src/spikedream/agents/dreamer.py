"""An actor-critic that learns only from dreams (Hafner et al. 2020, 2023; here on the normalised state itself).

Spiking or conventional by the fields `actor` and `critic`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents import acting, pool, stakes
from spikedream.agents.acting import ActorPolicy
from spikedream.agents.actor_critic import Lesson, activity_above, apply_gradient, networks_of, optimizers_of
from spikedream.agents.pool import Pool, known_error
from spikedream.agents.selection import PolicySelection
from spikedream.bounds import check_bounds
from spikedream.ops.distributions import ActionDistribution, TwoHot, ValueDistribution, action_distribution
from spikedream.ops.dream import Dream, Ends, dream
from spikedream.ops.policy_gradient import clipped_gain, deviation, probability_ratio, standardise
from spikedream.ops.returns import lambda_returns, survival, vtrace
from spikedream.ops.schedule import ImaginedShare
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.readouts import PopulationReadout, RateReadout
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree, Sequence, firing_rate
from spikedream.world import World


class DreamerState(eqx.Module):
    actor: PyTree
    critic: PyTree
    target: PyTree  # slow copy of the critic, for the bootstrap values
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    pool: Pool
    slow_actor: PyTree  # its running average, which acts; () where the actor itself does
    distribution: ActionDistribution = eqx.field(static=True)
    spec: Spec = eqx.field(static=True)
    selection: PyTree = ()  # of what acts greedily, where that is chosen
    stakes: PyTree = ()  # `Stakes`, where a change of them is heeded


@dataclass(frozen=True)
class Dreamer:
    """Hyper-parameters. Rewards are scaled by 1 - gamma, so that values are averages of rewards to come and lie in [-1, 1]."""

    actor: AnyNetwork = SpikingNetwork(ticks=5, readout=PopulationReadout())
    critic: AnyNetwork = SpikingNetwork(ticks=5, readout=RateReadout(gain=0.1))
    value: ValueDistribution = TwoHot()
    gradient: Literal["clipped", "reinforce", "model"] | None = "clipped"  # None: as suits the actions, see `settled`
    trajectories: int = 64
    horizon: int = 16
    restart: float = 0.1  # share of the dreams that begin at a replayed state even though their predecessor could go on
    context: int = 16  # replayed steps that warm up a memory, where world model or actor have one, before it dreams on
    imagined_share: ImaginedShare = ImaginedShare()  # the rest is learned from replayed real steps
    start_noise: float = 0.0  # standard deviation, in those of the observations, of what is added to a replayed start and its past
    gamma: float | None = 0.99  # None: as far ahead as the experience says, with replay.scale "spread"
    return_lambda: float = 0.95
    passes: int = 2  # over each dream ("clipped" only; the others take one)
    minibatches: int = 2
    clip: float = 0.2  # of the probability ratio
    entropy: float = 3e-3
    learning_rate: float = 2e-3
    critic_learning_rate: float = 2e-3
    gradient_clip: float = 1.0  # global norm
    target_rate: float = 0.05  # of the slow critic, per update
    actor_rate: float | None = None  # of a slow actor, per update, which acts in place of the one that learns in dreams
    selection: PolicySelection | None = None  # chooses what acts greedily; None: what acts otherwise
    # In root mean squared errors of the model: a dream counts up to the first step whose uncertainty exceeds it, and noise that is
    # more than half as uncertain is not added to a start. None: no limit.
    error_limit: float | None = None
    # Updates in which a new critic learns and the actor rests, once what rewards are worth has changed: where their scale has more
    # than doubled or halved, or the largest bonus by a whole normalised reward. 0: both go on from what they were.
    critic_first: int = 0
    uncertainty_penalty: float | None = 0.0  # reward lost per unit of the model's uncertainty; None: measured, see `pessimism`
    advantage_floor: float = 0.01  # smallest deviation that advantages, or returns, are divided by
    activity_penalty: float = 0.0  # on the actor's firing rate above `activity_target`, beside standardised advantages
    activity_target: float = 0.0

    def __post_init__(self) -> None:
        at_least_one, not_negative, share = (1, None), (0, None), (0, 1)
        check_bounds(self, trajectories=at_least_one, horizon=at_least_one, passes=at_least_one, minibatches=at_least_one)
        check_bounds(self, context=at_least_one, restart=share, start_noise=not_negative, return_lambda=share)
        check_bounds(self, clip=(1e-6, 1), target_rate=share, activity_penalty=not_negative, activity_target=share)
        check_bounds(self, entropy=not_negative, learning_rate=not_negative, critic_learning_rate=not_negative)
        check_bounds(self, gradient_clip=(1e-9, None), advantage_floor=(1e-9, None), critic_first=not_negative)
        optional = {"gamma": (0, 0.99999), "uncertainty_penalty": not_negative, "actor_rate": (1e-6, 1)}
        optional["error_limit"] = not_negative
        check_bounds(self, **{name: bounds for name, bounds in optional.items() if getattr(self, name) is not None})
        if self.trajectories * self.horizon % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, which does not divide the {self.trajectories * self.horizon} imagined steps"
                " (trajectories x horizon)"
            )
        if self.gradient == "model" and not self.imagined_share.always_one:
            raise ValueError(
                'imagined_share is below 1, but gradient = "model" learns from dreams alone; use "clipped" or "reinforce"'
            )

    uses_world = True
    acts_in_world = False
    on_policy_steps = None
    online = False

    def settled(self, spec: Spec) -> "Dreamer":
        """With the gradient that suits the actions, where none was asked for: through the model where they are continuous, since it
        tells of every action what a little more of it would be worth, which chance says only over many dreams."""
        if self.gradient is not None:
            return self
        through = not spec.discrete and self.imagined_share.always_one
        return replace(self, gradient="model" if through else "clipped")

    @property
    def selects(self) -> bool:
        return self.selection is not None

    @property
    def actor_steps(self) -> float:
        return {"reinforce": self.minibatches, "model": 1}.get(self.gradient or "", self.passes * self.minibatches)

    def init(self, spec: Spec, world: World, key: Array) -> DreamerState:
        if self.gradient is None:
            raise ValueError("agent.gradient is None; `settled` gives the one that suits the actions")
        if self.gradient == "model" and spec.discrete:
            raise ValueError(
                'agent.gradient = "model" differentiates through the action and needs a continuous action space;'
                ' use "clipped" or "reinforce" for discrete actions'
            )
        self.discount(world)  # where nothing measures it, that is told now
        distribution = action_distribution(spec)
        actor, critic = self._networks.init(world.model.feature_size(spec), distribution, key)
        slow = jax.tree.map(jnp.array, critic)  # own buffers: the phases donate the state
        slow_actor = () if self.actor_rate is None else jax.tree.map(jnp.array, actor)
        actor_optimizer, critic_optimizer = self._optimizers
        ends = Ends(world.blank(spec).memory, self.actor.start(actor))
        nowhere = Pool(ends, jnp.zeros(spec.obs_size), jnp.zeros(()))
        stopped = jax.tree.map(lambda x: jnp.zeros((self.trajectories, *x.shape), x.dtype), nowhere)
        moments = actor_optimizer.init(actor), critic_optimizer.init(critic)
        selection = () if self.selection is None else self.selection.init(actor)
        known = stakes.none_yet() if self.critic_first else ()
        return DreamerState(actor, critic, slow, *moments, stopped, slow_actor, distribution, spec, selection, known)

    _networks, _optimizers = property(networks_of), property(optimizers_of)

    # ---- acting

    def policy_of(self, state: DreamerState) -> ActorPolicy:
        actor = state.actor if self.actor_rate is None else state.slow_actor
        chosen = None if self.selection is None else self.selection.chosen(state.selection, actor)
        return ActorPolicy(actor, state.distribution, state.spec, chosen)

    def rest(self, policy: ActorPolicy) -> PyTree:
        return self.actor.start(policy.actor)

    start, act, intended, describe = acting.start, acting.act, acting.intended, acting.describe

    def decide(self, policy: ActorPolicy, carry: PyTree, feature: Array, key: Array, greedy: bool) -> Decision:
        """By the actor alone; `carry` is its own memory."""
        return self._networks.decide(policy.acting(greedy), policy.distribution, carry, feature, key, greedy)

    def value_of(self, critic: PyTree, feature: Array, key: Array) -> Array:
        """() value of one state under `critic` (or `target`), an average of normalised rewards to come."""
        return self._networks.value_of(critic, feature, key)

    def critic_of(self, state: DreamerState) -> PyTree:
        return state.target

    def discount(self, world: World) -> Array | float:
        """() gamma. Raises ValueError where it is to be measured and nothing does."""
        if self.gamma is not None:
            return self.gamma
        if world.normalizer.horizon is None:
            raise ValueError(
                'agent.gamma is None: how far ahead rewards count is measured on experience. Set replay.scale to "spread", which'
                " measures it, or agent.gamma to a number"
            )
        return 1 - 1 / world.normalizer.horizon

    def pessimism(self, world: World) -> Array | float:
        """() reward lost per unit of the model's uncertainty. Where it is measured: the root mean square of the model's error, on
        what was held out where anything is, and at least 1 where an ending costs, which may be anywhere that was never seen."""
        if self.uncertainty_penalty is not None:
            return self.uncertainty_penalty
        error, dread = known_error(world), world.normalizer.dread
        return error if dread is None else jnp.maximum(error, dread)

    # ---- one update

    def update(self, state: DreamerState, world: World, experience: Experience, key: Array) -> tuple[DreamerState, Metrics]:
        start_key, dream_key, learn_key, real_key = jax.random.split(key, 4)
        before = state = self._renewed(state, world, key)
        starts, importance = self._starts(state, world, experience, start_key)
        if self.gradient == "model":
            gradient, (imagined, ends, lessons) = jax.grad(self._imagined_loss, has_aux=True)(
                state.actor, state, world, starts, importance, dream_key
            )
            state = self._step_actor(state, gradient)
        else:
            _, (imagined, ends, lessons) = self._imagined_loss(state.actor, state, world, starts, importance, dream_key)
        alive = jax.vmap(survival, in_axes=1, out_axes=1)(imagined.prediction.terminated)
        share = self.imagined_share(experience.count)
        if not self.imagined_share.always_one:
            real = self._real_lessons(state, world, experience, real_key)
            lessons = lessons._replace(weight=lessons.weight * share)
            real = real._replace(weight=real.weight * (1 - share))
            lessons = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), lessons, real)
        lessons = lessons._replace(advantage=standardise(lessons.advantage, lessons.weight, self.advantage_floor))
        state, (actor_loss, critic_loss, entropy, critic_rate) = self._learn(state, lessons, learn_key)
        state = self._rested(before, state)
        if self.actor_rate is not None:
            slow = optax.incremental_update(state.actor, state.slow_actor, self.actor_rate)
            state = eqx.tree_at(lambda s: s.slow_actor, state, slow)
        if self.selection is not None:
            state = eqx.tree_at(lambda s: s.selection, state, self.selection.follow(state.selection, state.actor))
        last = imagined.prediction
        within = self._trusted(world, last.uncertainty)
        going = alive[-1] * (1 - last.terminated[-1]) * within.prod(0)
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
        if self.uncertainty_penalty is None:
            metrics["pessimism"] = jnp.asarray(self.pessimism(world))
        if world.bonus is not None:
            metrics["dream_bonus"] = (imagined.prediction.bonus * alive).mean()
        if self.critic_first:
            metrics["actor_rests"] = (before.stakes.rest > 0).astype(jnp.float32)
        if self.error_limit is not None:
            metrics["dream_limit"] = jnp.asarray(self._largest_uncertainty(world))
            metrics["dream_trusted"] = jnp.cumprod(within, axis=0).mean()
        stopped = Pool(ends, experience.normalizer.raw_obs(last.obs[-1]), going)
        return eqx.tree_at(lambda s: s.pool, state, stopped), metrics

    def select(self, state: DreamerState, world: World, experience: Experience, key: Array) -> tuple[DreamerState, Metrics]:
        """Choose what acts greedily from now on."""
        assert self.selection is not None
        standing = replace(self.policy_of(state), chosen=None), 1.0 if self.actor_rate is None else self.actor_rate
        selection, metrics = self.selection.select(state.selection, self, *standing, world, experience, key)
        return eqx.tree_at(lambda s: s.selection, state, selection), metrics

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: DreamerState) -> None:
        return None

    def errors(self, state: DreamerState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        return self._networks.errors(state.target, self.discount(world), world, experience, index, key)

    # ---- dreaming

    _renewed, _rested = stakes.renewed, stakes.rested
    _starts, _trusted, _largest_uncertainty = pool.starts, pool.trusted, pool.largest_uncertainty

    def _real_lessons(self, state: DreamerState, world: World, experience: Experience, key: Array) -> Lesson:
        """What replayed real steps teach, corrected for the policies that took them; leaves (horizon, trajectories, ...)."""
        draw_key, teach_key = jax.random.split(key)
        gamma = self.discount(world)
        context = self.context if world.model.recurrent or jax.tree.leaves(state.pool.ends.carry) else 0
        index = experience.draw(draw_key, (self.trajectories,))
        sequences = jax.vmap(partial(experience.sequence, length=context + self.horizon))(index)

        def teach(sequence: Sequence, importance: Array, key: Array) -> Lesson:
            relive_key, decide_key, observe_key, value_key, bonus_key = jax.random.split(key, 5)
            memory, carry = acting.relive(self, state.actor, world, sequence, relive_key)
            steps, length = sequence.steps, sequence.first.shape[0]
            keys = jax.random.split(decide_key, length)
            feature = jax.vmap(world.feature)(memory)
            out = jax.vmap(lambda x, c, k: self._networks.reconsider(state.actor, x, c, k).value)(feature, carry, keys)
            log_prob = jax.vmap(state.distribution.log_prob)(out, steps.action)
            after = jax.vmap(world.observe)(memory, steps, jax.random.split(observe_key, length))
            value_keys = jax.random.split(value_key, length)
            value = jax.vmap(partial(self.value_of, state.critic))(feature, value_keys)
            following = jax.vmap(partial(self.value_of, state.target))(jax.vmap(world.feature)(after), value_keys)
            bonus = jax.vmap(world.intrinsic)(memory, steps, jax.random.split(bonus_key, length))
            reward, discount = (1 - gamma) * (steps.reward + bonus), gamma * (1 - steps.terminated)
            ratio = probability_ratio(log_prob, steps.log_prob)
            goes_on = jnp.concatenate([(1 - sequence.first) * sequence.valid, jnp.zeros(1)])[1:]
            target = vtrace(reward, discount, value, following, ratio, goes_on, self.return_lambda)
            later = jnp.where(goes_on > 0, jnp.concatenate([target[1:], target[-1:]]), following)
            advantage = reward + discount * later - value
            weight = importance * sequence.valid * jnp.minimum(ratio, 1.0)
            return Lesson(feature, carry, keys, steps.action, log_prob, value, target, advantage, weight)

        keys = jax.random.split(teach_key, self.trajectories)
        lessons = jax.vmap(teach, out_axes=1)(sequences, experience.importance(index), keys)
        return jax.lax.stop_gradient(jax.tree.map(lambda x: x[context:], lessons))

    def _imagined_loss(
        self, actor: PyTree, state: DreamerState, world: World, starts: Ends, importance: Array, key: Array
    ) -> tuple[Array, tuple[Dream, Ends, Lesson]]:
        """Minus the mean lambda-return of dreams from `starts`, with the dreams, where they ended and their lessons, leaves
        (horizon, trajectories, ...). Its gradient by `actor` flows through the model (stochastic value gradients)."""
        dream_key, value_key = jax.random.split(key)
        policy = partial(self.decide, ActorPolicy(actor, state.distribution, state.spec), greedy=False)
        imagined, ends = dream(world, lambda c, o, k: policy(c, o, k), starts.carry, starts.memory, self.horizon, dream_key)
        value_keys = jax.random.split(value_key, (self.horizon, self.trajectories))
        following = self._values(state.target, imagined.following, value_keys)
        low, high = world.normalizer.reward_range()
        prediction = imagined.prediction
        penalty, gamma = self.pessimism(world) * prediction.uncertainty, self.discount(world)
        reward = (1 - gamma) * (jnp.clip(prediction.reward, low, high) - penalty + prediction.bonus)
        discount = gamma * (1 - prediction.terminated)
        within = None if self.error_limit is None else self._trusted(world, prediction.uncertainty)
        returns = jax.vmap(partial(lambda_returns, lambda_=self.return_lambda), in_axes=1, out_axes=1)(
            reward, discount, jnp.clip(following, low, high + world.largest_bonus), within
        )
        weight = jax.lax.stop_gradient(jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated))
        weight = weight * importance[None]
        if within is not None:
            weight = weight * within[:1] * jax.vmap(survival, in_axes=1, out_axes=1)(1 - within)
        decision, value = imagined.decision, self._values(state.critic, imagined.obs, value_keys)
        lessons = Lesson(
            obs=imagined.obs,
            carry=imagined.carry,
            key=imagined.key,
            action=decision.action,
            log_prob=decision.log_prob,
            value=value,
            target=returns,
            advantage=returns - value,
            weight=weight,
        )
        # In units of about their range, as in DreamerV3 (Hafner et al. 2023), so that the entropy drowns none that are small.
        span = 4 * jax.lax.stop_gradient(deviation(returns, weight, self.advantage_floor))
        entropy_bonus = self.entropy * (decision.log_prob * weight).mean()
        loss = entropy_bonus - (returns / span * weight).mean()
        if self.activity_penalty:
            loss += self.activity_penalty * activity_above(self.activity_target, firing_rate(decision.spikes))
        return loss, (imagined, ends, jax.lax.stop_gradient(lessons))

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
        critic, moments = apply_gradient(self._optimizers[1], critic_gradient, state.critic_optimizer, state.critic)
        slow = optax.incremental_update(critic, state.target, self.target_rate)
        state = eqx.tree_at(lambda s: (s.critic, s.target, s.critic_optimizer), state, (critic, slow, moments))
        return state, (actor_loss, critic_loss, entropy, critic_rate)

    def _step_actor(self, state: DreamerState, gradient: PyTree) -> DreamerState:
        actor, moments = apply_gradient(self._optimizers[0], gradient, state.actor_optimizer, state.actor)
        return eqx.tree_at(lambda s: (s.actor, s.actor_optimizer), state, (actor, moments))

    def _actor_loss(self, actor: PyTree, distribution: ActionDistribution, batch: Lesson) -> tuple[Array, Array]:
        """REINFORCE with the advantage as given, or PPO's clipped surrogate (Schulman et al. 2017, eq. 7)."""
        ratio, log_prob, entropy, rate = self._networks.ratio(actor, distribution, batch)
        clipped = self.gradient == "clipped"
        gain = clipped_gain(ratio, batch.advantage, self.clip) if clipped else log_prob * batch.advantage
        total = batch.weight.sum() + 1e-6
        entropy = (entropy * batch.weight).sum() / total
        loss = -(gain * batch.weight).sum() / total - self.entropy * entropy
        if self.activity_penalty:
            loss += self.activity_penalty * activity_above(self.activity_target, (rate * batch.weight).sum() / total)
        return loss, entropy

    def _critic_loss(self, critic: PyTree, batch: Lesson) -> tuple[Array, Array]:
        out = jax.vmap(partial(self._networks.criticise, critic))(batch.obs, batch.key)
        losses = jax.vmap(self.value.loss)(out.value, batch.target)
        return (losses * batch.weight).sum() / (batch.weight.sum() + 1e-6), firing_rate(out.spikes)
