"""The main job on the real environment, from the command line, in a process of its own as a user would run it.

One training is part of `make test`; `make test-learning` runs the others.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import spikedream

# Half of a training that takes a minute is compiling; so it takes half of that, and goes the same way.
SHORT = {
    "NPROC": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}


def learn(directory: Path, *arguments: str, settings: Mapping[str, str] = MappingProxyType({})) -> dict:
    # Without the settings that conftest.py makes for tests of tiny networks.
    plain = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "spikedream", "train", *arguments, "--out", str(directory)]
    subprocess.run(command, check=True, env={**plain, **settings}, stdout=subprocess.DEVNULL)
    return json.loads((directory / "result.json").read_text())


@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.learning)])
def test_the_all_spiking_agent_learns_cartpole_by_dreaming(seed: int, tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "cartpole", "--seed", str(seed), settings=SHORT)
    assert result["solved"] and result["real_steps_to_solve"] <= 300 and result["eval_return_mean"] >= 475
    assert all(0.01 < rate < 0.99 for rate in result["firing_rate"].values()), "every network spikes"
    assert result["peak_memory_mb"] <= 1500
    assert spikedream.load(tmp_path / "run").evaluate(100).mean() >= 450


@pytest.mark.learning
def test_the_all_spiking_agent_learns_to_swing_up_the_pendulum(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "pendulum", "--seed", "11", "--threshold", "-350")
    assert result["solved"] and result["real_steps"] <= 2000
    assert spikedream.load(tmp_path / "run").evaluate(20).mean() >= -500  # a motionless pendulum gets about -1,200


@pytest.mark.learning
def test_what_is_learned_without_a_setting_stays_learned(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "Pendulum-v1", "--threshold", "-200", "--seed", "1002", "--budget", "1000", "--keep-improving")
    assert result["solved"] and result["real_steps_to_solve"] <= 700
    # Where dreams ended at the first step that was less sure than usual, nothing about spinning was learned: -590 in the end.
    assert spikedream.load(tmp_path / "run").evaluate(50).mean() >= -250


@pytest.mark.learning
def test_the_all_spiking_agent_swings_up_the_cart_pole_of_the_ini(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "ini-cartpole-swingup", "--seed", "11")
    assert result["solved"] and result["real_steps_to_solve"] <= 4000
    assert spikedream.load(tmp_path / "run").evaluate(100).mean() >= 850  # a motor that does nothing gets 46
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval_success"] >= 0.9


@pytest.mark.learning
def test_planning_with_a_dreamed_value_learns_cartpole(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "cem-cartpole", "--seed", "11")
    assert result["solved"] and result["real_steps_to_solve"] <= 300 and result["eval_return_mean"] >= 475
    assert result["decision_ms"] > 0


@pytest.mark.learning
def test_curiosity_finds_the_way_up_the_mountain(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "mountaincar", "--seed", "11", "--budget", "4000")
    assert result["solved"] and result["eval_return_mean"] >= 90


@pytest.mark.learning
def test_curiosity_finds_how_to_swing_up_the_acrobot(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "acrobot", "--seed", "11")
    assert result["solved"] and result["real_steps_to_solve"] <= 2000 and result["eval_return_mean"] >= -100
    assert spikedream.load(tmp_path / "run").evaluate(20).mean() >= -150  # an episode that never gets there: -500


@pytest.mark.learning
def test_a_recurrent_world_model_makes_up_for_hidden_velocities(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "cartpole-hidden", "--seed", "11")
    assert result["solved"] and result["real_steps_to_solve"] <= 500 and result["eval_return_mean"] >= 475
    assert spikedream.load(tmp_path / "run").evaluate(50).mean() >= 400  # without memory: 9 to 42


@pytest.mark.learning
def test_ppo_that_imagines_learns_cartpole(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", "adaptive-ppo-cartpole", "--seed", "11")
    assert result["solved"] and result["real_steps_to_solve"] <= 5120 and result["eval_return_mean"] >= 475
    assert result["imagined_steps"] > result["real_steps"]
