"""On-policy learning from real steps, and from imagined ones as far as the world model has earned trust.

Proximal policy optimisation (Schulman et al. 2017). With `imagination`, each update also learns from rollouts that the world model
imagines onward of the newest real states: the more of them, and with the more weight, the better the model predicts transitions
that it was not fitted to, and each only as far as the ensemble agrees. Spiking or conventional by `actor` and `critic`.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.actor_critic import Lesson, activity_above, apply_gradient, networks_of, optimizers_of
from spikedream.bounds import check_bounds
from spikedream.nodes import Node, described
from spikedream.ops.distributions import ActionDistribution, TwoHot, ValueDistribution, action_distribution
from spikedream.ops.dream import Dream, dream
from spikedream.ops.imagination import Imagination
from spikedream.ops.policy_gradient import approximate_kl, clipped_gain, standardise
from spikedream.ops.returns import survival, vtrace
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.readouts import PopulationReadout, RateReadout
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree, firing_rate
from spikedream.world import World


class PPOState(eqx.Module):
    actor: PyTree
    critic: PyTree
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    distribution: ActionDistribution = eqx.field(static=True)


class Steps(NamedTuple):
    """One trajectory; leaves (steps, ...)."""

    obs: Array
    following: Array
    action: Array
    log_prob: Array  # under the policy as it is before learning
    reward: Array  # normalised
    terminated: Array  # probability
    goes_on: Array  # 1 where the next entry is the step after this one; elsewhere the value of `following` stands for the rest
    weight: Array  # how much the step counts
    key: Array  # that the actor decided with


class PPOPolicy(eqx.Module):
    """What acting needs."""

    actor: PyTree
    distribution: ActionDistribution = eqx.field(static=True)


class Losses(NamedTuple):
    """Of one mini-batch, () each."""

    actor: Array
    critic: Array
    entropy: Array
    kl: Array
    clipped: Array  # share of the samples whose probability ratio is outside the clipping range


class Passing(NamedTuple):
    """Where the passes over an update's samples stand."""

    state: PPOState
    losses: Losses  # of the last mini-batch looked at
    steps: Array  # () int32, gradient steps made
    stopped: Array  # () bool, the policy has moved far enough


