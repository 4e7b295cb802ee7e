"""Neuron models in discrete time.

Each one is a frozen dataclass (hyper-parameters) that makes learnable `params` for a layer of `size` neurons, a fresh `state`, and
steps that state by one tick. The decay factors b = exp(-dt/tau) are learned per neuron through a logistic function and stay in
(0, 1); thresholds are learned through an exponential and stay positive. Nothing here needs more than a chip offers: one decay,
one addition, one comparison and one reset a tick (and a second decay for the current-based and the adaptive neuron); `operations`
counts them, a comparison as an addition.

`x[t]` is the input current, `s[t]` the spikes (0 or 1), `v[t]` the membrane potential, R the recurrent weights (absent unless
`recurrent`). Reset "soft" subtracts the threshold, "hard" returns the membrane to 0. The gradient flows through the reset too,
unless `detach_reset`: a soft-reset neuron then conserves charge in the backward pass as it does in the forward one.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.snn.operations import Operations, firing, product_operations, tally
from spikedream.snn.surrogates import AnySurrogate, ArcTan, Rectangular, spike
from spikedream.types import check_bounds

Reset = Literal["soft", "hard"]
OPEN_UNIT, POSITIVE = (1e-6, 1 - 1e-6), (1e-6, None)


class NeuronParams(eqx.Module):
    """Learnable parameters of a layer; a field is None where the neuron model has no such thing."""

    decay: Array  # (size,) logit of the membrane's decay factor
    threshold: Array | None = None  # (size,) logarithm of the firing threshold
    synapse_decay: Array | None = None  # (size,) logit of the decay factor of the synaptic current
    adaptation_decay: Array | None = None  # (size,) logit of the decay factor of the threshold's adaptation
    recurrent: Array | None = None  # (size, size) from last tick's spikes to this tick's current


class NeuronState(NamedTuple):
    """State of a layer between ticks; a field is None where the neuron model has no such thing."""

    v: Array  # (size,) membrane potential after reset
    spikes: Array  # (size,) spikes of the last tick
    current: Array | None = None  # (size,) synaptic current
    adaptation: Array | None = None  # (size,) rise of the threshold


class Neuron(Protocol):
    def init(self, size: int, key: Array) -> NeuronParams: ...
    def start(self, size: int) -> NeuronState: ...
    def step(self, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
        """One tick under the input current `x`, shape (size,); the new spikes are in the returned state."""
        ...

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        """Of a layer that put out the spikes `train`, (ticks, size), after those of the tick `before`, (size,)."""
        ...


def _logit(p: Array | float) -> Array:
    p = jnp.asarray(p, jnp.float32)
    return jnp.log(p) - jnp.log1p(-p)


def _decays(bounds: tuple[float, float], size: int) -> Array:
    return _logit(jnp.linspace(*bounds, size, dtype=jnp.float32))


def _factor(logit: Array | None) -> Array:
    """A decay factor in (0, 1) from its logit."""
    assert logit is not None
    return jax.nn.sigmoid(logit)


def _recurrent(params: NeuronParams, state: NeuronState, x: Array) -> Array:
    return x if params.recurrent is None else x + state.spikes @ params.recurrent


def _recurrent_weights(size: int, gain: float, key: Array) -> Array:
    return jax.random.normal(key, (size, size)) * gain / jnp.sqrt(size)


def _recurrent_operations(params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
    if params.recurrent is None:
        return ()
    heard = jnp.concatenate([before[None], train[:-1]])
    return (product_operations(f"{part}, recurrent", heard, params.recurrent, spiking=True),)


def firing_threshold(params: NeuronParams) -> Array:
    """(size,), before any adaptation."""
    assert params.threshold is not None
    return jnp.exp(params.threshold)


def _fire(neuron: "LIF | CubaLIF | AdaptiveLIF", u: Array, threshold: Array) -> tuple[Array, Array]:
    """(membrane after reset, spikes)."""
    spikes = spike(u - threshold, neuron.surrogate)
    fired = jax.lax.stop_gradient(spikes) if neuron.detach_reset else spikes
    return (u - fired * threshold if neuron.reset == "soft" else u * (1 - fired)), spikes


def _constants(tree: NeuronParams, learn_decay: bool, learn_threshold: bool) -> NeuronParams:
    """Stops the gradient of what the hyper-parameters say is fixed."""
    stop = jax.lax.stop_gradient
    if not learn_decay:
        tree = eqx.tree_at(
            lambda t: (t.decay, t.synapse_decay, t.adaptation_decay), tree,
            (stop(tree.decay), stop(tree.synapse_decay), stop(tree.adaptation_decay)), is_leaf=lambda x: x is None,
        )  # fmt: skip
    return tree if learn_threshold else eqx.tree_at(lambda t: t.threshold, tree, stop(tree.threshold))


@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire:

        u[t] = b v[t-1] + x[t] + R s[t-1];   s[t] = [u[t] >= th];   v[t] = u[t] - th s[t]   (or u[t] (1 - s[t]))

    NIR: `LIF` with tau = -dt / ln b, r = 1 / (1 - b), v_leak = 0, v_threshold = th, v_reset = 0 (the exponential-Euler step of
    tau dv/dt = v_leak - v + r x). NIR's own reset is the hard one; a soft reset must be exported as that flag of the target chip.
    """

    decay: tuple[float, float] = (0.5, 0.95)  # initial b, spread evenly over the layer between these two
    threshold: float = 1.0
    reset: Reset = "soft"
    detach_reset: bool = False
    learn_decay: bool = True
    learn_threshold: bool = False
    recurrent: bool = False
    recurrent_gain: float = 0.5  # standard deviation of the initial R times the square root of its neurons
    surrogate: AnySurrogate = ArcTan()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, threshold=POSITIVE)

    def init(self, size: int, key: Array) -> NeuronParams:
        return NeuronParams(
            decay=_decays(self.decay, size),
            threshold=jnp.full(size, jnp.log(self.threshold), jnp.float32),
            recurrent=_recurrent_weights(size, self.recurrent_gain, key) if self.recurrent else None,
        )

    def start(self, size: int) -> NeuronState:
        return NeuronState(jnp.zeros(size), jnp.zeros(size))

    def step(self, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
        params = _constants(params, self.learn_decay, self.learn_threshold)
        u = _factor(params.decay) * state.v + _recurrent(params, state, x)
        return NeuronState(*_fire(self, u, firing_threshold(params)))

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        fired = firing(part, train, {"multiply": 1, "add": 2}, int(self.reset == "soft"))
        return (*fired, *_recurrent_operations(params, part, before, train))


@dataclass(frozen=True)
class CubaLIF:
    """Current-based LIF, the neuron of PopSAN (Tang et al. 2020):

        i[t] = a i[t-1] + x[t] + R s[t-1];   u[t] = b v[t-1] + i[t];   s[t] = [u[t] >= th];   v[t] = u[t] - th s[t]

    PopSAN: a = 0.5, b = 0.75, th = 0.5, hard reset.
    NIR: `CubaLIF` with tau_syn = -dt / ln a, tau_mem = -dt / ln b, w_in = 1, r = 1 / (1 - b), v_leak = 0, v_threshold = th.
    """

    synapse_decay: tuple[float, float] = (0.5, 0.5)
    decay: tuple[float, float] = (0.75, 0.75)
    threshold: float = 0.5
    reset: Reset = "hard"
    detach_reset: bool = False
    learn_decay: bool = True
    learn_threshold: bool = False
    recurrent: bool = False
    recurrent_gain: float = 0.5  # standard deviation of the initial R times the square root of its neurons
    surrogate: AnySurrogate = Rectangular()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, synapse_decay=OPEN_UNIT, threshold=POSITIVE)

    def init(self, size: int, key: Array) -> NeuronParams:
        return NeuronParams(
            decay=_decays(self.decay, size),
            synapse_decay=_decays(self.synapse_decay, size),
            threshold=jnp.full(size, jnp.log(self.threshold), jnp.float32),
            recurrent=_recurrent_weights(size, self.recurrent_gain, key) if self.recurrent else None,
        )

    def start(self, size: int) -> NeuronState:
        return NeuronState(jnp.zeros(size), jnp.zeros(size), current=jnp.zeros(size))

    def step(self, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
        params = _constants(params, self.learn_decay, self.learn_threshold)
        assert state.current is not None
        current = _factor(params.synapse_decay) * state.current + _recurrent(params, state, x)
        u = _factor(params.decay) * state.v + current
        return NeuronState(*_fire(self, u, firing_threshold(params)), current=current)

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        fired = firing(part, train, {"multiply": 2, "add": 3}, int(self.reset == "soft"))
        return (*fired, *_recurrent_operations(params, part, before, train))


@dataclass(frozen=True)
class AdaptiveLIF:
    """LIF whose threshold rises with its own spikes (ALIF, Bellec et al. 2018):

        a[t] = c a[t-1] + (1 - c) s[t-1];   u[t] = b v[t-1] + x[t] + R s[t-1];   s[t] = [u[t] >= th + k a[t]]

    then the reset by the raised threshold. NIR has no adaptive primitive: the neuron is `LIF` (as above) plus an `LI` node with
    tau = -dt / ln c and unit gain that is driven by the spikes and feeds back with weight -k onto the comparison.
    """

    decay: tuple[float, float] = (0.5, 0.95)
    adaptation_decay: tuple[float, float] = (0.9, 0.9)
    adaptation: float = 1.0  # k, in units of the membrane potential
    threshold: float = 1.0
    reset: Reset = "soft"
    detach_reset: bool = False
    learn_decay: bool = True
    learn_threshold: bool = False
    recurrent: bool = False
    recurrent_gain: float = 0.5  # standard deviation of the initial R times the square root of its neurons
    surrogate: AnySurrogate = ArcTan()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, adaptation_decay=OPEN_UNIT, threshold=POSITIVE)

    def init(self, size: int, key: Array) -> NeuronParams:
        return NeuronParams(
            decay=_decays(self.decay, size),
            adaptation_decay=_decays(self.adaptation_decay, size),
            threshold=jnp.full(size, jnp.log(self.threshold), jnp.float32),
            recurrent=_recurrent_weights(size, self.recurrent_gain, key) if self.recurrent else None,
        )

    def start(self, size: int) -> NeuronState:
        return NeuronState(jnp.zeros(size), jnp.zeros(size), adaptation=jnp.zeros(size))

    def step(self, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
        params = _constants(params, self.learn_decay, self.learn_threshold)
        assert state.adaptation is not None
        c = _factor(params.adaptation_decay)
        adaptation = c * state.adaptation + (1 - c) * state.spikes
        u = _factor(params.decay) * state.v + _recurrent(params, state, x)
        threshold = firing_threshold(params) + self.adaptation * adaptation
        return NeuronState(*_fire(self, u, threshold), adaptation=adaptation)

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        fired = firing(part, train, {"multiply": 3, "add": 3}, 1 + int(self.reset == "soft"))
        return (*fired, *_recurrent_operations(params, part, before, train))


@dataclass(frozen=True)
class LeakyIntegrator:
    """Never fires; its membrane is a readout:

        v[t] = b v[t-1] + x[t]

    NIR: `LI` with tau = -dt / ln b, r = 1 / (1 - b), v_leak = 0.
    """

    decay: tuple[float, float] = (0.9, 0.9)
    learn_decay: bool = True

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT)

    def init(self, size: int, key: Array) -> NeuronParams:
        return NeuronParams(decay=_decays(self.decay, size))

    def start(self, size: int) -> NeuronState:
        return NeuronState(jnp.zeros(size), jnp.zeros(size))

    def step(self, params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
        params = _constants(params, self.learn_decay, learn_threshold=True)
        return state._replace(v=_factor(params.decay) * state.v + x)

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        return (tally(part, "neuron_update", train.size, {"multiply": 1, "add": 1}),)


AnyNeuron = LIF | CubaLIF | AdaptiveLIF
