"""Draws in proportion to weights of which few change at a time, as prioritised replay needs (Schaul et al. 2016, B.2.1)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

SCATTERED = 4  # a level with so many nodes for each changed weight, or fewer, is summed as a whole: that costs less than scattering


class SumTree(eqx.Module):
    """A complete binary tree of sums: its root is entry 1, the children of entry i are 2i and 2i + 1, the weights are the leaves.

    A parent is always its children's sum, computed anew: so the tree is a function of its leaves, and does not drift.
    """

    sums: Array  # (2 leaves,)

    @property
    def leaves(self) -> int:
        """A power of two."""
        return self.sums.shape[0] // 2

    @property
    def total(self) -> Array:
        return self.sums[1]

    def weight(self, index: Array) -> Array:
        """Shape of `index`, int32."""
        return self.sums[self.leaves + index]

    def set(self, index: Array, weight: Array) -> "SumTree":
        """With the weights at `index` (rows,) changed to `weight` (rows,), not negative. An index beyond the last leaf changes
        nothing; an index that is there twice must have one weight."""
        node = jnp.where(index < self.leaves, self.leaves + index, self.sums.shape[0])
        sums = self.sums.at[node].set(weight, mode="drop")
        width, scattered = self.leaves, 0  # of the level that is right so far; how many levels are summed only where they changed
        while width > SCATTERED * index.size:
            width, scattered = width // 2, scattered + 1

        def rise(_: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            node, sums = at
            node = jnp.where(node < sums.shape[0], node // 2, node)
            return node, sums.at[node].set(sums[2 * node] + sums[2 * node + 1], mode="drop")

        # In place: a copy of all the leaves would cost more than the sums, and the compiler makes one where these levels stand one
        # after the other.
        _, sums = jax.lax.fori_loop(0, scattered, rise, (node, sums))
        levels = [sums[width : 2 * width]]
        while levels[0].size > 1:
            pairs = levels[0].reshape(-1, 2)
            levels.insert(0, pairs[:, 0] + pairs[:, 1])
        top, sums = jax.lax.optimization_barrier((jnp.concatenate([sums[:1], *levels]), sums))  # read before it is written to
        return SumTree(sums.at[: 2 * width].set(top))

    def find(self, target: Array) -> Array:
        """The leaf in whose stretch of the running total each of `target` lies, in [0, total); shape of `target`, int32."""

        def descend(_: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            node, target = at
            left = self.sums[2 * node]
            # Rounding must not lead into a subtree that weighs nothing.
            right = (target >= left) & (self.sums[2 * node + 1] > 0)
            return 2 * node + right, jnp.where(right, target - left, target)

        # A loop, since of levels that stand one after the other XLA's CPU back end descends all again for each further one.
        levels, root = self.leaves.bit_length() - 1, jnp.ones(target.shape, jnp.int32)
        node, _ = jax.lax.fori_loop(0, levels, descend, (root, target))
        return node - self.leaves


def empty_tree(size: int) -> SumTree:
    """At least `size` leaves of weight 0."""
    return SumTree(jnp.zeros(2 * (1 << max(size - 1, 1).bit_length())))
