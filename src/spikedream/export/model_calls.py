"""What world models call, in an imagined step and in a fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.export.calls import Calls, DescribesModel, Memories, Parts, Totals
from spikedream.snn.operations import summed
from spikedream.types import PyTree
from spikedream.world import Belief
from spikedream.world_models.ensemble import Ensemble, EnsembleState
from spikedream.world_models.priors import under
from spikedream.world_models.recurrent import Recurrent, RecurrentState
from spikedream.world_models.true_environment import TrueEnvironment


@dataclass(frozen=True)
class OfEnsemble:
    model: Ensemble

    def memories(self, state: EnsembleState) -> Memories:
        model, members = self.model, state.members
        return {
            "dynamics": (members.dynamics, jax.vmap(model.dynamics.state)(members.dynamics)),
            "ending": (members.ending, jax.vmap(model.ending.state)(members.ending)),
        }

    def step(self, state: EnsembleState, memory: Any, action: Array, key: Array) -> Parts:
        following = self.model.step(state, memory, action, key)[0].obs
        return self.predict(state, jnp.concatenate([memory.obs, action]), following, key)

    def predict(self, state: EnsembleState, inputs: Array, following: Array, key: Array) -> Parts:
        model, members = self.model, state.members
        dynamics = jax.vmap(lambda m: model.dynamics.operations(m.dynamics, inputs, key=key))(members)
        prior = None if state.search is None else state.search.chosen
        ending = jax.vmap(lambda m: model.ending.operations(under(model.ending, m.ending, prior), following, key=key))(members)
        return {"dynamics": summed(dynamics), "ending": summed(ending)}

    def asked(self, state: EnsembleState) -> dict[str, Array | float]:
        # As long as no episode has terminated, none is predicted.
        return {"dynamics": 1.0, "ending": (state.endings > 0).astype(jnp.float32)}

    def informed(self, state: EnsembleState, by: EnsembleState) -> EnsembleState:
        return replace(state, endings=by.endings)

    def observe(self, state: EnsembleState, belief: Belief, obs: Array, key: Array) -> Parts:
        return {}

    def fit(self, totals: Totals, ended: bool = True) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None or (self.model.gaussian and self.model.split.holds_out):
            return None  # with calibration, which goes over held-out data as often as it needs
        if self.model.search is not None:
            return None  # its own ensemble is fitted beside
        model, steps = self.model, totals.fit_steps
        samples, checked = steps * model.batch, 256 * steps / model.check_every if model.split.holds_out else 0
        # The worst perturbation is found by the gradient of the inputs alone.
        perturbed = samples if model.adversarial else 0
        return {
            "dynamics": Calls(samples + perturbed + checked + totals.surveyed * totals.fits, samples + perturbed / 2, steps),
            "ending": Calls(2 * (samples + checked), 2 * samples, steps) if ended or not model.robust else Calls(steps=steps),
        }


@dataclass(frozen=True)
class OfRecurrent:
    model: Recurrent

    def memories(self, state: RecurrentState) -> Memories:
        memory = {"memory": (state.network, self.model.network.state(state.network))}
        return memory | OfEnsemble(self.model.ensemble).memories(state.ensemble)

    def step(self, state: RecurrentState, memory: Any, action: Array, key: Array) -> Parts:
        following = self.model.step(state, memory, action, key)[0].obs
        inputs = jnp.concatenate([memory.obs, memory.latent, action])
        return self._read(state, memory, action, following, key) | OfEnsemble(self.model.ensemble).predict(
            state.ensemble, inputs, following, key
        )

    def asked(self, state: RecurrentState) -> dict[str, Array | float]:
        return {"memory": 1.0} | OfEnsemble(self.model.ensemble).asked(state.ensemble)

    def informed(self, state: RecurrentState, by: RecurrentState) -> RecurrentState:
        return replace(state, ensemble=OfEnsemble(self.model.ensemble).informed(state.ensemble, by.ensemble))

    def _read(self, state: RecurrentState, memory: Any, action: Array, obs: Array, key: Array) -> Parts:
        seen = jnp.concatenate([obs, (obs - memory.obs) / state.ensemble.scale, action])
        return {"memory": self.model.network.operations(state.network, seen, memory.carry, key)}

    def observe(self, state: RecurrentState, belief: Belief, obs: Array, key: Array) -> Parts:
        return self._read(state, belief.memory, belief.action, obs, key)

    def fit(self, totals: Totals, ended: bool = True) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None:
            return None
        model, steps, surveyed = self.model, totals.fit_steps, min(totals.surveyed, 1000) * totals.fits
        samples = steps * model.ensemble.batch * (model.context + model.open_loop)
        perturbed = samples if model.ensemble.adversarial else 0
        return {
            "memory": Calls(samples + surveyed * model.warm_up, samples, steps),
            # Along the sequence, and again where the loss is taken.
            "dynamics": Calls(2 * samples + perturbed + surveyed, 2 * samples + perturbed / 2, steps),
            "ending": Calls(2 * samples, 2 * samples, steps) if ended or not model.ensemble.robust else Calls(steps=steps),
        }


@dataclass(frozen=True)
class OfTrueEnvironment:
    """Physics, not a network: what it computes stands for the world."""

    model: TrueEnvironment

    def memories(self, state: PyTree) -> Memories:
        return {}

    def step(self, state: PyTree, memory: Any, action: Array, key: Array) -> Parts:
        return {}

    def asked(self, state: PyTree) -> dict[str, Array | float]:
        return {}

    def informed(self, state: PyTree, by: PyTree) -> PyTree:
        return state

    def observe(self, state: PyTree, belief: Belief, obs: Array, key: Array) -> Parts:
        return {}

    def fit(self, totals: Totals, ended: bool = True) -> dict[str, Calls]:
        return {}


MODELS: Mapping[type, Callable[[Any], DescribesModel]] = {
    Ensemble: OfEnsemble, Recurrent: OfRecurrent, TrueEnvironment: OfTrueEnvironment,
}  # fmt: skip


def of_model(model: Any) -> DescribesModel:
    """Raises KeyError for a kind without a description."""
    return MODELS[type(model)](model)