@dataclass(frozen=True)
class PPO:
    """Hyper-parameters. An update takes the newest `rollout` real steps, all of them from the policy that it improves: a turn must
    collect as many, none of them random, and make one update. Rewards are scaled by 1 - gamma, so that values are
    averages of rewards to come and lie in [-1, 1]."""

    actor: AnyNetwork = SpikingNetwork(ticks=5, readout=PopulationReadout())
    critic: AnyNetwork = SpikingNetwork(ticks=5, readout=RateReadout(gain=0.1))
    value: ValueDistribution = TwoHot()
    imagination: Imagination | None = None  # None: learns from real steps alone, without a world model
    rollout: int = 256  # real steps in an update
    passes: int = 10  # over the samples of an update
    batch: int = 64  # samples in a gradient step
    gamma: float = 0.99
    return_lambda: float = 0.95
    clip: float = 0.2  # of the probability ratio
    value_clip: float = 0.2  # a value moves no further in one update
    target_kl: float = 0.03  # learning stops for this update once the policy has moved so far
    entropy: float = 3e-3
    learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    gradient_clip: float = 1.0  # global norm
    advantage_floor: float = 0.01  # smallest deviation that advantages are divided by
    activity_penalty: float = 0.0  # on the actor's firing rate above `activity_target`, beside standardised advantages
    activity_target: float = 0.0

    def __post_init__(self) -> None:
        at_least_one, not_negative, share = (1, None), (0, None), (0, 1)
        check_bounds(self, rollout=at_least_one, passes=at_least_one, batch=at_least_one, return_lambda=share)
        check_bounds(self, gamma=(0, 0.99999), clip=(1e-6, 1), value_clip=(1e-6, None), target_kl=not_negative)
        check_bounds(self, activity_penalty=not_negative, activity_target=share)
        check_bounds(self, entropy=not_negative, learning_rate=not_negative, critic_learning_rate=not_negative)
        check_bounds(self, gradient_clip=(1e-9, None), advantage_floor=(1e-9, None))

    @property
    def uses_world(self) -> bool:
        return self.imagination is not None

    acts_in_world = False
    online = False
    selects = False

    @property
    def on_policy_steps(self) -> int:
        return self.rollout

    def init(self, spec: Spec, world: World, key: Array) -> PPOState:
        """Raises ValueError where something would have to be remembered from one step of an episode to the next."""
        if world.model.recurrent:
            raise ValueError(
                f"PPO keeps no memory of an episode, which {type(world.model).__name__} needs; agents that keep one are Dreamer and"
                " MPC"
            )
        distribution = action_distribution(spec)
        actor, critic = self._networks.init(spec.obs_size, distribution, key)
        if jax.tree.leaves((self.actor.start(actor), self.critic.start(critic))):
            raise ValueError(
                "PPO keeps no memory of an episode, which a persistent network needs; set persistent to false, or use Dreamer"
            )
        actor_optimizer, critic_optimizer = self._optimizers
        return PPOState(actor, critic, actor_optimizer.init(actor), critic_optimizer.init(critic), distribution)

    _networks, _optimizers = property(networks_of), property(optimizers_of)

    # ---- acting

    def policy_of(self, state: PPOState) -> PPOPolicy:
        return PPOPolicy(state.actor, state.distribution)

    def start(self, policy: PPOPolicy, world: World) -> PyTree:
        return ()

    def act(self, policy: PPOPolicy, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision:
        return self.decide(policy, obs, key, greedy)

    def intended(self, policy: PPOPolicy, world: World, carry: PyTree, obs: Array, key: Array) -> None:
        return None

    def describe(self, policy: PPOPolicy) -> tuple[Node, ...]:
        return *described(self.actor, policy.actor), described(policy.distribution)

    def decide(self, policy: PPOPolicy | PPOState, obs: Array, key: Array, greedy: bool) -> Decision:
        return self._networks.decide(policy.actor, policy.distribution, (), obs, key, greedy)

    def value_of(self, critic: PyTree, obs: Array, key: Array) -> Array:
        """() value of one state, an average of normalised rewards to come."""
        return self._networks.value_of(critic, obs, key)

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: PPOState) -> None:
        return None

    def errors(self, state: PPOState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        return self._networks.errors(state.critic, self.gamma, world, experience, index, key)

    # ---- one update

    def update(self, state: PPOState, world: World, experience: Experience, key: Array) -> tuple[PPOState, Metrics]:
        real_key, *round_keys = jax.random.split(key, 1 + (self.imagination.rounds if self.imagination else 1))
        steps, metrics = self._real_steps(state, world, experience, real_key)
        real = self._lesson(state, world, steps)

        def one_round(state: PPOState, now: tuple[Array, Array]) -> tuple[PPOState, Metrics]:
            index, key = now
            dream_key, learn_key = jax.random.split(key)
            # After the first round the real steps are another policy's.
            lessons, counts = real._replace(weight=jnp.where(index == 0, real.weight, 0.0)), {}
            if self.imagination is not None:
                imagined, counts = self._imagined(self.imagination, state, world, experience, dream_key)
                lessons = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), lessons, imagined)
            state, learned = self._learn(state, lessons, learn_key)
            return state, learned | counts

        state, rounds = jax.lax.scan(one_round, state, (jnp.arange(len(round_keys)), jnp.stack(round_keys)))
        # Counts are of all rounds; the rest is of the first, which has the real steps.
        metrics |= {name: x.sum(0) if x.dtype == jnp.int32 else x[0] for name, x in rounds.items()}
        if self.imagination is not None:
            imagined = metrics.pop("imagined_samples")
            metrics["imagined_share"] = imagined / jnp.maximum(imagined + (real.weight > 0).sum(), 1)
        return state, {"imagined_steps": jnp.zeros((), jnp.int32)} | metrics

    def _real_steps(self, state: PPOState, world: World, experience: Experience, key: Array) -> tuple[Steps, Metrics]:
        """The newest steps, those of one environment after those of another; leaves (rollout, ...).

        Their log-probabilities are computed anew: the normaliser has been measured since the steps were taken, so that the same
        parameters are by now a slightly different policy, and probability ratios must start at one.
        """
        start_key, decide_key, bonus_key = jax.random.split(key, 3)
        length = self.rollout // experience.environments
        sequences = jax.vmap(lambda end: experience.sequence(end, length))(experience.newest())
        follows = (1 - sequences.first) * sequences.valid  # 1 where a step comes after the one before it
        goes_on = jnp.concatenate([follows[:, 1:], jnp.zeros((experience.environments, 1))], axis=1).reshape(-1)
        real, valid = jax.tree.map(lambda x: x.reshape(self.rollout, *x.shape[2:]), (sequences.steps, sequences.valid))
        keys = jax.random.split(decide_key, self.rollout)
        out = jax.vmap(lambda obs, key: self._networks.reconsider(state.actor, obs, (), key))(real.obs, keys)
        critic = jax.vmap(partial(self._networks.criticise, state.critic))(real.obs, keys)
        log_prob = jax.vmap(state.distribution.log_prob)(out.value, real.action)
        memory = jax.vmap(world.start)(real.obs, jax.random.split(start_key, self.rollout))
        bonus = jax.vmap(world.intrinsic)(memory, real, jax.random.split(bonus_key, self.rollout))
        steps = Steps(real.obs, real.next_obs, real.action, log_prob, real.reward + bonus, real.terminated, goes_on, valid, keys)
        raw = real.reward * experience.normalizer.reward_scale * valid
        return steps, {
            "real_reward": raw.sum() / jnp.maximum(valid.sum(), 1),
            "firing_rate/actor": firing_rate(out.spikes),
            "firing_rate/critic": firing_rate(critic.spikes),
        }

    def _lesson(self, state: PPOState, world: World, steps: Steps) -> Lesson:
        """Generalised advantage estimation (Schulman et al. 2016, eq. 16) along one trajectory, leaves (steps, ...)."""

        def value_of(obs: Array, key: Array) -> Array:
            return self.value.mean(self._networks.criticise(state.critic, obs, key).value)

        value, after = (jax.vmap(value_of)(obs, steps.key) for obs in (steps.obs, steps.following))
        low, high = world.normalizer.reward_range()
        after = jnp.clip(after, low, high + world.largest_bonus)
        reward, discount = (1 - self.gamma) * steps.reward, self.gamma * (1 - steps.terminated)
        # With a probability ratio of one, V-trace's targets are the lambda-returns.
        target = vtrace(reward, discount, value, after, jnp.ones(reward.shape), steps.goes_on, self.return_lambda)
        return Lesson(
            obs=steps.obs,
            carry=(),
            key=steps.key,
            action=steps.action,
            log_prob=steps.log_prob,
            value=value,
            target=target,
            advantage=target - value,
            weight=steps.weight,
        )

    # ---- imagining

    def _imagined(
        self, how: Imagination, state: PPOState, world: World, experience: Experience, key: Array
    ) -> tuple[Lesson, Metrics]:
        """Lessons of as many rollouts as the model's confidence allows, leaves (most x horizon, ...); the rest has weight 0."""
        confidence = world.model.confidence(world.state)
        needed = how.chunks_needed(confidence, experience.count)
        imagine = partial(self._imagine_chunk, how, state, world, experience, how.discount * confidence)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(imagine, key))

        def chunk(_: None, now: tuple[Array, Array]) -> tuple[None, tuple[Lesson, Array]]:
            index, key = now
            return None, jax.lax.cond(index < needed, imagine, lambda key: nothing, key)

        lessons, rates = jax.lax.scan(chunk, None, (jnp.arange(how.chunks), jax.random.split(key, how.chunks)))[1]
        lessons = jax.tree.map(lambda x: x.reshape(how.most * how.horizon, *x.shape[3:]), lessons)
        rollouts, counted = needed * how.chunk, (lessons.weight > 0).sum().astype(jnp.int32)
        return lessons, {
            "imagined_steps": rollouts * how.horizon,
            "imagined_samples": counted,
            "rollouts": rollouts,
            "rollout_length": counted / jnp.maximum(rollouts, 1),
            "confidence": confidence,
            "firing_rate/world_model": rates.sum() / jnp.maximum(needed, 1),
        }

    def _imagine_chunk(
        self, how: Imagination, state: PPOState, world: World, experience: Experience, weight: Array, key: Array
    ) -> tuple[Lesson, Array]:
        """`chunk` rollouts from recent real states, leaves (chunk, horizon, ...), and the world model's firing rate."""
        age_key, start_key, dream_key = jax.random.split(key, 3)
        age = jax.random.randint(age_key, (how.chunk,), 0, jnp.clip(experience.size, 1, how.recent))
        obs = experience.gather((experience.count - 1 - age) % experience.capacity).obs
        memory = jax.vmap(world.start)(obs, jax.random.split(start_key, how.chunk))

        def policy(carry: PyTree, obs: Array, key: Array) -> Decision:
            return self.decide(state, obs, key, greedy=False)

        imagined, _ = dream(world, policy, (), memory, how.horizon, dream_key)
        rate = firing_rate(imagined.prediction.spikes)
        # Spikes are means over the rollouts already; all else has one entry for each.
        imagined = imagined._replace(
            decision=imagined.decision._replace(spikes=()), prediction=imagined.prediction._replace(spikes=())
        )
        steps = jax.vmap(partial(self._imagined_steps, how, world, weight), in_axes=1)(imagined)
        return jax.vmap(partial(self._lesson, state, world))(steps), rate

    def _imagined_steps(self, how: Imagination, world: World, weight: Array, imagined: Dream) -> Steps:
        """One rollout, leaves (horizon, ...), with what each of its steps counts."""
        prediction, decision = imagined.prediction, imagined.decision
        alive, trusted = survival(prediction.terminated), how.trusted(prediction.uncertainty)
        # A step that is hardly ever reached is not worth a place in a mini-batch.
        counts = weight * trusted * alive * (alive > 0.01)
        # Where trust ends, the value of the last trusted step's successor stands for the rest.
        goes_on = jnp.concatenate([trusted[1:], jnp.zeros(1)])
        reward = jnp.clip(prediction.reward, *world.normalizer.reward_range()) + prediction.bonus
        return Steps(
            imagined.obs,
            imagined.following,
            decision.action,
            decision.log_prob,
            reward,
            prediction.terminated,
            goes_on,
            counts,
            imagined.key,
        )

    # ---- learning

    def _learn(self, state: PPOState, lessons: Lesson, key: Array) -> tuple[PPOState, Metrics]:
        """Passes of shuffled mini-batches over the samples that have a weight, until the policy has moved by `target_kl`."""
        weight = lessons.weight
        lessons = lessons._replace(advantage=standardise(lessons.advantage, weight, self.advantage_floor))
        samples, used = weight.size, weight > 0
        batches = -(-samples // self.batch)
        needed = (used.sum() + self.batch - 1) // self.batch

        def one_pass(passing: Passing, key: Array) -> tuple[Passing, None]:
            # Samples without weight go last, and mini-batches of them alone are skipped. Where the last mini-batch is too short, it
            # is filled up with samples of any kind, which then do not count.
            order = jnp.argsort(jnp.where(used, jax.random.uniform(key, (samples,)), 2.0))
            order = jnp.concatenate([order, jnp.full(batches * self.batch - samples, samples)]).reshape(batches, self.batch)

            def one_batch(passing: Passing, now: tuple[Array, Array]) -> tuple[Passing, None]:
                index, rows = now
                skip = passing.stopped | (index >= needed)
                return jax.lax.cond(skip, lambda s, r: s, partial(self._learn_batch, lessons), passing, rows), None

            return jax.lax.scan(one_batch, passing, (jnp.arange(batches), order))

        zero = jnp.zeros(())
        passing = Passing(state, Losses(zero, zero, zero, zero, zero), jnp.zeros((), jnp.int32), jnp.asarray(False))
        passing, _ = jax.lax.scan(one_pass, passing, jax.random.split(key, self.passes))
        losses = passing.losses
        return passing.state, {
            "actor_loss": losses.actor,
            "critic_loss": losses.critic,
            "entropy": losses.entropy,
            "approximate_kl": losses.kl,
            "clip_fraction": losses.clipped,
            "gradient_steps": passing.steps,
        }

    def _learn_batch(self, lessons: Lesson, passing: Passing, rows: Array) -> Passing:
        """One gradient step on the samples `rows`, (batch,); one beyond the last does not count. Nothing changes, now or later in
        this update, once the policy has moved too far."""
        state = passing.state
        batch = jax.tree.map(lambda x: x[jnp.minimum(rows, lessons.value.size - 1)], lessons)
        weight = batch.weight * (rows < lessons.value.size)
        weight = weight / jnp.maximum(weight.sum(), 1e-6)
        critic_loss, critic_gradient = jax.value_and_grad(self._critic_loss)(state.critic, batch, weight)
        (actor_loss, (entropy, kl, clipped)), actor_gradient = jax.value_and_grad(self._actor_loss, has_aux=True)(
            state.actor, state.distribution, batch, weight
        )
        actor_optimizer, critic_optimizer = self._optimizers
        actor, actor_moments = apply_gradient(actor_optimizer, actor_gradient, state.actor_optimizer, state.actor)
        critic, critic_moments = apply_gradient(critic_optimizer, critic_gradient, state.critic_optimizer, state.critic)
        after, stop = PPOState(actor, critic, actor_moments, critic_moments, state.distribution), kl > self.target_kl
        kept = jax.tree.map(lambda new, old: jnp.where(stop, old, new), after, state)
        return Passing(kept, Losses(actor_loss, critic_loss, entropy, kl, clipped), passing.steps + ~stop, stop)

    def _actor_loss(self, actor: PyTree, distribution: ActionDistribution, batch: Lesson, weight: Array):
        """The clipped surrogate less the entropy bonus; with entropy, divergence and share of clipped samples."""
        ratio, _, entropy, rate = self._networks.ratio(actor, distribution, batch)
        entropy = (entropy * weight).sum()
        gain = (clipped_gain(ratio, batch.advantage, self.clip) * weight).sum()
        kl = (approximate_kl(ratio) * weight).sum()
        clipped = ((jnp.abs(ratio - 1) > self.clip) * weight).sum()
        loss = -gain - self.entropy * entropy
        if self.activity_penalty:
            loss += self.activity_penalty * activity_above(self.activity_target, (rate * weight).sum())
        return loss, (entropy, kl, clipped)

    def _critic_loss(self, critic: PyTree, batch: Lesson, weight: Array) -> Array:
        """The value's loss, without gradient where the value has already moved by more than `value_clip` towards its target: there
        the larger of the losses of the value and of the clipped value (OpenAI baselines' ppo2) is the clipped one's, a constant."""
        logits = jax.vmap(lambda obs, key: self._networks.criticise(critic, obs, key).value)(batch.obs, batch.key)
        value, loss = jax.vmap(self.value.mean)(logits), jax.vmap(self.value.loss)(logits, batch.target)
        held = batch.value + jnp.clip(value - batch.value, -self.value_clip, self.value_clip)
        # Within its bounds a value is its held one up to rounding, which must not decide.
        beyond = jnp.abs(value - batch.value) > self.value_clip
        moved = beyond & (jnp.abs(held - batch.target) > jnp.abs(value - batch.target))
        return (jnp.where(moved, jax.lax.stop_gradient(loss), loss) * weight).sum()
