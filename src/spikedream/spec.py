"""What an environment looks like to those who learn in it. Without JAX, which the processes that play environments do not need."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """Sizes of an environment's spaces.

    Attributes:
        obs_size: entries of the flat observation.
        action_size: number of choices (discrete) or of dimensions (continuous).
        discrete: whether the action is one of `action_size` choices.
        action_low: lower bound of each continuous action dimension, in the environment's units; empty when discrete.
        action_high: upper bound, likewise.
    """

    obs_size: int
    action_size: int
    discrete: bool
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
