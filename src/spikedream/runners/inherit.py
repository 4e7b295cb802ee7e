"""A run that begins with what an earlier one has learned of the world and seen of it, with what it has learned, or with everything
that it was."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config, ConfigError
from spikedream.runners.account import restore_outside
from spikedream.runs import checkpoint
from spikedream.runs.collect import LARGEST_BLOCK
from spikedream.runs.run import Run
from spikedream.world import HostLearner


def inherit(
    run: Run, config: Config, algorithm: Algorithm, state: TrainState, learner: HostLearner | None
) -> tuple[TrainState, int]:
    """`state` with what `start_with` says of an earlier run: its world model and its experience, as this run's knowledge tells it;
    what it has learned, without its experience; or everything; and how many real steps that is. Where the agent is taken over, a
    `learner` outside takes over all that such a one held: networks, optimisers, counters, and the imagined steps that it remembers.

    Raises:
        ConfigError: they do not fit this run.
        CheckpointError: they cannot be read.
    """
    same = [("spaces", run.spec, algorithm.spec), ("world_model", run.config.world_model, config.world_model)]
    if config.start_with != "weights":
        same.append(("collect.environments", run.config.environments, config.environments))
    if learner is not None and config.start_with != "world":
        same.append(("agent.algorithm", *(getattr(each.agent, "algorithm", None) for each in (run.config, config))))
    for name, there, here in same:
        if there != here:
            raise ConfigError(f"cannot start from {run.directory}: {name} is another there")
    if config.start_with != "world":
        found = (_weights(run, state), 0) if config.start_with == "weights" else _everything(run, state)
        _inherit_outside(run, config.start_with, learner)
        return found
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
    """As the earlier run left it, save keys, counters and episodes under way."""
    replay = run.experience()
    if int(replay.size) == 0:
        raise ConfigError(f"cannot start from {run.directory}: it has no experience yet")
    before = replace(run.state, replay=replay.cut(jnp.ones(replay.environments, bool)).forget_episodes())
    return _taken(run, before, state, "everything"), int(replay.size)


def _weights(run: Run, state: TrainState) -> TrainState:
    """All that was learned, in the scales in which it was learned: these go on from all that the earlier run has seen, since
    weights mean nothing on another scale. The steps themselves stay behind, and so does what errors were measured on them."""
    replay = replace(state.replay, normalizer=run.state.replay.normalizer, moments=run.state.replay.moments)
    return _taken(run, replace(run.state, replay=replay), state, "weights")


def _inherit_outside(run: Run, what: str, learner: HostLearner | None) -> None:
    """All of it or, where its parts do not fit, ConfigError: what is mirrored in the state would be lost with the first update."""
    if learner is None:
        return
    arrays, _ = checkpoint.load(run.directory / "checkpoints")
    try:
        restore_outside(learner, arrays)
    except (KeyError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot start from {run.directory} with {what}: its agent's learner is another there: {line}") from error


def _taken(run: Run, before: TrainState, state: TrainState, what: str) -> TrainState:
    """`before`, save keys, counters and episodes under way. A mask is kept where there was one, and begins anew where there was
    none; the gradient steps of its schedule begin anew."""
    there = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before)}

    def taken(path: tuple, own: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name.startswith((".keys", ".counters", ".carry")) or name.endswith(".mask.steps"):
            return own
        if name not in there and ".mask." in name:
            return own
        if name not in there or there[name].shape != own.shape:
            raise ConfigError(f"cannot start from {run.directory} with {what}: state{name} is another there")
        return jnp.array(there[name])

    return jax.tree_util.tree_map_with_path(taken, state)
