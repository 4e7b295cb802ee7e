"""C text under construction: an actor's tables, its state, and the statements of a decision."""

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

SIZES = {"float": 4, "int": 4, "int32_t": 4, "uint32_t": 4, "int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1}  # bytes


def _narrowest(largest: int) -> str:
    """The type that holds numbers from 0 to this one."""
    return "uint8_t" if largest < 2**8 else "uint16_t" if largest < 2**16 else "uint32_t"


class Source(NamedTuple):
    header: str
    code: str
    weights: int  # bytes of constant tables
    state: int  # bytes of `struct actor`


class Program:
    """C text under construction."""

    def __init__(self, inputs: int):
        self.inputs, self.size, self.value = inputs, inputs, "observation"  # the last node's output, and its name
        self.choices: int | None = None
        self.tables: list[str] = []
        self.fields: list[str] = []  # of the state
        self.resets: list[str] = []
        self.body: list[str] = []
        self.state = 0
        self.stored: dict[str, int] = {}  # numbers in the tables, by their type in C
        self.sparse = {"place": 0, "target": 0}  # the largest that these types must hold
        self.layers = 0  # spiking ones

    def say(self, text: str) -> None:
        self.body += text.strip("\n").splitlines()

    def table(self, name: str, values: ndarray, kind: str = "float") -> str:
        """A constant array, by name."""
        name = f"{name}_{len(self.tables)}"
        self.stored[kind] = self.stored.get(kind, 0) + values.size
        lines, texts = [], [literal(x) if kind == "float" else str(int(x)) for x in np.ravel(values)]
        for i in range(0, len(texts), 8):
            lines.append("    " + ", ".join(texts[i : i + 8]) + ",")
        self.tables.append(f"static const {kind} {name}[{values.size}] = {{\n" + "\n".join(lines) + "\n};\n")
        return name

    def matrix(self, name: str, values: ndarray, kind: str = "float") -> tuple[str, str]:
        """Weights (rows, columns) as they take less: whole, or row by row those that are not zero, each with its column. What is to
        be put behind the name of a function that reads them, and its first arguments."""
        (row, column), columns = np.nonzero(values), values.shape[1]
        begins = np.searchsorted(row, np.arange(values.shape[0] + 1))
        place, target = _narrowest(row.size), _narrowest(columns - 1)
        if SIZES[place] * begins.size + (SIZES[target] + SIZES[kind]) * row.size >= SIZES[kind] * values.size:
            return "", f"{self.table(name, values, kind)}, {columns}"
        self.sparse["place"] = max(self.sparse["place"], row.size)
        self.sparse["target"] = max(self.sparse["target"], columns - 1)
        stored = self.table("begins", begins, "place"), self.table("target", column, "target")
        return "_sparse", f"{', '.join(stored)}, {self.table(name, values[row, column], kind)}, {columns}"

    def each(self, name: str, values: ndarray, index: str = "i", kind: str = "float") -> str:
        """An expression for the entry at `index`: one number where all are the same."""
        if (values == values.flat[0]).all():
            return literal(values.flat[0]) if kind == "float" else str(int(values.flat[0]))
        return f"{self.table(name, values, kind)}[{index}]"

    def field(self, name: str, size: int, kind: str = "float", reset: bool = False) -> str:
        """An array in the state, by name; set to zero by `actor_reset`."""
        self.fields.append(f"    {kind} {name}[{size}];")
        self.state += size * SIZES[kind]
        if reset:
            self.resets.append(f"    for (i = 0; i < {size}; i++)\n        actor->{name}[i] = 0;")
        return f"actor->{name}"

    def to(self, size: int) -> str:
        """The place of a node's output."""
        self.size, self.value = size, self.field(f"value_{len(self.fields)}", size)
        return self.value

    def source(self, title: str) -> Source:
        """The whole, once all nodes are written."""
        outputs = self.size
        end = f"    for (i = 0; i < {outputs}; i++)\n        actor->output[i] = {self.value}[i];"
        if self.choices:
            signature = "int actor_act(struct actor *actor, const float *observation)"
            end += "\n    return choice;"
        else:
            signature = "void actor_act(struct actor *actor, const float *observation, float *action)"
            end = end.replace("actor->output[i] =", "action[i] = actor->output[i] =")
        self.field("output", outputs)
        types = {name: _narrowest(largest) for name, largest in self.sparse.items()}
        weights = sum(count * SIZES[types.get(kind, kind)] for kind, count in self.stored.items())
        parts = {
            "title": title, "inputs": self.inputs, "outputs": outputs, "signature": signature, "end": end,
            "kind": f"#define ACTOR_CHOICES {outputs}\n" if self.choices else "",
            "fields": "\n".join(self.fields), "resets": "\n".join(self.resets) or "    (void)actor;\n    (void)i;",
            "types": "".join(f"typedef {kind} {name};\n" for name, kind in types.items()),
            "tables": "\n".join(self.tables), "body": "\n".join("    " + line if line else "" for line in self.body),
        }  # fmt: skip
        return Source(HEADER.format(**parts), CODE.format(**parts), weights, self.state)


def literal(x: Any) -> str:
    """The shortest decimal that is read back as this float."""
    text = str(np.float32(x))
    return f"{text if '.' in text or 'e' in text else text + '.0'}f"


HEADER = """/* {title} */
#ifndef ACTOR_H
#define ACTOR_H

#include <stdint.h>

#define ACTOR_INPUTS {inputs}
#define ACTOR_OUTPUTS {outputs}
{kind}
struct actor {{
{fields}
}};

/* When an episode begins, and once before the first. */
void actor_reset(struct actor *actor);

/* One decision on an observation in the environment's own units. */
{signature};

#endif
"""

CODE = """/* {title} */
#include "actor.h"

/* What the tables of sparse weights are made of: where a row begins, and the column that a weight leads to. */
{types}#include "arithmetic.h"

#ifndef ACTOR_SPIKE
#define ACTOR_SPIKE(layer, tick, neuron)
#endif

{tables}
void actor_reset(struct actor *actor)
{{
    int i;
{resets}
}}

{signature}
{{
    int i;
{body}
{end}
}}
"""
