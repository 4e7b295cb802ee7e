"""What every planner is asked and answers, and the search distribution over action sequences that `CEM` and `MPPI` refine.

A planner sees a score function and nothing else: neither worlds nor agents. A method of it is one traceable call for ONE problem;
whoever plans for a batch maps with `jax.vmap`. Scores must be finite: a single NaN makes `Plan.score` NaN.

The search distribution is a mean and a spread for each step and action entry. The mean of one-hot actions is the probability of
each category, so both kinds of action are refitted by the same averages; they differ in `draw` and `mode` alone.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from spikedream.spec import Spec
from spikedream.types import PyTree

# (actions (candidates, horizon, action_size), key) -> (candidates,) expected returns
Score = Callable[[Array, Array], Array]


class Plan(NamedTuple):
    actions: Array  # (horizon, action_size) to be executed: the first row is the greedy action
    sample: Array  # (horizon, action_size) a draw from the final search distribution, for exploring
    score: Array  # () of the best candidate in all iterations
    memory: PyTree  # what the next plan starts from, already shifted by one step


class Planner(Protocol):
    @property
    def places(self) -> int:
        """Of the candidates, for drawn and proposed sequences together."""
        ...

    def start(self, spec: Spec, horizon: int) -> PyTree:
        """The memory at the start of an episode."""
        ...

    def plan(self, spec: Spec, memory: PyTree, score: Score, proposals: Array, key: Array) -> Plan:
        """One whole search.

        Args:
            spec: sizes and kind of the actions.
            memory: of the plan one step earlier, or `start`'s.
            score: expected return of each action sequence; called once an iteration, with a fresh key.
            proposals: (n, horizon, action_size) sequences of a learned policy, n >= 0; they take n of the candidates' places
                in every iteration.
            key: all of the search's randomness.
        """
        ...


def check_proposals(proposals: int, places: int) -> None:
    """Raises ValueError unless the proposals leave at least one of a planner's `places` to a sequence of its own."""
    if proposals >= places:
        wanted = f"there must be fewer than {places}, the candidates less the elites that are kept"
        raise ValueError(f"the policy proposes {proposals} sequences; {wanted}")


def start_mean(spec: Spec, horizon: int) -> Array:
    """Where a search knows nothing, (horizon, action_size): the middle, or equal probabilities."""
    return jnp.full((horizon, spec.action_size), 1 / spec.action_size if spec.discrete else 0, jnp.float32)


def shift_mean(spec: Spec, mean: Array) -> Array:
    """The search's mean one step later, (horizon, action_size): about the step that comes into sight nothing is known."""
    return jnp.concatenate([mean[1:], start_mean(spec, 1)])


def draw(spec: Spec, mean: Array, spread: Array, noise: Array) -> Array:
    """Action sequences from a search distribution, (count, horizon, action_size).

    Continuous actions are mean + spread x noise, clipped to [-1, 1]. Discrete ones have the probabilities (1 - spread) mean +
    spread / size, so `spread` is the share of the draws that is uniform. They are drawn by the Gumbel-max trick, with the Gumbel
    noise made from normal noise through both distribution functions: noise that is correlated over time makes choices that
    persist, while each choice by itself keeps exactly its probabilities.

    Args:
        spec: sizes and kind of the actions.
        mean: (horizon, action_size) of the actions.
        spread: (horizon, action_size).
        noise: (count, horizon, action_size) standard normal at each step, in any correlation between steps.
    """
    if not spec.discrete:
        return jnp.clip(mean[None] + spread[None] * noise, -1, 1)
    log_p = jnp.log((1 - spread) * mean + spread / spec.action_size)
    gumbel = -jnp.log(-norm.logcdf(noise))
    return jax.nn.one_hot(jnp.argmax(log_p[None] + gumbel, axis=-1), spec.action_size)


def mode(spec: Spec, mean: Array) -> Array:
    """The sequence that a search distribution means, (horizon, action_size): its mean, or the likeliest category of each step."""
    if spec.discrete:
        return jax.nn.one_hot(jnp.argmax(mean, axis=-1), spec.action_size)
    return jnp.clip(mean, -1, 1)  # a weighted average of actions passes 1 by rounding
