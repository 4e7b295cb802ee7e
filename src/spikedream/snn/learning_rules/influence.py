"""Gradients of a spiking layer forward in time: sums of a tick's cotangent times the influence of the parameters on its state.

The state z of a neuron (membrane, spike, and for some current and adaptation) follows from its state before, its parameters and
the current x that enters it. For each parameter p that belongs to neuron j the influence on neuron i is carried along,

    dz_i[t]/dp = D_i dz_i[t-1]/dp + B_i dx_i[t]/dp + G_i,   dx_i[t]/dp = sum_l R_li ds_l[t-1]/dp + the current that p itself makes

with the derivatives D, B and G of `Neuron.step` by the state, the current and its parameters, surrogates and reset included
(Williams & Zipser 1989, "A learning algorithm for continually running fully recurrent neural networks"). A `Pattern` says on which
neurons i it is kept. No tick is remembered: the backward pass runs the layer again from where it began.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.snn.affine import Affine
from spikedream.snn.learning_rules.pattern import Own, Pattern
from spikedream.snn.learning_rules.protocol import Made, SpikingLayer, TickWindow
from spikedream.snn.neurons import AnyNeuron, NeuronParams, NeuronState, heard, recurrent_weights
from spikedream.snn.operations import Operations, for_gradient, tally, without_gradient
from spikedream.snn.product import product
from spikedream.snn.surrogates import ArcTan

TINY = 1e-30  # influences that have decayed this far are zero: smaller ones become denormals, which processors are slow at

UNROLLED = 8  # ticks of the forward pass. With influences a tick is a turn of a loop: XLA fuses them all into one and takes minutes

Influence = Mapping[str, NeuronState]  # of each group of parameters: on the state's parts


class _Weights(NamedTuple):
    """What decides a layer's ticks, less what enters it."""

    synapse: Affine
    params: NeuronParams  # of each neuron by itself
    recurrent: Array | None  # (size, size)


def _parts(state: NeuronState) -> list[str]:
    return [name for name, part in state._asdict().items() if part is not None]


def _own_parameters(params: NeuronParams) -> dict[str, Array]:
    """(size,) each, of each neuron by itself."""
    names = ("decay", "threshold", "synapse_decay", "adaptation_decay")
    return {name: getattr(params, name) for name in names if getattr(params, name) is not None}


def at_rest(neuron: AnyNeuron, pattern: Pattern, layer: SpikingLayer) -> Influence:
    """Of parameters on a state that does not depend on them."""
    sources = None if layer.neuron.recurrent is None else _sources(neuron, layer.neuron)
    return _Trace(neuron, pattern, sources).rest(_Weights(layer.synapse, layer.neuron, None))


def _sources(neuron: AnyNeuron, params: NeuronParams) -> np.ndarray:
    """(inputs, size) the neurons that each hears."""
    listened = heard(neuron, params.decay.size, params.branches)
    return np.stack([np.flatnonzero(column) for column in listened.T], axis=1)


def _zeros(neuron: AnyNeuron, pattern: Pattern, size: int, columns: int) -> NeuronState:
    return jax.tree.map(lambda _: pattern.zeros(columns), neuron.start(size))


