"""What world models call, in an imagined step and in a fit."""

from collections.abc import Callable, Collection, Mapping
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

RARE = ("ending", "impact")  # of which a robust model learns nothing before there was one


def _without_impacts(state: EnsembleState) -> EnsembleState:
    """In which the dynamics have the last word."""
    return state if state.impact is None else replace(state, impact=jnp.zeros_like(state.impact))


def _learned(calls: dict[str, Calls], model: Ensemble, met: Collection[str], steps: float) -> dict[str, Calls]:
    """Of those networks that `model` has."""
    idle = [name for name in RARE if model.robust and name not in met]
    there = [name for name in calls if name != "impact" or model.impacts]
    return {name: Calls(steps=steps) if name in idle else calls[name] for name in there}


@dataclass(frozen=True)
class OfEnsemble:
    model: Ensemble

    def memories(self, state: EnsembleState) -> Memories:
        model, members = self.model, state.members
        told = {"ending": members.ending} | ({"impact": members.impact} if model.impacts else {})
        return {
            "dynamics": (members.dynamics, jax.vmap(model.dynamics.state)(members.dynamics)),
            **{name: (params, jax.vmap(model.ending.state)(params)) for name, params in told.items()},
        }

    def step(self, state: EnsembleState, memory: Any, action: Array, key: Array) -> Parts:
        led = self.model.step(_without_impacts(state), memory, action, key)[0].obs
        return self.predict(state, jnp.concatenate([memory.obs, action]), led, key)

    def predict(self, state: EnsembleState, inputs: Array, led: Array, key: Array) -> Parts:
        """`led`: (obs_size,) the state that the dynamics lead to."""
        model, members = self.model, state.members
        dynamics = jax.vmap(lambda m: model.dynamics.operations(m.dynamics, inputs, key=key))(members)
        prior = None if state.search is None else state.search.chosen
        ending = jax.vmap(lambda m: model.ending.operations(under(model.ending, m.ending, prior), led, key=key))(members)
        parts = {"dynamics": summed(dynamics), "ending": summed(ending)}
        if model.impacts:
            parts["impact"] = summed(jax.vmap(lambda m: model.ending.operations(m.impact, led, key=key))(members))
        return parts

    def asked(self, state: EnsembleState) -> dict[str, Array | float]:
        # As long as no episode has terminated, none is predicted, and no impact where there are none.
        impact = {} if state.impact is None else {"impact": (state.impact > 0).any().astype(jnp.float32)}
        return {"dynamics": 1.0, "ending": (state.endings > 0).astype(jnp.float32)} | impact

    def informed(self, state: EnsembleState, by: EnsembleState) -> EnsembleState:
        return replace(state, endings=by.endings, impact=by.impact)

    def observe(self, state: EnsembleState, belief: Belief, obs: Array, key: Array) -> Parts:
        return {}

    def fit(self, totals: Totals, met: Collection[str] = RARE) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None or (self.model.gaussian and self.model.split.holds_out):
            return None  # with calibration, which goes over held-out data as often as it needs
        if self.model.search is not None:
            return None  # its own ensemble is fitted beside
        model, steps = self.model, totals.fit_steps
        samples, checked = steps * model.batch, 256 * steps / model.check_every if model.split.holds_out else 0
        # The worst perturbation is found by the gradient of the inputs alone.
        perturbed = samples if model.adversarial else 0
        found = {
            "dynamics": Calls(samples + perturbed + checked + totals.surveyed * totals.fits, samples + perturbed / 2, steps),
            "ending": Calls(2 * (samples + checked), 2 * samples, steps),
            "impact": Calls(samples + checked, samples, steps),
        }
        return _learned(found, model, met, steps)


@dataclass(frozen=True)
class OfRecurrent:
    model: Recurrent

    def memories(self, state: RecurrentState) -> Memories:
        memory = {"memory": (state.network, self.model.network.state(state.network))}
        return memory | OfEnsemble(self.model.ensemble).memories(state.ensemble)

    def step(self, state: RecurrentState, memory: Any, action: Array, key: Array) -> Parts:
        calm = replace(state, ensemble=_without_impacts(state.ensemble))
        following, led = (self.model.step(s, memory, action, key)[0].obs for s in (state, calm))
        inputs = jnp.concatenate([memory.obs, memory.latent, action])
        return self._read(state, memory, action, following, key) | OfEnsemble(self.model.ensemble).predict(
            state.ensemble, inputs, led, key
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

    def fit(self, totals: Totals, met: Collection[str] = RARE) -> dict[str, Calls] | None:
        if totals.fit_steps is None or totals.fits is None:
            return None
        model, steps, surveyed = self.model, totals.fit_steps, min(totals.surveyed, 1000) * totals.fits
        samples = steps * model.ensemble.batch * (model.context + model.open_loop)
        perturbed = samples if model.ensemble.adversarial else 0
        found = {
            "memory": Calls(samples + surveyed * model.warm_up, samples, steps),
            # Along the sequence, and again where the loss is taken.
            "dynamics": Calls(2 * samples + perturbed + surveyed, 2 * samples + perturbed / 2, steps),
            "ending": Calls(2 * samples, 2 * samples, steps),
            "impact": Calls(samples, samples, steps),
        }
        return _learned(found, model.ensemble, met, steps)


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

    def fit(self, totals: Totals, met: Collection[str] = RARE) -> dict[str, Calls]:
        return {}


MODELS: Mapping[type, Callable[[Any], DescribesModel]] = {
    Ensemble: OfEnsemble, Recurrent: OfRecurrent, TrueEnvironment: OfTrueEnvironment,
}  # fmt: skip


def of_model(model: Any) -> DescribesModel:
    """Raises KeyError for a kind without a description."""
    return MODELS[type(model)](model)
