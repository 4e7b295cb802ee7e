"""Curiosity for steps whose outcome surprises, in features of what the agent itself can influence.

Pathak et al. 2017, "Curiosity-driven exploration by self-supervised prediction" (the intrinsic curiosity module).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.bonuses.fitting import Fitting
from spikedream.bonuses.weight import AdaptiveWeight, AnyWeight
from spikedream.bounds import check_bounds
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction, PyTree, Transition
from spikedream.world import World


class Curious(eqx.Module):
    """Learned parameters."""

    encoder: PyTree  # observation -> features
    inverse: PyTree  # features before and after -> action
    forward: PyTree  # features before, action -> features after


class CuriosityState(eqx.Module):
    networks: Curious
    weight: PyTree
    discrete: bool = eqx.field(static=True)


class Errors(NamedTuple):
    inverse: Array  # ()
    forward: Array  # ()


@dataclass(frozen=True)
class IntrinsicCuriosity:
    """Raw bonus: half the squared error of a forward model in feature space (eq. 6). The features are learned by telling the
    action from two successive observations (eq. 2-3), so that what the action does not influence need not be in them.

    Loss: (1 - forward_share) x inverse + forward_share x forward (eq. 7), the forward error's gradient reaching the features too.
    Discrete actions are told by cross-entropy, continuous ones by squared error.
    """

    encoder: AnyNetwork = SpikingNetwork(hidden=(64,), ticks=4)
    inverse: AnyNetwork = SpikingNetwork(hidden=(64,), ticks=4)
    forward: AnyNetwork = SpikingNetwork(hidden=(64,), ticks=4)
    weight: AnyWeight = AdaptiveWeight()
    features: int = 8
    forward_share: float = 0.2  # of the forward error in the loss
    fitting: Fitting = Fitting()

    def __post_init__(self) -> None:
        check_bounds(self, features=(1, None), forward_share=(0, 1))

    @property
    def reward_floor(self) -> float:
        return self.weight.reward_floor

    def bound(self, state: CuriosityState, normalizer: Any) -> Array:
        return self.weight.bound(state.weight, normalizer)

    def init(self, spec: Spec, world: World, key: Array) -> CuriosityState:
        encoder_key, inverse_key, forward_key = jax.random.split(key, 3)
        networks = Curious(
            self.encoder.init(spec.obs_size, self.features, encoder_key),
            self.inverse.init(2 * self.features, spec.action_size, inverse_key),
            self.forward.init(self.features + spec.action_size, self.features, forward_key),
        )
        return CuriosityState(networks, self.weight.init(), spec.discrete)

    def reward(self, state: CuriosityState, obs: Array, action: Array, prediction: Prediction) -> Array:
        errors = self._errors(state.networks, obs, action, prediction.obs, discrete=state.discrete)
        return self.weight.reward(state.weight, errors.forward)

    def update(self, state: CuriosityState, world: World, experience: Experience, key: Array) -> tuple[CuriosityState, Metrics]:
        def errors(networks: Curious, steps: Transition) -> Errors:
            """Of steps (rows, ...), each (rows,)."""
            return jax.vmap(lambda s: self._errors(networks, s.obs, s.action, s.next_obs, discrete=state.discrete))(steps)

        def loss(networks: Curious, batch: Transition, key: Array) -> Array:
            wrong = errors(networks, batch)
            return ((1 - self.forward_share) * wrong.inverse + self.forward_share * wrong.forward).mean()

        fit_key, survey_key = jax.random.split(key)
        networks, final = self.fitting(experience, state.networks, loss, fit_key)
        index, counts = experience.survey(survey_key)
        steps = experience.gather(index)
        raw = errors(networks, steps).forward
        weight, metrics = self.weight.update(state.weight, raw, steps, counts, experience)
        return CuriosityState(networks, weight, state.discrete), {"bonus_loss": final, **metrics}

    def _errors(self, networks: Curious, obs: Array, action: Array, following: Array, *, discrete: bool) -> Errors:
        """Of one step."""

        def call(network: AnyNetwork, params: PyTree, *inputs: Array) -> Array:
            # An encoder that draws its spikes draws the same ones each time: a step's bonus is no matter of chance.
            return network(params, jnp.concatenate(inputs), network.start(params), jax.random.key(0)).value

        before, after = (call(self.encoder, networks.encoder, x) for x in (obs, following))
        told = call(self.inverse, networks.inverse, before, after)
        wrong = optax.softmax_cross_entropy(told, action) if discrete else jnp.square(told - action).mean()
        expected = call(self.forward, networks.forward, before, action)
        return Errors(wrong, 0.5 * jnp.square(expected - after).sum())
