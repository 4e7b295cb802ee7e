"""How much the errors of what a member predicts count while it is fitted."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from spikedream.types import Experience


class Weights(NamedTuple):
    terminal: Array  # () of a terminal example, where any other counts once
    reward: Array | float  # () of the reward's squared error, where that of an entry of the observation counts once
    last_reward: Array | float  # () the same, of a reward with which a task ended, by whichever network predicts it
    ended: Array  # () bool, whether any task has ended: before that there is nothing to tell endings by


def weigh(experience: Experience, most: float, reward_weight: float | None, endings_pay: bool) -> Weights:
    """As all experience has it.

    Args:
        experience: so far.
        most: that a terminal example counts.
        reward_weight: of the reward; None: of one in passing it is measured, by its own variance, as far as that is the variance of
            all rewards. One with which a task ends then counts once: few events say nothing of a variance.
        endings_pay: whether those have a network of their own, that of endings. Then they count in units of the largest reward:
            errors of many times the others' size would drown what tells endings.

    Raises:
        ValueError: where it is to be measured and nothing is.
    """
    moments = experience.moments
    ended = moments.terminated.astype(jnp.float32)
    terminal = jnp.clip((moments.count - ended) / jnp.maximum(ended, 1), 1.0, most)
    passing, last = (measured(experience), 1.0) if reward_weight is None else (reward_weight, reward_weight)
    if endings_pay:
        largest = jnp.abs(jnp.stack(experience.normalizer.reward_range())).max()
        last = 1 / jnp.square(jnp.maximum(largest, 1.0))
    return Weights(terminal, passing, last, moments.terminated > 0)


def measured(experience: Experience) -> Array:
    """() of a reward in passing. Raises ValueError where nothing measures it."""
    moments, entries = experience.moments, experience.moments.change.shape[0]
    if moments.rewards is None:
        raise ValueError(
            "world_model.reward_weight is None: it is measured on the spread of rewards. Set replay.scale to"
            ' "spread", or world_model.reward_weight to a number'
        )
    precision = moments.passing.precision(experience.normalizer.reward_scale)
    return jnp.maximum(entries * precision * moments.passing.share_of(moments.rewards), 1.0)
