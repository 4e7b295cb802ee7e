"""Neuron models in discrete time.

Each one is a frozen dataclass (hyper-parameters) that makes learnable `params` for a layer of `size` neurons, a fresh `state`, and
steps that state by one tick. The decay factors b = exp(-dt/tau) are learned per neuron through a logistic function and stay in
(0, 1); thresholds are learned through an exponential and stay positive. Nothing here needs more than a chip offers: one decay,
one addition, one comparison and one reset a tick (and a second decay for the current-based and the adaptive neuron), save `norm`;
`operations` counts them, a comparison as an addition.

The primitives of NIR (Neuromorphic Intermediate Representation) are differential equations, which the tools that read it step by
v <- v + (r x - v) dt / tau: for the decay b that is tau = dt / (1 - b) with r = 1 / (1 - b), not -dt / ln b.

`x[t]` is the input current, `s[t]` the spikes (0 or 1), `v[t]` the membrane potential, R the recurrent weights (absent unless
`recurrent`). Reset "soft" subtracts the threshold, "hard" returns the membrane to 0. The gradient flows through the reset too,
unless `detach_reset`: a soft-reset neuron then conserves charge in the backward pass as it does in the forward one.

With `decay_input` the membrane is a running average: where an equation adds a current it adds 1 - b of it, and NIR's r is 1. With
`norm` "layer" the current x[t] + R s[t-1] is standardised over the layer, or branch, at each tick (Ba et al. 2016, without gain and
shift): analogue, for a network that stays on the machine that trains it; NIR has no primitive for it.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Integrators, Neurons, Unexportable, numbers
from spikedream.snn.operations import Operations, firing, product_operations, standardising, tally
from spikedream.snn.product import product
from spikedream.snn.surrogates import AnySurrogate, ArcTan, Rectangular, spike

Reset = Literal["soft", "hard"]
Norm = Literal["none", "layer"]
OPEN_UNIT, POSITIVE = (1e-6, 1 - 1e-6), (1e-6, None)


class NeuronParams(eqx.Module):
    """Learnable parameters of a layer; a field is None where the neuron model has no such thing."""

    decay: Array  # (size,) logit of the membrane's decay factor
    threshold: Array | None = None  # (size,) logarithm of the firing threshold
    synapse_decay: Array | None = None  # (size,) logit of the decay factor of the synaptic current
    adaptation_decay: Array | None = None  # (size,) logit of the decay factor of the threshold's adaptation
    recurrent: Array | None = None  # (size, size) from last tick's spikes to this tick's current; of branches the blocks
    branches: int = eqx.field(static=True, default=1)  # equal groups of neurons, each recurrent and normalised by itself


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

    def describe(self, params: NeuronParams) -> Neurons | Integrators:
        """In effective values, for export."""
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


def recurrent_weights(neuron: "AnyNeuron", params: NeuronParams) -> Array:
    """(size, size), of branches the blocks on its diagonal: one product is as fast as one for each, and in bfloat16 faster."""
    assert params.recurrent is not None
    weights = params.recurrent if params.branches == 1 else jax.scipy.linalg.block_diag(*params.recurrent)
    return weights if neuron.recurrent_fan_in is None else weights * heard(neuron, weights.shape[0], params.branches)


@functools.cache
def heard(neuron: "AnyNeuron", size: int, branches: int = 1) -> np.ndarray:
    """(size, size) bool, whether the neuron of the row is heard by that of the column. Where each hears a few, each is heard by as
    many: a ring in random order, in which each hears those that are certain distances behind it; the same for all layers of one
    size, so that what a learning rule leaves out is known when its program is made."""
    share = size // branches
    fan_in = share if neuron.recurrent_fan_in is None else min(neuron.recurrent_fan_in, share)
    rng = np.random.default_rng(share)
    place, distances = rng.permutation(share), rng.permutation(share)[:fan_in]
    block = np.isin((place[None] - place[:, None]) % share, distances)
    return np.kron(np.eye(branches, dtype=bool), block)


def _current(neuron: "AnyNeuron", params: NeuronParams, state: NeuronState, x: Array) -> Array:
    """The whole input current of a tick, (size,): from outside and from the layer's own last spikes."""
    if params.recurrent is not None:
        x = x + product(state.spikes[None], recurrent_weights(neuron, params))[0]
    return _standardised(x, params.branches) if neuron.norm == "layer" else x


def _standardised(x: Array, branches: int) -> Array:
    """(size,) with mean 0 and variance 1 in each branch. The means are made as a product: the gradients of sums over the last axis
    take XLA three times as long on a CPU."""
    share = x.size // branches
    average = jnp.kron(jnp.eye(branches), jnp.full((share, 1), 1 / share))
    mean, square = (jnp.matmul(y[None], average, precision=jax.lax.Precision.HIGHEST)[0] for y in (x, jnp.square(x)))
    apart = x.reshape(branches, share) - mean[:, None]
    return (apart * jax.lax.rsqrt(square - jnp.square(mean) + 1e-5)[:, None]).reshape(-1)


