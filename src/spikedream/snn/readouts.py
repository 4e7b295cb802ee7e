"""Readouts turn the spikes and membranes of a spiking network's last hidden layer into real numbers."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Charges, Dense, Layer, PopulationSum, Potentials, Rates, numbers
from spikedream.snn.affine import Affine, affine
from spikedream.snn.neurons import AnyNeuron, CubaLIF, LeakyIntegrator, NeuronParams, NeuronState
from spikedream.snn.operations import ACTIVATION_ARITHMETIC, Operations, product_operations, standardising, tally
from spikedream.types import PyTree


class Decoding(NamedTuple):
    """A readout in effective values, for export."""

    layers: tuple[Layer, ...]  # after the hidden ones
    reading: Rates | Potentials | Charges  # of the last of all layers
    decoders: tuple[Dense | PopulationSum, ...]  # of what was read


class Readout(Protocol):
    def init(self, in_size: int, out_size: int, key: Array) -> PyTree: ...
    def start(self, params: PyTree) -> PyTree:
        """State at rest; None where there is none."""
        ...

    def decode(self, params: PyTree, state: PyTree, spikes: Array, v: Array) -> tuple[Array, PyTree, tuple[Array, ...]]:
        """From the last hidden layer's `spikes` and membranes `v`, each (ticks, in_size), to the output (out_size,), the new state,
        and the spike trains of any spiking output layer. `v` is after the reset, in units of the threshold, less what the membrane
        held before the first tick."""
        ...

    def operations(self, params: PyTree, state: PyTree, spikes: Array, trains: tuple[Array, ...]) -> tuple[Operations, ...]:
        """Of a call of `decode` on `spikes`, (ticks, in_size), that put out the spike `trains`."""
        ...

    def curvature(self, params: PyTree) -> Array:
        """Mean square of the weights by which the readout departs from a linear one; 0 where there are no such weights."""
        ...

    def describe(self, params: PyTree, threshold: Array) -> Decoding:
        """`threshold`, (in_size,), is that of the last hidden layer."""
        ...

    def in_fixed_point(self, params: PyTree, form: Any, ticks: int) -> tuple["Readout", PyTree]:
        """This readout and its parameters in the `FixedPoint` form; one that has no such method has none."""
        ...


@dataclass(frozen=True)
class RateReadout:
    """mean over ticks of the spikes, times weights. Beside a NIR graph, not in it: a readout of counts, not of spikes."""

    gain: float = 1.0

    def init(self, in_size: int, out_size: int, key: Array) -> Affine:
        return affine(in_size, out_size, key, self.gain)

    def start(self, params: PyTree) -> None:
        return None

    def decode(self, params: Affine, state: None, spikes: Array, v: Array):
        return params(spikes.mean(0, keepdims=True))[0], None, ()

    def operations(self, params: Affine, state: None, spikes: Array, trains: tuple[Array, ...]) -> tuple[Operations, ...]:
        return _counting(spikes), *params.operations("readout", spikes.sum(0, keepdims=True))

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())

    def describe(self, params: Affine, threshold: Array) -> Decoding:
        return Decoding((), Rates(), (params.describe(),))

    def in_fixed_point(self, params: Affine, form: Any, ticks: int) -> tuple["RateReadout", Affine]:
        return self, Affine(*form.decoder(params.weight, params.bias, ticks))


def _counting(spikes: Array) -> Operations:
    """Spikes are counted one by one; the division by the ticks is in the weights behind."""
    return tally("readout", "add", spikes.sum())


class MembraneWeights(eqx.Module):
    charge: Affine
    spikes: Array  # (in_size, out_size)


@dataclass(frozen=True)
class MembraneReadout:
    """(mean spikes + v / ticks) @ Wc + b + mean spikes @ Ws, with the final membrane v in units of the threshold.

    The residual charge in v is what the spike count rounds away; reading it makes a few ticks as precise as a conventional network.
    For soft-reset neurons of little leak, spikes and residue add up to the charge that came in, which is linear in the input: with
    Ws starting at zero the network starts linear, and a penalty on Ws (`Network.curvature`) holds it as near to linear as the data
    allow. That prior is what lets a model of a hundred transitions generalise. In a `persistent` network v is less what the
    membrane held before; the part of that which leaks in the window is missed, so that its neurons should leak next to nothing.
    On a chip: one analogue or multi-bit read of the membranes at the end of the window, counted as multiply-accumulates.
    """

    gain: float = 1.0

    def init(self, in_size: int, out_size: int, key: Array) -> MembraneWeights:
        return MembraneWeights(affine(in_size, out_size, key, self.gain), jnp.zeros((in_size, out_size)))

    def start(self, params: PyTree) -> None:
        return None

    def decode(self, params: MembraneWeights, state: None, spikes: Array, v: Array):
        rate = spikes.mean(0)
        charge = rate + v[-1] / spikes.shape[0]
        return params.charge(charge[None])[0] + rate @ params.spikes, None, ()

    def operations(self, params: MembraneWeights, state: None, spikes: Array, trains: tuple[Array, ...]) -> tuple[Operations, ...]:
        counts = spikes.sum(0, keepdims=True)
        read = tally("readout", "membrane_read", counts.size, {"multiply": 1, "add": 1})  # in units of the threshold, to the count
        by_spikes = product_operations("readout, spikes", counts, params.spikes, spiking=False)
        # A charge is a real number, which is never zero.
        return _counting(spikes), read, by_spikes, *params.charge.operations("readout", jnp.ones_like(counts))

    def curvature(self, params: MembraneWeights) -> Array:
        return jnp.square(params.spikes).mean()

    def describe(self, params: MembraneWeights, threshold: Array) -> Decoding:
        weight = jnp.concatenate([params.charge.weight, params.spikes])
        return Decoding((), Charges(numbers(threshold)), (Affine(weight, params.charge.bias).describe(),))


class LeakyWeights(eqx.Module):
    synapse: Affine
    neuron: NeuronParams


@dataclass(frozen=True)
class LeakyReadout:
    """Spikes drive one non-spiking leaky integrator per output; its final membrane, over the ticks, is the output."""

    neuron: LeakyIntegrator = LeakyIntegrator()
    gain: float = 1.0

    def init(self, in_size: int, out_size: int, key: Array) -> LeakyWeights:
        return LeakyWeights(affine(in_size, out_size, key, self.gain), self.neuron.init(out_size, key))

    def start(self, params: LeakyWeights) -> NeuronState:
        return self.neuron.start(params.neuron.decay.size)

    def decode(self, params: LeakyWeights, state: NeuronState, spikes: Array, v: Array):
        for current in params.synapse(spikes):
            state = self.neuron.step(params.neuron, state, current)
        return state.v / spikes.shape[0], state, ()

    def operations(
        self, params: LeakyWeights, state: NeuronState, spikes: Array, trains: tuple[Array, ...]
    ) -> tuple[Operations, ...]:
        silent = jnp.zeros((spikes.shape[0], params.neuron.decay.size))
        updates = self.neuron.operations(params.neuron, "readout", state.spikes, silent)
        scale = tally("readout", "membrane_read", silent.shape[1], {"multiply": 1})
        return *params.synapse.operations("readout", spikes, spiking=True), *updates, scale

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())

    def describe(self, params: LeakyWeights, threshold: Array) -> Decoding:
        return Decoding((Layer(params.synapse.describe(), self.neuron.describe(params.neuron)),), Potentials(), ())


class PopulationWeights(eqx.Module):
    synapse: Affine  # last hidden layer to the output populations
    neuron: NeuronParams
    decoder: Array  # (out_size, neurons)
    bias: Array  # (out_size,)


@dataclass(frozen=True)
class PopulationReadout:
    """PopSAN's decoder (Tang et al. 2020, eq. 4-5): a spiking population per output, read by its firing rates:
    out_i = sum_k w_ik rate_ik + b_i. Only spike counts leave the network. In a NIR graph the population is
    within, the sum beside it."""

    neurons: int = 8
    neuron: AnyNeuron = CubaLIF()
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, neurons=(1, None))

    def init(self, in_size: int, out_size: int, key: Array) -> PopulationWeights:
        synapse, neuron = jax.random.split(key)
        size = out_size * self.neurons
        # Half of a population raises its output and half lowers it, so that silence and full activity both mean zero.
        sign = jnp.where(jnp.arange(self.neurons) % 2 == 0, 1.0, -1.0).astype(jnp.float32)
        decoder = jnp.tile(sign * self.gain / self.neurons**0.5, (out_size, 1))
        # The bias current starts the population near half its range of rates, where the gradient flows.
        bias = jnp.full(size, 0.2, jnp.float32)
        weights = affine(in_size, size, synapse, bias=bias)
        return PopulationWeights(weights, self.neuron.init(size, neuron), decoder, jnp.zeros(out_size))

    def start(self, params: PopulationWeights) -> NeuronState:
        return self.neuron.start(params.neuron.decay.size)

    def decode(self, params: PopulationWeights, state: NeuronState, spikes: Array, v: Array):
        train = []
        for current in params.synapse(spikes):
            state = self.neuron.step(params.neuron, state, current)
            train.append(state.spikes)
        train = jnp.stack(train)
        rates = train.mean(0).reshape(params.decoder.shape)
        return (rates * params.decoder).sum(1) + params.bias, state, (train,)

    def operations(
        self, params: PopulationWeights, state: NeuronState, spikes: Array, trains: tuple[Array, ...]
    ) -> tuple[Operations, ...]:
        (train,) = trains
        decoder = product_operations("decoder", train.sum(0, keepdims=True), params.decoder[..., None], spiking=False)
        return (
            *params.synapse.operations("output population", spikes, spiking=True),
            *self.neuron.operations(params.neuron, "output population", state.spikes, train),
            _counting(train),
            decoder,
            tally("decoder", "bias", params.bias.size),
        )

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())

    def describe(self, params: PopulationWeights, threshold: Array) -> Decoding:
        layer = Layer(params.synapse.describe(), self.neuron.describe(params.neuron))
        return Decoding((layer,), Rates(), (PopulationSum(numbers(params.decoder), numbers(params.bias)),))

    def in_fixed_point(self, params: PopulationWeights, form: Any, ticks: int) -> tuple["PopulationReadout", PopulationWeights]:
        synapse, neuron = form.synapse(params.synapse, params.neuron)
        decoder, bias = form.decoder(params.decoder, params.bias, ticks)
        return replace(self, neuron=form.neuron(self.neuron)), PopulationWeights(synapse, neuron, decoder, bias)


class PopulationVectorWeights(eqx.Module):
    mix: Affine  # mean spikes and mean membranes to the hidden units
    activity: Affine  # to the logits of the populations, (hidden, out_size x neurons)
    direct: Affine  # (hidden, out_size)


@dataclass(frozen=True)
class PopulationVectorReadout:
    """Means over the ticks of spikes and of membranes, through one conventional layer to population vectors (Georgopoulos et al.
    1986) beside a linear map. An output's vector is the mean of its neurons' preferred values, which lie evenly in [-span, span],
    weighted by the softmax of their activities:

        h = silu(norm([mean s, mean v] W));   out_i = share sum_k softmax_k(h A_i) value_k + (1 - share) (h D_i + d_i)

    All behind the spikes is conventional, and the membranes are read in real numbers at every tick: multiply-accumulates, for a
    network that stays on the machine that trains it. Without `membranes` spikes alone are read.
    """

    hidden: int = 256
    neurons: int = 8
    span: float = 3.0
    share: float = 0.7  # of the population vector; the rest is linear
    membranes: bool = True
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None), neurons=(2, None), span=(1e-6, None), share=(0, 1))

    def init(self, in_size: int, out_size: int, key: Array) -> PopulationVectorWeights:
        mix, activity, direct = jax.random.split(key, 3)
        return PopulationVectorWeights(
            affine(in_size * (2 if self.membranes else 1), self.hidden, mix),
            affine(self.hidden, out_size * self.neurons, activity, self.gain),
            affine(self.hidden, out_size, direct, self.gain),
        )

    def start(self, params: PyTree) -> None:
        return None

    def decode(self, params: PopulationVectorWeights, state: None, spikes: Array, v: Array):
        seen = jnp.concatenate([spikes, v], axis=1) if self.membranes else spikes
        hidden = jax.nn.silu(jax.nn.standardize(params.mix(seen.mean(0, keepdims=True))))
        weights = jax.nn.softmax(params.activity(hidden).reshape(-1, self.neurons))
        # A sum, no product: where products are to be made in bfloat16, XLA's back end for CPUs aborts on this one's gradient.
        vector = (weights * jnp.linspace(-self.span, self.span, self.neurons, dtype=jnp.float32)[None]).sum(1)
        return self.share * vector + (1 - self.share) * params.direct(hidden)[0], None, ()

    def operations(
        self, params: PopulationVectorWeights, state: None, spikes: Array, trains: tuple[Array, ...]
    ) -> tuple[Operations, ...]:
        counts, populations = spikes.sum(0, keepdims=True), params.activity.bias.size // self.neurons
        found, seen = [_counting(spikes)], counts
        if self.membranes:
            found.append(tally("readout", "membrane_read", spikes.size, {"multiply": 1, "add": 1}))
            seen = jnp.concatenate([counts, jnp.ones_like(counts)], axis=1)
        hidden = jnp.ones((1, self.hidden))
        found += params.mix.operations("readout, mix", seen)
        found.append(tally("readout, mix", "layer_normalisation", 1, standardising(self.hidden)))
        found.append(tally("readout, mix", "activation", self.hidden, ACTIVATION_ARITHMETIC["silu"]))
        found += params.activity.operations("readout, population", hidden)
        vector = {"exponential": self.neurons, "add": 3 * self.neurons, "multiply": self.neurons + 1, "divide": 1}
        found.append(tally("readout, population", "population_vector", populations, vector))
        found += params.direct.operations("readout, direct", hidden)
        found.append(tally("readout, direct", "weighted_sum", populations, {"multiply": 2, "add": 1}))
        return tuple(found)

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())


AnyReadout = RateReadout | MembraneReadout | LeakyReadout | PopulationReadout | PopulationVectorReadout
