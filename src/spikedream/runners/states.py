"""Training states, and experience, as they go from one process to another: NumPy arrays by tree path, as in a checkpoint."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.replay.ring import Priority, Replay
from spikedream.runs import checkpoint
from spikedream.runs.collect import LARGEST_BLOCK, filled
from spikedream.runs.replay_log import with_rows
from spikedream.types import Transition

Arrays = dict[str, np.ndarray]


class Ranks(NamedTuple):
    """By what errors experience is to be drawn, as a fit has measured them."""

    arrays: Arrays  # of a `Priority`
    rows: int  # that had been added by then


def blank(template: TrainState) -> TrainState:
    """A state that knows nothing."""

    def nothing(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key(0) if is_key else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(nothing, template)


def ranked(replay: Replay, ranks: Ranks | None) -> Replay:
    """Drawn by what a fit has measured, where it does."""
    if ranks is None:
        return replay
    assert replay.priority is not None
    priority = checkpoint.unflatten(replay.priority, "priority", ranks.arrays)
    return replace(replay, priority=_measured(replay, priority, ranks.rows))


@jax.jit
def _measured(replay: Replay, priority: Priority, rows: int) -> Priority:
    return replay.measured(priority, rows)


def remembered(algorithm: Algorithm, replay: Replay, steps: Transition) -> Replay:
    """With `steps`, fields (rows, environments, ...)."""
    most = min(LARGEST_BLOCK, replay.rows)
    for start in range(0, len(steps.reward), most):
        block, number = filled(jax.tree.map(lambda x, start=start: x[start : start + most], steps), most)
        replay = algorithm.remember(replay, block, np.int32(number))
    return replay


def state_of(algorithm: Algorithm, arrays: Arrays, rows: np.ndarray) -> TrainState:
    template = jax.eval_shape(algorithm.init, jax.random.key(0))
    replay = template.replay
    state = checkpoint.unflatten(replace(template, replay=replace(replay, data=None)), "state", arrays)
    ring = replace(state.replay, data=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), replay.data))
    return replace(state, replay=with_rows(ring, rows, int(state.replay.added) - len(rows)))
