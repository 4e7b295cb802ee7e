"""Dyna (Sutton 1990): a small model that learns online, and imagined steps onward of the present that are learned from like real
ones. A few real steps, drawn evenly from all, are remembered for the dreams' sake: the model rehearses some beside each new one,
and some dreams begin there. Actor and critic learn from none of them again."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.actor_critic import apply_gradient
from spikedream.bounds import check_bounds
from spikedream.ops.fitting import adam
from spikedream.snn.learning_rules.rtrl import RTRL
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, PyTree, Transition


class Networks(NamedTuple):
    dynamics: PyTree
    ending: PyTree  # None without a network for it


class DynaState(eqx.Module):
    networks: PyTree  # Networks
    optimizer: PyTree
    low: Array  # (obs_size,) smallest observation after which an episode went on, in the environment's own units
    high: Array  # (obs_size,) largest, likewise
    obs: Array  # (obs_size,) where the dream stands, likewise
    age: Array  # () int32, its steps so far
    kept: Transition  # fields (memory, ...), real steps that are remembered, in the environment's units; as many as there have been


class Imagined(NamedTuple):
    """What the model says follows an action, () each unless said."""

    obs: Array  # (obs_size,)
    reward: Array
    terminated: Array  # 1 where the task is believed to have ended


@dataclass(frozen=True)
class Dyna:
    """One dream goes on beside the real episode: it begins at the newest real state, or a remembered one, and anew when it ended
    or reached its horizon. It ends where an observation leaves the range of those in which a real episode went on: most tasks end
    at a bound, and elsewhere the model has learned nothing. A network for the `ending` is for tasks that end within that range."""

    dynamics: AnyNetwork = SpikingNetwork(readout=MembraneReadout(), rule=RTRL())  # of the observation's change, and the reward
    ending: AnyNetwork | None = None  # from the next observation
    memory: int = 128  # real steps that are remembered, each of all equally often (Vitter 1985, algorithm R)
    rehearsals: int = 7  # gradient steps on remembered ones for each real one
    begin_remembered: float = 0.2  # share of dreams that begin at a remembered state, not the newest
    steps: int = 24  # imagined ones for each real one
    horizon: int = 500  # steps after which a dream begins anew
    begin: int = 200  # real steps before the first
    learning_rate: float = 3e-3
    gradient_clip: float = 1.0  # global norm
    start_noise: float = 0.0  # around the newest real state, in standard deviations of the observation
    margin: float = 0.0  # beyond that range, in typical changes

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, steps=at_least_one, horizon=at_least_one, begin=not_negative, learning_rate=not_negative)
        check_bounds(self, memory=at_least_one, rehearsals=not_negative, begin_remembered=(0, 1))
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
        # Nowhere yet; finite, since what is not is taken for a run that has diverged.
        nowhere, age = jnp.full(spec.obs_size, 1e30, jnp.float32), jnp.full((), self.horizon, jnp.int32)
        obs, action, number = ((self.memory, spec.obs_size), (self.memory, spec.action_size), (self.memory,))
        kept = Transition(*map(jnp.zeros, (obs, action, number, obs, number, number, number)))
        return DynaState(networks, self._optimizer.init(networks), nowhere, -nowhere, jnp.zeros(spec.obs_size), age, kept)

    def _scale(self, experience: Experience) -> Array:
        """(obs_size,) typical change of the normalised observation in a step."""
        change = jnp.sqrt(experience.moments.change) / experience.normalizer.scale
        return jnp.where(change > 1e-6, change, 1.0)

    def fit(self, state: DynaState, experience: Experience, step: Transition, key: Array) -> tuple[DynaState, Metrics]:
        """Remember the newest real step, and make one gradient step on it, and some on remembered ones."""
        newest_key, place_key, key = jax.random.split(key, 3)
        state, metrics = self.fit_one(state, experience, step, newest_key)
        number = experience.count
        place = jnp.where(number <= self.memory, number - 1, jax.random.randint(place_key, (), 0, number))
        newest = jax.tree.map(lambda x: x[0], experience.raw(experience.newest()))
        state = replace(state, kept=jax.tree.map(lambda kept, new: kept.at[place].set(new, mode="drop"), state.kept, newest))

        def rehearse(state: DynaState, key: Array) -> tuple[DynaState, None]:
            draw_key, fit_key = jax.random.split(key)
            return self.fit_one(state, experience, self._remembered(state, experience, draw_key), fit_key)[0], None

        return jax.lax.scan(rehearse, state, jax.random.split(key, self.rehearsals))[0], metrics

    def _remembered(self, state: DynaState, experience: Experience, key: Array) -> Transition:
        held = jnp.minimum(experience.count, self.memory)
        place = jax.random.randint(key, (), 0, held)
        return experience.normalised(jax.tree.map(lambda kept: kept[place], state.kept))

    def fit_one(self, state: DynaState, experience: Experience, step: Transition, key: Array) -> tuple[DynaState, Metrics]:
        """One gradient step on one real step."""
        dynamics_key, ending_key = jax.random.split(key)
        wanted = jnp.append((step.next_obs - step.obs) / self._scale(experience), step.reward)

        def loss(networks: Networks) -> tuple[Array, Array]:
            predicted = self.dynamics(networks.dynamics, jnp.concatenate([step.obs, step.action]), (), dynamics_key).value
            error = jnp.square(predicted - wanted).mean()
            return error + self._ending_loss(networks, experience, step, ending_key), error

        gradient, error = jax.grad(loss, has_aux=True)(state.networks)
        networks, moved = apply_gradient(self._optimizer, gradient, state.optimizer, state.networks)
        alive = experience.normalizer.raw_obs(step.obs)
        low, high = jnp.minimum(state.low, alive), jnp.maximum(state.high, alive)
        return DynaState(networks, moved, low, high, state.obs, state.age, state.kept), {"model_error": error}

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
        """Where the dream goes on: where it was, or around the newest state that did not end the task, or a remembered one."""
        which_key, remembered_key, noise_key = jax.random.split(key, 3)
        newest = jnp.where(step.terminated > 0, step.obs, step.next_obs)
        elsewhere = jax.random.uniform(which_key) < self.begin_remembered
        start = jnp.where(elsewhere, self._remembered(state, experience, remembered_key).obs, newest)
        start = experience.normalizer.raw_obs(start + self.start_noise * jax.random.normal(noise_key, start.shape))
        anew = state.age >= self.horizon
        return replace(state, obs=jnp.where(anew, start, state.obs), age=jnp.where(anew, 0, state.age))

    def imagine(self, state: DynaState, experience: Experience, obs: Array, action: Array, key: Array) -> Imagined:
        """All observations normalised."""
        dynamics_key, ending_key = jax.random.split(key)
        scale, normalizer = self._scale(experience), experience.normalizer
        predicted = self.dynamics(state.networks.dynamics, jnp.concatenate([obs, action]), (), dynamics_key).value
        following, slack = obs + predicted[:-1] * scale, self.margin * scale
        below, above = normalizer.obs(state.low) - slack, normalizer.obs(state.high) + slack
        ended = ((following < below) | (following > above)).any()
        if self.ending is not None:
            ended |= self.ending(state.networks.ending, following, (), ending_key).value[0] > 0
        return Imagined(following, jnp.clip(predicted[-1], *normalizer.reward_range()), ended.astype(jnp.float32))

    def onward(self, state: DynaState, experience: Experience, imagined: Imagined) -> DynaState:
        """After that step."""
        age = jnp.where(imagined.terminated > 0, self.horizon, state.age + 1)
        return replace(state, obs=experience.normalizer.raw_obs(imagined.obs), age=age)
