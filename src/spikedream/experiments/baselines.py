"""Model-free baselines: Stable-Baselines3, run and evaluated as spikedream's own runs are.

`python -m spikedream.experiments.baselines FILE.yaml --out DIR` is one run; `spikedream study` starts it. It leaves `config.yaml`,
`metrics.jsonl` and `result.json` in the form of a run, so that `spikedream compare` reads it. It writes no checkpoint: a run that
was stopped begins anew.
"""

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast

import jax
import numpy as np
import tyro
import yaml

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.envs.host import REPORT
from spikedream.envs.make import make_environment, reward_threshold, spec_of
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.experiments.zoo import RL_ZOO
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.runs.metrics import Recorder
from spikedream.runs.outcome import begin, judge, write_result
from spikedream.spec import Spec
from spikedream.verbs import Evaluation

NOT_INSTALLED = "not installed: pip install 'spikedream[sb3]'"


@dataclass(frozen=True)
class StableBaselines3:
    """An algorithm of Stable-Baselines3 and its settings."""

    algorithm: Literal["PPO", "DQN", "SAC"] = "PPO"
    evaluate_every: int = 1000  # real steps, at least
    schedule: int = 100_000  # real steps over which learning rate and exploration fall; the budget if that is more
    environments: int = 1  # played side by side
    normalize: bool = False  # observations and rewards, by their running statistics
    settings: dict[str, Any] = field(default_factory=dict)  # of its constructor; lin_0.001 falls linearly from 0.001 to 0


@dataclass(frozen=True)
class Baseline:
    """Everything that decides a baseline's outcome; names as in `spikedream.Config`."""

    preset: str = "baseline"
    env: str = "CartPole-v1"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    seed: int = 0
    budget: int = 100_000
    threshold: float | None = None
    evaluation: Evaluation = Evaluation()
    agent: StableBaselines3 = StableBaselines3()


def installed() -> bool:
    return importlib.util.find_spec("stable_baselines3") is not None


def from_zoo(algorithm: str, env: str, otherwise_own: bool = False) -> Baseline:
    """With the settings of RL Baselines3 Zoo; or with the library's own, for the first 100,000 steps, where it has none and these
    will do `otherwise`.

    Raises:
        ConfigError: it has none for this pair.
    """
    if algorithm not in RL_ZOO:
        raise ConfigError(f"no Stable-Baselines3 algorithm {algorithm!r}; known: {', '.join(RL_ZOO)}")
    if env not in RL_ZOO[algorithm] and not otherwise_own:
        raise ConfigError(
            f"RL Baselines3 Zoo has no settings for {algorithm} on {env}; it has: {', '.join(RL_ZOO[algorithm])};"
            " `settings: {}` stands for the library's own"
        )
    agent = configuration.merge(StableBaselines3(), {"algorithm": algorithm, **RL_ZOO[algorithm].get(env, {})})
    return Baseline(env=env, budget=agent.schedule, agent=agent)


