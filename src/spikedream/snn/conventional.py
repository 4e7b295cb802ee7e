"""Conventional networks: the twins of spiking ones, and a linear map."""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Activation, Dense, LayerNorm, Node, Unexportable
from spikedream.snn.affine import Affine, additive, affine, l1, thin
from spikedream.snn.operations import ACTIVATION_ARITHMETIC, SIGMOID, Activity, Operations, product_operations, standardising, tally
from spikedream.snn.protocols import Output
from spikedream.types import PyTree

ACTIVATIONS = {"silu": jax.nn.silu, "tanh": jnp.tanh, "relu": jax.nn.relu, "elu": jax.nn.elu}


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
            layer = layer if i else thin(layer, self.fan_in)
            entering.append(self._activate(layer(entering[-1])))
        return entering

    def _activate(self, x: Array) -> Array:
        if self.norm == "layer":
            x = jax.nn.standardize(x, axis=-1)
        return ACTIVATIONS[self.activation](x)

    def curvature(self, params: MLPParams) -> Array:
        return jnp.zeros(()) if params.skip is None else jnp.square(params.layers[-1].weight).mean()

    def readout_l1(self, params: MLPParams) -> Array:
        return l1(params.layers[-1])

    def additive(self, params: MLPParams, share: Array) -> MLPParams:
        return eqx.tree_at(lambda p: p.layers[0], params, additive(params.layers[0], share))

    def operations(self, params: MLPParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        found, entering = [], self._entering(params, x)
        for i, (layer, into) in enumerate(zip(params.layers, entering, strict=True)):
            part = f"layer {i + 1}"
            found += (layer if i else thin(layer, self.fan_in)).operations(part, into)
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
        *hidden, last = (thin(first, self.fan_in) if others else first, *others)
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
        return l1(params)

    def additive(self, params: Affine, share: Array) -> Affine:
        return params  # as it is

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
        return l1(params.output)

    def additive(self, params: GRUParams, share: Array) -> GRUParams:
        raise ValueError("a GRU has no first layer that could listen to one input for each neuron")

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