def window(
    neuron: AnyNeuron,
    pattern: Pattern,
    layer: SpikingLayer,
    entering: Array,
    state: NeuronState,
    influence: Influence | None,
    ticks: int,
    *,
    backward: AnyNeuron | None = None,
    feedback: Array | None = None,
) -> TickWindow:
    """As `LearningRule.window`.

    Args:
        neuron, layer, entering, state, influence, ticks: likewise.
        pattern: which influences are kept.
        backward: the neuron whose derivatives are taken, in place of `neuron`.
        feedback: (in_size, size) through which the gradient goes on to what enters, in place of the weights.
    """
    steady = entering.shape[0] == 1
    params = layer.neuron
    recurrent = None if params.recurrent is None else recurrent_weights(neuron, params)
    weights = _Weights(layer.synapse, replace(params, recurrent=None, branches=1), recurrent)
    trace = _Trace(backward or neuron, pattern, None if recurrent is None else _sources(neuron, params))

    def forward(weights: _Weights, entering: Array, state: NeuronState, influence: Influence | None) -> TickWindow:
        currents = weights.synapse(entering)

        def tick(now: tuple[NeuronState, _Traced | None], row: tuple[Array, Array] | None):
            before, traced = now
            x, current = (entering[0], currents[0]) if row is None else row
            after = neuron.step(weights.params, before, _total(weights, before, current))
            if traced is not None:
                traced = trace.advance(weights, traced, before, x, current)[0]
            return (after, traced), (after.spikes, after.v - state.v)

        first = (state, None if influence is None else _traced(influence, params.decay.size))
        rows = None if steady else (entering, currents)
        unroll = min(ticks, UNROLLED) if influence is None else 1
        (after, traced), (spikes, v) = jax.lax.scan(tick, first, rows, length=ticks, unroll=unroll)
        return TickWindow(spikes, v, after, None if traced is None else traced.influence)

    @jax.custom_vjp
    def run(weights: _Weights, entering: Array, state: NeuronState, influence: Influence | None) -> TickWindow:
        return forward(weights, entering, state, influence)

    def run_and_keep(*arguments: Any) -> tuple[TickWindow, tuple]:
        return run(*arguments), arguments

    def pull(kept: tuple, cotangent: TickWindow) -> tuple:
        weights, entering, state, influence = kept
        gradient, into = trace.accumulate(weights, entering, state, influence, cotangent, ticks)
        onward = weights.synapse.weight if feedback is None else feedback
        nothing = jax.tree.map(jnp.zeros_like, (state, influence))
        return gradient, product(into, onward.T), *nothing

    run.defvjp(run_and_keep, pull)
    return run(weights, entering, state, influence)


def _total(weights: _Weights, before: NeuronState, current: Array) -> Array:
    """(size,) from outside and from the layer's own last spikes."""
    if weights.recurrent is None:
        return current
    return current + product(before.spikes[None], weights.recurrent)[0]


class _Local(NamedTuple):
    """Derivatives of a tick's state by what decides it, neuron by neuron; leaves (size,)."""

    by_state: dict[str, NeuronState]
    by_current: NeuronState
    by_parameter: dict[str, NeuronState]


def _local(neuron: AnyNeuron, params: NeuronParams, before: NeuronState, current: Array) -> tuple[NeuronState, _Local]:
    """The state after a tick under `current`, and its derivatives: each neuron's depends on nothing of another, so that one
    direction for all of them at once gives them all."""
    after, push = jax.linearize(neuron.step, params, before, current)
    still = jax.tree.map(jnp.zeros_like, (params, before, current))
    ones = jnp.ones_like(current)
    by_state = {name: push(still[0], still[1]._replace(**{name: ones}), still[2]) for name in _parts(before)}
    by_parameter = {name: push(replace(still[0], **{name: ones}), *still[1:]) for name in _own_parameters(params)}
    return after, _Local(by_state, push(still[0], still[1], ones), by_parameter)


class _Traced(NamedTuple):
    influence: Influence
    active: Array  # (size,) bool, whether the influence on a neuron's last spike can be other than zero


def _traced(influence: Influence, size: int) -> _Traced:
    """Of influences that came from elsewhere."""
    return _Traced(influence, jnp.ones(size, bool))


