"""Curiosity for states that a network has not yet learned to describe.

Burda et al. 2018, "Exploration by random network distillation".
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bonuses.fitting import Fitting
from spikedream.bonuses.weight import AdaptiveWeight, AnyWeight
from spikedream.bounds import check_bounds
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction, PyTree, Transition
from spikedream.world import World


class DistillationState(eqx.Module):
    target: PyTree  # never changes
    predictor: PyTree
    weight: PyTree


@dataclass(frozen=True)
class RandomNetworkDistillation:
    """Raw bonus: mean squared difference, over the features of the next observation, between a fixed random network and a
    predictor that is trained to match it on everything seen (section 2.2).

    Both read spike rates. A network that starts linear, as one with `MembraneReadout` does, would be no use as the target: matched
    on a few states it is matched everywhere.
    """

    target: AnyNetwork = SpikingNetwork(hidden=(64,), ticks=4)
    predictor: AnyNetwork = SpikingNetwork(hidden=(64,), ticks=4)
    weight: AnyWeight = AdaptiveWeight()
    features: int = 16
    fitting: Fitting = Fitting()

    def __post_init__(self) -> None:
        check_bounds(self, features=(1, None))

    @property
    def reward_floor(self) -> float:
        return self.weight.reward_floor

    def bound(self, state: DistillationState, normalizer: Any) -> Array:
        return self.weight.bound(state.weight, normalizer)

    def init(self, spec: Spec, world: World, key: Array) -> DistillationState:
        target_key, predictor_key = jax.random.split(key)
        target = self.target.init(spec.obs_size, self.features, target_key)
        predictor = self.predictor.init(spec.obs_size, self.features, predictor_key)
        return DistillationState(target, predictor, self.weight.init())

    def reward(self, state: DistillationState, obs: Array, action: Array, prediction: Prediction) -> Array:
        return self.weight.reward(state.weight, self._novelty(state.predictor, state.target, prediction.obs))

    def update(
        self, state: DistillationState, world: World, experience: Experience, key: Array
    ) -> tuple[DistillationState, Metrics]:
        def loss(predictor: PyTree, batch: Transition, key: Array) -> Array:
            return self._novelties(predictor, state.target, batch.next_obs).mean()

        fit_key, survey_key = jax.random.split(key)
        predictor, final = self.fitting(experience, state.predictor, loss, fit_key)
        index, counts = experience.survey(survey_key)
        steps = experience.gather(index)
        raw = self._novelties(predictor, state.target, steps.next_obs)
        weight, metrics = self.weight.update(state.weight, raw, steps, counts, experience)
        return DistillationState(state.target, predictor, weight), {"bonus_loss": final, **metrics}

    def _novelty(self, predictor: PyTree, target: PyTree, obs: Array) -> Array:
        """() of one observation, (obs_size,)."""
        key = jax.random.key(0)  # an encoder that draws its spikes draws the same for both networks, each time
        wanted = self.target(target, obs, self.target.start(target), key).value
        return jnp.square(self.predictor(predictor, obs, self.predictor.start(predictor), key).value - wanted).mean()

    def _novelties(self, predictor: PyTree, target: PyTree, obs: Array) -> Array:
        """(rows,) of observations (rows, obs_size)."""
        return jax.vmap(self._novelty, in_axes=(None, None, 0))(predictor, target, obs)
