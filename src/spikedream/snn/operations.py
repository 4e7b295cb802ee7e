"""What a network computes: how many operations of which kind, told by its parts from the spikes that occurred and the weights that
are not zero. `spikedream.export.energy` adds them up and prices them.

A product of spikes is synaptic operations: each spike adds each of its weights that is not zero. A product of real numbers is
multiply-accumulates, one for each weight that is not zero; where the numbers are the same at every tick it is made once for all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

# What an operation of a kind consists of, by elementary ones; kinds that parts have for themselves bring their own.
ARITHMETIC = {
    "synaptic_operation": {"add": 1},
    "multiply_accumulate": {"multiply": 1, "add": 1},
    "bias": {"add": 1},
    "add": {"add": 1},
    "random_number": {"random_number": 1},
    # Of gradients: of an influence on a neuron's state, and of what goes back through a weight.
    "influence": {"multiply": 1, "add": 1},
    "backward": {"multiply": 1, "add": 1},
}
# Of one unit, a comparison counted as an addition.
SIGMOID = {"exponential": 1, "add": 1, "divide": 1}
ACTIVATION_ARITHMETIC = {
    "silu": SIGMOID | {"multiply": 1},
    "tanh": {"exponential": 1, "add": 2, "divide": 1},
    "relu": {"add": 1},
    "elu": {"exponential": 1, "add": 2},
}


class Connections(eqx.Module):
    """Of a product, in the terms of NeuroBench (Yik et al. 2025), which makes it anew at every tick."""

    weights: int = eqx.field(static=True)  # zeros among them
    rows: int = eqx.field(static=True)  # for which it is made here: ticks, or 1
    repeats: int = eqx.field(static=True)  # ticks that share a row
    nonzero: Array  # () weights that are not zero
    effective: Array  # () pairs of an input and a weight that are both not zero, at every tick


class Activity(eqx.Module):
    """Of what neurons, or units that can be silent, put out."""

    outputs: int = eqx.field(static=True)
    nonzero: Array  # ()


class Operations(eqx.Module):
    """So many operations of one kind that a part carries out in one call."""

    part: str = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    arithmetic: tuple[tuple[str, float], ...] = eqx.field(static=True)  # what one consists of, by the name of the operation
    number: Array  # ()
    connections: Connections | None = None
    activity: Activity | None = None
    # What a gradient makes of it: two more (`spikedream.export.energy`), or nothing, as where a learning rule has another way; or
    # it is done for a gradient alone.
    gradient: Literal["twice", "never", "alone"] = eqx.field(static=True, default="twice")

    @property
    def spiking(self) -> bool:
        return self.kind == "synaptic_operation"


def tally(
    part: str, kind: str, number: Array | float, arithmetic: Mapping[str, float] | None = None, activity: Activity | None = None
) -> Operations:
    """`number`, (), operations, each of which consists of `arithmetic`, or of what `ARITHMETIC` says of the kind."""
    found = ARITHMETIC[kind] if arithmetic is None else arithmetic
    return Operations(part, kind, tuple(found.items()), jnp.asarray(number, jnp.float32), None, activity)


def product_operations(part: str, x: Array, weight: Array, *, spiking: bool, repeats: int = 1) -> Operations:
    """Of inputs (rows, in_size) and weights (in_size, out_size).

    Args:
        part: whose product it is.
        x: what enters.
        weight: as it is used, so that what is masked is zero; or, of groups that each have their own outputs, (groups, group's
            in_size, outputs).
        spiking: whether `x` are spikes.
        repeats: ticks that share a row.
    """
    present, rows = (weight != 0).astype(jnp.float32), x.shape[0]
    fan_out = present.sum(-1).reshape(-1)
    nonzero, met = fan_out.sum(), ((x != 0).astype(jnp.float32) @ fan_out).sum()
    kind = "synaptic_operation" if spiking else "multiply_accumulate"
    connections = Connections(weight.size, rows, repeats, nonzero, met * repeats)
    return replace(tally(part, kind, met if spiking else nonzero * rows), connections=connections)


def for_gradient(part: str, kind: str, number: Array | float) -> Operations:
    """`number`, (), that are done where a gradient is taken, and at no other time."""
    return replace(tally(part, kind, number), gradient="alone")


def without_gradient(found: tuple[Operations, ...]) -> tuple[Operations, ...]:
    """Of what no gradient goes through in the usual way."""
    return tuple(replace(each, gradient="never") for each in found)


def firing(part: str, train: Array, arithmetic: Mapping[str, float], reset: int) -> tuple[Operations, ...]:
    """Of neurons with the spikes `train`, (ticks, size): an update each tick, which consists of `arithmetic`, and for each spike
    `reset` additions."""
    activity = Activity(train.size, train.sum())
    return (
        tally(part, "neuron_update", train.size, arithmetic, activity),
        tally(part, "spike", train.sum(), {"add": reset} if reset else {}),
    )


def standardising(size: int) -> dict[str, float]:
    """What it consists of to standardise one layer: mean, variance and a common factor."""
    return {"add": 3 * size, "multiply": 2 * size + 2, "square_root": 1, "divide": 1}


def scaled(found: tuple[Operations, ...], times: Array | float) -> tuple[Operations, ...]:
    """Of so many calls; connections and activity stay those of one."""
    return tuple(replace(each, number=each.number * times) for each in found)


def summed(found: tuple[Operations, ...]) -> tuple[Operations, ...]:
    """Of networks side by side, such as an ensemble's members, from leaves (members, ...)."""

    def sum_of(each: Operations) -> Operations:
        members = each.number.shape[0]
        total = jax.tree.map(lambda x: x.sum(0), each)
        if total.connections is not None:
            total = replace(total, connections=replace(total.connections, weights=members * total.connections.weights))
        if total.activity is not None:
            total = replace(total, activity=replace(total.activity, outputs=members * total.activity.outputs))
        return total

    return tuple(sum_of(each) for each in found)


def memory(tree: Any) -> int:
    """Bytes of all arrays in `tree`."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
