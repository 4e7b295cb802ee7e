"""Which synapses a spiking network has: all, some drawn once, or those that are left when the weak ones are pruned.

Nothing but the mask decides: a weight that is masked acts as zero whatever an optimiser, a weight decay or a slow copy makes of the
number behind it, and has no gradient.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.types import PyTree

DENSITY = (1e-6, 1)


@dataclass(frozen=True)
class RandomConnections:
    """Each neuron hears a share of the layer before it, drawn once; the variance of what it hears is kept."""

    density: float = 0.25  # share of each layer's weights; each neuron keeps at least one

    def __post_init__(self) -> None:
        check_bounds(self, density=DENSITY)

    def kept(self, weight: Array, key: Array) -> Array:
        """1 or 0 for each entry of `weight`, (..., inputs, neurons), before anything is learned."""
        count = max(1, round(self.density * weight.shape[-2]))
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, weight.shape), axis=-2), axis=-2)
        return (rank < count).astype(jnp.float32)

    def after(self, steps: Array, weight: Array, kept: Array) -> Array:
        """(..., weights), what is kept of the weights, (..., weights), after so many gradient steps, ()."""
        return kept


@dataclass(frozen=True)
class Pruning:
    """The weakest weights of each layer go, while the network learns (Zhu & Gupta 2017, "To prune, or not to prune", eq. 1):

        density[n] = density + (1 - density) (1 - p)^3,   p = (n - begin) / steps, within [0, 1]

    n counts gradient steps. What is gone stays gone.
    """

    density: float = 0.25  # share of each layer's weights that is left in the end
    begin: int = 0  # gradient steps before the first goes
    steps: int = 2000  # gradient steps after that in which the density is reached
    every: int = 50  # gradient steps between two looks

    def __post_init__(self) -> None:
        check_bounds(self, density=DENSITY, begin=(0, None), steps=(1, None), every=(1, None))

    def kept(self, weight: Array, key: Array) -> Array:
        return jnp.ones_like(weight)

    def after(self, steps: Array, weight: Array, kept: Array) -> Array:
        left = 1 - jnp.clip((steps - self.begin) / self.steps, 0, 1)
        share = self.density + (1 - self.density) * left**3

        def prune(weight: Array, kept: Array) -> Array:
            strength = jnp.where(kept > 0.5, jnp.abs(weight), -1.0)
            rank = jnp.argsort(jnp.argsort(-strength, axis=-1), axis=-1)
            count = jnp.maximum(jnp.round(share * weight.shape[-1]), 1)
            return jnp.where(rank < count, kept, 0.0)

        return jax.lax.cond(steps % self.every == 0, prune, lambda weight, kept: kept, weight, kept)


AnySparsity = RandomConnections | Pruning


class Mask(eqx.Module):
    """Beside the parameters of a network. Its arrays are flat and of numbers, so that it travels with them: a gradient leaves it
    alone, no decay takes it for weights, and a slow copy follows it to the same yes or no."""

    kept: tuple[Array, ...]  # (weights,) of each of `synapses`, above one half where there is one
    steps: Array  # () gradient steps made
    sparsity: AnySparsity = eqx.field(static=True)


def synapses(part: PyTree, stacked: int = 0) -> list[Array]:
    """The weights that spikes or currents pass through: everything of two axes or more, save the decoders of populations. Networks
    side by side have as many axes more as are `stacked`."""
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(part) if _is_synapse(path, leaf, stacked)]


def _is_synapse(path: tuple[Any, ...], leaf: Array, stacked: int = 0) -> bool:
    return leaf.ndim >= 2 + stacked and getattr(path[-1], "name", "") != "decoder"


def _replaced(part: PyTree, weights: Iterable[Array]) -> PyTree:
    following = iter(weights)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: next(following) if _is_synapse(path, leaf) else leaf, part)


def sown(sparsity: AnySparsity, part: PyTree, key: Array) -> tuple[PyTree, Mask]:
    """`part` as it begins, weights so much stronger as keeps the variance of their sums, and its mask."""
    weights = synapses(part)
    kept = [sparsity.kept(w, k) for w, k in zip(weights, jax.random.split(key, len(weights)), strict=True)]
    scaled = [w / k.mean() ** 0.5 for w, k in zip(weights, kept, strict=True)]
    return _replaced(part, scaled), Mask(tuple(k.ravel() for k in kept), jnp.zeros(()), sparsity)


def present(part: PyTree, mask: Mask) -> PyTree:
    """`part` with the weights that are there, and zeros for the others."""
    weights = zip(synapses(part), mask.kept, strict=True)
    return _replaced(part, [jnp.where(k.reshape(w.shape) > 0.5, w, 0.0) for w, k in weights])


def pruned(before: PyTree, after: PyTree) -> PyTree:
    """What a gradient step makes of the parameters of any networks, also side by side with leaves (members, ...): `after`, with the
    masks moved on from those `before`."""

    def masked(node: Any) -> bool:
        return isinstance(getattr(node, "mask", None), Mask)

    def moved(old: Any, new: Any) -> Any:
        if not masked(old):
            return new
        mask, steps = old.mask, old.mask.steps + 1
        weights, now = synapses((new.layers, new.readout), steps.ndim), steps.reshape(-1)[0]  # the same in all members
        kept = tuple(mask.sparsity.after(now, w.reshape(k.shape), k) for w, k in zip(weights, mask.kept, strict=True))
        return eqx.tree_at(lambda n: (n.mask.kept, n.mask.steps), new, (kept, steps))

    return jax.tree.map(moved, before, after, is_leaf=masked)
