"""Real-time recurrent learning, exact and sparse."""

import functools
from dataclasses import dataclass

from jax import Array

from spikedream.bounds import check_bounds
from spikedream.snn.learning_rules.influence import Influence, at_rest, operations, window
from spikedream.snn.learning_rules.pattern import Pattern, pattern
from spikedream.snn.learning_rules.protocol import Made, SpikingLayer, TickWindow
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState, heard
from spikedream.snn.operations import Operations
from spikedream.types import PyTree


def check_elementwise(rule: object, neuron: AnyNeuron) -> None:
    """Raises ValueError where a tick mixes neurons otherwise than through their spikes."""
    if neuron.norm != "none":
        raise ValueError(
            f'{type(rule).__name__} follows each neuron by itself, which norm "{neuron.norm}" of {type(neuron).__name__} does not'
            ' allow; set norm to "none", or the rule to BPTT'
        )


@functools.cache
def kept(neuron: AnyNeuron, size: int, branches: int, hops: int) -> Pattern:
    return pattern(heard(neuron, size, branches) if neuron.recurrent else None, size, hops)


@dataclass(frozen=True)
class SnAp:
    """Sparse n-step approximation of real-time recurrent learning (Menick et al. 2021): the influence of a parameter is kept on
    those neurons alone that it reaches within `order` steps.

    That is the neuron that it belongs to (order 1), those that hear it (order 2), and so on; what comes back to these through
    others is lost. Exact, as RTRL is, where there is no recurrence. It saves where neurons hear few others
    (`recurrent_fan_in`, branches): of a layer in which all hear all, order 2 is RTRL. What holds of RTRL for several layers and
    for `persistent` networks holds here.
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_bounds(self, order=(1, None))

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None:
        check_elementwise(self, neuron)

    def _pattern(self, neuron: AnyNeuron, params: NeuronParams) -> Pattern:
        return kept(neuron, params.decay.size, params.branches, self.order - 1)

    def start(self, neuron: AnyNeuron, layer: SpikingLayer) -> Influence:
        return at_rest(neuron, self._pattern(neuron, layer.neuron), layer)

    def window(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, influence: Influence | None, ticks: int
    ) -> TickWindow:
        return window(neuron, self._pattern(neuron, layer.neuron), layer, entering, state, influence, ticks)

    def onward(self, readout: PyTree) -> PyTree:
        return readout

    def operations(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made
    ) -> tuple[Operations, ...]:
        return operations(neuron, self._pattern(neuron, layer.neuron), layer, entering, state, made)


@dataclass(frozen=True)
class RTRL:
    """Real-time recurrent learning (Williams & Zipser 1989): the gradient forward in time.

    Exact for a network of one hidden layer, its synapses, decays, thresholds and recurrent weights: equal to backpropagation
    through time. Also for what enters it, where the encoder gives a constant current; of input that changes from tick to tick the
    gradient is that of each tick through itself alone, as Bohnstingl et al. 2022 (OSTL) pass it on to the layer below. So, with
    several layers, that is all that lower layers learn from, and of an encoder that spikes its receptive fields.
    The readout's own few ticks are differentiated as they stand.

    Costs: O(size) a tick where neurons do not hear each other and the input is constant, O(inputs x size) where it is not, and
    O(size^3 (size + inputs)) where all hear all; there, neurons whose surrogate is zero pass nothing on and cost nothing, and
    weights that are not there (`recurrent_fan_in`, branches) have no influence to keep.

    With `persistent`, the influence is a part of the carry, and a step's gradient is that of its own loss by all the past: exact
    while parameters stand still, without looking back, whether or not the carry's gradient is stopped. What entered in earlier
    steps gets no gradient.
    """

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None:
        check_elementwise(self, neuron)

    def start(self, neuron: AnyNeuron, layer: SpikingLayer) -> Influence:
        return self._far(layer).start(neuron, layer)

    def window(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, influence: Influence | None, ticks: int
    ) -> TickWindow:
        return self._far(layer).window(neuron, layer, entering, state, influence, ticks)

    def _far(self, layer: SpikingLayer) -> SnAp:
        """No path is longer than through all neurons."""
        return SnAp(1 + layer.neuron.decay.size)

    def onward(self, readout: PyTree) -> PyTree:
        return readout

    def operations(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made
    ) -> tuple[Operations, ...]:
        return self._far(layer).operations(neuron, layer, entering, state, made)
