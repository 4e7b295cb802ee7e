"""A run that was stopped anywhere goes on to the numbers of an undisturbed one."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spikedream
from spikedream.runs import checkpoint
from spikedream.runs.checkpoint import CheckpointError

HERE = Path(__file__).parent
NETWORK = {"kind": "MLP", "hidden": [6]}
SETTINGS: dict[str, Any] = {
    "budget": 90, "improve": {"first": 20, "then": 20}, "collect": {"steps": 7}, "threshold": 1e9,
    "world_model": {"dynamics": NETWORK, "ending": NETWORK}, "agent": {"actor": NETWORK, "critic": NETWORK},
}  # fmt: skip
sys.path.insert(0, str(HERE))


def outcome(directory: Path) -> list[dict]:
    """What the run measured, less its times."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("wall_seconds", "decision_ms")} for row in rows]


def final_arrays(directory: Path) -> dict[str, np.ndarray]:
    return checkpoint.load(directory / "checkpoints").arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("resume") / "undisturbed"
    spikedream.train("debug", seed=5, out=directory, settings=SETTINGS, report=False)
    return directory


def start(directory: Path) -> subprocess.Popen:
    code = (
        "import conftest, sys, spikedream as sd\n"  # compiles what this process has compiled no second time
        f"try: sd.train('debug', seed=5, out={str(directory)!r}, settings={SETTINGS!r}, report=False)\n"
        "except sd.Interrupted as stop: print(stop); sys.exit(130)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.DEVNULL)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def rows_written(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


# SIGINT and SIGTERM go the same way: `runners.stop`.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.learning), signal.SIGKILL])
def test_a_stopped_run_resumes_bit_for_bit(number: signal.Signals, undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stopped"
    process = start(directory)
    wait_for(lambda: rows_written(directory) >= 2, process)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert not (directory / "result.json").exists()
    run = spikedream.resume(directory, report=False)
    assert outcome(directory) == outcome(undisturbed)
    here, there = final_arrays(directory), final_arrays(undisturbed)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_array_equal(here[name], there[name], err_msg=name)
    assert run.result is not None and run.result["real_steps"] == 90


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def parts(self, doing: dict[str, str]) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def progress(self, real_steps: int, budget: int) -> None: ...
    def record(self, row) -> None: ...
    def note(self, text: str) -> None:
        self.texts.append(text)


TINY = {
    "budget": 70, "threshold": 1e9, "improve": {"first": 2, "then": 2, "block": 1}, "collect": {"seed_episodes": 1, "steps": 12},
}  # fmt: skip
ENSEMBLE = {"updates": 6, "check_every": 3, "batch": 4, "dynamics": NETWORK, "ending": NETWORK}
DREAMER = {"trajectories": 4, "horizon": 3, "context": 2, "actor": NETWORK, "critic": NETWORK}
SELECTION = {"kind": "PolicySelection", "rates": [0.5], "starts": 2, "steps": 3}
REMEMBERING = {"kind": "SpikingNetwork", "hidden": [6], "ticks": 2, "persistent": True}
PARTS = {
    "recurrent world, remembering actor, curiosity, priorities": {
        "env": "CartPoleHiddenVelocity-v0",
        "world_model": {
            "kind": "Recurrent", "latent": 2, "context": 3, "open_loop": 2, "network": REMEMBERING, "ensemble": ENSEMBLE,
        },
        "agent": DREAMER | {"actor": REMEMBERING},
        "bonus": {
            "kind": "RandomNetworkDistillation", "target": NETWORK, "predictor": NETWORK, "fitting": {"updates": 5, "batch": 8},
        },
        "replay": {"priority": "model_error"},
    },
    "planner with a policy": {
        "world_model": ENSEMBLE | {"gaussian": True, "holdout": 0.2},
        "agent": {
            "kind": "MPC", "horizon": 3, "search": {"kind": "CEM", "candidates": 8, "iterations": 2, "elites": 3},
            "policy": {"kind": "Dreamer", **DREAMER, "selection": SELECTION}, "proposals": 2,
        },
        "replay": {"priority": "td_error"},
        "bonus": {"kind": "Disagreement"},
    },
    "environments side by side, by their own clocks": {
        "world_model": ENSEMBLE, "agent": DREAMER, "budget": 120, "collect": {"seed_episodes": 2, "steps": 4, "environments": 2},
        "fit": {"every": 40, "then": 3}, "improve": {"first": 2, "ratio": 0.1, "block": 1},
        "evaluation": {"every": 30}, "checkpoint": {"every": 50}, "max_episode_steps": 30, "replay": {"capacity": 70},
    },
    "ppo with imagination": {
        "env": "Pendulum-v1", "max_episode_steps": 30, "budget": 64,
        "collect": {"seed_episodes": 0, "steps": 16}, "improve": {"first": 1, "then": 1}, "world_model": ENSEMBLE,
        "agent": {
            "kind": "PPO", "actor": NETWORK, "critic": NETWORK, "rollout": 16, "passes": 2, "batch": 8,
            "imagination": {"kind": "Imagination", "threshold": 0.0, "least": 2, "most": 4, "chunk": 2, "horizon": 3},
        },
    },
    "an agent that learns online and imagines beside that": {
        "collect": {"seed_episodes": 0, "steps": 12}, "improve": {"first": 0, "then": 0}, "world_model": ENSEMBLE,
        "agent": {
            "kind": "StreamActorCritic", "actor": {"kind": "SpikingNetwork", "hidden": [6], "ticks": 2}, "critic": NETWORK,
            "dyna": {"kind": "Dyna", "dynamics": NETWORK, "ending": NETWORK, "steps": 2, "begin": 20, "horizon": 5},
        },
    },
    "off-policy agent, priorities by loss": {
        "env": "Pendulum-v1", "max_episode_steps": 30, "budget": 80, "precision": "fastest", "replay": {"priority": "loss"},
        "collect": {"seed_steps": 20, "steps": 12}, "improve": {"first": 0, "ratio": 0.5, "block": 3}, "world_model": ENSEMBLE,
        "agent": {
            "kind": "OffPolicy", "actor": NETWORK, "critic": NETWORK, "batch": 8, "clip_value": True,
            "representation": {"kind": "SALE", "size": 4, "state": NETWORK, "pair": NETWORK},
            "value": "Huber", "slow": {"kind": "HardCopy", "every": 4},
        },
    },
    "off-policy agent that dreams": {
        "env": "Pendulum-v1", "max_episode_steps": 30, "budget": 80, "fit": {"every": 20, "then": 3},
        "collect": {"seed_steps": 20, "steps": 12}, "improve": {"first": 0, "ratio": 0.5, "block": 3},
        "world_model": ENSEMBLE | {"fine_tuning": {"holdout_newest": 0.2}},
        "agent": {
            "kind": "OffPolicy", "actor": NETWORK, "critic": NETWORK, "batch": 8,
            "dreams": {
                "kind": "Dreams", "starts": 5, "horizon": 3, "every": 4, "begin": 20, "capacity": 40, "age": 12, "stretches": 4,
                "trust": {"kind": "FirstStep", "quantile": 0.5},
            },
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_every_kind_of_run_resumes_bit_for_bit_from_the_middle_of_an_episode(settings: dict, tmp_path: Path) -> None:
    from dataclasses import replace

    from spikedream import config
    from spikedream.runners.sync import Trainer
    from spikedream.world_models.recurrent import Recurrent

    base = config.merge(config.Config(evaluation=config.Evaluation(episodes=2)), TINY)
    chosen = replace(config.merge(base, settings), seed=3)
    # Written out and read again: what it holds is what its file holds.
    config.save(chosen, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == chosen

    def go(trainer: Trainer, steps: int | None = None) -> None:
        """To the end, or until so many real steps were taken."""
        act = trainer.collector.act

        def watched(*arguments):
            acted = act(*arguments)
            trainer._stop = steps is not None and trainer.progress.real_steps + acted[1] >= steps
            return acted

        trainer.collector.act = watched
        try:
            trainer.train()
        finally:
            trainer.close()

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go(Trainer(chosen, whole, Notes()))
    stopped = Trainer(chosen, parts, Notes())
    with pytest.raises(spikedream.Interrupted):
        go(stopped, steps=52)
    assert 52 <= stopped.progress.real_steps < 90 and stopped.progress.turn > 0
    assert stopped.collector.positions[-1].actions, "the run was not stopped inside an episode"
    if not chosen.agent.online:
        assert stopped.collector.pending, "the run was not stopped with steps in hand"
    carry = {name for name in final_arrays(parts) if name.startswith("state.carry")}
    if type(chosen.agent).__name__ == "MPC":
        assert any("plan.mean" in name for name in carry) and any("plan.elites" in name for name in carry)
    if getattr(chosen.agent, "dreams", None) is not None:
        held = final_arrays(parts)
        assert held["state.agent.dreams.added"] > 0 and held["state.agent.dreams.trust.times"] > 0, "it had not dreamed"
        assert held["state.agent.dreams.ring.obs"].any()
    if isinstance(chosen.world_model, Recurrent):
        assert any("memory.carry" in name for name in carry) and any("actor" in name for name in carry)
    go(Trainer(chosen, parts, Notes(), resume=True))
    assert outcome(parts) == outcome(whole)
    here, there = final_arrays(parts), final_arrays(whole)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_array_equal(here[name], there[name], err_msg=name)


def test_a_kill_before_the_first_turn_is_over_loses_nothing(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "early"
    process = start(directory)
    wait_for(lambda: any((directory / "checkpoints").glob("*.json")), process)
    process.kill()
    process.wait(60)
    spikedream.resume(directory, report=False)
    assert outcome(directory) == outcome(undisturbed)


def test_a_kill_before_the_first_checkpoint_begins_anew(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "at once"
    directory.mkdir()
    (directory / "config.yaml").write_bytes((undisturbed / "config.yaml").read_bytes())
    spikedream.resume(directory, report=False)
    assert outcome(directory) == outcome(undisturbed)


def test_arrays_without_a_head_are_ignored_and_cleared_away(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"x": np.arange(3)}, {"real_steps": 1})
    (tmp_path / "000002-step2.safetensors").write_bytes(b"half a che")
    (tmp_path / "replay-0-1.f32").write_bytes(b"of no checkpoint")
    (tmp_path / ".000003-step3.safetensors.tmp").write_bytes(b"less")
    assert checkpoint.load(tmp_path).counters == {"real_steps": 1}
    checkpoint.save(tmp_path, 4, {"x": np.arange(3)}, {"real_steps": 4})
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"} and len(list(tmp_path.iterdir())) == 4


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    """Serial 1,000,000 comes after 999,999, though its name does not."""
    for serial in (999_999, 1_000_000):
        checkpoint.save(tmp_path, serial, {"x": np.arange(3)}, {"real_steps": serial})
        for file in tmp_path.glob("000001-*"):
            file.rename(file.with_name(file.name.replace("000001", "999999")))
    assert [head.name for head in checkpoint.heads(tmp_path)] == ["999999-step999999.json", "1000000-step1000000.json"]
    assert checkpoint.load(tmp_path).counters["real_steps"] == 1_000_000


def test_a_damaged_newest_checkpoint_names_the_good_one_before_it_and_how_to_go_on(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.arange(3)}, {"real_steps": step})
    (tmp_path / "000002-step2.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path)
    newest = tmp_path / "000002-step2.json"
    assert str(error.value).endswith(f"; the one before it, 000001-step1.json, is whole: to go on from there, delete {newest}")
    newest.unlink()
    assert checkpoint.load(tmp_path).counters == {"real_steps": 1}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, {"x": np.arange(3)}, {"real_steps": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; what was there before is untouched"):
        checkpoint.save(tmp_path, 2, {"x": np.arange(4)}, {"real_steps": 2})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path).counters == {"real_steps": 1}
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("remembered", [False, True])
def test_an_environment_that_is_not_deterministic_starts_a_fresh_episode_and_says_so(remembered: bool, tmp_path: Path) -> None:
    from dataclasses import replace

    from spikedream import config
    from spikedream.runners.sync import Trainer
    from spikedream.runs.collect import Acting

    settings = config.merge(config.named("debug"), SETTINGS | {"env": "environments:Unseeded-v0", "collect": {"seed_episodes": 1}})
    notes = Notes()
    first = Trainer(replace(settings, seed=1), tmp_path / "run", notes)
    policy, acting = first.algorithm.policy(first.state), Acting(first.state.carry, first.state.keys.collect)
    first.collector.explore(acting, policy, 0)
    if remembered:
        first.remember()
    assert first.collector.positions[0].obs is not None
    first.save()
    first.close()
    second = Trainer(first.config, tmp_path / "run", notes, resume=True)
    second.close()
    assert notes.texts == ["environments:Unseeded-v0 is not deterministic: the episode under way is given up for a fresh one"]
    assert second.collector.positions[0].obs is None and second.collector.positions[0].episode == 1
    # What comes next does not follow from the last step that is kept.
    second.remember()
    assert int(second.state.replay.count) == 1 and float(second.state.replay.data.truncated[0, 0]) == 1
    second.save()
    third = Trainer(first.config, tmp_path / "run", notes, resume=True)
    third.close()
    assert float(third.state.replay.data.truncated[0, 0]) == 1


def test_a_policy_that_has_diverged_is_told_before_the_environment_is_blamed_for_what_it_did(tmp_path: Path) -> None:
    network, every = {"kind": "MLP", "hidden": [6]}, {"every": 1000}
    settings = {
        "env": "Pendulum-v1", "budget": 400, "collect": {"seed_steps": 20, "steps": 10}, "evaluation": every, "checkpoint": every,
        "improve": {"first": 0, "ratio": 0.5, "block": 5},
        "agent": {"kind": "OffPolicy", "actor": network, "critic": network, "batch": 8, "learning_rate": 1e38,
                  "critic_learning_rate": 1e38},
    }  # fmt: skip
    with pytest.raises(spikedream.Diverged, match=r"critic_loss.* became NaN or infinite in turn"):
        spikedream.train("debug", out=tmp_path / "run", settings=settings, report=False)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = SETTINGS | {"agent": SETTINGS["agent"] | {"learning_rate": 1e38, "critic_learning_rate": 1e38}}
    with pytest.raises(spikedream.Diverged, match="became NaN or infinite in turn"):
        spikedream.train("debug", out=tmp_path / "run", settings=settings, report=False)
    arrays = final_arrays(tmp_path / "run")
    # Smallest and largest are infinite before anything has been seen.
    learned = (x for name, x in arrays.items() if x.dtype == np.float32 and ".moments." not in name)
    assert all(np.isfinite(x).all() for x in learned)


def test_a_run_that_is_asked_to_stop_while_it_evaluates_does_so_and_evaluates_anew(undisturbed: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from spikedream import config
    from spikedream.runners.sync import Trainer

    directory, decisions = tmp_path / "stopped", itertools.count()
    trainer = Trainer(replace(config.merge(config.named("debug"), SETTINGS), seed=5), directory, Notes())

    def heed() -> None:
        trainer._stop = next(decisions) >= 5
        trainer._heed_stop()

    trainer.evaluator._heed = heed
    with pytest.raises(spikedream.Interrupted):
        trainer.train()
    trainer.close()
    assert next(decisions) == 6 and trainer.progress.evaluations == 0 and not outcome(directory)
    spikedream.resume(directory, report=False)
    assert outcome(directory) == outcome(undisturbed)


def test_one_of_several_runs_in_one_program_is_not_stopped_between_verbs_that_all_go_through_together(tmp_path: Path) -> None:
    from spikedream import config
    from spikedream.envs.host import EVALUATE
    from spikedream.runners.sync import Trainer

    trainer = Trainer(config.merge(config.named("debug"), SETTINGS), tmp_path / "seed", Notes(), alone=False)
    trainer._stop = True
    assert len(trainer._play(EVALUATE, 0).returns) == trainer.config.evaluation.episodes
    trainer.close()
