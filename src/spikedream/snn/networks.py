"""Feed-forward networks, spiking and conventional, behind one call.

`init` makes the parameters, `start` the carry of one sample, `__call__` maps one input to one output. Map with `jax.vmap` over
samples, members or seeds.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.nodes import Activation, Dense, Layer, LayerNorm, Node, Unexportable, Window, described
from spikedream.snn.codings import (
    Affine,
    AnyEncoder,
    AnyReadout,
    DirectCurrent,
    MembraneReadout,
    PopulationVectorReadout,
    RateReadout,
    affine,
)
from spikedream.snn.neurons import LIF, OPEN_UNIT, AnyNeuron, NeuronParams, firing_threshold
from spikedream.snn.operations import ACTIVATION_ARITHMETIC, SIGMOID, Activity, Operations, product_operations, standardising, tally
from spikedream.types import PyTree, check_bounds

ACTIVATIONS = {"silu": jax.nn.silu, "tanh": jnp.tanh, "relu": jax.nn.relu, "elu": jax.nn.elu}


class Output(NamedTuple):
    value: Array  # (out_size,)
    carry: PyTree  # state for the next environment step; empty when nothing is kept
    spikes: tuple[Array, ...]  # spike train per layer, (ticks, neurons); sum over axis 0 for the counts


class Network(Protocol):
    def init(self, in_size: int, out_size: int, key: Array) -> PyTree: ...
    def start(self, params: PyTree) -> PyTree:
        """The carry at the start of an episode."""
        ...

    def __call__(self, params: PyTree, x: Array, carry: PyTree = (), key: Array | None = None) -> Output: ...
    def curvature(self, params: PyTree) -> Array:
        """Mean square of the weights by which the network departs from a linear map; a penalty on it is a prior for smoothness."""
        ...

    def readout_l1(self, params: PyTree) -> Array:
        """Sum of the magnitudes of the readout's weights; a penalty on it leaves few hidden neurons in use."""
        ...

    def operations(self, params: PyTree, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        """Of one call with the same arguments, by the spikes that occur in it."""
        ...

    def state(self, params: PyTree) -> PyTree:
        """What it must hold between its ticks."""
        ...

    def twin(self) -> "MLP | Linear | GRU":
        """The conventional network of the same widths, with a memory where this one has one."""
        ...

    def describe(self, params: PyTree) -> tuple[Node, ...]:
        """In effective values, for export; a network that has no such method cannot leave Python."""
        ...


class SpikingLayer(eqx.Module):
    synapse: Affine
    neuron: NeuronParams


class SpikingParams(eqx.Module):
    encoder: PyTree
    layers: tuple[SpikingLayer, ...]
    readout: PyTree


@dataclass(frozen=True)
class SpikingNetwork:
    """Encoder, hidden layers of spiking neurons over `ticks` ticks, readout. What travels between layers is binary.

    With `persistent`, membranes are kept in the carry from one environment step to the next; without, or with an empty carry,
    a call starts from rest.

    With `branches` each layer is several groups of equal size side by side: each begins with a membrane decay of its own, is
    recurrent only within itself and normalised by itself, where its neurons are so; all hear the whole layer before them, and
    their spikes are joined.
    """

    hidden: tuple[int, ...] = (64,)
    ticks: int = 6
    neuron: AnyNeuron = LIF()
    encoder: AnyEncoder = DirectCurrent()
    readout: AnyReadout = RateReadout()
    persistent: bool = False
    bias: tuple[float, float] = (-0.5, 1.0)  # initial bias currents, spread evenly so that neurons differ in what wakes them
    gain: float = 0.7  # standard deviation of a neuron's input current under unit-variance input
    fan_in: int | None = None  # inputs that each neuron of the first layer listens to; None for all
    branches: tuple[float, ...] = ()  # membrane decay with which each begins, in place of the neuron's own; none: one group

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None), ticks=(1, None))
        if self.branches:
            check_bounds(self, branches=OPEN_UNIT)
            if any(size % len(self.branches) for size in self.hidden):
                raise ValueError(f"hidden is {list(self.hidden)}; {len(self.branches)} branches must be able to share each equally")
        if self.fan_in is not None:
            check_bounds(self, fan_in=(1, None))

    def init(self, in_size: int, out_size: int, key: Array) -> SpikingParams:
        width, layers = self.encoder.channels(in_size), []
        *keys, readout_key = jax.random.split(key, len(self.hidden) + 1)
        for size, layer_key in zip(self.hidden, keys, strict=True):
            weight_key, neuron_key, bias_key = jax.random.split(layer_key, 3)
            bias = jax.random.permutation(bias_key, jnp.linspace(*self.bias, size, dtype=jnp.float32))
            synapse = affine(width, size, weight_key, self.gain, bias)
            layers.append(SpikingLayer(synapse, self._neurons(size, neuron_key)))
            width = size
        return SpikingParams(self.encoder.init(in_size), tuple(layers), self.readout.init(width, out_size, readout_key))

    def _neurons(self, size: int, key: Array) -> NeuronParams:
        """Of one layer."""
        if not self.branches:
            return self.neuron.init(size, key)
        keys, share = jax.random.split(key, len(self.branches)), size // len(self.branches)
        each = [replace(self.neuron, decay=(b, b)).init(share, k) for b, k in zip(self.branches, keys, strict=True)]
        joined = jax.tree.map(lambda *leaves: (jnp.concatenate if leaves[0].ndim == 1 else jnp.stack)(leaves), *each)
        return replace(joined, branches=len(self.branches))

    def _rest(self, params: SpikingParams) -> PyTree:
        return tuple(self.neuron.start(size) for size in self.hidden), self.readout.start(params.readout)

    def start(self, params: SpikingParams) -> PyTree:
        return self._rest(params) if self.persistent else ()

    def __call__(self, params: SpikingParams, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        states, readout = carry if self.persistent and carry else self._rest(params)
        spikes = self.encoder.encode(params.encoder, x, self.ticks, key)
        trains, after = [], []
        for layer, state in zip(params.layers, states, strict=True):
            synapse = layer.synapse if trains else _thin(layer.synapse, self.fan_in)
            currents = synapse(spikes)  # one row when the input is the same at every tick
            history = [state]
            for tick in range(self.ticks):
                history.append(self.neuron.step(layer.neuron, history[-1], currents[min(tick, currents.shape[0] - 1)]))
            spikes = jnp.stack([state.spikes for state in history[1:]])
            trains.append(spikes)
            after.append(history[-1])
        # What the membrane held before is not of this step: spikes plus the change of the membrane are the charge that came in.
        change = jnp.stack([state.v - states[-1].v for state in history[1:]])
        v = change / self._threshold(params.layers[-1].neuron)[None]
        value, readout, out_trains = self.readout.decode(params.readout, readout, spikes, v)
        kept = (tuple(after), readout) if self.persistent else ()
        return Output(value, kept, (*trains, *out_trains))

    def _threshold(self, neuron: NeuronParams) -> Array:
        threshold = firing_threshold(neuron)
        return threshold if self.neuron.learn_threshold else jax.lax.stop_gradient(threshold)

    def curvature(self, params: SpikingParams) -> Array:
        recurrent = [layer.neuron.recurrent for layer in params.layers if layer.neuron.recurrent is not None]
        return self.readout.curvature(params.readout) + sum(jnp.square(weights).mean() for weights in recurrent)

    def readout_l1(self, params: SpikingParams) -> Array:
        return _l1(params.readout)

    def operations(self, params: SpikingParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        states, readout = carry if self.persistent and carry else self._rest(params)
        trains = self(params, x, carry, key).spikes
        hidden, out_trains = trains[: len(self.hidden)], trains[len(self.hidden) :]
        entering, spiking = self.encoder.encode(params.encoder, x, self.ticks, key), self.encoder.spiking
        found = [*self.encoder.operations(params.encoder, entering)]
        for i, (layer, state, train) in enumerate(zip(params.layers, states, hidden, strict=True)):
            part, synapse = f"layer {i + 1}", layer.synapse if i else _thin(layer.synapse, self.fan_in)
            repeats = self.ticks // entering.shape[0]
            found += synapse.operations(part, entering, spiking=spiking, repeats=repeats)
            found += self.neuron.operations(layer.neuron, part, state.spikes.reshape(-1), train)
            entering, spiking = train, True
        return *found, *self.readout.operations(params.readout, readout, entering, out_trains)

    def state(self, params: SpikingParams) -> PyTree:
        return self._rest(params)

    def twin(self) -> "MLP | GRU":
        gain, skip = self.readout.gain, isinstance(self.readout, MembraneReadout)
        if self.persistent:
            return GRU(self.hidden[-1], gain=gain)
        behind = (self.readout.hidden,) if isinstance(self.readout, PopulationVectorReadout) else ()
        return MLP((*self.hidden, *behind), norm=self.neuron.norm, gain=gain, skip=skip, fan_in=self.fan_in)

    def describe(self, params: SpikingParams) -> tuple[Node, ...]:
        first, *others = (layer.synapse for layer in params.layers)
        synapses = (_thin(first, self.fan_in), *others)
        neurons = (described(self.neuron, layer.neuron) for layer in params.layers)
        layers = tuple(Layer(synapse.describe(), each) for synapse, each in zip(synapses, neurons, strict=True))
        decoding = described(self.readout, params.readout, self._threshold(params.layers[-1].neuron))
        encoder = described(self.encoder, params.encoder)
        return Window(self.ticks, self.persistent, encoder, layers + decoding.layers, decoding.reading), *decoding.decoders


def _thin(synapse: Affine, fan_in: int | None) -> Affine:
    """Keeps `fan_in` inputs for each neuron, in turn over the inputs, and the variance of their sum."""
    inputs, neurons = synapse.weight.shape
    if fan_in is None or fan_in >= inputs:
        return synapse
    kept = (jnp.arange(inputs)[:, None] - jnp.arange(neurons)[None]) % inputs < fan_in
    return Affine(synapse.weight * kept * (inputs / fan_in) ** 0.5, synapse.bias)


def _l1(readout: PyTree) -> Array:
    return jnp.stack([jnp.abs(x).sum() for x in jax.tree.leaves(readout) if x.ndim == 2]).sum()


def _active(x: Array) -> Activity:
    return Activity(x.size, (x != 0).sum().astype(jnp.float32))


class MLPParams(eqx.Module):
    layers: tuple[Affine, ...]
    skip: Array | None  # (in_size, out_size) straight from input to output


@dataclass(frozen=True)
class MLP:
    """The conventional twin: dense layers with a pointwise nonlinearity, no state.

    With `norm` "layer" what enters each nonlinearity is standardised over its layer (Ba et al. 2016, without gain and shift). With
    `skip`, a linear map from input to output is added and the last layer starts at zero, so that the network starts linear as one
    with `MembraneReadout` does.
    """

    hidden: tuple[int, ...] = (64,)
    activation: Literal["silu", "tanh", "relu", "elu"] = "silu"
    norm: Literal["none", "layer"] = "none"
    gain: float = 1.0  # scale of the output layer's initial weights
    hidden_gain: float | None = None  # of the other layers'; None: that which keeps the variance
    skip: bool = False
    fan_in: int | None = None  # inputs that each unit of the first layer listens to; None for all

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None))

    @property
    def persistent(self) -> bool:
        return False

    def init(self, in_size: int, out_size: int, key: Array) -> MLPParams:
        sizes = (in_size, *self.hidden)
        *keys, last, skip = jax.random.split(key, len(sizes) + 1)
        gain = self.hidden_gain
        if gain is None:
            gain = 2**0.5 if self.activation != "tanh" else 1.0
        layers = [affine(a, b, k, gain) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)]
        output = affine(sizes[-1], out_size, last, 0.0 if self.skip else self.gain)
        straight = affine(in_size, out_size, skip, self.gain).weight if self.skip else None
        return MLPParams((*layers, output), straight)

    def start(self, params: MLPParams) -> PyTree:
        return ()

    def __call__(self, params: MLPParams, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        straight = 0.0 if params.skip is None else x @ params.skip
        *_, last = self._entering(params, x)
        return Output(params.layers[-1](last)[0] + straight, (), ())

    def _entering(self, params: MLPParams, x: Array) -> list[Array]:
        """What enters each layer, (1, in_size) each."""
        entering = [x[None]]
        for i, layer in enumerate(params.layers[:-1]):
            layer = layer if i else _thin(layer, self.fan_in)
            entering.append(self._activate(layer(entering[-1])))
        return entering

    def _activate(self, x: Array) -> Array:
        if self.norm == "layer":
            x = jax.nn.standardize(x, axis=-1)
        return ACTIVATIONS[self.activation](x)

    def curvature(self, params: MLPParams) -> Array:
        return jnp.zeros(()) if params.skip is None else jnp.square(params.layers[-1].weight).mean()

    def readout_l1(self, params: MLPParams) -> Array:
        return _l1(params.layers[-1])

    def operations(self, params: MLPParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        found, entering = [], self._entering(params, x)
        for i, (layer, into) in enumerate(zip(params.layers, entering, strict=True)):
            part = f"layer {i + 1}"
            found += (layer if i else _thin(layer, self.fan_in)).operations(part, into)
            if i + 1 < len(params.layers):
                after = entering[i + 1]
                if self.norm == "layer":
                    found.append(tally(part, "layer_normalisation", 1, standardising(after.size)))
                found.append(tally(part, "activation", after.size, ACTIVATION_ARITHMETIC[self.activation], _active(after)))
        if params.skip is not None:
            found += [
                product_operations("skip", x[None], params.skip, spiking=False),
                tally("skip", "add", params.skip.shape[1]),
            ]
        return tuple(found)

    def state(self, params: MLPParams) -> PyTree:
        return ()

    def twin(self) -> "MLP":
        return self

    def describe(self, params: MLPParams) -> tuple[Node, ...]:
        if self.skip:
            raise Unexportable("an MLP with a skip from input to output cannot be exported; one with skip false can")
        first, *others = params.layers
        *hidden, last = (_thin(first, self.fan_in) if others else first, *others)
        activate = (LayerNorm(), Activation(self.activation)) if self.norm == "layer" else (Activation(self.activation),)
        return *(node for layer in hidden for node in (layer.describe(), *activate)), last.describe()


@dataclass(frozen=True)
class Linear:
    """A linear map and a constant: what a task owes to its network is what this one does not do. It is its own twin."""

    gain: float = 1.0  # scale of the initial weights

    @property
    def persistent(self) -> bool:
        return False

    def init(self, in_size: int, out_size: int, key: Array) -> Affine:
        return affine(in_size, out_size, key, self.gain)

    def start(self, params: Affine) -> PyTree:
        return ()

    def __call__(self, params: Affine, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        return Output(params(x[None])[0], (), ())

    def curvature(self, params: Affine) -> Array:
        return jnp.zeros(())

    def readout_l1(self, params: Affine) -> Array:
        return _l1(params)

    def operations(self, params: Affine, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        return params.operations("layer 1", x[None])

    def state(self, params: Affine) -> PyTree:
        return ()

    def twin(self) -> "Linear":
        return self

    def describe(self, params: Affine) -> tuple[Dense]:
        return (params.describe(),)


class GRUParams(eqx.Module):
    cell: eqx.nn.GRUCell
    output: Affine


@dataclass(frozen=True)
class GRU:
    """Gated recurrent unit (Cho et al. 2014) with a linear readout: the conventional twin of a persistent spiking network."""

    hidden: int = 64
    gain: float = 1.0  # scale of the readout's initial weights

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None))

    @property
    def persistent(self) -> bool:
        return True

    def init(self, in_size: int, out_size: int, key: Array) -> GRUParams:
        cell_key, output_key = jax.random.split(key)
        return GRUParams(eqx.nn.GRUCell(in_size, self.hidden, key=cell_key), affine(self.hidden, out_size, output_key, self.gain))

    def start(self, params: GRUParams) -> PyTree:
        return jnp.zeros(self.hidden)

    def __call__(self, params: GRUParams, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        state = params.cell(x, self.start(params) if isinstance(carry, tuple) else carry)
        return Output(params.output(state[None])[0], state, ())

    def curvature(self, params: GRUParams) -> Array:
        return jnp.zeros(())

    def readout_l1(self, params: GRUParams) -> Array:
        return _l1(params.output)

    def operations(self, params: GRUParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        before = self.start(params) if isinstance(carry, tuple) else carry
        after, size, cell = self(params, x, before).carry, self.hidden, params.cell
        assert cell.bias is not None and cell.bias_n is not None
        return (
            product_operations("cell, input", x[None], cell.weight_ih.T, spiking=False),
            product_operations("cell, memory", before[None], cell.weight_hh.T, spiking=False),
            tally("cell", "bias", cell.bias.size + cell.bias_n.size),
            tally("cell", "add", 3 * size),  # of input and memory in both gates, and of state and candidate
            tally("cell, gates", "activation", 2 * size, SIGMOID),
            tally("cell, candidate", "activation", size, ACTIVATION_ARITHMETIC["tanh"]),
            tally("cell, mixture", "multiply_accumulate", 2 * size),  # of the memory into the candidate, and of both into the state
            *params.output.operations("readout", after[None]),
        )

    def state(self, params: GRUParams) -> PyTree:
        return self.start(params)

    def twin(self) -> "GRU":
        return self


AnyNetwork = SpikingNetwork | MLP | Linear | GRU