def _recurrent(neuron: "AnyNeuron", size: int, key: Array) -> Array:
    inputs = size if neuron.recurrent_fan_in is None else min(neuron.recurrent_fan_in, size)
    return jax.random.normal(key, (size, size)) * neuron.recurrent_gain / jnp.sqrt(inputs)


def firing_threshold(params: NeuronParams) -> Array:
    """(size,), before any adaptation."""
    assert params.threshold is not None
    return jnp.exp(params.threshold)


def _fire(neuron: "AnyNeuron", u: Array, threshold: Array) -> tuple[Array, Array]:
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


def _check_fan_in(neuron: "AnyNeuron") -> None:
    if neuron.recurrent_fan_in is not None:
        check_bounds(neuron, recurrent_fan_in=(1, None))


def _init(neuron: "AnyNeuron", size: int, key: Array) -> NeuronParams:
    return NeuronParams(
        decay=_decays(neuron.decay, size),
        threshold=jnp.full(size, jnp.log(neuron.threshold), jnp.float32),
        synapse_decay=_decays(neuron.synapse_decay, size) if isinstance(neuron, CurrentBased) else None,
        adaptation_decay=_decays(neuron.adaptation_decay, size) if isinstance(neuron, Adaptive) else None,
        recurrent=_recurrent(neuron, size, key) if neuron.recurrent else None,
    )


def _start(neuron: "AnyNeuron", size: int) -> NeuronState:
    current = jnp.zeros(size) if isinstance(neuron, CurrentBased) else None
    adaptation = jnp.zeros(size) if isinstance(neuron, Adaptive) else None
    return NeuronState(jnp.zeros(size), jnp.zeros(size), current, adaptation)


def _step(neuron: "AnyNeuron", params: NeuronParams, state: NeuronState, x: Array) -> NeuronState:
    params = _constants(params, neuron.learn_decay, neuron.learn_threshold)
    threshold, adaptation, current = firing_threshold(params), None, None
    if isinstance(neuron, Adaptive):
        assert state.adaptation is not None
        c = _factor(params.adaptation_decay)
        adaptation = c * state.adaptation + (1 - c) * state.spikes
        threshold = threshold + neuron.adaptation * adaptation
    charge = _current(neuron, params, state, x)
    if isinstance(neuron, CurrentBased):
        assert state.current is not None
        charge = current = _factor(params.synapse_decay) * state.current + charge
    b = _factor(params.decay)
    u = b * state.v + ((1 - b) * charge if neuron.decay_input else charge)
    return NeuronState(*_fire(neuron, u, threshold), current, adaptation)


def _describe(neuron: "AnyNeuron", params: NeuronParams) -> Neurons:
    if neuron.decay_input or neuron.norm != "none":
        name = "decay_input" if neuron.decay_input else f'norm "{neuron.norm}"'
        raise Unexportable(f"{type(neuron).__name__} with {name} cannot be exported; without it it can")

    return Neurons(
        numbers(_factor(params.decay)),
        numbers(firing_threshold(params)),
        neuron.reset,
        synapse_decay=numbers(_factor(params.synapse_decay)) if isinstance(neuron, CurrentBased) else None,
        adaptation_decay=numbers(_factor(params.adaptation_decay)) if isinstance(neuron, Adaptive) else None,
        adaptation=neuron.adaptation if isinstance(neuron, Adaptive) else 0.0,
        recurrent=None if params.recurrent is None else numbers(recurrent_weights(neuron, params)),
    )


