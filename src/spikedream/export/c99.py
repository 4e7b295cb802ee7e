"""C99 of a chain of nodes: no allocation, no library; spikes are events, and only the rows of weights that they name are added up.

What C has for a node is a function registered for its type; a node without one is refused by name.
"""

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from spikedream.export.program import Program, Source, literal
from spikedream.nodes import (
    FAINT,
    FULL,
    Activation,
    Bounds,
    Charges,
    Choice,
    Current,
    Dense,
    GaussianCurrents,
    GaussianFields,
    Integrators,
    Layer,
    Neurons,
    Node,
    PopulationSum,
    Potentials,
    Rates,
    Squash,
    Standardise,
    Unexportable,
    Window,
)  # fmt: skip


def source(nodes: Sequence[Node], inputs: int, title: str) -> Source:
    """Raises Unexportable for a node that C has nothing for."""
    program = Program(inputs)
    for node in nodes:
        write(node, program)
    return program.source(title)


# ---- numbers in, numbers out


@singledispatch
def write(node: Any, program: Program) -> None:
    """Add a node to the program."""
    raise Unexportable(f"C has nothing for {type(node).__name__}; --to c exports {', '.join(_names())}")


def _names() -> list[str]:
    return sorted(kind.__name__ for kind in write.registry if kind is not object)


@write.register
def _(node: Standardise, program: Program) -> None:
    mean, inverse = program.each("mean", node.mean), program.each("inverse_scale", node.inverse)
    was, out = program.value, program.to(node.mean.size)
    program.say(f"for (i = 0; i < {program.size}; i++)\n    {out}[i] = ({was}[i] - {mean}) * {inverse};")


@write.register
def _(node: Dense, program: Program) -> None:
    (how, weight), bias = program.matrix("weight", node.weight), program.table("bias", node.bias)
    rows, was, out = program.size, program.value, program.to(node.bias.size)
    program.say(f"dense{how}({weight}, {bias}, {was}, {rows}, {out});")


@write.register
def _(node: Activation, program: Program) -> None:
    function = "tangent" if node.function == "tanh" else node.function
    program.say(f"for (i = 0; i < {program.size}; i++)\n    {program.value}[i] = {function}({program.value}[i]);")


@write.register
def _(node: PopulationSum, program: Program) -> None:
    (outputs, neurons), was = node.weight.shape, program.value
    weight, bias = program.table("decoder", node.weight), program.table("bias", node.bias)
    out = program.to(outputs)
    program.say(f"""
for (i = 0; i < {outputs}; i++) {{
    float sum = 0;
    int k;
    for (k = 0; k < {neurons}; k++)
        sum += {was}[i * {neurons} + k] * {weight}[i * {neurons} + k];
    {out}[i] = sum + {bias}[i];
}}""")


@write.register
def _(node: GaussianCurrents, program: Program) -> None:
    (inputs, fields), was, rest = node.mean.shape, program.value, program.size - len(node.mean)
    mean, precision = (program.each(n, x, "k") for n, x in (("mean", node.mean), ("precision", node.precision)))
    out = program.to(inputs * fields + rest)
    program.say(f"""
for (i = 0; i < {inputs}; i++) {{
    float x = {f"tangent({was}[i])" if node.squash else f"{was}[i]"};
    int k;
    for (k = i * {fields}; k < (i + 1) * {fields}; k++) {{
        float z = (x - {mean}) * {precision};
        float q = -0.5f * (z * z);
        {out}[k] = q < {literal(FAINT)} ? 0.0f : exponential(q);
    }}
}}""")
    if rest:
        program.say(f"for (i = 0; i < {rest}; i++)\n    {out}[{inputs * fields} + i] = {was}[{inputs} + i];")


@write.register
def _(node: Squash, program: Program) -> None:
    x = f"{program.value}[i]"
    if node.within is not None:
        x = f"{literal(node.within)} * tangent({x} * {literal(1 / node.within)})"
    out = program.to(node.size)
    program.say(f"for (i = 0; i < {node.size}; i++)\n    {out}[i] = tangent({x});")


@write.register
def _(node: Bounds, program: Program) -> None:
    low, high, span = (program.each(n, x) for n, x in (("low", node.low), ("high", node.high), ("span", node.high - node.low)))
    value = program.value
    program.say(f"""
for (i = 0; i < {program.size}; i++) {{
    float x = {low} + ({value}[i] + 1.0f) * 0.5f * {span};
    {value}[i] = x < {low} ? {low} : x > {high} ? {high} : x;
}}""")


@write.register
def _(node: Choice, program: Program) -> None:
    program.choices, value = program.size, program.value
    program.body.insert(0, "int choice = 0;")
    program.say(f"for (i = 1; i < {program.size}; i++)\n    if ({value}[i] > {value}[choice])\n        choice = i;")


# ---- spiking layers


