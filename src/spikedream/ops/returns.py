"""Returns along one trajectory. Time-indexed in rlax's manner: entry t of `reward` follows the action taken at t, and
`value[t]` is the value of the state in which that reward arrives (the bootstrap of step t)."""

import jax
import jax.numpy as jnp
from jax import Array


def lambda_returns(reward: Array, discount: Array, value: Array, lambda_: float) -> Array:
    """G[t] = r[t] + d[t] ((1 - lambda) v[t] + lambda G[t+1]), with G[T] = v[T-1] (Sutton & Barto 2018, eq. 12.18).

    Args:
        reward: (T,).
        discount: (T,) gamma times the probability of continuing after step t.
        value: (T,) value of the state after step t.
        lambda_: 0 for one-step, 1 for Monte-Carlo returns.

    Returns:
        (T,).
    """

    def back(following: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        r, d, v = step
        g = r + d * ((1 - lambda_) * v + lambda_ * following)
        return g, g

    return jax.lax.scan(back, value[-1], (reward, discount, value), reverse=True)[1]


def survival(terminated: Array) -> Array:
    """Probability of being alive before each step, (T,), from the termination probabilities of the steps, (T,)."""
    return jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - terminated)[:-1]])
