"""e-prop: eligibility traces times a learning signal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.snn.affine import Affine
from spikedream.snn.learning_rules.influence import Influence, at_rest, operations, window
from spikedream.snn.learning_rules.pattern import Own
from spikedream.snn.learning_rules.protocol import Made, SpikingLayer, TickWindow
from spikedream.snn.learning_rules.rtrl import check_elementwise
from spikedream.snn.neurons import AnyNeuron, NeuronState
from spikedream.snn.operations import Operations, for_gradient, without_gradient
from spikedream.snn.product import product
from spikedream.types import PyTree


class _Aligned(eqx.Module):
    """Synapses whose gradient goes on through other weights than their own (Lillicrap et al. 2016, feedback alignment)."""

    synapse: Affine
    feedback: Array

    @property
    def bias(self) -> Array:
        return self.synapse.bias

    def __call__(self, x: Array) -> Array:
        return _align(self.synapse, self.feedback, x)

    def operations(self, part: str, x: Array, *, spiking: bool = False, repeats: int = 1) -> tuple[Operations, ...]:
        """As `Affine.operations`; the gradient goes on through every weight of the feedback, also where a synapse is zero."""
        made, bias = self.synapse.operations(part, x, spiking=spiking, repeats=repeats)
        back = for_gradient(f"{part}, feedback", "backward", x.shape[0] * self.feedback.size)
        learned = replace(made, gradient="alone", connections=None, part=f"{part}, weights")
        return *without_gradient((made,)), bias, learned, back


@jax.custom_vjp
def _align(synapse: Affine, feedback: Array, x: Array) -> Array:
    return synapse(x)


def _align_pull(kept: tuple[Affine, Array, Array], cotangent: Array):
    _, feedback, x = kept
    gradient = Affine(product(x.T, cotangent), cotangent.sum(0))
    return gradient, jnp.zeros_like(feedback), product(cotangent, feedback.T)


_align.defvjp(lambda *arguments: (_align(*arguments), arguments), _align_pull)


@dataclass(frozen=True)
class EProp:
    """e-prop (Bellec et al. 2020): each synapse keeps a trace of its influence on its own neuron alone, through the neuron's own
    state, and learns by it times the gradient that reaches the neuron's spikes directly from the output.

    With the path through the reset (`reset`), which the publication leaves out, it is exact for one hidden layer whose neurons do
    not hear each other. Recurrent weights are learned, but not by what a spike does to other neurons. `feedback` "random" brings
    the output's gradient to the spikes, and from layer to layer, through fixed random weights in place of the synapses': those of
    the readout's first synapses; what a `MembraneReadout` adds for spikes, and decoders of populations, stay as they are.
    What holds of RTRL for several layers and for `persistent` networks holds here.
    """

    feedback: Literal["symmetric", "random"] = "symmetric"
    reset: bool = True  # the trace follows the reset

    def check(self, neuron: AnyNeuron, branches: tuple[float, ...]) -> None:
        check_elementwise(self, neuron)

    def _backward(self, neuron: AnyNeuron) -> AnyNeuron:
        return neuron if self.reset else replace(neuron, detach_reset=True)

    def start(self, neuron: AnyNeuron, layer: SpikingLayer) -> Influence:
        return at_rest(neuron, Own(layer.neuron.decay.size), layer)

    def window(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, influence: Influence | None, ticks: int
    ) -> TickWindow:
        back, feedback = self._backward(neuron), None if self.feedback == "symmetric" else _random(layer.synapse.weight)
        pattern = Own(layer.neuron.decay.size)
        return window(neuron, pattern, layer, entering, state, influence, ticks, backward=back, feedback=feedback)

    def onward(self, readout: PyTree) -> PyTree:
        if self.feedback == "symmetric":
            return readout
        return _each_synapse(readout, lambda synapse: _Aligned(synapse, _random(synapse.weight)))

    def operations(
        self, neuron: AnyNeuron, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made
    ) -> tuple[Operations, ...]:
        back, pattern = self._backward(neuron), Own(layer.neuron.decay.size)
        return operations(neuron, pattern, layer, entering, state, made, backward=back, feedback=self.feedback == "random")


def _each_synapse(tree: PyTree, change: Callable[[Affine], PyTree]) -> PyTree:
    def is_synapse(x: PyTree) -> bool:
        return isinstance(x, Affine)

    return jax.tree.map(lambda x: change(x) if is_synapse(x) else x, tree, is_leaf=is_synapse)


def _random(weight: Array) -> Array:
    """Like fresh weights, the same whenever they are asked for; of an ensemble's members alike."""
    inputs, outputs = weight.shape
    return jax.random.normal(jax.random.key(inputs * 65_537 + outputs), weight.shape, weight.dtype) / inputs**0.5