class Arithmetic(NamedTuple):
    """In which spiking layers are computed: types of C, and what writes a layer's state, what reaches it, and its tick."""

    sums: str
    membranes: str
    counts: str
    fields: Callable[[int, Any, int, Program], None]
    accumulate: Callable[[int, Layer, Any, Program], None]
    step: Callable[[int, Layer, Any, Program], None]


@write.register
def _(node: Window, program: Program) -> None:
    counts = "uint8_t" if node.ticks < 256 else "uint16_t"
    window(node, program, Arithmetic("float", "float", counts, _fields, _accumulate, _step))


def window(node: Window, program: Program, by: Arithmetic) -> None:
    charges = isinstance(node.reading, Charges)
    last, size = len(node.layers) - 1, node.layers[-1].size
    for i, layer in enumerate(node.layers):
        program.field(f"v{i}", layer.size, by.membranes, reset=True)
        if not isinstance(layer.neurons, Integrators):
            by.fields(i, layer.neurons, layer.size, program)
    if not node.persistent:
        program.say("actor_reset(actor);")
    program.body.insert(0, "int tick;")
    if not isinstance(node.reading, Potentials):
        counts = program.field("counts", size, by.counts)
        program.say(f"for (i = 0; i < {size}; i++)\n    {counts}[i] = 0;")
    if charges:
        before = program.field("before", size)
        program.say(f"for (i = 0; i < {size}; i++)\n    {before}[i] = actor->v{last}[i];")
    entering = encode(node.encoder, node, program)
    program.field("sum", max(layer.size for layer in node.layers), by.sums)
    program.say(f"for (tick = 0; tick < {node.ticks}; tick++) {{")
    inside = len(program.body)
    entering(program)
    for i, layer in enumerate(node.layers):
        if i or not constant(node):
            by.accumulate(i, layer, node, program)
        by.step(i, layer, node, program)
    program.body[inside:] = ["    " + line for line in program.body[inside:]]
    program.say("}")
    read(node.reading, node, program)


def constant(node: Window) -> bool:
    """Whether the first layer's current is the same at every tick."""
    return not isinstance(node.encoder, GaussianFields)


def events(i: int) -> str:
    """What reaches layer `i`, and how many: of the layer before, or of the encoder."""
    return f"actor->events{i - 1}, actor->count{i - 1}[0]" if i else "actor->encoded, encoded"


def fires(i: int, node: Window, program: Program) -> list[str]:
    """What is written down where neuron i of a layer fires."""
    counted = ["    actor->counts[i]++;"] if i == len(node.layers) - 1 else []
    return [f"    actor->events{i}[count++] = (uint16_t)i;", *counted, f"    ACTOR_SPIKE({program.layers}, tick, i);"]


def neurons(i: int, size: int, loop: list[str], program: Program) -> None:
    """The loop over a layer's neurons, of which each counts the spikes."""
    lines = "\n".join("        " + line for line in loop)
    program.say(f"""
{{
    int count = 0;
    for (i = 0; i < {size}; i++) {{
{lines}
    }}
    actor->count{i}[0] = count;
}}""")
    program.layers += 1


def _fields(i: int, neurons: Neurons, size: int, program: Program) -> None:
    """State beside the membranes."""
    program.field(f"events{i}", size, "uint16_t")
    program.field(f"count{i}", 1, "int", reset=True)
    if neurons.synapse_decay is not None:
        program.field(f"current{i}", size, reset=True)
    if neurons.adaptation_decay is not None:
        program.field(f"rise{i}", size, reset=True)
        program.field(f"fired{i}", size, "uint8_t", reset=True)
    if neurons.recurrent is not None:
        program.field(f"recurrent{i}", size)


def _accumulate(i: int, layer: Layer, node: Window, program: Program) -> None:
    how, weight = program.matrix("weight", layer.synapses.weight)
    program.say(f"accumulate{how}({weight}, {events(i)}, actor->sum);")


def _step(i: int, layer: Layer, node: Window, program: Program) -> None:
    """One tick of a layer; its equation is that of the node's `step`."""
    kind, size = layer.neurons, layer.size
    x = "actor->constant[i]" if i == 0 and constant(node) else f"(actor->sum[i] + {program.each('bias', layer.synapses.bias)})"
    decay = program.each("decay", kind.decay)
    if isinstance(kind, Integrators):
        program.say(f"for (i = 0; i < {size}; i++)\n    actor->v{i}[i] = {decay} * actor->v{i}[i] + {x};")
        return
    if kind.recurrent is not None:
        how, weight = program.matrix("recurrent", kind.recurrent)
        program.say(f"accumulate{how}({weight}, actor->events{i}, actor->count{i}[0], actor->recurrent{i});")
        x = f"({x} + actor->recurrent{i}[i])"
    loop = []
    if kind.synapse_decay is not None:
        loop.append(f"actor->current{i}[i] = {program.each('synapse_decay', kind.synapse_decay)} * actor->current{i}[i] + {x};")
        x = f"actor->current{i}[i]"
    threshold = program.each("threshold", kind.threshold)
    if kind.adaptation_decay is not None:
        kept, gained = (program.each("adaptation", c) for c in (kind.adaptation_decay, 1 - kind.adaptation_decay))
        loop.append(f"actor->rise{i}[i] = {kept} * actor->rise{i}[i] + {gained} * (float)actor->fired{i}[i];")
        loop.append(f"actor->fired{i}[i] = 0;")
        loop.append(f"float threshold = {threshold} + {literal(kind.adaptation)} * actor->rise{i}[i];")
        threshold = "threshold"
    loop += [f"float u = {decay} * actor->v{i}[i] + {x};", f"if (u >= {threshold}) {{"]
    loop.append(f"    u = {f'u - {threshold}' if kind.reset == 'soft' else '0.0f'};")
    if kind.adaptation_decay is not None:
        loop.append(f"    actor->fired{i}[i] = 1;")
    loop += [*fires(i, node, program), "}", f"actor->v{i}[i] = u;"]
    neurons(i, size, loop, program)


