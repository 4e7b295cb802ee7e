"""The feed-forward spiking network, and all kinds of networks behind one call."""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Layer, Node, Window, described
from spikedream.snn.affine import additive, affine, l1, thin
from spikedream.snn.conventional import GRU, MLP, Linear
from spikedream.snn.encoders import AnyEncoder, DirectCurrent
from spikedream.snn.fixed_point import FixedPoint
from spikedream.snn.learning_rules.bptt import BPTT
from spikedream.snn.learning_rules.eprop import EProp
from spikedream.snn.learning_rules.protocol import Made, SpikingLayer
from spikedream.snn.learning_rules.rtrl import RTRL, SnAp
from spikedream.snn.neurons import LIF, OPEN_UNIT, AnyNeuron, NeuronParams, firing_threshold
from spikedream.snn.operations import Operations
from spikedream.snn.protocols import Output
from spikedream.snn.readouts import AnyReadout, MembraneReadout, PopulationVectorReadout, RateReadout
from spikedream.snn.sparsity import AnySparsity, Mask, present, sown
from spikedream.types import PyTree

AnyRule = BPTT | RTRL | SnAp | EProp


class SpikingParams(eqx.Module):
    encoder: PyTree
    layers: tuple[SpikingLayer, ...]
    readout: PyTree
    mask: Mask | None = None  # of the weights of layers and readout; None where all are there

    @property
    def present(self) -> "SpikingParams":
        """With zeros for the weights that are not there."""
        if self.mask is None:
            return self
        layers, readout = present((self.layers, self.readout), self.mask)
        return SpikingParams(self.encoder, layers, readout)


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
    sparsity: AnySparsity | None = None  # which of its weights there are; None: all
    rule: AnyRule = BPTT()  # by which it learns
    fixed_point: FixedPoint | None = None  # None: float32

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None), ticks=(1, None))
        if self.branches:
            check_bounds(self, branches=OPEN_UNIT)
            if any(size % len(self.branches) for size in self.hidden):
                raise ValueError(f"hidden is {list(self.hidden)}; {len(self.branches)} branches must be able to share each equally")
        if self.fan_in is not None:
            check_bounds(self, fan_in=(1, None))
        self.rule.check(self.neuron, self.branches)
        if self.fixed_point is not None:
            self.fixed_point.check(self)

    def init(self, in_size: int, out_size: int, key: Array) -> SpikingParams:
        width, layers = self.encoder.channels(in_size), []
        *keys, readout_key, sparsity_key = jax.random.split(key, len(self.hidden) + 2)
        for size, layer_key in zip(self.hidden, keys, strict=True):
            weight_key, neuron_key, bias_key = jax.random.split(layer_key, 3)
            bias = jax.random.permutation(bias_key, jnp.linspace(*self.bias, size, dtype=jnp.float32))
            synapse = affine(width, size, weight_key, self.gain, bias)
            layers.append(SpikingLayer(synapse, self._neurons(size, neuron_key)))
            width = size
        params = SpikingParams(self.encoder.init(in_size), tuple(layers), self.readout.init(width, out_size, readout_key))
        if self.sparsity is None:
            return params
        (layers, readout), mask = sown(self.sparsity, (params.layers, params.readout), sparsity_key)
        return SpikingParams(params.encoder, layers, readout, mask)

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
        if not self.persistent:
            return ()
        influences = tuple(self.rule.start(self.neuron, layer) for layer in params.layers)
        return *self._rest(params), *((influences,) if any(influences) else ())

    def __call__(self, params: SpikingParams, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        network, params = self._acting(params)
        if network is not self:
            return network(params, x, carry, key)
        states, readout, *influences = (carry or self.start(params)) if self.persistent else self._rest(params)
        spikes = self.encoder.encode(params.encoder, x, self.ticks, key)
        windows = []
        for i, (layer, state) in enumerate(zip(params.layers, states, strict=True)):
            if i == 0:
                layer = SpikingLayer(thin(layer.synapse, self.fan_in), layer.neuron)
            influence = influences[0][i] if influences else None
            windows.append(self.rule.window(self.neuron, layer, spikes, state, influence, self.ticks))
            spikes = windows[-1].spikes
        # What the membrane held before is not of this step: spikes plus the change of the membrane are the charge that came in.
        v = windows[-1].v / self._threshold(params.layers[-1].neuron)[None]
        value, readout, out_trains = self.readout.decode(self.rule.onward(params.readout), readout, spikes, v)
        kept = ()
        if self.persistent:
            kept = (tuple(window.after for window in windows), readout)
            kept = (*kept, tuple(window.influence for window in windows)) if influences else kept
        return Output(value, kept, (*(window.spikes for window in windows), *out_trains))

    def _acting(self, params: SpikingParams) -> "tuple[SpikingNetwork, SpikingParams]":
        """Of the weights that there are, and in fixed point where it is to be so."""
        return (self, params.present) if self.fixed_point is None else self.fixed_point(self, params.present)

    def _threshold(self, neuron: NeuronParams) -> Array:
        threshold = firing_threshold(neuron)
        return threshold if self.neuron.learn_threshold else jax.lax.stop_gradient(threshold)

    def curvature(self, params: SpikingParams) -> Array:
        params = params.present
        recurrent = [layer.neuron.recurrent for layer in params.layers if layer.neuron.recurrent is not None]
        return self.readout.curvature(params.readout) + sum(jnp.square(weights).mean() for weights in recurrent)

    def readout_l1(self, params: SpikingParams) -> Array:
        return l1(params.present.readout)

    def additive(self, params: SpikingParams, share: Array) -> SpikingParams:
        return eqx.tree_at(lambda p: p.layers[0].synapse, params, additive(params.layers[0].synapse, share))

    def operations(self, params: SpikingParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        network, params = self._acting(params)
        if network is not self:
            return network.operations(params, x, carry, key)
        states, readout, *_ = carry if self.persistent and carry else self._rest(params)
        trains = self(params, x, carry, key).spikes
        hidden, out_trains = trains[: len(self.hidden)], trains[len(self.hidden) :]
        entering, spiking = self.encoder.encode(params.encoder, x, self.ticks, key), self.encoder.spiking
        found = [*self.encoder.operations(params.encoder, entering)]
        for i, (layer, state, train) in enumerate(zip(params.layers, states, hidden, strict=True)):
            part, synapse = f"layer {i + 1}", layer.synapse if i else thin(layer.synapse, self.fan_in)
            repeats = self.ticks // entering.shape[0]
            weighted = synapse.operations(part, entering, spiking=spiking, repeats=repeats)
            updated = self.neuron.operations(layer.neuron, part, state.spikes.reshape(-1), train)
            made = Made(part, weighted, updated, train, spiking, self.persistent)
            found += self.rule.operations(self.neuron, SpikingLayer(synapse, layer.neuron), entering, state, made)
            entering, spiking = train, True
        return *found, *self.readout.operations(self.rule.onward(params.readout), readout, entering, out_trains)

    def state(self, params: SpikingParams) -> PyTree:
        return self._rest(params)

    def twin(self) -> "MLP | GRU":
        gain, skip = self.readout.gain, isinstance(self.readout, MembraneReadout)
        if self.persistent:
            return GRU(self.hidden[-1], gain=gain)
        behind = (self.readout.hidden,) if isinstance(self.readout, PopulationVectorReadout) else ()
        return MLP((*self.hidden, *behind), norm=self.neuron.norm, gain=gain, skip=skip, fan_in=self.fan_in)

    def describe(self, params: SpikingParams) -> tuple[Node, ...]:
        params = params.present
        if self.fixed_point is not None:
            return self.fixed_point.describe(self, params)
        first, *others = (layer.synapse for layer in params.layers)
        synapses = (thin(first, self.fan_in), *others)
        neurons = (described(self.neuron, layer.neuron) for layer in params.layers)
        layers = tuple(Layer(synapse.describe(), each) for synapse, each in zip(synapses, neurons, strict=True))
        decoding = described(self.readout, params.readout, self._threshold(params.layers[-1].neuron))
        encoding = described(self.encoder, params.encoder)
        window = Window(self.ticks, self.persistent, encoding.entering, layers + decoding.layers, decoding.reading)
        return *encoding.before, window, *decoding.decoders


AnyNetwork = SpikingNetwork | MLP | Linear | GRU
