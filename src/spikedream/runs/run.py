"""A finished or unfinished run, opened from its directory: its policy, its world, its numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode

from spikedream import config as configuration
from spikedream.algorithm import Algorithm, PolicyState, TrainState
from spikedream.config import Config
from spikedream.dream_env.stepped_dreams import DREAMS, SteppedDreams
from spikedream.dream_env.vector import DreamVecEnv
from spikedream.envs.host import REPORT
from spikedream.envs.make import make_own, translation_of
from spikedream.envs.spaces import Translation, decode_actions
from spikedream.replay.ring import Replay
from spikedream.runs import checkpoint
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.runs.metrics import Recorder
from spikedream.runs.replay_log import ReplayLog
from spikedream.spec import Spec
from spikedream.types import PyTree


class Policy:
    """The greedy policy of a run, for one environment: `action = policy(obs)`, both in the environment's own units and spaces.

    The weights are constants of one compiled call. A policy with persistent membranes remembers its last observations: call `reset`
    when an episode begins.
    """

    def __init__(self, algorithm: Algorithm, policy: PolicyState, key: jax.Array, translation: Translation):
        self._spec, self._translation, self._key_at_start = algorithm.spec, translation, key

        def decide(carry: PyTree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree, jax.Array]:
            act = algorithm.act(policy, carry, obs[None], key, True)
            return act.action, act.carry, act.key

        self._start: PyTree = algorithm.start(policy, 1)
        obs = jax.ShapeDtypeStruct((algorithm.spec.obs_size,), jnp.float32)
        self._decide: Callable[..., Any] = jax.jit(decide).lower(self._start, obs, key).compile()
        self.reset()

    def reset(self) -> None:
        self._carry, self._key = self._start, self._key_at_start

    def __call__(self, obs: Any) -> Any:
        """An observation, (obs_size,) in a flat Box, to an action: an int in a Discrete space, (action_size,) in a flat Box.

        Raises:
            ValueError: for an observation of another shape.
            BrokenEnvironment: for one that does not belong to the environment's Dict or Tuple space.
        """
        flat = np.asarray(self._translation.observation(obs), np.float32)
        if flat.shape != (self._spec.obs_size,):
            raise ValueError(f"the policy observes {self._spec.obs_size} numbers, not an array of shape {flat.shape}")
        action, self._carry, self._key = self._decide(self._carry, flat, self._key)
        action = decode_actions(self._spec, np.asarray(action))[0]
        return self._translation.action(int(action) if self._spec.discrete else action)


class Run:
    """A run directory.

    Args:
        directory: as `spikedream train` writes it.
        best: as it was in its best evaluation, where `checkpoint.best` has kept that; without its experience.

    Raises:
        CheckpointError: the directory, its configuration or its newest checkpoint is missing or damaged.
    """

    def __init__(self, directory: str | Path, best: bool = False):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise checkpoint.CheckpointError(f"no run directory {self.directory}")
        file = self.directory / "config.yaml"
        if not file.is_file():
            raise checkpoint.CheckpointError(f"{self.directory} is not a run directory: it has no config.yaml")
        self.config: Config = configuration.load(file)
        env = make_own(self.config.env, self.config.env_kwargs, self.config.max_episode_steps)
        self._translation = translation_of(self.config.env, env)
        self.spec: Spec = self._translation.spec
        env.close()
        self.algorithm = self.config.algorithm(self.spec)
        template = jax.eval_shape(self.algorithm.init, jax.random.key(0))
        arrays, self.counters = checkpoint.load(self.directory / ("best" if best else "checkpoints"))
        # Without what it has experienced, which may be large: `experience` reads that.
        template = replace(template, replay=replace(template.replay, data=None))
        self.state: TrainState = checkpoint.unflatten(template, "state", arrays)
        self._policy: Policy | None = None

    @property
    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the run is unfinished."""
        file = self.directory / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per turn."""
        return Recorder.rows(self.directory)

    def experience(self) -> Replay:
        """All real steps that the run still holds, as they were when it was last saved.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        if "replay" not in self.counters:
            raise checkpoint.CheckpointError(f"the best of {self.directory} is kept without its experience")
        data = self.algorithm.buffer.init(self.spec, self.algorithm.environments).data
        log = ReplayLog(self.directory / "checkpoints")
        return log.load(checkpoint.Extent(**self.counters["replay"]), replace(self.state.replay, data=data))

    @property
    def policy(self) -> Policy:
        if self._policy is None:
            policy = self.algorithm.policy(self.state)
            self._policy = Policy(self.algorithm, policy, self.state.keys.evaluate, self._translation)
        return self._policy

    def dream_env(
        self,
        count: int,
        dreams: SteppedDreams = DREAMS,
        seed: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> DreamVecEnv:
        """The world that the run has learned, as an environment of `count` dreams side by side that begin at replayed steps of its
        experience; `dream_env(...).stable_baselines3()` is the same for agents of Stable-Baselines3.

        Raises:
            CheckpointError: the experience is missing or damaged.
            ValueError: nothing has been experienced yet, or an argument is wrong.
        """
        return DreamVecEnv(self.spec, self.algorithm.world(self.state), self.experience(), count, dreams, seed, autoreset_mode)

    def evaluate(self, episodes: int = 100, repetition: int = 0) -> Evaluated:
        """Greedy episodes on seeds that neither learning nor its own evaluations used: their returns, (episodes,), and whether
        each was a success, where the environment tells. The same `repetition` gives the same seeds."""
        evaluator = Evaluator(self.config, episodes)
        try:
            policy = self.algorithm.policy(self.state)
            return evaluator(self.algorithm, policy, self.state.keys.evaluate, REPORT, repetition)
        finally:
            evaluator.close()