# ---- what enters a window, and what leaves it


@singledispatch
def encode(encoder: Any, node: Window, program: Program) -> Any:
    """Write what is done before the ticks; the answer writes what is done in each."""
    raise Unexportable(f"C has nothing for {type(encoder).__name__}; --to c exports Current and GaussianFields")


@encode.register
def _(encoder: Current, node: Window, program: Program) -> Any:
    synapses, rows, was = node.layers[0].synapses, program.size, program.value
    (how, weight), bias = program.matrix("weight", synapses.weight), program.table("bias", synapses.bias)
    out = program.field("constant", synapses.bias.size)
    program.say(f"dense{how}({weight}, {bias}, {was}, {rows}, {out}); /* the same at every tick */")
    return lambda program: None


@encode.register
def _(encoder: GaussianFields, node: Window, program: Program) -> Any:
    inputs, fields = encoder.mean.shape
    mean, precision = (program.each(n, x, "k") for n, x in (("mean", encoder.mean), ("precision", encoder.precision)))
    least = math.log(node.ticks / float(FULL)) + 1e-3  # what is weaker than exp(-least) cannot fire within the window
    program.field("active", inputs * fields, "uint16_t")
    program.field("encoded", inputs * fields, "uint16_t")
    program.field("drive", inputs * fields)
    program.field("charge", inputs * fields)
    program.body[0:0] = ["int k, encoded, active = 0;"]
    value = f"tangent({program.value}[i])" if encoder.squash else f"{program.value}[i]"
    program.say(f"""
for (i = 0, k = 0; i < {inputs}; i++) {{
    float x = {value};
    int end = k + {fields};
    for (; k < end; k++) {{
        float z = (x - {mean}) * {precision};
        float q = -0.5f * (z * z);
        if (q < {literal(-least)}) /* would not fire within {node.ticks} ticks */
            continue;
        actor->active[active] = (uint16_t)k;
        actor->drive[active] = exponential(q);
        actor->charge[active++] = 0;
    }}
}}""")
    return lambda program: program.say(f"""
for (k = 0, encoded = 0; k < active; k++) {{
    float v = actor->charge[k] + actor->drive[k];
    if (v >= {literal(FULL)}) {{
        v -= 1.0f;
        actor->encoded[encoded++] = actor->active[k];
    }}
    actor->charge[k] = v;
}}""")


@singledispatch
def read(reading: Any, node: Window, program: Program) -> None:
    """Write what is done after the ticks."""
    raise Unexportable(f"C has nothing for {type(reading).__name__}; --to c exports Rates, Potentials and Charges")


def _rates(node: Window, program: Program) -> str:
    """An expression: the divisions are made here."""
    table = program.table("rate", np.arange(node.ticks + 1, dtype=np.float32) / np.float32(node.ticks))
    return f"{table}[actor->counts[i]]"


@read.register
def _(reading: Rates, node: Window, program: Program) -> None:
    rate, out = _rates(node, program), program.to(node.layers[-1].size)
    program.say(f"for (i = 0; i < {program.size}; i++)\n    {out}[i] = {rate};")


@read.register
def _(reading: Potentials, node: Window, program: Program) -> None:
    out = program.to(node.layers[-1].size)
    program.say(f"for (i = 0; i < {program.size}; i++)\n    {out}[i] = actor->v{len(node.layers) - 1}[i] / {literal(node.ticks)};")


@read.register
def _(reading: Charges, node: Window, program: Program) -> None:
    last, size, rate = len(node.layers) - 1, node.layers[-1].size, _rates(node, program)
    threshold, out = program.each("threshold", reading.threshold), program.to(2 * size)
    program.say(f"""
for (i = 0; i < {size}; i++) {{
    float rate = {rate};
    {out}[i] = rate + (actor->v{last}[i] - actor->before[i]) / {threshold} / {literal(node.ticks)};
    {out}[{size} + i] = rate;
}}""")


from spikedream.export import c99_integers  # noqa: E402, F401  what C has for nodes in fixed point
