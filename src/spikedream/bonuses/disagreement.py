"""Curiosity for steps about whose outcome the world model's members disagree.

Pathak et al. 2019, "Self-supervised exploration via disagreement"; Sekar et al. 2020, "Planning to explore via self-supervised
world models" (Plan2Explore), which seeks it in dreams.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax import Array

from spikedream.bonuses.weight import AdaptiveWeight, AnyWeight
from spikedream.spec import Spec
from spikedream.types import Experience, Metrics, Prediction, PyTree
from spikedream.world import World


class DisagreementState(eqx.Module):
    weight: PyTree


@dataclass(frozen=True)
class Disagreement:
    """Raw bonus: the disagreement of the world model's members. Nothing of its own is learned; unlike a prediction error it fades
    where outcomes are random but well known. It needs a world model of at least two members."""

    weight: AnyWeight = AdaptiveWeight()
    outside: bool = True  # adds the prediction's distance from the range of all experience: pays for new states, too

    @property
    def reward_floor(self) -> float:
        return self.weight.reward_floor

    def bound(self, state: DisagreementState, normalizer: Any) -> Array:
        return self.weight.bound(state.weight, normalizer)

    def init(self, spec: Spec, world: World, key: Array) -> DisagreementState:
        """Raises ValueError where the world model has nobody to disagree."""
        if world.model.members < 2:
            raise ValueError(
                f"Disagreement needs a world model of at least 2 members; {type(world.model).__name__} has {world.model.members}"
                " (RandomNetworkDistillation and IntrinsicCuriosity work with any)"
            )
        return DisagreementState(self.weight.init())

    def reward(self, state: DisagreementState, obs: Array, action: Array, prediction: Prediction) -> Array:
        return self.weight.reward(state.weight, self._raw(prediction))

    def _raw(self, prediction: Prediction) -> Array:
        return prediction.uncertainty if self.outside else prediction.disagreement

    def update(
        self, state: DisagreementState, world: World, experience: Experience, key: Array
    ) -> tuple[DisagreementState, Metrics]:
        survey_key, recall_key, step_key = jax.random.split(key, 3)
        index, counts = experience.survey(survey_key)
        steps, memory = experience.gather(index), world.recall(experience, index, recall_key)
        keys = jax.random.split(step_key, index.shape[0])
        said = jax.vmap(lambda m, a, k: world.model.step(world.state, m, a, k)[1])(memory, steps.action, keys)
        weight, metrics = self.weight.update(state.weight, self._raw(said), steps, counts, experience)
        return DisagreementState(weight), metrics
