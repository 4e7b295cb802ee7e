"""Dyna (Sutton 1990): a small model that learns online, one update a real step, and imagined steps onward of the present that are
learned from like real ones. Nothing is replayed: what is kept of the past is the model."""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.ops.fitting import adam
from spikedream.snn.learning_rules.rtrl import RTRL
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.readouts import MembraneReadout, RateReadout
from spikedream.types import Experience, Metrics, PyTree, Spec, Transition, check_bounds


class Networks(NamedTuple):
    dynamics: PyTree
    ending: PyTree


class DynaState(eqx.Module):
    networks: Networks
    optimizer: PyTree
    obs: Array  # (obs_size,) where the dream stands, in the environment's own units
    age: Array  # () int32, its steps so far


class Imagined(NamedTuple):
    """What the model says follows an action, () each unless said."""

    obs: Array  # (obs_size,)
    reward: Array
    terminated: Array  # 1 where the task has ended, or what has been seen has been left


@dataclass(frozen=True)
class Dyna:
    """One dream goes on beside the real episode: it begins at the newest real state, and anew once it has ended, left what has been
    seen, or reached its horizon."""

    dynamics: AnyNetwork = SpikingNetwork(readout=MembraneReadout(), rule=RTRL())  # of the observation's change, and the reward
    ending: AnyNetwork = SpikingNetwork(readout=RateReadout(), fan_in=1, rule=RTRL())  # from the next observation
    steps: int = 8  # imagined ones for each real one
    horizon: int = 50  # steps after which a dream begins anew
    begin: int = 200  # real steps before the first
    learning_rate: float = 3e-3
    gradient_clip: float = 1.0  # global norm
    margin: float = 1.0  # beyond the observations seen within which the model is believed, in typical changes

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, steps=at_least_one, horizon=at_least_one, begin=not_negative, learning_rate=not_negative)
        check_bounds(self, gradient_clip=(1e-9, None), margin=not_negative)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.gradient_clip)

    def init(self, spec: Spec, key: Array) -> DynaState:
        dynamics_key, ending_key = jax.random.split(key)
        networks = Networks(
            self.dynamics.init(spec.obs_size + spec.action_size, spec.obs_size + 1, dynamics_key),
            self.ending.init(spec.obs_size, 1, ending_key),
        )
        return DynaState(networks, self._optimizer.init(networks), jnp.zeros(spec.obs_size), jnp.full((), self.horizon, jnp.int32))

    def _scale(self, experience: Experience) -> Array:
        """(obs_size,) typical change of the normalised observation in a step."""
        change = jnp.sqrt(experience.moments.change) / experience.normalizer.scale
        return jnp.where(change > 1e-6, change, 1.0)

    def fit(self, state: DynaState, experience: Experience, step: Transition, key: Array) -> tuple[DynaState, Metrics]:
        """One gradient step on one real step."""
        scale, moments = self._scale(experience), experience.moments
        dynamics_key, ending_key, before_key = jax.random.split(key, 3)
        wanted = jnp.append((step.next_obs - step.obs) / scale, step.reward)
        # Ends are rare: each counts as all the steps of an episode together, as far as ten.
        rare = jnp.clip(moments.count / jnp.maximum(moments.terminated, 1), 1, 10)

        def loss(networks: Networks) -> tuple[Array, Array]:
            predicted = self.dynamics(networks.dynamics, jnp.concatenate([step.obs, step.action]), (), dynamics_key).value
            error = jnp.square(predicted - wanted).mean()
            end = self.ending(networks.ending, step.next_obs, (), ending_key).value[0]
            before = self.ending(networks.ending, step.obs, (), before_key).value[0]
            ending = jnp.where(step.terminated > 0, rare * jax.nn.softplus(-end), jax.nn.softplus(end))
            return error + ending + jax.nn.softplus(before), error

        gradient, error = jax.grad(loss, has_aux=True)(state.networks)
        changes, moved = self._optimizer.update(gradient, state.optimizer, state.networks)
        networks: PyTree = optax.apply_updates(state.networks, changes)
        return DynaState(networks, moved, state.obs, state.age), {"model_error": error}

    def awake(self, state: DynaState, experience: Experience, step: Transition) -> DynaState:
        """Where the dream goes on: where it was, or at the newest state that did not end the task."""
        newest = experience.normalizer.raw_obs(jnp.where(step.terminated > 0, step.obs, step.next_obs))
        anew = state.age >= self.horizon
        return DynaState(
            state.networks, state.optimizer, jnp.where(anew, newest, state.obs), jnp.where(anew, 0, state.age)
        )  # fmt: skip

    def imagine(self, state: DynaState, experience: Experience, obs: Array, action: Array, key: Array) -> Imagined:
        """All observations normalised."""
        dynamics_key, ending_key = jax.random.split(key)
        scale, moments, normalizer = self._scale(experience), experience.moments, experience.normalizer
        predicted = self.dynamics(state.networks.dynamics, jnp.concatenate([obs, action]), (), dynamics_key).value
        following = obs + predicted[:-1] * scale
        end = self.ending(state.networks.ending, following, (), ending_key).value[0]
        slack = self.margin * scale
        inside = (following >= normalizer.obs(moments.low) - slack) & (following <= normalizer.obs(moments.high) + slack)
        reward = jnp.clip(predicted[-1], *normalizer.reward_range())
        return Imagined(following, reward, ((end > 0) | ~inside.all()).astype(jnp.float32))

    def onward(self, state: DynaState, experience: Experience, imagined: Imagined) -> DynaState:
        """After that step."""
        age = jnp.where(imagined.terminated > 0, self.horizon, state.age + 1)
        return DynaState(state.networks, state.optimizer, experience.normalizer.raw_obs(imagined.obs), age)
