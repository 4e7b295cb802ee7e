"""Curiosity for steps about whose outcome the world model's members disagree.

Pathak et al. 2019, "Self-supervised exploration via disagreement"; Sekar et al. 2020, "Planning to explore via self-supervised
world models" (Plan2Explore), which seeks it in dreams.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bonuses.weight import AdaptiveWeight, WeightState
from spikedream.types import Experience, Metrics, Spec, Transition, World


class DisagreementState(eqx.Module):
    weight: WeightState


@dataclass(frozen=True)
class Disagreement:
    """Raw bonus: the world model's `uncertainty`. Nothing of its own is learned; unlike a prediction error it fades where outcomes
    are random but well known. It needs a world model of at least two members."""

    weight: AdaptiveWeight = AdaptiveWeight()

    @property
    def largest(self) -> float:
        return self.weight.largest

    def init(self, spec: Spec, world: World, key: Array) -> DisagreementState:
        """Raises ValueError where the world model has nobody to disagree."""
        if world.model.members < 2:
            raise ValueError(
                f"Disagreement needs a world model of at least 2 members; {type(world.model).__name__} has {world.model.members}"
                " (RandomNetworkDistillation and IntrinsicCuriosity work with any)"
            )
        return DisagreementState(self.weight.init())

    def reward(self, state: DisagreementState, obs: Array, action: Array, following: Array, uncertainty: Array) -> Array:
        return self.weight.reward(state.weight, uncertainty)

    def update(
        self, state: DisagreementState, world: World, experience: Experience, key: Array
    ) -> tuple[DisagreementState, Metrics]:
        def uncertainty(step: Transition) -> Array:
            return world.model.step(world.state, world.start(step.obs, key), step.action, key)[1].uncertainty

        raw = jax.vmap(uncertainty)(experience.gather(jnp.arange(experience.capacity)))
        weight, metrics = self.weight.update(state.weight, raw, experience)
        return DisagreementState(weight), metrics