class _Trace:
    """Influences along the ticks of layers of one `neuron`, each of which hears the `sources`, (inputs, size)."""

    def __init__(self, neuron: AnyNeuron, pattern: Pattern, sources: np.ndarray | None):
        self.neuron, self.pattern, self.sources = neuron, pattern, sources

    def advance(
        self, weights: _Weights, traced: _Traced, before: NeuronState, entering: Array, current: Array
    ) -> tuple[_Traced, NeuronState, _Local]:
        """By one tick; the state after it and its derivatives too."""
        after, local = _local(self.neuron, weights.params, before, _total(weights, before, current))
        made = {  # the current that a parameter makes, (columns, size)
            "current": lambda: jnp.ones((1, current.size)),
            "synapse": lambda: jnp.broadcast_to(jnp.append(entering, 1.0)[:, None], (entering.size + 1, current.size)),
            "recurrent": lambda: before.spikes[self.sources],
        }
        advanced = {name: self._group(weights, local, old, traced.active, made.get(name)) for name, old in traced.influence.items()}
        # A spike's influence is its surrogate's derivative times that on its membrane.
        return _Traced(advanced, local.by_current.spikes != 0), after, local

    def _group(
        self, weights: _Weights, local: _Local, old: NeuronState, active: Array, made: Callable[[], Array] | None
    ) -> NeuronState:
        spread, own = self.pattern.spread, self.pattern.own
        currents: Array | float = 0.0
        if weights.recurrent is not None:
            currents = self.pattern.couple(old.spikes, weights.recurrent, active)
        if made is not None:
            currents = currents + own(made())

        def part(name: str) -> Array:
            """Of the state after the tick."""
            by_state = [spread(getattr(local.by_state[of], name)) * getattr(old, of) for of in _parts(old)]
            total = sum(by_state[1:], by_state[0]) + spread(getattr(local.by_current, name)) * currents
            if made is None:
                total = total + own(jnp.stack([getattr(by, name) for by in local.by_parameter.values()]))
            return jnp.where(jnp.abs(total) < TINY, 0.0, total)

        return old._replace(**{name: part(name) for name in _parts(old)})

    def accumulate(
        self, weights: _Weights, entering: Array, state: NeuronState, influence: Influence | None, cotangent: TickWindow, ticks: int
    ) -> tuple[_Weights, Array]:
        """The layer's gradient, and that of the currents from outside: (1, size) of a steady one, exactly within the window;
        else (ticks, size), of each tick's through that tick alone."""
        steady, size = entering.shape[0] == 1, weights.params.decay.size
        currents = weights.synapse(entering)
        traces: dict[str, NeuronState] = {**(self.rest(weights) if influence is None else influence)}
        if steady:
            traces["current"] = _zeros(self.neuron, self.pattern, size, 1)
            if influence is None:  # every weight's influence is its input times that of the current: one column for all
                del traces["synapse"]
        last = cotangent.after
        total = {name: -self.pattern.contract(cotangent.v.sum(0), old.v) for name, old in traces.items()}

        def tick(now: tuple, row: tuple) -> tuple[tuple, Array]:
            before, traced, total = now
            index, spikes, v, x, current = row
            x, current = (entering[0], currents[0]) if steady else (x, current)
            traced, after, local = self.advance(weights, traced, before, x, current)
            here = jax.tree.map(lambda end: jnp.where(index == ticks - 1, end, 0), last)
            here = here._replace(spikes=here.spikes + spikes, v=here.v + v)
            total = {
                name: total[name] + sum(self.pattern.contract(getattr(here, of), getattr(trace, of)) for of in _parts(trace))
                for name, trace in traced.influence.items()
            }
            into = jnp.stack([getattr(here, of) * getattr(local.by_current, of) for of in _parts(here)]).sum(0)
            return (after, traced, total), into

        rows = (jnp.arange(ticks), cotangent.spikes, cotangent.v, *((None, None) if steady else (entering, currents)))
        first = (state, _traced(traces, size), total)
        (_, _, total), into = jax.lax.scan(tick, first, rows, length=ticks)
        if "synapse" not in total:
            total["synapse"] = jnp.concatenate([entering[0][:, None] * total["current"], total["current"]])
        return self._gradient(weights, total), total["current"] if steady else into

    def rest(self, weights: _Weights) -> Influence:
        """Of parameters on a state that does not depend on them."""
        columns = {"synapse": weights.synapse.weight.shape[0] + 1, "neuron": len(_own_parameters(weights.params))}
        if self.sources is not None:
            columns["recurrent"] = self.sources.shape[0]
        size = weights.params.decay.size
        return {name: _zeros(self.neuron, self.pattern, size, number) for name, number in columns.items()}

    def _gradient(self, weights: _Weights, total: dict[str, Array]) -> _Weights:
        names = _own_parameters(weights.params)
        params = replace(weights.params, **dict(zip(names, total["neuron"], strict=True)))
        synapse = Affine(total["synapse"][:-1], total["synapse"][-1])
        recurrent = None
        if weights.recurrent is not None:
            to = jnp.arange(weights.params.decay.size)
            recurrent = jnp.zeros_like(weights.recurrent).at[self.sources, to[None]].set(total["recurrent"])
        return _Weights(synapse, params, recurrent)


