"""C99 of nodes in fixed point: weights of 8 bits, membranes of 16, sums of 32."""

from typing import Any

from spikedream.export.c99 import Arithmetic, constant, encode, events, fires, neurons, read, window, write
from spikedream.export.program import Program, literal
from spikedream.integers import Counts, FixedCurrent, FixedNeurons, FixedSum, FixedWindow
from spikedream.nodes import Layer, Window


@write.register
def _(node: FixedWindow, program: Program) -> None:
    window(node, program, Arithmetic("int32_t", "int16_t", "int16_t", _fields, _accumulate, _step))


def _fields(i: int, neurons: FixedNeurons, size: int, program: Program) -> None:
    program.field(f"events{i}", size, "uint16_t")
    program.field(f"count{i}", 1, "int", reset=True)
    if neurons.synapse_decay is not None:
        program.field(f"current{i}", size, "int16_t", reset=True)
    if neurons.recurrent is not None:
        program.field(f"recurrent{i}", size, "int32_t")


def _accumulate(i: int, layer: Layer, node: Any, program: Program) -> None:
    how, weight = program.matrix("weight", layer.synapses.weight / 2**node.fraction, "int8_t")
    program.say(f"accumulate_whole{how}({weight}, {events(i)}, actor->sum);")


def _step(i: int, layer: Layer, node: Any, program: Program) -> None:
    """One tick of a layer; its equation is that of `FixedNeurons.step`."""
    kind, scale = layer.neurons, 2**node.fraction
    if i == 0 and constant(node):
        x = "actor->constant[i]"
    else:
        x = f"actor->sum[i] * {scale} + {program.each('bias', layer.synapses.bias, kind='int16_t')}"
    if kind.recurrent is not None:
        how, weight = program.matrix("recurrent", kind.recurrent / scale, "int8_t")
        heard = f"actor->events{i}, actor->count{i}[0], actor->recurrent{i}"
        program.say(f"accumulate_whole{how}({weight}, {heard});")
        x = f"{x} + actor->recurrent{i}[i] * {scale}"
    loop = []
    if kind.synapse_decay is not None:
        lost, current = program.each("synapse_leak", kind.synapse_decay, kind="uint8_t"), f"actor->current{i}[i]"
        loop.append(f"{current} = saturated(leaked({current}, {lost}) + {x});")
        x = current
    lost, threshold = (program.each(n, v, kind=k) for n, v, k in (
        ("leak", kind.decay, "uint8_t"), ("threshold", kind.threshold, "int16_t"),
    ))  # fmt: skip
    loop += [f"int32_t u = saturated(leaked(actor->v{i}[i], {lost}) + {x});", f"if (u >= {threshold}) {{"]
    loop.append(f"    u = {f'u - {threshold}' if kind.reset == 'soft' else '0'};")
    loop += [*fires(i, node, program), "}", f"actor->v{i}[i] = (int16_t)u;"]
    neurons(i, layer.size, loop, program)


@encode.register
def _(encoder: FixedCurrent, node: Window, program: Program) -> Any:
    synapses, rows, was, scale = node.layers[0].synapses, program.size, program.value, 2**encoder.fraction
    (how, weight), bias = (
        program.matrix("weight", synapses.weight / scale, "int8_t"),
        program.table("bias", synapses.bias, "int16_t"),
    )
    inputs, out = program.field("input", rows, "int16_t"), program.field("constant", synapses.bias.size, "int32_t")
    program.say(f"for (i = 0; i < {rows}; i++)\n    {inputs}[i] = whole({was}[i] * {literal(scale)}, {encoder.limit});")
    program.say(f"dense_whole{how}({weight}, {bias}, {inputs}, {rows}, {out}); /* the same at every tick */")
    return lambda program: None


@read.register
def _(reading: Counts, node: Window, program: Program) -> None:
    program.size, program.value = node.layers[-1].size, "actor->counts"


@write.register
def _(node: FixedSum, program: Program) -> None:
    (how, weight), bias = program.matrix("decoder", node.weight, "int8_t"), program.table("bias", node.bias, "int16_t")
    rows, counts = program.size, program.value
    total, out = program.field("total", node.bias.size, "int32_t"), program.to(node.bias.size)
    program.say(f"dense_whole{how}({weight}, {bias}, {counts}, {rows}, {total});")
    program.say(f"for (i = 0; i < {program.size}; i++)\n    {out}[i] = (float){total}[i] * {literal(node.scale)};")
