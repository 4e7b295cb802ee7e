"""Spiking networks in fixed point, as small computers and chips run them, and as they are fine-tuned for that.

Weights are whole multiples of a step, a power of two for each layer, and have few bits; membranes are whole multiples of a finer
one, the layer's unit, and have 16. All of these and every sum of them are exact in float32, so that what is trained is, spike by
spike, what integers compute. Gradients pass through the rounding as if it were not there (straight through; Bengio et al. 2013).

A membrane loses a 256th of itself times a whole number, rounded down: by a shift where that number is a power of two.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.integers import Counts, FixedCurrent, FixedNeurons, FixedSum, FixedWindow
from spikedream.nodes import Dense, Node, described, numbers
from spikedream.snn.affine import Affine, thin
from spikedream.snn.encoders import Encoding
from spikedream.snn.learning_rules.bptt import BPTT
from spikedream.snn.neurons import LIF, CubaLIF, NeuronParams, NeuronState, firing_threshold
from spikedream.snn.operations import Operations, firing, product_operations
from spikedream.snn.product import product
from spikedream.snn.surrogates import spike
from spikedream.types import PyTree

MEMBRANE = 2**15 - 1  # the largest, in units
HEADROOM = 8  # thresholds that a membrane can hold
LEAK = 256  # of which a membrane loses a whole number of parts


@jax.custom_jvp
def standing_for(value: Array, x: Array) -> Array:
    """`value`, with the gradient of `x`."""
    return value


@standing_for.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def _rounded(x: Array) -> Array:
    return standing_for(jnp.floor(x + 0.5), x)


class OnGrid(eqx.Module):
    """Neurons, and the unit of their membranes."""

    neuron: NeuronParams
    unit: Array  # ()

    @property
    def decay(self) -> Array:
        return self.neuron.decay

    @property
    def threshold(self) -> Array | None:
        return self.neuron.threshold


@dataclass(frozen=True)
class FixedPoint:
    bits: int = 8  # of a weight and of an input, with the sign
    fraction: int = 4  # bits of a membrane, and of an input, that are worth less than the step of a weight
    decay: Literal["shift", "multiply"] = "shift"  # what a membrane loses: a power of two of its 256 parts, or any number of them

    def __post_init__(self) -> None:
        check_bounds(self, bits=(2, 8), fraction=(0, 6))

    def check(self, network: Any) -> None:
        """Raises ValueError where a part has no form in fixed point."""
        for neuron in (network.neuron, getattr(network.readout, "neuron", network.neuron)):
            if not isinstance(neuron, LIF | CubaLIF) or neuron.norm != "none" or neuron.decay_input:
                raise ValueError(f"fixed_point is for LIF and CubaLIF without norm and decay_input, not {neuron}")
            if neuron.recurrent and network.branches:
                raise ValueError("fixed_point is for recurrent neurons of one group; set branches to none")
        if not hasattr(network.readout, "in_fixed_point"):
            name = type(network.readout).__name__
            raise ValueError(f"fixed_point is for readouts of spike counts, RateReadout and PopulationReadout, not {name}")
        if getattr(network.encoder, "currents", 0):
            raise ValueError("fixed_point is for spikes or currents as input, not for both; set encoder.currents to 0")
        if not isinstance(network.rule, BPTT):
            raise ValueError(
                f"fixed_point is learned through by BPTT alone, not by {type(network.rule).__name__}; set rule to BPTT"
            )

    def __call__(self, network: Any, params: Any) -> tuple[Any, Any]:
        """A network of parts in fixed point, and its parameters there, of one in float32 and its parameters."""
        layers = []
        for i, layer in enumerate(params.layers):
            synapse, neuron = self.synapse(layer.synapse if i else thin(layer.synapse, network.fan_in), layer.neuron)
            layers.append(replace(layer, synapse=synapse, neuron=neuron))
        readout, weights = network.readout.in_fixed_point(params.readout, self, network.ticks)
        parts = {"neuron": self.neuron(network.neuron), "encoder": FixedPointEncoder(network.encoder, self)}
        network = replace(network, **parts, readout=readout, fan_in=None, fixed_point=None)
        return network, replace(params, layers=tuple(layers), readout=weights, mask=None)

    # ---- numbers

    def _step(self, largest: Array) -> Array:
        """() a power of two, of which numbers up to `largest`, (), are so many as `bits` allow."""
        return jax.lax.stop_gradient(jnp.ldexp(jnp.float32(1), jnp.frexp(largest)[1] - (self.bits - 1)))

    def weights(self, x: Array, step: Array) -> Array:
        most = 2 ** (self.bits - 1) - 1
        return jnp.clip(_rounded(x / step), -most, most) * step

    def synapse(self, synapse: Affine, neuron: NeuronParams) -> tuple[Affine, OnGrid]:
        """Weights, biases and neurons of a layer, on its grid."""
        # The step must be so large that 16 bits hold a bias current, and several thresholds.
        share = 2.0 ** (self.bits - 1 + self.fraction) / MEMBRANE
        held = jnp.maximum(HEADROOM * firing_threshold(neuron).max(), jnp.abs(synapse.bias).max())
        largest = [jnp.abs(synapse.weight).max(), share * held]
        if neuron.recurrent is not None:
            largest.append(jnp.abs(neuron.recurrent).max())
        step = self._step(jnp.stack(largest).max())
        unit = step / 2**self.fraction
        if neuron.recurrent is not None:
            neuron = replace(neuron, recurrent=self.weights(neuron.recurrent, step))
        return Affine(self.weights(synapse.weight, step), _rounded(synapse.bias / unit) * unit), OnGrid(neuron, unit)

    def decoder(self, weight: Array, bias: Array, ticks: int) -> tuple[Array, Array]:
        """Of rates: weights, and a bias that is a whole number of steps in each tick."""
        held = 2.0 ** (self.bits - 1) / MEMBRANE * 2 * ticks * jnp.abs(bias).max()  # 16 bits hold the bias
        step = self._step(jnp.maximum(jnp.abs(weight).max(), held))
        return self.weights(weight, step), _rounded(bias * ticks / step) * step / ticks

    def inputs(self, x: Array) -> Array:
        most = 2 ** (self.bits - 1) - 1
        return jnp.clip(_rounded(x * 2**self.fraction), -most, most) / 2**self.fraction

    def leak(self, decay: Array) -> Array:
        """Parts of `LEAK` that are lost, from the logit of the decay."""
        parts = LEAK * jax.nn.sigmoid(-decay)
        if self.decay == "multiply":
            return standing_for(jnp.clip(jnp.floor(parts + 0.5), 1, LEAK - 1), parts)
        exponent = jnp.clip(jnp.floor(jnp.log2(parts) + 0.5), 0, 7).astype(jnp.int32)
        return standing_for(jnp.ldexp(jnp.float32(1), exponent), parts)

    def neuron(self, neuron: LIF | CubaLIF) -> "FixedPointNeuron":
        return FixedPointNeuron(neuron, self)

    # ---- for export

    def describe(self, network: Any, params: Any) -> tuple[Node, ...]:
        network, params = self(network, params)
        *before, window, decoder = network.describe(params)
        layers = tuple(replace(layer, synapses=_whole(layer.synapses, layer.neurons.unit)) for layer in window.layers)
        whole = FixedWindow(window.ticks, window.persistent, window.encoder, layers, Counts(), self.fraction)
        return *before, whole, FixedSum.of(decoder, window.ticks)


def _whole(synapses: Dense, unit: float) -> Dense:
    """In units."""
    return Dense(synapses.weight / numbers(unit), synapses.bias / numbers(unit))


@dataclass(frozen=True)
class FixedPointNeuron:
    """A neuron whose state stays on the grid of its layer."""

    neuron: LIF | CubaLIF
    form: FixedPoint

    @property
    def norm(self) -> str:
        return "none"

    @property
    def learn_threshold(self) -> bool:
        return self.neuron.learn_threshold

    def start(self, size: int) -> NeuronState:
        return self.neuron.start(size)

    def _threshold(self, params: OnGrid) -> Array:
        threshold = firing_threshold(params.neuron)
        threshold = threshold if self.neuron.learn_threshold else jax.lax.stop_gradient(threshold)
        return _rounded(threshold / params.unit) * params.unit

    def _leak(self, decay: Array) -> Array:
        return self.form.leak(decay if self.neuron.learn_decay else jax.lax.stop_gradient(decay))

    def _kept(self, decay: Array, x: Array, unit: Array) -> Array:
        """What is left of `x`, (size,), after a tick."""
        lost = x / unit * (self._leak(decay) / LEAK)
        return x - standing_for(jnp.floor(lost), lost) * unit

    def step(self, params: OnGrid, state: NeuronState, x: Array) -> NeuronState:
        cell, unit, current = params.neuron, params.unit, None
        if cell.recurrent is not None:
            x = x + product(state.spikes[None], cell.recurrent)[0]
        if cell.synapse_decay is not None:
            assert state.current is not None
            x = current = _saturated(self._kept(cell.synapse_decay, state.current, unit) + x, unit)
        u, threshold = _saturated(self._kept(cell.decay, state.v, unit) + x, unit), self._threshold(params)
        spikes = spike(u - threshold, self.neuron.surrogate)
        fired = jax.lax.stop_gradient(spikes) if self.neuron.detach_reset else spikes
        return NeuronState(u - fired * threshold if self.neuron.reset == "soft" else u * (1 - fired), spikes, current)

    def operations(self, params: OnGrid, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        """A leak is a subtraction, and a multiplication where it is no shift; a threshold a comparison."""
        leaks = 1 if params.neuron.synapse_decay is None else 2
        arithmetic = {"add": 2 * leaks + 1} | ({"multiply": leaks} if self.form.decay == "multiply" else {})
        found = firing(part, train, arithmetic, int(self.neuron.reset == "soft"))
        if params.neuron.recurrent is None:
            return found
        heard = jnp.concatenate([before[None], train[:-1]])
        return (*found, product_operations(f"{part}, recurrent", heard, params.neuron.recurrent, spiking=True))

    def describe(self, params: OnGrid) -> FixedNeurons:
        cell, unit = params.neuron, params.unit
        return FixedNeurons(
            decay=numbers(self._leak(cell.decay)),
            threshold=numbers(self._threshold(params) / unit),
            reset=self.neuron.reset,
            unit=float(unit),
            synapse_decay=None if cell.synapse_decay is None else numbers(self._leak(cell.synapse_decay)),
            recurrent=None if cell.recurrent is None else numbers(cell.recurrent / unit),
        )


def _saturated(x: Array, unit: Array) -> Array:
    return jnp.clip(x, -MEMBRANE * unit, MEMBRANE * unit)


@dataclass(frozen=True)
class FixedPointEncoder:
    """Numbers of few bits where an encoder puts out numbers; spikes as they are."""

    encoder: Any
    form: FixedPoint

    @property
    def spiking(self) -> bool:
        return self.encoder.spiking

    def encode(self, params: PyTree, x: Array, ticks: int, key: Array | None) -> Array:
        encoded = self.encoder.encode(params, x, ticks, key)
        return encoded if self.spiking else self.form.inputs(encoded)

    def operations(self, params: PyTree, encoded: Array) -> tuple[Operations, ...]:
        return self.encoder.operations(params, encoded)

    def describe(self, params: PyTree) -> Encoding:
        found: Encoding = described(self.encoder, params)
        whole = FixedCurrent(self.form.fraction, 2 ** (self.form.bits - 1) - 1)
        return found if self.spiking else found._replace(entering=whole)
