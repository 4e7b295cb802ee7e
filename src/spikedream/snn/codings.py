"""Encoders turn a real vector into input for the first spiking layer; readouts turn spikes back into real numbers.

An encoder's output has shape (ticks, channels), or (1, channels) when it is the same at every tick, which lets the layer behind it
do one matrix product instead of `ticks`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.snn.neurons import AnyNeuron, CubaLIF, LeakyIntegrator, NeuronParams, NeuronState
from spikedream.snn.product import product
from spikedream.snn.surrogates import ArcTan, spike
from spikedream.types import PyTree, check_bounds


class Encoder(Protocol):
    def init(self, in_size: int) -> PyTree: ...
    def channels(self, in_size: int) -> int: ...
    def encode(self, params: PyTree, x: Array, ticks: int, key: Array | None) -> Array: ...


@dataclass(frozen=True)
class DirectCurrent:
    """Each input value is a constant current into the first layer, weighted like a synapse (the first layer does
    multiply-accumulates, once for all ticks)."""

    def init(self, in_size: int) -> None:
        return None

    def channels(self, in_size: int) -> int:
        return in_size

    def encode(self, params: None, x: Array, ticks: int, key: Array | None) -> Array:
        return x[None]


class ReceptiveFields(eqx.Module):
    mean: Array  # (in_size, fields)
    width: Array  # (in_size, fields) logarithm of the standard deviation


@dataclass(frozen=True)
class GaussianPopulation:
    """PopSAN's encoder (Tang et al. 2020, eq. 2-3): `fields` Gaussian receptive fields per input dimension, learnable.

    The activation A = exp(-(x - mean)^2 / (2 width^2)) drives, at every tick, either an integrator that fires when it passes 1 and
    resets by subtraction ("deterministic") or a Bernoulli draw ("poisson", which needs a key). As a "current" it enters as it is,
    the same at every tick: the first layer then does multiply-accumulates, once for all ticks.
    """

    fields: int = 10
    span: float = 3.0  # the means lie evenly in [-span, span], in standard deviations of the input
    width: float = 0.5  # initial standard deviation of the fields
    mode: Literal["deterministic", "poisson", "current"] = "deterministic"
    squash: bool = False  # encodes tanh(x), which no outlier drives beyond the fields

    def __post_init__(self) -> None:
        check_bounds(self, fields=(2, None), span=(1e-6, None), width=(1e-6, None))

    def init(self, in_size: int) -> ReceptiveFields:
        mean = jnp.tile(jnp.linspace(-self.span, self.span, self.fields, dtype=jnp.float32), (in_size, 1))
        return ReceptiveFields(mean, jnp.full_like(mean, jnp.log(self.width)))

    def channels(self, in_size: int) -> int:
        return in_size * self.fields

    def encode(self, params: ReceptiveFields, x: Array, ticks: int, key: Array | None) -> Array:
        x = jnp.tanh(x) if self.squash else x
        drive = jnp.exp(-0.5 * jnp.square((x[:, None] - params.mean) * jnp.exp(-params.width))).ravel()
        if self.mode == "current":
            return drive[None]
        if self.mode == "poisson":
            if key is None:
                raise ValueError("a Poisson encoder draws spikes and needs a key; none was given")
            # Straight-through: the gradient of a Bernoulli draw is that of its probability.
            draws = jax.random.bernoulli(key, drive[None], (ticks, drive.size)).astype(drive.dtype)
            return draws + (drive - jax.lax.stop_gradient(drive))[None]
        v, train = jnp.zeros_like(drive), []
        for _ in range(ticks):
            v = v + drive
            train.append(spike(v - 0.999, ArcTan()))
            v = v - jax.lax.stop_gradient(train[-1])
        return jnp.stack(train)


AnyEncoder = DirectCurrent | GaussianPopulation


class Affine(eqx.Module):
    weight: Array  # (in_size, out_size)
    bias: Array  # (out_size,)

    def __call__(self, x: Array) -> Array:
        """(rows, in_size) -> (rows, out_size): one product for all ticks."""
        return product(x, self.weight) + self.bias[None]


def affine(in_size: int, out_size: int, key: Array, gain: float = 1.0, bias: Array | None = None) -> Affine:
    """Normal weights of standard deviation gain / sqrt(in_size); zero bias unless one is given."""
    weight = jax.random.normal(key, (in_size, out_size)) * (gain / in_size**0.5)
    return Affine(weight, jnp.zeros(out_size) if bias is None else bias)


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

    def curvature(self, params: PyTree) -> Array:
        """Mean square of the weights by which the readout departs from a linear one; 0 where there are no such weights."""
        ...


@dataclass(frozen=True)
class RateReadout:
    """mean over ticks of the spikes, times weights. NIR: `Linear` on spike counts."""

    gain: float = 1.0

    def init(self, in_size: int, out_size: int, key: Array) -> Affine:
        return affine(in_size, out_size, key, self.gain)

    def start(self, params: PyTree) -> None:
        return None

    def decode(self, params: Affine, state: None, spikes: Array, v: Array):
        return params(spikes.mean(0, keepdims=True))[0], None, ()

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())


class MembraneWeights(eqx.Module):
    charge: Affine
    spikes: Array  # (in_size, out_size)


@dataclass(frozen=True)
class MembraneReadout:
    """(mean spikes + v / ticks) @ Wc + b + mean spikes @ Ws, with the final membrane v in units of the threshold.

    The residual charge in v is what the spike count rounds away; reading it makes a few ticks as precise as a conventional network.
    For soft-reset neurons of little leak, spikes and residue add up to the charge that came in, which is linear in the input: with
    Ws starting at zero the network starts linear, and a penalty on Ws (`Network.curvature`) holds it as near to linear as the data
    allow. That prior is what lets a model of a hundred transitions generalise.
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

    def curvature(self, params: MembraneWeights) -> Array:
        return jnp.square(params.spikes).mean()


class LeakyWeights(eqx.Module):
    synapse: Affine
    neuron: NeuronParams


@dataclass(frozen=True)
class LeakyReadout:
    """Spikes drive one non-spiking leaky integrator per output; its final membrane, over the ticks, is the output.
    NIR: `Linear` then `LI`."""

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

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())


class PopulationWeights(eqx.Module):
    synapse: Affine  # last hidden layer to the output populations
    neuron: NeuronParams
    decoder: Array  # (out_size, neurons)
    bias: Array  # (out_size,)


@dataclass(frozen=True)
class PopulationReadout:
    """PopSAN's decoder (Tang et al. 2020, eq. 4-5): a spiking population per output, read by its firing rates:
    out_i = sum_k w_ik rate_ik + b_i. Only spike counts leave the network. NIR: the neuron's primitive, then `Linear`."""

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

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())


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

    def curvature(self, params: PyTree) -> Array:
        return jnp.zeros(())


AnyReadout = RateReadout | MembraneReadout | LeakyReadout | PopulationReadout | PopulationVectorReadout
