"""C text under construction: an actor's tables, its state, and the statements of a decision."""

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray


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
        self.weights = self.state = 0
        self.layers = 0  # spiking ones

    def say(self, text: str) -> None:
        self.body += text.strip("\n").splitlines()

    def table(self, name: str, values: ndarray) -> str:
        """A constant array, by name."""
        name = f"{name}_{len(self.tables)}"
        self.weights += 4 * values.size
        lines, texts = [], [literal(x) for x in np.ravel(values)]
        for i in range(0, len(texts), 8):
            lines.append("    " + ", ".join(texts[i : i + 8]) + ",")
        self.tables.append(f"static const float {name}[{values.size}] = {{\n" + "\n".join(lines) + "\n};\n")
        return name

    def each(self, name: str, values: ndarray, index: str = "i") -> str:
        """An expression for the entry at `index`: one number where all are the same."""
        if (values == values.flat[0]).all():
            return literal(values.flat[0])
        return f"{self.table(name, values)}[{index}]"

    def field(self, name: str, size: int, kind: str = "float", reset: bool = False) -> str:
        """An array in the state, by name; set to zero by `actor_reset`."""
        self.fields.append(f"    {kind} {name}[{size}];")
        self.state += size * {"float": 4, "uint16_t": 2, "uint8_t": 1, "int": 4}[kind]
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
        parts = {
            "title": title, "inputs": self.inputs, "outputs": outputs, "signature": signature, "end": end,
            "kind": f"#define ACTOR_CHOICES {outputs}\n" if self.choices else "",
            "fields": "\n".join(self.fields), "resets": "\n".join(self.resets) or "    (void)actor;\n    (void)i;",
            "tables": "\n".join(self.tables), "body": "\n".join("    " + line if line else "" for line in self.body),
        }  # fmt: skip
        return Source(HEADER.format(**parts), CODE.format(**parts), self.weights, self.state)


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
#include "arithmetic.h"

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
