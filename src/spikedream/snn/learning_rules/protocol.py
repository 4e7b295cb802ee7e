"""What every learning rule offers: the forward pass of a layer and of a readout, with a gradient of the rule's own."""

from typing import NamedTuple, Protocol

import equinox as eqx
from jax import Array

from spikedream.snn.affine import Affine
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState
from spikedream.snn.operations import Operations
from spikedream.types import PyTree


class SpikingLayer(eqx.Module):
    synapse: Affine  # from what enters the layer to its neurons
    neuron: NeuronParams


class TickWindow(NamedTuple):
    """A layer's ticks of one call."""

    spikes: Array  # (ticks, size)
    v: Array  # (ticks, size) membranes less what they held before the first tick
    after: NeuronState  # after the last tick
    influence: PyTree  # of the parameters on `after`; empty where the rule keeps none


class Made(NamedTuple):
    """What a layer does in a call."""

    part: str  # its name
    synapse: tuple[Operations, ...]
    neuron: tuple[Operations, ...]
    train: Array  # (ticks, size) its spikes
    spiking: bool  # whether spikes enter, not real numbers
    persistent: bool  # whether influences come from the call before


class LearningRule(Protocol):
    """Changes no output, only gradients."""

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None:
        """Raises ValueError where the rule does not hold for these neurons."""
        ...

    def start(self, neuron: AnyNeuron, layer: SpikingLayer) -> PyTree:
        """The influence at rest, where the layer goes on from one call to the next; empty where the rule keeps none."""
        ...

    def window(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, influence: PyTree, ticks: int
    ) -> TickWindow:
        """A layer's ticks.

        Args:
            neuron, layer: what ticks.
            entering: (ticks, in_size), or (1, in_size) where it is the same at every tick.
            state: before the first tick.
            influence: of the parameters on `state`; None where it is at rest, whatever the parameters.
            ticks: how many.
        """
        ...

    def onward(self, readout: PyTree) -> PyTree:
        """A readout's parameters, through which the gradient goes on to the spikes as the rule has it."""
        ...

    def operations(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made
    ) -> tuple[Operations, ...]:
        """What a layer does in a call, and what the rule does for a gradient beside or in place of backpropagation.

        Args:
            neuron, layer, entering, state: as of `window`.
            made: what it does without a gradient.
        """
        ...
