"""Returns along one trajectory. Time-indexed in rlax's manner: entry t of `reward` follows the action taken at t, and
`value[t]` is the value of the state in which that reward arrives (the bootstrap of step t)."""

import jax
import jax.numpy as jnp
from jax import Array


def lambda_returns(reward: Array, discount: Array, value: Array, goes_on: Array | None = None, *, lambda_: float) -> Array:
    """G[t] = r[t] + d[t] ((1 - lambda) v[t] + lambda G[t+1]), with G[T] = v[T-1] (Sutton & Barto 2018, eq. 12.18).

    Args:
        reward: (T,).
        discount: (T,) gamma times the probability of continuing after step t.
        value: (T,) value of the state after step t.
        goes_on: (T,) 0 where nothing after step t but that value is to count, 1 elsewhere; None: it all counts.
        lambda_: 0 for one-step, 1 for Monte-Carlo returns.

    Returns:
        (T,).
    """

    def back(following: Array, step: tuple[Array, Array, Array, Array | None]) -> tuple[Array, Array]:
        r, d, v, on = step
        following = following if on is None else jnp.where(on > 0, following, v)
        g = r + d * ((1 - lambda_) * v + lambda_ * following)
        return g, g

    return jax.lax.scan(back, value[-1], (reward, discount, value, goes_on), reverse=True)[1]


def survival(terminated: Array) -> Array:
    """Probability of being alive before each step, (T,), from the termination probabilities of the steps, (T,)."""
    return jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - terminated)[:-1]])


def vtrace(reward: Array, discount: Array, value: Array, following: Array, ratio: Array, goes_on: Array, lambda_: float) -> Array:
    """Targets for the value of each state on a trajectory of another policy (Espeholt et al. 2018, IMPALA, eq. 1, both clips at 1):

        vs[t] = v[t] + rho[t] (r[t] + d[t] v'[t] - v[t]) + d[t] lambda rho[t] (vs[t+1] - v'[t]),   rho = min(1, ratio)

    Args:
        reward: (T,).
        discount: (T,) gamma times the probability of continuing after step t.
        value: (T,) v, of the state in which step t is taken.
        following: (T,) v', of the state after step t.
        ratio: (T,) probability of the action under the policy to evaluate over that under the one that acted.
        goes_on: (T,) 1 where entry t + 1 is the step after step t.
        lambda_: of the trace.

    Returns:
        (T,).
    """
    clipped = jnp.minimum(ratio, 1.0)
    error = clipped * (reward + discount * following - value)
    trace = discount * lambda_ * clipped * goes_on

    def back(later: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        one_step, trace, following = step
        target = one_step + trace * (later - following)
        return target, target

    return jax.lax.scan(back, following[-1], (value + error, trace, following), reverse=True)[1]
