"""A run that begins with what an earlier one has learned of the world and seen of it, or with everything that it was."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config, ConfigError
from spikedream.runs.collect import LARGEST_BLOCK
from spikedream.runs.run import Run


def inherit(run: Run, config: Config, algorithm: Algorithm, state: TrainState) -> tuple[TrainState, int]:
    """`state` with the world model and the experience of an earlier run, as this run's knowledge tells it, or with everything else
    too, by `start_with`; and how many real steps that is.

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
    if config.start_with == "everything":
        return _everything(run, state)
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


def _everything(run: Run, state: TrainState) -> tuple[TrainState, int]:
    """As the earlier run left it, save keys, counters and episodes under way. A mask is kept where there was one, and begins anew
    where there was none; the gradient steps of its schedule begin anew."""
    replay = run.experience()
    if int(replay.size) == 0:
        raise ConfigError(f"cannot start from {run.directory}: it has no experience yet")
    before = replace(run.state, replay=replay.cut(jnp.ones(replay.environments, bool)).forget_episodes())
    there = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before)}

    def taken(path: tuple, own: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name.startswith((".keys", ".counters", ".carry")) or name.endswith(".mask.steps"):
            return own
        if name not in there and ".mask." in name:
            return own
        if name not in there or there[name].shape != own.shape:
            raise ConfigError(f"cannot start from {run.directory} with everything: state{name} is another there")
        return jnp.array(there[name])

    return jax.tree_util.tree_map_with_path(taken, state), int(replay.size)
