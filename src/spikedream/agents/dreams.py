"""Dreams of an off-policy agent: short rollouts from replayed states (after Janner et al. 2019, MBPO). The steps that are trusted
are kept in a ring beside the real experience."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.transitions import Batch, mixed
from spikedream.bounds import check_bounds
from spikedream.ops.dream import Policy, dream, playback
from spikedream.ops.schedule import HorizonSchedule, ImaginedShare
from spikedream.ops.trust import AnyTrust, Evidence, Tightening
from spikedream.ops.when import when
from spikedream.spec import Spec
from spikedream.types import Experience, Masked, Metrics, PyTree
from spikedream.world import World

UNKNOWN = -1.0  # in place of a share or an error: a state that holds no number is refused as one that has diverged


class ImaginedSteps(NamedTuple):
    """Imagined steps in the environment's own units, leaves (capacity, ...); the oldest make way."""

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    terminated: Array
    weight: Array


class Acceptance(NamedTuple):
    """Of the last dreams, by step, (horizon,) each; UNKNOWN where there were none to ask."""

    accepted: Array  # share of those that had not ended
    error_accepted: Array  # of dreams along real actions that would have been accepted, in standard deviations
    error_rejected: Array


class DreamsState(eqx.Module):
    ring: ImaginedSteps
    added: Array  # () int32, imagined steps ever added
    before: Array  # (times,) int32, what `added` was before each of the newest times it dreamed that are drawn from, oldest first
    acceptance: Acceptance
    trust: PyTree = ()  # what the rule of trust remembers


