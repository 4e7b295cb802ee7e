"""A branch that stays one where many seeds are mapped together.

Where a program is mapped, `jax.lax.cond` becomes a selection, and both of its sides are computed each time. Here the branch is left
out as long as no seed takes it, and what it makes is kept only of those that do.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from spikedream.types import PyTree

State = TypeVar("State", bound=PyTree)


def when(due: Array, update: Callable[[State], State], state: State) -> State:
    """`update(state)` where `due`, () bool, else `state`."""
    return jax.lax.cond(_any(due), lambda s: _kept(due, update(s), s), lambda s: s, state)


@custom_vmap
def _any(due: Array) -> Array:
    return due


@_any.def_vmap
def _any_of_several(size: int, mapped: list[bool], due: Array) -> tuple[Array, bool]:
    return _any(due.any(0)), False


@custom_vmap
def _kept(due: Array, new: PyTree, old: PyTree) -> PyTree:
    return new


@_kept.def_vmap
def _kept_of_several(size: int, mapped: list[PyTree], due: Array, new: PyTree, old: PyTree) -> tuple[PyTree, PyTree]:
    def chosen(due: Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(partial(jnp.where, due), new, old)

    axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, tuple(mapped))
    return jax.vmap(chosen, axes, axis_size=size)(due, new, old), jax.tree.map(lambda _: True, new)