def load(path: Path) -> Baseline:
    """Raises ConfigError where the file is missing or wrong."""
    try:
        return configuration.merge(Baseline(), yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from error


# ---- one run


class GreedyPolicy:
    """A Stable-Baselines3 model in the place of an `Algorithm`, as far as evaluation needs one."""

    def __init__(self, predict: Callable[[np.ndarray], np.ndarray], spec: Spec):
        self.predict, self.spec = predict, spec  # raw observations (batch, obs_size) to the environment's own actions

    def start(self, *_: Any) -> None: ...

    def act(self, policy: Any, carry: Any, obs: np.ndarray, key: Any, greedy: bool) -> SimpleNamespace:
        actions = self.predict(obs)
        if self.spec.discrete:
            encoded = np.eye(self.spec.action_size, dtype=np.float32)[actions]
        else:
            low, high = np.asarray(self.spec.action_low), np.asarray(self.spec.action_high)
            encoded = (actions - low) / (high - low) * 2 - 1
        return SimpleNamespace(action=encoded, carry=None, rate=np.zeros(len(obs), np.float32), key=key)


class Monitor:
    """Evaluates while a model learns, records, and says when to stop.

    Args:
        baseline: what is run.
        directory: of the run.
        predict: the greedy policy, as in `GreedyPolicy`.
    """

    def __init__(self, baseline: Baseline, directory: Path, predict: Callable[[np.ndarray], np.ndarray]):
        self.baseline, self.directory = baseline, directory
        self.threshold = baseline.threshold if baseline.threshold is not None else reward_threshold(baseline.env)
        self.policy = GreedyPolicy(predict, spec_of(baseline.env, baseline.env_kwargs, baseline.max_episode_steps))
        names = ("env", "env_kwargs", "max_episode_steps", "seed")
        self.evaluator = Evaluator(Config(**{n: getattr(baseline, n) for n in names}), baseline.evaluation.episodes)
        self.recorder = Recorder(directory)
        self.started, self.row, self.solved_at, self.fresh = time.perf_counter(), {}, None, None

    def turn(self, real_steps: int, updates: int) -> bool:
        """Evaluate where it is time to; True when the run is over. To be called between updates."""
        last = self.row.get("real_steps", 0)
        spent = real_steps >= self.baseline.budget
        if real_steps > last and (spent or real_steps - last >= self.baseline.agent.evaluate_every):
            self._evaluate(real_steps, updates)
        return spent or (self.solved_at is not None and self.baseline.evaluation.stop)

    def _evaluate(self, real_steps: int, updates: int) -> None:
        turn = self.row.get("turn", -1) + 1
        unsolved = self.solved_at is None
        confirmations = self.baseline.evaluation.confirmations if unsolved else 0
        result, solved = judge(self.threshold, confirmations, self._play, turn)
        if solved and unsolved:
            self.solved_at, self.fresh = real_steps, self._fresh()
        self.row = {
            "turn": turn,
            "real_steps": real_steps,
            "imagined_steps": 0,
            "updates": updates,
            "eval_return_mean": result.mean(),
            "eval_return_std": result.std(),
            "eval_length_mean": float(result.lengths.mean()),
            "wall_seconds": round(time.perf_counter() - self.started, 3),
        }
        self.recorder.write(self.row)

    def _play(self, stream: int, *index: int) -> Evaluated:
        return self.evaluator(cast(Any, self.policy), cast(Any, None), jax.random.key(0), stream, *index)

    def _fresh(self) -> tuple[float, float]:
        fresh = self._play(REPORT, 0)
        return fresh.mean(), fresh.std()

    def write_result(self) -> None:
        write_result(
            self.directory, self.baseline, self.row, self.fresh or self._fresh(), threshold=self.threshold,
            solved_at=self.solved_at, wall_seconds=time.perf_counter() - self.started,
            packages=("stable-baselines3", "torch") if installed() else (),
        )  # fmt: skip

    def close(self) -> None:
        self.recorder.close()
        self.evaluator.close()


def run(baseline: Baseline, directory: Path) -> None:
    """Learn until solved or out of budget.

    Raises:
        ImportError: Stable-Baselines3 is not installed.
        ConfigError: it does not take the settings.
        BrokenEnvironment: as its text says.
    """
    if not installed():
        raise ImportError(f"Stable-Baselines3 is {NOT_INSTALLED}")
    begin(baseline, directory)
    model = _model(baseline)
    normalizer = model.get_vec_normalize_env()

    def predict(obs: np.ndarray) -> np.ndarray:
        return model.predict(normalizer.normalize_obs(obs) if normalizer else obs, deterministic=True)[0]

    monitor = Monitor(baseline, directory, predict)
    try:
        total = max(baseline.budget, baseline.agent.schedule)
        model.learn(total_timesteps=total, callback=_callback(monitor))
        monitor.turn(model.num_timesteps, model._n_updates)  # the last update came after the last rollout began
        monitor.write_result()
    finally:
        monitor.close()
        model.get_env().close()


def _model(baseline: Baseline) -> Any:
    import stable_baselines3 as sb3  # pyright: ignore[reportMissingImports] - an extra
    import torch  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import VecNormalize  # pyright: ignore[reportMissingImports]

    from spikedream.agents.stable_baselines_learner import setting

    torch.set_num_threads(1)  # faster than several for networks of this size
    agent = baseline.agent
    make = partial(make_environment, baseline.env, baseline.env_kwargs, baseline.max_episode_steps)
    env = make_vec_env(make, n_envs=agent.environments, seed=baseline.seed)
    settings = {name: setting(value) for name, value in agent.settings.items()}
    if agent.normalize:
        env = VecNormalize(env, gamma=settings.get("gamma", 0.99))
    try:
        return getattr(sb3, agent.algorithm)("MlpPolicy", env, seed=baseline.seed, device="cpu", **settings)
    except (AssertionError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"agent.settings or the environment does not fit {agent.algorithm}: {what}") from error


def _callback(monitor: Monitor) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]

    class Callback(BaseCallback):
        over = False

        def _on_rollout_start(self) -> None:
            # Here all experience so far has been learned from; in the middle of a rollout, PPO's policy is older than its steps.
            self.over = monitor.turn(self.num_timesteps, self.model._n_updates)

        def _on_step(self) -> bool:
            return not self.over

    return Callback()


@dataclass
class Worker:
    """One run of a baseline."""

    file: tyro.conf.Positional[Path]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    seed: int | None = None


def main() -> None:
    command = tyro.cli(Worker, prog="python -m spikedream.experiments.baselines")
    try:
        baseline = load(command.file)
        run(baseline if command.seed is None else dataclasses.replace(baseline, seed=command.seed), command.out)
    except (BrokenEnvironment, CheckpointError, ConfigError, ImportError, ValueError) as error:
        print(f"spikedream: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
