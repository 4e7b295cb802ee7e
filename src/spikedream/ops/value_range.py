"""The range of values that targets have had, to which bootstrapped ones are clipped (Fujimoto et al. 2023, TD7, section 4.2)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class ValueRange(NamedTuple):
    """Of all targets so far, and as it was when it was last taken into use."""

    low: Array  # ()
    high: Array
    used_low: Array
    used_high: Array

    def widened(self, target: Array) -> "ValueRange":
        """With `target` in it, of any shape."""
        return self._replace(low=jnp.minimum(self.low, target.min()), high=jnp.maximum(self.high, target.max()))

    def taken(self, due: Array) -> "ValueRange":
        """In use as it is now where that is `due`, () bool."""
        return self._replace(used_low=jnp.where(due, self.low, self.used_low), used_high=jnp.where(due, self.high, self.used_high))

    def clip(self, value: Array) -> Array:
        return jnp.clip(value, self.used_low, self.used_high)