# ---- what that takes


class _Dependence(NamedTuple):
    """How many derivatives of a tick's state are not zero by the neuron's equation."""

    parts: int  # of the state
    by_state: int  # of a part by a part
    by_current: int
    by_parameter: tuple[int, ...]  # of each that leads into a neuron and can be learned


@functools.cache
def _dependence(neuron: AnyNeuron) -> _Dependence:
    """Asked of a silent neuron, no two parts of whose state are alike, and whose surrogate is zero nowhere."""
    with jax.ensure_compile_time_eval():
        params = replace(neuron.init(1, jax.random.key(0)), recurrent=None)
        start = neuron.start(1)
        before = start._replace(**{name: jnp.full(1, -0.1 * i) for i, name in enumerate(_parts(start), 1)})
        at, step = (params, before, jnp.full(1, -0.1)), replace(neuron, surrogate=ArcTan()).step
        still, ones = jax.tree.map(jnp.zeros_like, at), jnp.ones(1)

        def count(*push: Any) -> int:
            moved = jax.jvp(step, at, push)[1]
            return sum(int(getattr(moved, name)[0] != 0) for name in _parts(moved))

        by_state = [count(still[0], still[1]._replace(**{name: ones}), still[2]) for name in _parts(before)]
        by_parameter = [count(replace(still[0], **{name: ones}), *still[1:]) for name in _own_parameters(params)]
        by_current = count(*still[:2], ones)
    return _Dependence(len(_parts(before)), sum(by_state), by_current, tuple(filter(None, by_parameter)))