def _operations(neuron: "AnyNeuron", params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
    cuba, adaptive = isinstance(neuron, CurrentBased), isinstance(neuron, Adaptive)
    arithmetic = {"multiply": 1 + cuba + 2 * adaptive + neuron.decay_input, "add": 2 + cuba + adaptive}
    found = firing(part, train, arithmetic, reset=adaptive + (neuron.reset == "soft"))
    if neuron.norm == "layer":
        share = standardising(train.shape[1] // params.branches)
        found += (tally(part, "layer_normalisation", train.shape[0] * params.branches, share),)
    if params.recurrent is None:
        return found
    weights = params.recurrent if neuron.recurrent_fan_in is None else recurrent_weights(neuron, params)
    entering = jnp.concatenate([before[None], train[:-1]])
    return (*found, product_operations(f"{part}, recurrent", entering, weights, spiking=True))


@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire:

        u[t] = b v[t-1] + x[t] + R s[t-1];   s[t] = [u[t] >= th];   v[t] = u[t] - th s[t]   (or u[t] (1 - s[t]))

    NIR: `CubaLIF` with tau_syn = dt, w_in = 1, tau_mem = dt / (1 - b), r = 1 / (1 - b), v_leak = 0, v_threshold = th, v_reset = 0,
    which all readers step as this neuron does (their steps of NIR's own `LIF` differ). NIR's reset is the hard one; that it is soft
    stands beside the graph.
    """

    decay: tuple[float, float] = (0.5, 0.95)  # initial b, spread evenly over the layer between these two
    threshold: float = 1.0
    reset: Reset = "soft"
    detach_reset: bool = False
    learn_decay: bool = True
    learn_threshold: bool = False
    recurrent: bool = False
    recurrent_gain: float = 0.5  # standard deviation of the initial R times the square root of its neurons
    recurrent_fan_in: int | None = None  # neurons that each hears, of its branch; None for all
    decay_input: bool = False
    norm: Norm = "none"
    surrogate: AnySurrogate = ArcTan()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, threshold=POSITIVE)
        _check_fan_in(self)

    init, start, step, describe, operations = _init, _start, _step, _describe, _operations


@dataclass(frozen=True)
class CubaLIF:
    """Current-based LIF, the neuron of PopSAN (Tang et al. 2020):

        i[t] = a i[t-1] + x[t] + R s[t-1];   u[t] = b v[t-1] + i[t];   s[t] = [u[t] >= th];   v[t] = u[t] - th s[t]

    PopSAN: a = 0.5, b = 0.75, th = 0.5, hard reset.
    NIR: `CubaLIF` with tau_syn = dt / (1 - a), w_in = 1 / (1 - a), tau_mem = dt / (1 - b), r = 1 / (1 - b), v_leak = 0,
    v_threshold = th, v_reset = 0.
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
    recurrent_fan_in: int | None = None  # neurons that each hears, of its branch; None for all
    decay_input: bool = False
    norm: Norm = "none"
    surrogate: AnySurrogate = Rectangular()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, synapse_decay=OPEN_UNIT, threshold=POSITIVE)
        _check_fan_in(self)

    init, start, step, describe, operations = _init, _start, _step, _describe, _operations


@dataclass(frozen=True)
class AdaptiveLIF:
    """LIF whose threshold rises with its own spikes (ALIF, Bellec et al. 2018):

        a[t] = c a[t-1] + (1 - c) s[t-1];   u[t] = b v[t-1] + x[t] + R s[t-1];   s[t] = [u[t] >= th + k a[t]]

    then the reset by the raised threshold. NIR has no neuron whose threshold moves.
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
    recurrent_fan_in: int | None = None  # neurons that each hears, of its branch; None for all
    decay_input: bool = False
    norm: Norm = "none"
    surrogate: AnySurrogate = ArcTan()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, adaptation_decay=OPEN_UNIT, threshold=POSITIVE)
        _check_fan_in(self)

    init, start, step, describe, operations = _init, _start, _step, _describe, _operations


@dataclass(frozen=True)
class AdaptiveCubaLIF:
    """Current-based LIF whose threshold rises with its own spikes: `CubaLIF` and `AdaptiveLIF` in one,

        i[t] = a i[t-1] + x[t] + R s[t-1];   e[t] = c e[t-1] + (1 - c) s[t-1]
        u[t] = b v[t-1] + i[t];   s[t] = [u[t] >= th + k e[t]]

    then the reset, a soft one by the raised threshold. A spike raises it by (1 - c) k: by 0.1 with the defaults. NIR has no neuron
    whose threshold moves.
    """

    synapse_decay: tuple[float, float] = (0.5, 0.5)
    decay: tuple[float, float] = (0.75, 0.75)
    adaptation_decay: tuple[float, float] = (0.9, 0.9)
    adaptation: float = 1.0  # k, in units of the membrane potential
    threshold: float = 0.5
    reset: Reset = "hard"
    detach_reset: bool = False
    learn_decay: bool = True
    learn_threshold: bool = False
    recurrent: bool = False
    recurrent_gain: float = 0.5  # standard deviation of the initial R times the square root of its neurons
    recurrent_fan_in: int | None = None  # neurons that each hears, of its branch; None for all
    decay_input: bool = False
    norm: Norm = "none"
    surrogate: AnySurrogate = Rectangular()

    def __post_init__(self) -> None:
        check_bounds(self, decay=OPEN_UNIT, synapse_decay=OPEN_UNIT, adaptation_decay=OPEN_UNIT, threshold=POSITIVE)
        _check_fan_in(self)

    init, start, step, describe, operations = _init, _start, _step, _describe, _operations


@dataclass(frozen=True)
class LeakyIntegrator:
    """Never fires; its membrane is a readout:

        v[t] = b v[t-1] + x[t]

    NIR's `LI` would be tau = dt / (1 - b), r = 1 / (1 - b), v_leak = 0; readers fail on it or leave it out, so that it stays beside
    the graph.
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

    def describe(self, params: NeuronParams) -> Integrators:
        return Integrators(numbers(_factor(params.decay)))

    def operations(self, params: NeuronParams, part: str, before: Array, train: Array) -> tuple[Operations, ...]:
        return (tally(part, "neuron_update", train.size, {"multiply": 1, "add": 1}),)


CurrentBased = CubaLIF | AdaptiveCubaLIF
Adaptive = AdaptiveLIF | AdaptiveCubaLIF
AnyNeuron = LIF | CubaLIF | AdaptiveLIF | AdaptiveCubaLIF
