"""What benchmarks record is what was asked for."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spikedream import config as configuration
from spikedream.experiments import record
from spikedream.snn.conventional import MLP
from spikedream.spec import Spec
from spikedream.world_models.ensemble import Ensemble

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ARGUMENTS = {"preset": "hopper", "steps": 100, "every": 50, "seed": 0, "first": None}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_recorded_command_names_what_is_not_at_its_default(script) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", type=Path, metavar="PYTHON")
    parser.add_argument("--parts", nargs="+", default=["update"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(
        ["--torch", "/here/python", "--parts", "model update", "step", "--turns", "1", "--autocast", "--record"]
    )
    command = script("called").called("/anywhere/x.py", parser, given)
    assert command == "python benchmarks/x.py --torch PYTHON --parts 'model update' step --turns 1 --autocast"


def test_results_of_other_arguments_are_refused(script, tmp_path: Path) -> None:
    mbpo: ModuleType = script("mbpo")
    for _ in range(2):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"out holds results with --seed 0 and not 1; choose another --out"):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS | {"seed": 1}), tmp_path / "out")
    (tmp_path / "ours.json").write_text("[]")
    with pytest.raises(SystemExit, match="nobody knows the arguments"):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS), tmp_path)


def test_a_preset_of_other_sizes_than_pytorch_has_is_refused(script) -> None:
    pytorch: ModuleType = script("pytorch")
    pytorch.same_sizes(configuration.named("popsan-halfcheetah"), Spec(17, 6, False))
    with pytest.raises(SystemExit, match=r"popsan-ant .* env Ant-v4 and not HalfCheetah-v4, observation 27 .*, members 5"):
        pytorch.same_sizes(configuration.named("popsan-ant"), Spec(27, 8, False))


def test_what_a_step_of_the_dream_takes_is_recorded(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dream_env.py", "--dreams", "2", "--preset", "debug", "--steps", "3", "--record"])
    script("dream_env").main()
    row = record.load("dream-env-2")
    assert row.scores.keys() == {"ms a step, spiking", "ms a step, conventional"} and all(x[0] > 0 for x in row.scores.values())
    assert row.command == "python benchmarks/dream_env.py --dreams 2 --preset debug --steps 3 --record" and row.code is not None


def test_a_parallel_run_beside_the_synchronous_one_is_recorded_seed_by_seed(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs themselves are not made: their results are written in their place."""
    parallel: Any = script("parallel")

    def train(command: list[str], **_: Any) -> None:
        out, seed = Path(command[-1]), int(command[command.index("--seed") + 1])
        solved = None if seed == 102 else seed  # the first seed warms the cache, and is left out
        result = {"wall_seconds": 2.0, "real_steps_to_solve": solved, "real_steps": 500, "fresh_return_mean": 480.0}
        out.mkdir()
        (out / "result.json").write_text(json.dumps(result))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel.subprocess, "run", train)
    monkeypatch.setattr(sys, "argv", ["parallel.py", "cartpole", "--seeds", "2", "--record"])
    for recorded in (False, True):
        monkeypatch.setattr(parallel, "asked", argparse.Namespace(record=recorded), raising=False)
        monkeypatch.setattr(parallel.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        monkeypatch.setattr(parallel, "commit", lambda: None)
        parallel.cartpole(2)
        assert (tmp_path / "results").exists() is recorded
    for runner in ("sync", "parallel"):
        row = record.load(f"parallel-cartpole-{runner}")
        assert row.scores["real steps to solve"] == [101, 500] and row.scores["fresh return mean"] == [480, 480]
        assert len(row.scores["seconds"]) == 2 and row.command == "python benchmarks/parallel.py cartpole --seeds 2 --record"


def test_calibration_is_measured_on_what_was_held_out_and_on_fresh_episodes(script) -> None:
    model = Ensemble(members=2, dynamics=MLP((4,)), gaussian=True, holdout=0.5, batch=8, updates=2)
    held, fresh = script("calibration").measure(model, Spec(3, 1, discrete=False), seed=0, steps=60, env_id="Pendulum-v1")
    assert all(0 <= float(each["calibration/coverage_90"]) <= 1 for each in (held, fresh))
    assert set(fresh) == {name for name in held if name.startswith("calibration/")}
