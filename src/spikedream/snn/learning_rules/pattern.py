"""Which neurons a parameter's influence is kept on, and how it passes from neuron to neuron.

A parameter belongs to the neuron j into which it leads: a weight R_ij to j, as do j's bias and j's decay. Its influence is the
derivative of the state of some neurons i by it. A tick carries that on through each neuron's own dynamics and, where neurons hear
each other, through their spikes: what enters neuron i is sum_l R_li s_l. The derivative of a spike is zero wherever its surrogate
is, so that with a compact surrogate most neurons l pass nothing on, and are left out here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BLOCK = 8  # neurons that are worked on together


class Pattern(Protocol):
    """Influences are arrays over parameters per neuron (columns), the neurons to which they belong, and those that they are on, in
    an order of each pattern's own."""

    @property
    def pairs(self) -> int:
        """Of a neuron that parameters belong to and one that their influence is kept on."""
        ...

    def zeros(self, columns: int) -> Array: ...
    def spread(self, x: Array) -> Array:
        """A value of each neuron, (size,), where it meets the influences on that neuron."""
        ...

    def own(self, x: Array) -> Array:
        """A value for each column and neuron, (columns, size), where it meets the influence on the neuron that it belongs to."""
        ...

    def couple(self, spikes: Array, recurrent: Array, active: Array) -> Array | float:
        """Influence on the recurrent currents.

        Args:
            spikes: influence on the spikes of the last tick.
            recurrent: (size, size) weights.
            active: (size,) bool, whose influence is not zero.
        """
        ...

    def passed(self, present: Array, active: Array) -> Array | float:
        """() multiply-accumulates of `couple` for one column, of weights that are not zero: `present` (size, size) is 1 there."""
        ...

    def contract(self, cotangent: Array, influence: Array) -> Array:
        """(columns, size): sum over the neurons of their cotangents, (size,), times the influence on them."""
        ...


@dataclass(frozen=True)
class Own:
    """On the neuron itself, without what comes back to it through others: (columns, size)."""

    size: int

    @property
    def pairs(self) -> int:
        return self.size

    def zeros(self, columns: int) -> Array:
        return jnp.zeros((columns, self.size))

    def spread(self, x: Array) -> Array:
        return x[None]

    def own(self, x: Array) -> Array:
        return x

    def couple(self, spikes: Array, recurrent: Array, active: Array) -> float:
        return 0.0

    def passed(self, present: Array, active: Array) -> float:
        return 0.0

    def contract(self, cotangent: Array, influence: Array) -> Array:
        return cotangent[None] * influence


@dataclass(frozen=True)
class Every:
    """On every neuron: (size, columns, size), those that it is on first."""

    size: int

    @property
    def pairs(self) -> int:
        return self.size**2

    def zeros(self, columns: int) -> Array:
        return jnp.zeros((self.size, columns, self.size))

    def spread(self, x: Array) -> Array:
        return x[:, None, None]

    def own(self, x: Array) -> Array:
        return jnp.eye(self.size)[:, None] * x[None]

    def couple(self, spikes: Array, recurrent: Array, active: Array) -> Array:
        """sum_l R_li times the row of l, over the active l alone."""
        rows = spikes.reshape(self.size, -1)

        def add(index: Array, counts: Array, total: Array) -> Array:
            return total + (recurrent[index] * counts[:, None]).T @ rows[index]

        return over_blocks(active, add, jnp.zeros_like(rows)).reshape(spikes.shape)

    def passed(self, present: Array, active: Array) -> Array:
        return active @ present.sum(1) * self.size

    def contract(self, cotangent: Array, influence: Array) -> Array:
        return jnp.tensordot(cotangent, influence, 1)


class Some:
    """On the neurons that are reached from its own within some hops of recurrent weights: (size, kept, columns), those to which the
    parameters belong first.

    Args:
        heard: (size, size) bool, whether a weight leads from the row's neuron to the column's.
        hops: recurrent weights that a path may have; 0 keeps the influence on the neuron itself.
    """

    def __init__(self, heard: np.ndarray, hops: int):
        self.size = heard.shape[0]
        reached = np.eye(self.size, dtype=bool)
        for _ in range(hops):
            further = reached | (reached.astype(np.float32) @ heard.astype(np.float32) > 0)
            if (further == reached).all():
                break
            reached = further
        # The neuron itself first. Where fewer are reached than elsewhere, the rest repeats it and counts nowhere.
        self.most = int(reached.sum(1).max())
        others = [np.concatenate([[j], np.setdiff1d(np.flatnonzero(row), [j])]) for j, row in enumerate(reached)]
        self.kept = np.stack([np.pad(row, (0, self.most - len(row)), constant_values=row[0]) for row in others])
        self.counts = np.stack([np.arange(self.most) < len(row) for row in others])

    @property
    def pairs(self) -> int:
        return int(self.counts.sum())

    def zeros(self, columns: int) -> Array:
        return jnp.zeros((self.size, self.most, columns))

    def spread(self, x: Array) -> Array:
        return jnp.where(self.counts, x[self.kept], 0)[..., None]

    def own(self, x: Array) -> Array:
        return jnp.pad(x.T[:, None], ((0, 0), (0, self.most - 1), (0, 0)))

    def couple(self, spikes: Array, recurrent: Array, active: Array) -> Array:
        """Where any of the neurons that it is kept on is active."""
        between, needed = self._between(recurrent), self._needed(active)

        def put(index: Array, counts: Array, total: Array) -> Array:
            passed = jnp.einsum("jab,jaq->jbq", between[index] * counts[:, None, None], spikes[index])
            return total.at[index].add(passed)

        return over_blocks(needed, put, jnp.zeros_like(spikes))

    def passed(self, present: Array, active: Array) -> Array:
        between = (self._between(present) * self.counts[:, None, :]).sum((1, 2))
        return self._needed(active) @ between

    def _between(self, recurrent: Array) -> Array:
        """(size, kept, kept) weights from the first to the second of those that an influence is kept on."""
        return recurrent[self.kept[:, :, None], self.kept[:, None, :]] * self.counts[:, :, None]

    def _needed(self, active: Array) -> Array:
        return (active[self.kept] & self.counts).any(1)

    def contract(self, cotangent: Array, influence: Array) -> Array:
        return (self.spread(cotangent) * influence).sum(1).T


def over_blocks(active: Array, step: Callable[[Array, Array, Array], Array], total: Array) -> Array:
    """`step(index, counts, total)` for the neurons that are `active`, (size,) bool, a few at a time: `index` (block,) says which,
    `counts` (block,) float is 0 where there are fewer. What is not active costs nothing."""
    size, block = active.shape[0], min(BLOCK, active.shape[0])
    if size <= block:
        return step(jnp.arange(size), active.astype(total.dtype), total)
    order = jnp.argsort(~active, stable=True)
    number = active.sum()

    def body(now: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, total = now
        at = begin + jnp.arange(block)
        index = order[jnp.minimum(at, size - 1)]
        return begin + block, step(index, (at < number).astype(total.dtype), total)

    return jax.lax.while_loop(lambda now: now[0] < number, body, (jnp.zeros((), number.dtype), total))[1]


def pattern(reaches: np.ndarray | None, size: int, hops: int) -> Pattern:
    """The one that keeps least, for paths of at most `hops` recurrent weights; `reaches` as in `Some`, None without recurrence."""
    if reaches is None:
        return Own(size)
    found = Some(reaches, min(hops, size))
    return Every(size) if found.most == size else found