@dataclass(frozen=True)
class Dreams:
    """How an off-policy agent dreams, and what it learns of that. Imagined steps are never replayed as real ones: no world model is
    fitted to them."""

    starts: int = 256  # replayed states from which it dreams at a time, drawn equally often, whatever their priority
    horizon: int = 5  # steps of a dream that nothing ends before
    schedule: HorizonSchedule | None = None  # by which the horizon is reached; None: it holds from the start
    every: int = 250  # updates between two times
    begin: int = 5000  # real steps before the first
    capacity: int = 100_000  # imagined steps kept
    age: int | None = None  # updates after which an imagined step is no longer drawn, rounded up to whole times; None: no limit
    share: ImaginedShare = ImaginedShare(0.5, 0.5)  # of each mini-batch
    trust: AnyTrust | None = Tightening()  # None: every step is trusted
    penalty: float = 0.0  # normalised reward lost per unit of uncertainty (Yu et al. 2020, MOPO)
    doubt: float = 0.0  # an imagined step weighs 1 / (1 + doubt x uncertainty)
    stretches: int = 64  # of the newest real steps, along which dreams are measured

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, starts=at_least_one, horizon=at_least_one, every=at_least_one, stretches=at_least_one)
        check_bounds(self, begin=not_negative, penalty=not_negative, doubt=not_negative)
        if self.age is not None:
            check_bounds(self, age=at_least_one)
        if self.schedule is not None and self.schedule.first > self.horizon:
            raise ValueError(f"schedule.first is {self.schedule.first}, which is above horizon ({self.horizon})")
        if self.capacity < self.starts * self.horizon:
            raise ValueError(
                f"capacity is {self.capacity}; one time's dreams, starts x horizon, are {self.starts * self.horizon} steps"
            )

    def init(self, spec: Spec, world: World) -> DreamsState:
        """Raises ValueError where nothing tells how far the model is to be trusted."""
        if self.trust is not None and world.model.members < 2:
            raise ValueError(
                f"dreams.trust is {type(self.trust).__name__}, which asks whether the members of an ensemble agree, but the world"
                " model has one; set world_model.members to 2 or more, or agent.dreams.trust to None"
            )
        if self.trust is not None and self.trust.asks_evidence and not world.model.holdout_newest:
            raise ValueError(
                f"dreams.trust is {type(self.trust).__name__}, which asks how wrong the model is on stretches that it was not"
                " fitted to, but none are held out; set fine_tuning.holdout_newest of the ensemble to 0.02, or choose another rule"
            )
        shapes = ((spec.obs_size,), (spec.action_size,), (), (spec.obs_size,), (), ())
        ring = ImaginedSteps(*(jnp.zeros((self.capacity, *shape)) for shape in shapes))
        nothing = jnp.full(self.horizon, UNKNOWN, jnp.float32)
        times = 0 if self.age is None else -(-self.age // self.every)
        counts = jnp.zeros((), jnp.int32), jnp.zeros(times, jnp.int32)
        return DreamsState(ring, *counts, Acceptance(nothing, nothing, nothing), () if self.trust is None else self.trust.init())

    def mix(
        self,
        state: DreamsState,
        world: World,
        experience: Experience,
        policy: Policy,
        batch: Batch,
        updates: Array,
        gamma: float,
        key: Array,
    ) -> tuple[DreamsState, Batch, Array, Metrics]:
        """Dream where that is due after so many `updates`, () int32, and put imagined steps in the place of some of `batch`.

        Returns:
            The state, the batch, which of its rows are imagined, (rows,) bool, and what the dreams were like.
        """
        dream_key, batch_key = jax.random.split(key)
        due, rows = self.due(updates, experience), batch.reward.shape[0]
        state = when(due, lambda s: self.dream(s, world, experience, policy, dream_key), state)
        imagined = jnp.arange(rows) < jnp.round(self.share_now(state, experience) * rows)
        batch = mixed(self.batch(state, experience, gamma, rows, batch_key), batch, imagined)
        metrics = {
            "imagined_steps": jnp.where(due, self.starts * self.horizon_now(experience), 0),
            "imagined_share": imagined.astype(jnp.float32).mean(),
        }
        return state, batch, imagined, metrics | self.metrics(state)

    def due(self, updates: Array, experience: Experience) -> Array:
        """() bool, after so many `updates`, () int32."""
        return (updates % self.every == 0) & (experience.count >= self.begin)

    def horizon_now(self, experience: Experience) -> Array:
        """() int32, steps of a dream that nothing ends before."""
        return jnp.full((), self.horizon, jnp.int32) if self.schedule is None else self.schedule(self.horizon, experience.count)

    def dream(self, state: DreamsState, world: World, experience: Experience, policy: Policy, key: Array) -> DreamsState:
        """Dream once, and keep what is trusted."""
        draw_key, start_key, dream_key, measure_key = jax.random.split(key, 4)
        # Equally often, as nothing makes up for a priority when what is dreamed from there is drawn.
        index = experience.draw_evenly(draw_key, (self.starts,))
        memory = jax.vmap(world.start)(experience.gather(index).obs, jax.random.split(start_key, self.starts))
        horizon = self.horizon_now(experience)
        taken = None if self.schedule is None else horizon
        steps, _ = dream(world, policy, (), memory, self.horizon, dream_key, taken)
        prediction, normalizer = steps.prediction, experience.normalizer
        evidence = self._measure(world, experience, measure_key)
        bounds, remembered = jnp.full(self.horizon, jnp.inf), state.trust
        if self.trust is not None:
            bounds, remembered = self.trust.bounds(state.trust, evidence, prediction.uncertainty)
        trusted = jnp.cumprod((prediction.uncertainty <= bounds[:, None]).astype(jnp.float32), axis=0)
        ended = (prediction.terminated > 0.5).astype(jnp.float32)
        alive = jnp.concatenate([jnp.ones((1, self.starts)), jnp.cumprod(1 - ended, axis=0)[:-1]])
        alive = jnp.where(jnp.arange(self.horizon)[:, None] < horizon, alive, 0.0)
        reward = jnp.clip(prediction.reward, *normalizer.reward_range()) - self.penalty * prediction.uncertainty + prediction.bonus
        imagined = ImaginedSteps(
            obs=normalizer.raw_obs(steps.obs),
            action=steps.decision.action,
            reward=reward * normalizer.reward_scale,
            next_obs=normalizer.raw_obs(steps.following),
            terminated=ended,
            weight=1 / (1 + self.doubt * prediction.uncertainty),
        )
        accepted = trusted * alive
        acceptance = Acceptance(_mean(trusted, alive), *self._errors(evidence, bounds))
        return replace(self._add(state, imagined, accepted, acceptance), trust=remembered)

    def _add(self, state: DreamsState, imagined: ImaginedSteps, accepted: Array, acceptance: Acceptance) -> DreamsState:
        """Leaves of `imagined` (horizon, starts, ...), of which those stay that are `accepted`, (horizon, starts)."""
        kept = accepted.reshape(-1) > 0
        at = (state.added + jnp.cumsum(kept.astype(jnp.int32)) - 1) % self.capacity
        at = jnp.where(kept, at, self.capacity)
        ring = jax.tree.map(lambda ring, new: ring.at[at].set(new.reshape(-1, *new.shape[2:]), mode="drop"), state.ring, imagined)
        before = jnp.append(state.before, state.added)[1:]
        added = state.added + kept.sum().astype(jnp.int32)
        return replace(state, ring=ring, added=added, before=before, acceptance=acceptance)

    def _measure(self, world: World, experience: Experience, key: Array) -> Evidence:
        """How wrong dreams are along the actions of real stretches: of the newest, to which the model is not fitted where it holds
        them out, and else has hardly been fitted yet."""
        start_key, age_key, environment_key, dream_key = jax.random.split(key, 4)
        count, held = experience.environments, experience.size // experience.environments
        environment = jax.random.randint(environment_key, (self.stretches,), 0, count)
        share, last = world.model.holdout_newest, self.horizon - 1
        rows = jnp.ceil(share * held).astype(jnp.int32) if share else 4 * self.stretches + last
        age = last + jax.random.randint(age_key, (self.stretches,), 0, jnp.maximum(rows - last, 1))
        age = jnp.minimum(age, jnp.maximum(jnp.minimum(rows, held) - 1, 0))
        position = (experience.newest()[environment] - age * count) % experience.capacity
        real = jax.vmap(lambda at: experience.onward(at, self.horizon))(position)
        memory = jax.vmap(world.start)(real.steps.obs[:, 0], jax.random.split(start_key, self.stretches))
        carry = (real.steps.action, jnp.zeros(self.stretches, jnp.int32))
        steps, _ = dream(world, playback, carry, memory, self.horizon, dream_key)
        wanted = jnp.swapaxes(real.steps.next_obs, 0, 1)
        error = jnp.sqrt(jnp.square(steps.following - wanted).mean(-1))
        return Evidence(steps.prediction.uncertainty, error, real.valid.T)

    def _errors(self, evidence: Evidence, bounds: Array) -> tuple[Array, Array]:
        """(horizon,) each: mean error of the measured dreams that would have been accepted, and of those that would not."""
        trusted = jnp.cumprod((evidence.uncertainty <= bounds[:, None]).astype(jnp.float32), axis=0)
        return _mean(evidence.error, evidence.valid * trusted), _mean(evidence.error, evidence.valid * (1 - trusted))

    def _drawn_from(self, state: DreamsState) -> Array:
        """() int32, how many of the newest imagined steps are young enough."""
        oldest = 0 if self.age is None else state.before[0]
        return jnp.minimum(state.added - oldest, self.capacity)

    def share_now(self, state: DreamsState, experience: Experience) -> Array:
        """() of a mini-batch that is imagined; 0 where nothing young enough is held."""
        return jnp.where(self._drawn_from(state) > 0, self.share(experience.count), 0.0)

    def batch(self, state: DreamsState, experience: Experience, gamma: float, rows: int, key: Array) -> Batch:
        """Imagined steps, those that are young enough equally often."""
        back = jax.random.randint(key, (rows,), 0, jnp.maximum(self._drawn_from(state), 1))
        index = (state.added - 1 - back) % self.capacity
        steps, normalizer = jax.tree.map(lambda x: x[index], state.ring), experience.normalizer
        obs, following = normalizer.obs(steps.obs), normalizer.obs(steps.next_obs)
        return Batch(obs, steps.action, following, steps.reward, following, gamma * (1 - steps.terminated), steps.weight)

    def metrics(self, state: DreamsState) -> Metrics:
        """Of the last dreams, by step from 1."""
        names = {"dream_accepted": state.acceptance.accepted, "dream_error/accepted": state.acceptance.error_accepted}
        names["dream_error/rejected"] = state.acceptance.error_rejected
        told = {name: Masked(values, (values >= 0).astype(jnp.float32)) for name, values in names.items()}
        return {f"{name}_{i + 1}": jax.tree.map(lambda x, i=i: x[i], x) for name, x in told.items() for i in range(self.horizon)}


def _mean(value: Array, counts: Array) -> Array:
    """(horizon,) of what counts among `value`, (horizon, rows), by step; UNKNOWN where nothing does."""
    number = counts.sum(1)
    return jnp.where(number > 0, (value * counts).sum(1) / jnp.maximum(number, 1), UNKNOWN)
