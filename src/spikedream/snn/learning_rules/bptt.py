"""Backpropagation through time: what JAX makes of the loop over the ticks."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from spikedream.snn.affine import Affine
from spikedream.snn.learning_rules.protocol import Window
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState
from spikedream.types import PyTree


@dataclass(frozen=True)
class BPTT:
    """Exact for everything, backwards in time: it remembers all ticks, and with `persistent` all steps that are differentiated."""

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None: ...

    def start(self, neuron: AnyNeuron, synapse: Affine, params: NeuronParams) -> tuple[()]:
        return ()

    def window(
        self,
        neuron: AnyNeuron,
        synapse: Affine,
        params: NeuronParams,
        entering: Array,
        state: NeuronState,
        influence: PyTree,
        ticks: int,
    ) -> Window:
        currents = synapse(entering)  # one row when the input is the same at every tick
        history = [state]
        for tick in range(ticks):
            history.append(neuron.step(params, history[-1], currents[min(tick, currents.shape[0] - 1)]))
        spikes = jnp.stack([after.spikes for after in history[1:]])
        return Window(spikes, jnp.stack([after.v - state.v for after in history[1:]]), history[-1], ())

    def decode(self, readout, params: PyTree, state: PyTree, spikes: Array, v: Array):
        return readout.decode(params, state, spikes, v)
