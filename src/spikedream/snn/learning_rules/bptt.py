"""Backpropagation through time: what JAX makes of the loop over the ticks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from spikedream.snn.learning_rules.protocol import Made, SpikingLayer, TickWindow
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState
from spikedream.snn.operations import Operations
from spikedream.types import PyTree


def _step(neuron: AnyNeuron, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
    return neuron.step(params, state, x)


_compiled_step = jax.jit(_step, static_argnums=0)


def _step_apart(neuron: AnyNeuron, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
    """A tick that is compiled by itself, so that what it returns is made once: XLA's back end for CPUs makes no loop with two
    results, and would follow each membrane from the first tick on for every reader of it."""
    with set_xla_metadata(inlineable="false"):
        return _compiled_step(neuron, params, state, x)


@dataclass(frozen=True)
class BPTT:
    """Exact for everything, backwards in time: it remembers all ticks, and with `persistent` all steps that are differentiated."""

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None: ...

    def start(self, neuron: AnyNeuron, layer: SpikingLayer) -> tuple[()]:
        return ()

    def window(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, influence: PyTree, ticks: int
    ) -> TickWindow:
        currents = layer.synapse(entering)  # one row when the input is the same at every tick
        history = [state]
        step = _step_apart if neuron.norm == "layer" else _step  # to standardise is too dear to be done again
        for tick in range(ticks):
            history.append(step(neuron, layer.neuron, history[-1], currents[min(tick, currents.shape[0] - 1)]))
        spikes = jnp.stack([after.spikes for after in history[1:]])
        return TickWindow(spikes, jnp.stack([after.v - state.v for after in history[1:]]), history[-1], ())

    def onward(self, readout: PyTree) -> PyTree:
        return readout

    def operations(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made
    ) -> tuple[Operations, ...]:
        return *made.synapse, *made.neuron
