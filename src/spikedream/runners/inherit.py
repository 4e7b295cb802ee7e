"""A run that begins with what an earlier one has learned of the world and seen of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config, ConfigError
from spikedream.runs.collect import LARGEST_BLOCK
from spikedream.runs.run import Run


def inherit(run: Run, config: Config, algorithm: Algorithm, state: TrainState) -> tuple[TrainState, int]:
    """`state` with the world model and the experience of an earlier run, as this run's knowledge tells it; and how many real steps
    that is.

    Raises:
        ConfigError: they do not fit this run.
        CheckpointError: they cannot be read.
    """
    for name, there, here in (
        ("spaces", run.spec, algorithm.spec),
        ("world_model", run.config.world_model, config.world_model),
        ("collect.environments", run.config.environments, config.environments),
    ):
        if there != here:
            raise ConfigError(f"cannot start from {run.directory}: {name} is another there")
    steps, replay = run.experience().in_order(), state.replay
    rows, size = steps.reward.shape[0], min(LARGEST_BLOCK, replay.rows)
    if rows == 0:
        raise ConfigError(f"cannot start from {run.directory}: it has no experience yet")
    for start in range(0, rows, size):
        block = jax.tree.map(lambda x, start=start: x[np.minimum(start + np.arange(size), rows - 1)], steps)
        replay = algorithm.remember(replay, block, np.int32(min(size, rows - start)))
    # The episodes that were under way are not gone on with.
    replay = replay.cut(jnp.ones(replay.environments, bool)).forget_episodes()
    return replace(state, world=run.state.world, replay=replay), rows * replay.environments
