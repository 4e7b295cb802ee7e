"""Dyna (Sutton 1990): a small model that learns online, one update a real step, and imagined steps onward of the present that are
learned from like real ones. Nothing is replayed: what is kept of the past is the model."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.actor_critic import apply_gradient
from spikedream.ops.fitting import adam
from spikedream.snn.learning_rules.rtrl import RTRL
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.types import Experience, Metrics, PyTree, Spec, Transition, check_bounds

CERTAIN = 2  # real episodes that ended beyond a bound make it an end


class Networks(NamedTuple):
    dynamics: PyTree
    ending: PyTree | None


class Range(NamedTuple):
    """Of the observations after which a real episode went on, (obs_size,) each, in the environment's own units."""

    low: Array
    high: Array
    ends_below: Array  # episodes that have ended beyond the bound since it last moved
    ends_above: Array

    def add(self, step: Transition, alive: Array, following: Array) -> "Range":
        """With a real step from `alive` to `following`."""
        low, high = jnp.minimum(self.low, alive), jnp.maximum(self.high, alive)
        below, above = (
            jnp.where(moved, 0, x) for moved, x in ((low < self.low, self.ends_below), (high > self.high, self.ends_above))
        )
        return Range(low, high, below + step.terminated * (following < low), above + step.terminated * (following > high))

    def left(self, obs: Array, slack: float) -> Array:
        """() bool; by more than `slack` widths where what lies beyond is not known for an end."""
        beyond = slack * (self.high - self.low)
        below = obs < self.low - jnp.where(self.ends_below < CERTAIN, beyond, 0)
        return (below | (obs > self.high + jnp.where(self.ends_above < CERTAIN, beyond, 0))).any()


class DynaState(eqx.Module):
    networks: Networks
    optimizer: PyTree
    range: Range
    obs: Array  # (obs_size,) where the dream stands, likewise
    age: Array  # () int32, its steps so far


class Imagined(NamedTuple):
    """What the model says follows an action, () each unless said."""

    obs: Array  # (obs_size,)
    reward: Array
    terminated: Array  # 1 where the task is believed to have ended


@dataclass(frozen=True)
class Dyna:
    """One dream goes on beside the real episode: it begins at the newest real state, and anew once it has ended or reached its
    horizon. Most tasks end at a bound: a dream ends where an observation leaves the range of those after which a real episode went
    on, at once on a side beyond which several real ones have ended, elsewhere by a `margin`, since the model has learned nothing
    there. A network for the `ending` is for tasks that end within that range."""

    dynamics: AnyNetwork = SpikingNetwork(readout=MembraneReadout(), rule=RTRL())  # of the observation's change, and the reward
    ending: AnyNetwork | None = None  # from the next observation
    steps: int = 24  # imagined ones for each real one
    horizon: int = 500  # steps after which a dream begins anew
    begin: int = 200  # real steps before the first
    learning_rate: float = 3e-3
    gradient_clip: float = 1.0  # global norm
    start_noise: float = 0.0  # around the newest real state, in standard deviations of the observation
    margin: float = 1.0  # beyond that range, in its widths

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, steps=at_least_one, horizon=at_least_one, begin=not_negative, learning_rate=not_negative)
        check_bounds(self, gradient_clip=(1e-9, None), margin=not_negative)
        check_bounds(self, start_noise=not_negative)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.gradient_clip)

    def init(self, spec: Spec, key: Array) -> DynaState:
        dynamics_key, ending_key = jax.random.split(key)
        networks = Networks(
            self.dynamics.init(spec.obs_size + spec.action_size, spec.obs_size + 1, dynamics_key),
            None if self.ending is None else self.ending.init(spec.obs_size, 1, ending_key),
        )
        bound = jnp.full(spec.obs_size, jnp.inf, jnp.float32)
        nowhere = Range(bound, -bound, jnp.zeros(spec.obs_size), jnp.zeros(spec.obs_size))
        age = jnp.full((), self.horizon, jnp.int32)
        return DynaState(networks, self._optimizer.init(networks), nowhere, jnp.zeros(spec.obs_size), age)

    def _scale(self, experience: Experience) -> Array:
        """(obs_size,) typical change of the normalised observation in a step."""
        change = jnp.sqrt(experience.moments.change) / experience.normalizer.scale
        return jnp.where(change > 1e-6, change, 1.0)

    def fit(self, state: DynaState, experience: Experience, step: Transition, key: Array) -> tuple[DynaState, Metrics]:
        """One gradient step on one real step."""
        dynamics_key, ending_key = jax.random.split(key)
        wanted = jnp.append((step.next_obs - step.obs) / self._scale(experience), step.reward)

        def loss(networks: Networks) -> tuple[Array, Array]:
            predicted = self.dynamics(networks.dynamics, jnp.concatenate([step.obs, step.action]), (), dynamics_key).value
            error = jnp.square(predicted - wanted).mean()
            return error + self._ending_loss(networks, experience, step, ending_key), error

        gradient, error = jax.grad(loss, has_aux=True)(state.networks)
        networks, moved = apply_gradient(self._optimizer, gradient, state.optimizer, state.networks)
        raw_obs = experience.normalizer.raw_obs
        seen = state.range.add(step, raw_obs(step.obs), raw_obs(step.next_obs))
        return DynaState(networks, moved, seen, state.obs, state.age), {"model_error": error}

    def _ending_loss(self, networks: Networks, experience: Experience, step: Transition, key: Array) -> Array:
        if self.ending is None:
            return jnp.zeros(())
        end, before = (
            self.ending(networks.ending, obs, (), k).value[0]
            for obs, k in zip((step.next_obs, step.obs), jax.random.split(key), strict=True)
        )
        # Ends are rare: each counts as all the steps of an episode together, as far as ten.
        rare = jnp.clip(experience.moments.count / jnp.maximum(experience.moments.terminated, 1), 1, 10)
        return jnp.where(step.terminated > 0, rare * jax.nn.softplus(-end), jax.nn.softplus(end)) + jax.nn.softplus(before)

    def awake(self, state: DynaState, experience: Experience, step: Transition, key: Array) -> DynaState:
        """Where the dream goes on: where it was, or around the newest state that did not end the task."""
        newest = jnp.where(step.terminated > 0, step.obs, step.next_obs)
        newest = experience.normalizer.raw_obs(newest + self.start_noise * jax.random.normal(key, newest.shape))
        anew = state.age >= self.horizon
        return replace(state, obs=jnp.where(anew, newest, state.obs), age=jnp.where(anew, 0, state.age))

    def imagine(self, state: DynaState, experience: Experience, obs: Array, action: Array, key: Array) -> Imagined:
        """All observations normalised."""
        dynamics_key, ending_key = jax.random.split(key)
        scale, normalizer = self._scale(experience), experience.normalizer
        predicted = self.dynamics(state.networks.dynamics, jnp.concatenate([obs, action]), (), dynamics_key).value
        following = obs + predicted[:-1] * scale
        ended = state.range.left(normalizer.raw_obs(following), self.margin)
        if self.ending is not None:
            ended |= self.ending(state.networks.ending, following, (), ending_key).value[0] > 0
        return Imagined(following, jnp.clip(predicted[-1], *normalizer.reward_range()), ended.astype(jnp.float32))

    def onward(self, state: DynaState, experience: Experience, imagined: Imagined) -> DynaState:
        """After that step."""
        age = jnp.where(imagined.terminated > 0, self.horizon, state.age + 1)
        return replace(state, obs=experience.normalizer.raw_obs(imagined.obs), age=age)
