"""Weights between layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.nodes import Dense, numbers
from spikedream.snn.operations import Operations, product_operations, tally
from spikedream.snn.product import product
from spikedream.types import PyTree


class Affine(eqx.Module):
    weight: Array  # (in_size, out_size)
    bias: Array  # (out_size,)

    def __call__(self, x: Array) -> Array:
        """(rows, in_size) -> (rows, out_size): one product for all ticks."""
        return product(x, self.weight) + self.bias[None]

    def describe(self) -> Dense:
        return Dense(numbers(self.weight), numbers(self.bias))

    def operations(self, part: str, x: Array, *, spiking: bool = False, repeats: int = 1) -> tuple[Operations, ...]:
        """Of a call on `x`; see `product_operations`."""
        made = product_operations(part, x, self.weight, spiking=spiking, repeats=repeats)
        return made, tally(part, "bias", x.shape[0] * self.bias.size)


def affine(in_size: int, out_size: int, key: Array, gain: float = 1.0, bias: Array | None = None) -> Affine:
    """Normal weights of standard deviation gain / sqrt(in_size); zero bias unless one is given."""
    weight = jax.random.normal(key, (in_size, out_size)) * (gain / in_size**0.5)
    return Affine(weight, jnp.zeros(out_size) if bias is None else bias)


def thin(synapse: Affine, fan_in: int | None) -> Affine:
    """Keeps `fan_in` inputs for each neuron, in turn over the inputs, and the variance of their sum."""
    inputs, neurons = synapse.weight.shape
    if fan_in is None or fan_in >= inputs:
        return synapse
    kept = (jnp.arange(inputs)[:, None] - jnp.arange(neurons)[None]) % inputs < fan_in
    return Affine(synapse.weight * kept * (inputs / fan_in) ** 0.5, synapse.bias)


def additive(synapse: Affine, share: Array) -> Affine:
    """With one input for each neuron where `share`, (), is 1, with all where it is 0."""
    one = thin(synapse, 1)
    return Affine(jnp.where(share > 0, one.weight, synapse.weight), synapse.bias)


def l1(readout: PyTree) -> Array:
    return jnp.stack([jnp.abs(x).sum() for x in jax.tree.leaves(readout) if x.ndim == 2]).sum()
