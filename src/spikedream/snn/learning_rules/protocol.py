"""What every learning rule offers: the forward pass of a layer and of a readout, with a gradient of the rule's own."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import equinox as eqx
from jax import Array

from spikedream.snn.affine import Affine
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState
from spikedream.types import PyTree

if TYPE_CHECKING:
    from spikedream.snn.readouts import Readout


class SpikingLayer(eqx.Module):
    synapse: Affine  # from what enters the layer to its neurons
    neuron: NeuronParams


class TickWindow(NamedTuple):
    """A layer's ticks of one call."""

    spikes: Array  # (ticks, size)
    v: Array  # (ticks, size) membranes less what they held before the first tick
    after: NeuronState  # after the last tick
    influence: PyTree  # of the parameters on `after`; empty where the rule keeps none


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

    def decode(
        self, readout: "Readout", params: PyTree, state: PyTree, spikes: Array, v: Array
    ) -> tuple[Array, PyTree, tuple[Array, ...]]:
        """As `Readout.decode`."""
        ...
