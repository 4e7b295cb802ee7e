"""A conventional network whose units are standardised over a mini-batch, for critics: none of it runs on a chip."""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.snn.affine import Affine, affine
from spikedream.snn.conventional import ACTIVATIONS
from spikedream.snn.operations import ACTIVATION_ARITHMETIC, Operations, tally
from spikedream.snn.protocols import Output
from spikedream.types import PyTree

SMALL = 1e-3  # beside a variance


class BatchMoments(eqx.Module):
    """Of what enters each layer, a mini-batch's or running ones; not learned."""

    mean: tuple[Array, ...]  # (size,) each
    variance: tuple[Array, ...]
    updates: Array  # () how many, a float like the others, since all of them stand among what is learned


class BatchNormParams(eqx.Module):
    layers: tuple[Affine, ...]
    scale: tuple[Array, ...]  # (size,) of what enters each layer, once it is standardised
    shift: tuple[Array, ...]
    running: BatchMoments


@dataclass(frozen=True)
class BatchNormMLP:
    """Dense layers with a pointwise nonlinearity, in front of each of them a batch normalisation (Ioffe & Szegedy 2015),
    renormalised after `warm_up` updates so that it does in learning what it does when it is asked (Ioffe 2017).

    `on_batch` standardises by the moments of the rows that it is given, a call by itself by the running ones.
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: Literal["silu", "tanh", "relu", "elu"] = "relu"
    gain: float = 1.0  # scale of the output layer's initial weights
    momentum: float = 0.99  # of the running moments
    warm_up: int = 100_000  # updates before renormalisation
    scale_limit: float = 3.0  # r_max of Ioffe 2017
    shift_limit: float = 5.0  # d_max

    def __post_init__(self) -> None:
        check_bounds(self, hidden=(1, None), momentum=(0, 1), warm_up=(0, None), scale_limit=(1, None), shift_limit=(0, None))

    @property
    def persistent(self) -> bool:
        return False

    def init(self, in_size: int, out_size: int, key: Array) -> BatchNormParams:
        sizes = (in_size, *self.hidden, out_size)
        gains = (*(2**0.5 for _ in self.hidden), self.gain)
        keys = jax.random.split(key, len(gains))
        layers = tuple(affine(a, b, k, gain) for a, b, k, gain in zip(sizes[:-1], sizes[1:], keys, gains, strict=True))
        ones, zeros = (tuple(jnp.full(size, value, jnp.float32) for size in sizes[:-1]) for value in (1.0, 0.0))
        return BatchNormParams(layers, ones, zeros, BatchMoments(zeros, ones, jnp.zeros(())))

    def start(self, params: BatchNormParams) -> PyTree:
        return ()

    def __call__(self, params: BatchNormParams, x: Array, carry: PyTree = (), key: Array | None = None) -> Output:
        *_, last = self._entering(params, x)
        return Output(params.layers[-1](last)[0], (), ())

    def _entering(self, params: BatchNormParams, x: Array) -> list[Array]:
        """What enters each layer of a call, (1, in_size) each."""
        running, rows, entering = params.running, x[None], []
        for i, layer in enumerate(params.layers):
            rows = (rows - running.mean[i][None]) / jnp.sqrt(running.variance[i] + SMALL)[None]
            entering.append(rows * params.scale[i][None] + params.shift[i][None])
            rows = self._activate(layer(entering[-1]))
        return entering

    def on_batch(self, params: BatchNormParams, rows: Array) -> tuple[Array, BatchMoments]:
        """(rows, out_size) from (rows, in_size), and the running moments with these rows in them."""
        means: list[Array] = []
        variances: list[Array] = []
        for i, layer in enumerate(params.layers):
            rows = self._activate(rows) if i else rows
            mean, variance = rows.mean(0), rows.var(0)
            means.append(mean)
            variances.append(variance)
            rows = (rows - mean[None]) / jnp.sqrt(variance + SMALL)[None]
            stretch, move = self._renormalisation(params.running, i, mean, variance)
            rows = rows * stretch[None] + move[None]
            rows = layer(rows * params.scale[i][None] + params.shift[i][None])
        running = BatchMoments(
            self._moved(params.running.mean, means), self._moved(params.running.variance, variances), params.running.updates + 1
        )
        return rows, jax.lax.stop_gradient(running)

    def _moved(self, running: tuple[Array, ...], found: list[Array]) -> tuple[Array, ...]:
        return tuple(self.momentum * old + (1 - self.momentum) * new for old, new in zip(running, found, strict=True))

    def _renormalisation(self, running: BatchMoments, i: int, mean: Array, variance: Array) -> tuple[Array, Array]:
        """r and d of Ioffe 2017, (size,) each: what takes rows that are standardised by their own moments to the running ones."""
        deviation = jnp.sqrt(running.variance[i] + SMALL)
        stretch = jnp.clip(jnp.sqrt(variance + SMALL) / deviation, 1 / self.scale_limit, self.scale_limit)
        move = jnp.clip((mean - running.mean[i]) / deviation, -self.shift_limit, self.shift_limit)
        warm = running.updates >= self.warm_up
        return jax.lax.stop_gradient((jnp.where(warm, stretch, 1.0), jnp.where(warm, move, 0.0)))

    def _activate(self, x: Array) -> Array:
        return ACTIVATIONS[self.activation](x)

    def curvature(self, params: BatchNormParams) -> Array:
        return jnp.zeros(())

    def readout_l1(self, params: BatchNormParams) -> Array:
        return jnp.abs(params.layers[-1].weight).sum()

    def operations(self, params: BatchNormParams, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        """Of a call, in which the running moments, scale and shift are one factor and one number to add."""
        found: list[Operations] = []
        for i, (layer, into) in enumerate(zip(params.layers, self._entering(params, x), strict=True)):
            part = f"layer {i + 1}"
            if i:
                found.append(tally(part, "activation", into.size, ACTIVATION_ARITHMETIC[self.activation]))
            normed = tally(part, "batch_normalisation", into.size, {"multiply": 1, "add": 1})
            found += (normed, *layer.operations(part, into))
        return tuple(found)

    def state(self, params: BatchNormParams) -> PyTree:
        return ()

    def twin(self) -> "BatchNormMLP":
        return self
