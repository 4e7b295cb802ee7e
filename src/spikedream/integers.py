"""Nodes in fixed point, and the meaning of each in NumPy: numbers are whole, in units of the layer's membranes, as exported code
has them in integers.

A weight counts 2^fraction units. float32 holds these numbers and their sums without rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from spikedream.nodes import Dense, PopulationSum, State, Ticked, Window, driven, numbers

MEMBRANE = np.float32(2**15 - 1)  # what 16 bits hold


def kept(x: ndarray, leak: ndarray) -> ndarray:
    """x less leak / 256 of it, that rounded down."""
    return x - np.floor(x * leak / np.float32(256))


@dataclass(frozen=True)
class FixedNeurons:
    """As `Neurons`, without adaptation. A decay is how many parts of 256 are lost in a tick; 16 bits hold the state between two."""

    decay: ndarray  # (size,)
    threshold: ndarray  # (size,)
    reset: Literal["soft", "hard"]
    unit: float  # of the membrane, as the trained network has it
    synapse_decay: ndarray | None = None  # (size,)
    recurrent: ndarray | None = None  # (size, size) from the last tick's spikes

    def step(self, state: State, x: ndarray) -> State:
        if self.recurrent is not None:
            x = x + driven(self.recurrent, state.spikes)
        if self.synapse_decay is not None:
            x = np.clip(kept(state.current, self.synapse_decay) + x, -MEMBRANE, MEMBRANE)
        u = np.clip(kept(state.v, self.decay) + x, -MEMBRANE, MEMBRANE)
        spikes = numbers(u >= self.threshold)
        v = u - spikes * self.threshold if self.reset == "soft" else u * (1 - spikes)
        return State(v, spikes, x, state.rise)


@dataclass(frozen=True)
class FixedCurrent:
    """Numbers, rounded to whole 2^-fraction within +-limit of these, the same at every tick."""

    fraction: int
    limit: int

    def whole(self, x: ndarray) -> ndarray:
        return np.clip(np.floor(x * np.float32(2**self.fraction) + np.float32(0.5)), -self.limit, self.limit)

    def currents(self, x: ndarray, synapses: Dense, ticks: int) -> Iterator[tuple[ndarray, float]]:
        scaled = x * np.float32(2**self.fraction)
        margin = float(np.abs(scaled - np.floor(scaled) - np.float32(0.5)).min())
        current = Dense(synapses.weight / np.float32(2**self.fraction), synapses.bias)(self.whole(x))
        return ((current, margin) for _ in range(ticks))


@dataclass(frozen=True)
class Counts:
    """Spikes."""

    def __call__(self, last: Ticked) -> ndarray:
        return last.counts


@dataclass(frozen=True)
class FixedWindow(Window):
    """Of layers of `FixedNeurons`."""

    fraction: int


@dataclass(frozen=True)
class FixedSum:
    """A weighted sum of counts, whole, and what one is worth: out = (x weight + bias) scale."""

    weight: ndarray  # (in_size, out_size)
    bias: ndarray  # (out_size,)
    scale: float

    @classmethod
    def of(cls, decoder: Dense | PopulationSum, ticks: int) -> "FixedSum":
        """Of a decoder of rates whose weights are whole multiples of a power of two."""
        weight = decoder.weight
        if isinstance(decoder, PopulationSum):
            outputs, neurons = weight.shape
            whole = np.zeros((outputs, neurons, outputs), np.float32)
            whole[np.arange(outputs), :, np.arange(outputs)] = weight
            weight = whole.reshape(-1, outputs)
        bias, step = decoder.bias * np.float32(ticks), np.float32(1)
        while not (_whole(weight / step, 0) and _whole(bias / step, 0.01)):  # the bias was divided by the ticks, and rounded
            step /= np.float32(2)
        return cls(weight / step, np.rint(bias / step), float(step / np.float32(ticks)))

    def __call__(self, x: ndarray) -> ndarray:
        return (x @ self.weight + self.bias) * np.float32(self.scale)


def _whole(x: ndarray, within: float) -> bool:
    return bool(np.all(np.abs(x - np.rint(x)) <= within))
