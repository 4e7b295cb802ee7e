"""What a policy computes, in effective values: a chain of nodes, and the meaning of each in NumPy.

A part that can leave Python has a method `describe`, which gives its nodes from its learned parameters: decays and thresholds as
they act, not as they are learned; weights with their masks. An exporter reads nothing else. Called with an array, a node computes
what exported code must compute, in float32, each operation rounded by itself, sums taken row by row in the order of the spikes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import ndarray

FULL = np.float32(0.999)  # charge at which a receptive field's integrator fires, and loses 1
FAINT = np.float32(-20)  # exponent below which a receptive field's current is none: less than what rounding does to a sum


class Unexportable(ValueError):
    """A part, or a node, that cannot leave Python as asked; the message names it, and what can."""


def described(part: Any, *arguments: Any) -> Any:
    """By the part itself. Raises Unexportable where it cannot be."""
    describe = getattr(part, "describe", None)
    if describe is None:
        raise Unexportable(f"{type(part).__name__} cannot be exported: it has no method `describe` that tells its effective values")
    return describe(*arguments)


def numbers(x: Any) -> ndarray:
    """As float32."""
    return np.asarray(x, np.float32)


def exponential(x: ndarray) -> ndarray:
    """e^x for x <= 0, within 2 units in the last place, by operations that are the same wherever floats follow IEEE 754: the Taylor
    series to the seventh power about the nearest multiple of ln 2, which is subtracted in two parts."""
    x = np.maximum(numbers(x), np.float32(-87))
    n = (x * np.float32(1.4426950) - np.float32(0.5)).astype(np.int32)
    whole = n.astype(np.float32)
    r = (x - whole * np.float32(0.69335938)) + whole * np.float32(2.1219444e-4)
    series = np.full_like(r, 1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        series = series * r + np.float32(1 / factorial)
    return series * ((n + 127) << 23).astype(np.int32).view(np.float32)


def tanh(x: ndarray) -> ndarray:
    e = exponential(-2 * np.abs(x))
    return np.copysign((1 - e) / (1 + e), x)


# ---- numbers in, numbers out


@dataclass(frozen=True)
class Standardise:
    """Environment units to normalised ones."""

    mean: ndarray  # (size,)
    scale: ndarray  # (size,)

    @property
    def inverse(self) -> ndarray:
        return np.float32(1) / self.scale

    def __call__(self, x: ndarray) -> ndarray:
        return (x - self.mean) * self.inverse


@dataclass(frozen=True)
class Dense:
    weight: ndarray  # (in_size, out_size)
    bias: ndarray  # (out_size,)

    def __call__(self, x: ndarray) -> ndarray:
        total = np.zeros_like(self.bias)
        for value, row in zip(x, self.weight, strict=True):
            total = total + value * row
        return total + self.bias


def driven(weight: ndarray, spikes: ndarray) -> ndarray:
    """(out_size,) sum of the rows of `weight` (in_size, out_size) where there are `spikes` (in_size,)."""
    total = np.zeros(weight.shape[1], np.float32)
    for row in weight[spikes > 0]:
        total = total + row
    return total


@dataclass(frozen=True)
class Activation:
    function: Literal["silu", "tanh", "relu", "elu"]

    def __call__(self, x: ndarray) -> ndarray:
        return _ACTIVATIONS[self.function](x)


def _silu(x: ndarray) -> ndarray:
    e = exponential(-np.abs(x))
    return x * np.where(x < 0, e, np.float32(1)) / (1 + e)


_ACTIVATIONS: dict[str, Callable[[ndarray], ndarray]] = {
    "silu": _silu,
    "tanh": tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "elu": lambda x: np.where(x > 0, x, exponential(np.minimum(x, np.float32(0))) - 1),
}


@dataclass(frozen=True)
class LayerNorm:
    """Standardised over the layer."""

    def __call__(self, x: ndarray) -> ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + np.float32(1e-5))


@dataclass(frozen=True)
class PopulationSum:
    """out_i = sum_k weight_ik x_ik + bias_i: a population for each output."""

    weight: ndarray  # (out_size, neurons)
    bias: ndarray  # (out_size,)

    def __call__(self, x: ndarray) -> ndarray:
        total = np.zeros_like(self.bias)
        for column in (x.reshape(self.weight.shape) * self.weight).T:
            total = total + column
        return total + self.bias


@dataclass(frozen=True)
class Squash:
    """tanh of the first `size` entries, which a softer tanh holds within +-`within` first, where that is given."""

    size: int
    within: float | None = None

    def __call__(self, x: ndarray) -> ndarray:
        x = x[: self.size]
        if self.within is not None:
            x = np.float32(self.within) * tanh(x * np.float32(1 / self.within))
        return tanh(x)


@dataclass(frozen=True)
class Bounds:
    """[-1, 1] to [low, high]."""

    low: ndarray  # (size,)
    high: ndarray  # (size,)

    def __call__(self, x: ndarray) -> ndarray:
        return np.minimum(np.maximum(self.low + (x + 1) * np.float32(0.5) * (self.high - self.low), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """The index of the largest entry, of equal ones the first."""

    def __call__(self, x: ndarray) -> ndarray:
        return np.array([x.argmax()])


# ---- spiking layers


@dataclass(frozen=True)
class Neurons:
    """Spiking neurons, with as much of this as is given:

    i <- synapse_decay i + x + s R;   a <- adaptation_decay a + (1 - adaptation_decay) s;   u = decay v + i
    s <- u >= threshold + adaptation a;   then that is subtracted from u ("soft"), or u is 0 ("hard"), where it fires
    """

    decay: ndarray  # (size,)
    threshold: ndarray  # (size,)
    reset: Literal["soft", "hard"]
    synapse_decay: ndarray | None = None  # (size,)
    adaptation_decay: ndarray | None = None  # (size,)
    adaptation: float = 0.0
    recurrent: ndarray | None = None  # (size, size) from the last tick's spikes

    def step(self, state: "State", x: ndarray) -> "State":
        current, rise, threshold = x, state.rise, self.threshold
        if self.recurrent is not None:
            current = current + driven(self.recurrent, state.spikes)
        if self.synapse_decay is not None:
            current = self.synapse_decay * state.current + current
        if self.adaptation_decay is not None:
            rise = self.adaptation_decay * rise + (1 - self.adaptation_decay) * state.spikes
            threshold = threshold + np.float32(self.adaptation) * rise
        u = self.decay * state.v + current
        spikes = numbers(u >= threshold)
        v = u - spikes * threshold if self.reset == "soft" else u * (1 - spikes)
        return State(v, spikes, current, rise, float(np.abs(u - threshold).min()))


@dataclass(frozen=True)
class Integrators:
    """Never fire: v <- decay v + x."""

    decay: ndarray  # (size,)

    def step(self, state: "State", x: ndarray) -> "State":
        return state._replace(v=self.decay * state.v + x)


class State(NamedTuple):
    """Of a layer between ticks."""

    v: ndarray  # (size,)
    spikes: ndarray  # (size,)
    current: ndarray  # (size,)
    rise: ndarray  # (size,) of the threshold
    margin: float = np.inf  # from the nearest membrane to its threshold in this tick: below rounding, nobody can say who fires


@dataclass(frozen=True)
class Layer:
    synapses: Dense
    neurons: Any  # Neurons, Integrators, or what steps as they do

    @property
    def size(self) -> int:
        return self.neurons.decay.size

    def start(self) -> State:
        zero = np.zeros(self.size, np.float32)
        return State(zero, zero, zero, zero)


# ---- encoders: numbers to what enters the first layer at every tick


@dataclass(frozen=True)
class Current:
    """The numbers themselves, the same at every tick."""

    def currents(self, x: ndarray, synapses: Dense, ticks: int) -> Iterator[tuple[ndarray, float]]:
        current = synapses(x)
        return ((current, np.inf) for _ in range(ticks))


def exponents(fields: Any, x: ndarray) -> ndarray:
    """(in_size * fields,) -((x - mean) precision)^2 / 2, of x (in_size,)."""
    z = ((tanh(x) if fields.squash else x)[:, None] - fields.mean) * fields.precision
    return (np.float32(-0.5) * (z * z)).ravel()


@dataclass(frozen=True)
class GaussianCurrents:
    """exp(-((x - mean) precision)^2 / 2), a number for each field, and behind them the entries of x that have none."""

    mean: ndarray  # (in_size, fields)
    precision: ndarray  # (in_size, fields)
    squash: bool = False  # of tanh(x)

    def __call__(self, x: ndarray) -> ndarray:
        q = exponents(self, x[: len(self.mean)])
        return np.concatenate([np.where(q < FAINT, np.float32(0), exponential(q)), x[len(self.mean) :]])


@dataclass(frozen=True)
class GaussianFields:
    """The charge exp(-((x - mean) precision)^2 / 2) enters an integrator at every tick, which fires at `FULL` and loses 1."""

    mean: ndarray  # (in_size, fields)
    precision: ndarray  # (in_size, fields)
    squash: bool = False  # of tanh(x)

    def currents(self, x: ndarray, synapses: Dense, ticks: int) -> Iterator[tuple[ndarray, float]]:
        for spikes, margin in self.trains(x, ticks):
            yield driven(synapses.weight, spikes) + synapses.bias, margin

    def trains(self, x: ndarray, ticks: int) -> Iterator[tuple[ndarray, float]]:
        """The spikes (in_size * fields,) of each tick, and how near they came to being others."""
        drive = exponential(exponents(self, x))
        v = np.zeros_like(drive)
        for _ in range(ticks):
            v = v + drive
            spikes = numbers(v >= FULL)
            yield spikes, float(np.abs(v - FULL).min())
            v = v - spikes


# ---- readings: what is left of a window of ticks


class Ticked(NamedTuple):
    """What the last layer did."""

    counts: ndarray  # (size,) spikes
    v: ndarray  # (size,) at the end
    before: ndarray  # (size,) at the beginning
    ticks: int

    @property
    def rates(self) -> ndarray:
        return self.counts / np.float32(self.ticks)


@dataclass(frozen=True)
class Rates:
    """Spikes per tick."""

    def __call__(self, last: Ticked) -> ndarray:
        return last.rates


@dataclass(frozen=True)
class Potentials:
    """Membrane over the number of ticks."""

    def __call__(self, last: Ticked) -> ndarray:
        return last.v / np.float32(last.ticks)


@dataclass(frozen=True)
class Charges:
    """The charge that came in, in thresholds per tick, and then the spikes per tick: (2 size,)."""

    threshold: ndarray  # (size,)

    def __call__(self, last: Ticked) -> ndarray:
        charge = last.rates + (last.v - last.before) / self.threshold / np.float32(last.ticks)
        return np.concatenate([charge, last.rates])


class Reading(NamedTuple):
    value: ndarray
    trains: tuple[ndarray, ...]  # of each spiking layer, (ticks, size)
    states: tuple[State, ...]
    margin: float  # the least of all ticks and layers


@dataclass(frozen=True)
class Window:
    """`ticks` ticks of layers, each driven by the one before; a `persistent` one goes on from where it was."""

    ticks: int
    persistent: bool
    encoder: Any  # Current, GaussianFields, or what gives currents as they do
    layers: tuple[Layer, ...]
    reading: Any  # Rates, Potentials, Charges, or what reads as they do

    def start(self) -> tuple[State, ...]:
        return tuple(layer.start() for layer in self.layers)

    def run(self, x: ndarray, states: tuple[State, ...]) -> Reading:
        states = states if self.persistent else self.start()
        now, before, margin = list(states), states[-1].v, np.inf
        trains: list[list[ndarray]] = [[] for _ in self.layers]
        for current, near in self.encoder.currents(x, self.layers[0].synapses, self.ticks):
            margin = min(margin, near)
            for i, layer in enumerate(self.layers):
                now[i] = layer.neurons.step(now[i], current)
                margin = min(margin, now[i].margin)
                trains[i].append(now[i].spikes)
                if i + 1 < len(self.layers):
                    following = self.layers[i + 1].synapses
                    current = driven(following.weight, now[i].spikes) + following.bias
        spiking = (not isinstance(layer.neurons, Integrators) for layer in self.layers)
        firing = tuple(np.stack(train) for train, fires in zip(trains, spiking, strict=True) if fires)
        last = Ticked(np.sum(trains[-1], axis=0), now[-1].v, before, self.ticks)
        return Reading(self.reading(last), firing, tuple(now), margin)


Node = Any  # one of those above, or of `spikedream.integers`


class Answer(NamedTuple):
    values: tuple[ndarray, ...]  # after each node
    trains: tuple[ndarray, ...]  # of each spiking layer, (ticks, size)
    margin: float  # see `State`; infinite where nothing spikes


@dataclass
class Chain:
    """Nodes one after the other, and what they remember between calls."""

    nodes: tuple[Node, ...]
    _states: dict[int, tuple[State, ...]] = field(default_factory=dict)

    def reset(self) -> None:
        self._states.clear()

    def __call__(self, x: ndarray) -> Answer:
        values, trains, margin = [], (), np.inf
        for i, node in enumerate(self.nodes):
            if isinstance(node, Window):
                read = node.run(x, self._states.get(i, node.start()))
                x, trains, margin = read.value, trains + read.trains, min(margin, read.margin)
                self._states[i] = read.states
            else:
                x = node(x)
            values.append(x)
        return Answer(tuple(values), trains, margin)
