"""Baselines of Stable-Baselines3, which are no agents of this project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE

from spikedream import config as configuration
from spikedream.envs.spaces import decode_actions
from spikedream.experiments import baselines
from spikedream.reports.comparison import compare


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_baseline_s_actions_reach_the_environment_as_they_are(spec: Any) -> None:
    actions = np.array([1, 0, 1]) if spec.discrete else np.array([[-2.0], [0.5], [2.0]], np.float32)
    act = baselines.GreedyPolicy(lambda obs: actions, spec).act(None, None, np.zeros((3, spec.obs_size), np.float32), None, True)
    np.testing.assert_allclose(decode_actions(spec, act.action), actions, atol=1e-6)


def test_a_baseline_stops_as_solved_after_its_confirmations_and_leaves_a_run(tmp_path: Path) -> None:
    changes = {"budget": 400, "evaluation": {"episodes": 5, "confirmations": 1}, "agent": {"evaluate_every": 100}, "seed": 3}
    baseline = configuration.merge(baselines.from_zoo("PPO", "CartPole-v1"), changes)
    constant = [True]

    def predict(obs: np.ndarray) -> np.ndarray:  # falls over, or balances by pushing towards where the pole leans and moves
        return np.zeros(len(obs), int) if constant else (obs[:, 2] + 0.5 * obs[:, 3] + 0.05 * obs[:, 1] > 0).astype(int)

    configuration.save(baseline, tmp_path / "config.yaml")
    monitor = baselines.Monitor(baseline, tmp_path, predict)
    assert not monitor.turn(0, 0) and not monitor.turn(99, 1) and not monitor.turn(100, 2) and not monitor.turn(199, 3)
    constant.clear()
    assert monitor.turn(210, 4)
    monitor.write_result()
    monitor.close()
    method = compare([tmp_path]).methods["baseline"]
    assert [row["real_steps"] for row in method.runs[0].rows] == [100, 210]
    assert method.solved == 1 and method.scores["real_steps_to_solve"]["iqm"] == 210 and method.scores["final_return"]["iqm"] >= 475


def test_a_baseline_stops_when_its_budget_is_spent(tmp_path: Path) -> None:
    baseline = configuration.merge(baselines.from_zoo("DQN", "CartPole-v1"), {"budget": 130, "evaluation": {"episodes": 2}})
    monitor = baselines.Monitor(baseline, tmp_path, lambda obs: np.zeros(len(obs), int))
    assert not monitor.turn(120, 0) and monitor.turn(130, 1) and monitor.turn(130, 1)
    monitor.close()
    assert monitor.solved_at is None and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # says PPO of the Zoo's own settings
@pytest.mark.parametrize(("algorithm", "env"), [(a, env) for a, known in baselines.RL_ZOO.items() for env in known])
def test_stable_baselines3_takes_the_settings(algorithm: str, env: str, tmp_path: Path) -> None:
    changes = {"budget": 64, "evaluation": {"episodes": 2}, "agent": {"schedule": 64, "evaluate_every": 32}}
    baselines.run(configuration.merge(baselines.from_zoo(algorithm, env), changes), tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text())["real_steps"] >= 64