def operations(
    neuron: AnyNeuron,
    pattern: Pattern,
    layer: SpikingLayer,
    entering: Array,
    state: NeuronState,
    made: Made,
    *,
    backward: AnyNeuron | None = None,
    feedback: bool = False,
) -> tuple[Operations, ...]:
    """As `LearningRule.operations`: what `window` takes for a gradient in place of backpropagation through time.

    Of N neurons over T ticks. Their parameters have E influences: columns times the pairs of neurons that the pattern keeps (N
    where none hears another and with e-prop, N^2 where all hear all).

        T d E               multiply-accumulates that carry influences on, by the d derivatives D that the neuron's equation has
        w C + T b E         the same where neurons hear each other: w weights that are not zero, of those neurons alone whose
                            surrogate was not zero, pass on C columns, which enter through B
        b a (or a), g T N   additions of what enters at a parameter itself: a currents (a spike's, a bias's); by G
        T z E               multiply-accumulates of each of z parts of the state with its cotangent

    (Williams & Zipser 1989; Menick et al. 2021, table 1; e-prop: Bellec et al. 2020, equations 4 and 13.) Where a constant current
    enters from rest, one column stands for all synapses, and their gradient is a product as in backpropagation; else they have a
    column each, and the error alone goes back through them. The neurons' second run and its derivatives count as two of their
    updates, as elsewhere. Influences that a persistent network keeps are counted where a gradient is taken, not where it only acts.
    """
    (inputs, size), ticks, steady = layer.synapse.weight.shape, made.train.shape[0], entering.shape[0] == 1
    each, recurrent = _dependence(backward or neuron), layer.neuron.recurrent is not None
    sources = _sources(neuron, layer.neuron) if recurrent else None
    hears = recurrent and not isinstance(pattern, Own)
    between = _heard(neuron, pattern, layer, entering, state, made) if recurrent else None
    apart = not steady or made.persistent  # whether each synapse has a column
    columns = len(each.by_parameter) + steady + apart * (inputs + 1) + (0 if sources is None else sources.shape[0])
    influences = ticks * pattern.pairs * columns
    # Where it is joined with what others pass on, what a parameter makes enters the current first, and the state with that.
    into = 1 if hears else each.by_current
    own = jnp.asarray(ticks * size * sum(each.by_parameter) + into * ticks * size * (steady + apart), jnp.float32)
    macs = jnp.asarray(influences * (each.by_state + each.parts), jnp.float32)
    if apart and made.spiking:
        own += into * size * (ticks if steady else 1) * entering.sum()
    elif apart:
        macs += into * size * inputs * ticks
    if between is not None:
        own += into * between.spikes
        macs += between.passed * columns + (influences * each.by_current if hears else 0)
    return (
        *_of_synapses(layer, made, steady, apart, feedback, each.parts * ticks * size),
        *(without_gradient((x,))[0] if x.connections is not None else x for x in made.neuron),
        for_gradient(f"{made.part}, influences", "influence", macs),
        for_gradient(f"{made.part}, influences", "add", own),
    )


def _of_synapses(
    layer: SpikingLayer, made: Made, steady: bool, apart: bool, feedback: bool, cotangents: int
) -> tuple[Operations, ...]:
    """The product with what enters, and what its gradient takes beside influences; those hold the bias's."""
    product, *others = made.synapse
    assert product.connections is not None
    rest = without_gradient(tuple(others))
    if not (apart or feedback):
        return product, *rest
    present = layer.synapse.weight.size if feedback else product.connections.nonzero
    back = present * product.connections.rows + (0 if steady else cotangents)
    found = (*without_gradient((product,)), *rest, for_gradient(made.part, "backward", back))
    if apart:
        return found
    return *found, replace(tally(f"{made.part}, weights", product.kind, product.number), gradient="alone")


class _Heard(NamedTuple):
    passed: Array  # () multiply-accumulates that pass influences on from neuron to neuron, for one column
    spikes: Array  # () pairs of a spike and a neuron that hears it


def _heard(neuron: AnyNeuron, pattern: Pattern, layer: SpikingLayer, entering: Array, state: NeuronState, made: Made) -> _Heard:
    params = layer.neuron
    weights = _Weights(layer.synapse, replace(params, recurrent=None, branches=1), recurrent_weights(neuron, params))
    currents = jnp.broadcast_to(layer.synapse(entering), made.train.shape)
    assert weights.recurrent is not None
    present = (weights.recurrent != 0).astype(jnp.float32)
    listeners = jnp.asarray(heard(neuron, params.decay.size, params.branches).sum(1), jnp.float32)

    def tick(now: tuple[NeuronState, Array], current: Array) -> tuple[tuple[NeuronState, Array], _Heard]:
        before, active = now
        after, local = _local(neuron, weights.params, before, _total(weights, before, current))
        found = _Heard(jnp.asarray(pattern.passed(present, active), jnp.float32), before.spikes @ listeners)
        return (after, local.by_current.spikes != 0), found

    first = (state, jnp.full(params.decay.size, made.persistent))  # from rest there is nothing to pass on
    return jax.tree.map(lambda x: x.sum(), jax.lax.scan(tick, first, currents)[1])
