"""The runner's clocks, and seeds that run together."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from small import same
from test_resume import DREAMER, ENSEMBLE, Notes, final_arrays, outcome

import spikedream
from spikedream import config as configuration
from spikedream.config import Config, Evaluation
from spikedream.envs.make import spec_of
from spikedream.experiments.bench import Bench, run_bench
from spikedream.runners import together
from spikedream.runners.clock import due
from spikedream.runners.sync import Trainer
from spikedream.runners.together import Together
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.rollout_worker import RolloutWorker
from spikedream.runs.run import Run

TINY: dict[str, Any] = {
    "env": "CartPole-v1", "max_episode_steps": 20, "threshold": 1e9, "budget": 100, "world_model": ENSEMBLE, "agent": DREAMER,
    "collect": {"seed_episodes": 1, "steps": 10}, "improve": {"first": 2, "then": 2, "block": 1},
}  # fmt: skip


def config(**changes: Any) -> Config:
    return configuration.merge(configuration.merge(Config(evaluation=Evaluation(episodes=2)), TINY), changes)


@pytest.mark.parametrize(
    ("every", "last", "now", "is_due"),
    [(None, 5, 5, True), (10, None, 0, True), (10, 10, 19, False), (10, 10, 20, True), (10, 19, 20, True), (10, 20, 45, True),
     (1, 7, 8, True), (1000, 0, 999, False)],
)  # fmt: skip
def test_a_clock_strikes_at_the_multiples_of_its_period(every, last, now, is_due):
    assert due(every, last, now) is is_due


class Calls(Notes):
    """What the runner did, and after how many real steps."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[tuple[str, int]] = []
        self.trainer: Trainer | None = None

    def phase(self, name: str, done: int, total: int) -> None:
        if self.trainer is not None and name != "collect":
            self.did.append((name, self.trainer.progress.real_steps))

    def at(self, name: str) -> list[int]:
        return [steps for what, steps in self.did if what == name]


def run(chosen: Config, directory: Path) -> tuple[Trainer, Calls]:
    calls = Calls()
    calls.trainer = trainer = Trainer(chosen, directory, calls)
    try:
        trainer.train()
    finally:
        trainer.close()
    return trainer, calls


def test_each_verb_runs_by_its_own_period_of_real_steps(tmp_path: Path) -> None:
    chosen = config(
        collect={"seed_episodes": 0, "steps": 1}, fit={"every": 25}, evaluation={"every": 40},
        checkpoint={"every": 30, "best": True},
        improve={"first": 0, "ratio": 0.5},
    )  # fmt: skip
    trainer, calls = run(chosen, tmp_path / "run")
    assert calls.at("fit") == [1, 25, 50, 75, 100]
    assert calls.at("evaluate") == [1, 40, 80, 100]
    assert calls.at("dream") == list(range(3, 101, 2)) and trainer.progress.updates == 49  # of 99 steps after the first turn
    assert trainer.progress.turn == 100
    best, metrics = Run(tmp_path / "run", best=True), Run(tmp_path / "run").metrics
    assert best.counters["best"] == max(row["eval_return_mean"] for row in metrics) and best.state.replay.data is None
    with pytest.raises(CheckpointError, match="kept without its experience"):
        best.experience()
    saved = [int(head.stem.split("step")[1]) for head in (tmp_path / "run" / "checkpoints").glob("*.json")]
    assert sorted(saved) == [90, 100]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["real_steps"] for row in rows] == [1, 40, 80, 100] and [row["turn"] for row in rows] == [0, 39, 79, 99]


def test_updates_come_in_whole_blocks_and_what_is_left_over_waits(tmp_path: Path) -> None:
    chosen = config(collect={"seed_episodes": 0, "steps": 10}, improve={"first": 0, "ratio": 1.5, "block": 4})
    trainer, calls = run(chosen, tmp_path / "run")
    blocks = np.bincount(np.array(calls.at("dream")) // 10, minlength=11)
    assert blocks.tolist() == [0, 0, 3, 4, 4, 4, 3, 4, 4, 4, 3]  # 15 updates a turn, blocks of 4, less what was left over
    assert trainer.progress.updates == 4 * 33


def test_a_turn_that_the_budget_cuts_short_makes_fewer_updates(tmp_path: Path) -> None:
    chosen = config(collect={"seed_steps": 10, "steps": 10}, improve={"first": 1, "then": 8, "block": 2}, budget=33)
    _, calls = run(chosen, tmp_path / "run")
    blocks = {at: calls.at("dream").count(at) for at in calls.at("dream")}
    assert blocks == {10: 1, 20: 4, 30: 4, 33: 2}  # three of ten steps: 2.4 of 8 updates, in blocks of 2


def test_a_turns_fit_takes_the_gradient_steps_that_it_is_told(tmp_path: Path) -> None:
    run(config(fit={"then": 3}, budget=60), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["model_updates"] for row in rows] == [6, *[3] * (len(rows) - 1)] and len(rows) > 2


def test_seeds_that_run_together_come_to_the_numbers_of_each_alone(tmp_path: Path) -> None:
    selection = {"kind": "PolicySelection", "rates": [0.5], "starts": 2, "steps": 3}
    seeds, how = (3, 4), config(budget=60, agent={"selection": selection})
    configs = [configuration.merge(how, {"seed": seed}) for seed in seeds]
    for chosen in configs:
        run(chosen, tmp_path / f"alone{chosen.seed}")
    several = Together(configs, [tmp_path / f"s{seed}" for seed in seeds], [Notes(), Notes()])
    try:
        several.train()
    finally:
        several.close()
    for seed in seeds:
        alone, mapped = (outcome(tmp_path / name) for name in (f"alone{seed}", f"s{seed}"))
        assert [row["real_steps"] for row in mapped] == [row["real_steps"] for row in alone]
        for a, b in zip(alone, mapped, strict=True):
            assert a.keys() == b.keys()
            np.testing.assert_allclose([float(b[k]) for k in a], [float(a[k]) for k in a], rtol=0.02, atol=1e-3)
        one, other = final_arrays(tmp_path / f"alone{seed}"), final_arrays(tmp_path / f"s{seed}")
        np.testing.assert_allclose(one["state.world.members.dynamics.layers[0].weight"],
                                   other["state.world.members.dynamics.layers[0].weight"], rtol=0.02, atol=1e-3)  # fmt: skip
        assert json.loads((tmp_path / f"s{seed}" / "result.json").read_text())["seed"] == seed
    assert outcome(tmp_path / "s3") != outcome(tmp_path / "s4")


def test_what_was_experienced_is_not_copied_where_seeds_run_together() -> None:
    """The compiled verbs need less room of their own than the replay takes, and remembering writes into it."""
    how = config(env="Pendulum-v1", replay={"capacity": 20_000}, agent={"actor": {"kind": "MLP", "hidden": [4]}})
    algorithm = how.algorithm(spec_of(how.env, {}, None))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    rest = replace(state, replay=replace(state.replay, data=None))
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state.replay.data)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 16, *x.shape[2:]), x.dtype), data)
    number, size = jax.ShapeDtypeStruct((2,), np.int32), sum(x.size * 4 for x in jax.tree.leaves(data))
    remember = together._remember.lower(algorithm, [rest.replay] * 2, data, steps, number).compile().memory_analysis()
    assert remember.alias_size_in_bytes >= size and remember.temp_size_in_bytes < size / 10
    dream = together._dream.lower(algorithm, [rest] * 2, data, jax.ShapeDtypeStruct((2,), bool)).compile().memory_analysis()
    assert dream.temp_size_in_bytes < size / 2 and dream.output_size_in_bytes < size / 2


def test_seeds_that_run_together_and_are_stopped_go_on_with_what_they_remember(tmp_path: Path) -> None:
    configs = [config(seed=seed, budget=60) for seed in (3, 4)]
    directories = [tmp_path / "a", tmp_path / "b"]
    listeners = [Notes(), Notes()]
    first = Together(configs, directories, listeners)
    for trainer in first.trainers:
        trainer.save()
    first._turn(first.trainers)
    first._turn(first.trainers)
    held = [first._data_of(i) for i in range(2)]
    first.close()
    second = Together(configs, directories, listeners)
    assert all(same(second._data_of(i), there) for i, there in enumerate(held))
    assert [int(trainer.state.replay.added) for trainer in second.trainers] == [
        int(trainer.state.replay.added) for trainer in first.trainers
    ]
    second.close()


@pytest.mark.learning
def test_seeds_that_run_together_where_processors_are_idle_play_in_processes_and_come_to_the_same(
    tmp_path: Path, monkeypatch
) -> None:
    configs = [config(seed=seed, budget=60) for seed in (3, 4)]
    for folder, idle in ("here", False), ("apart", True):
        monkeypatch.setattr(together, "processors", lambda idle=idle: 3 if idle else 2)
        several = Together(configs, [tmp_path / f"{folder}{c.seed}" for c in configs], [Notes(), Notes()])
        assert all(isinstance(trainer.collector, RolloutWorker) is idle for trainer in several.trainers)
        try:
            several.train()
        finally:
            several.close()
    for c in configs:
        assert outcome(tmp_path / f"here{c.seed}") == outcome(tmp_path / f"apart{c.seed}")


def test_seeds_with_other_settings_do_not_run_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the same settings"):
        Together([config(), config(agent={"gamma": 0.5})], [tmp_path / "a", tmp_path / "b"], [Notes(), Notes()])


def test_a_bench_runs_its_seeds_together_and_keeps_them(tmp_path: Path) -> None:
    command, how = Bench("debug", seeds=2, twin=True, together=True, out=tmp_path), config(budget=40)
    said = io.StringIO()
    assert run_bench(command, how, Console(file=said, width=200), "bench debug") == 0
    table = json.loads((tmp_path / "bench.json").read_text())
    assert [len(scores["seeds"]) for scores in table.values()] == [2, 2]
    assert all((tmp_path / kind / f"s{seed}" / "report.html").exists() for kind in ("spiking", "conventional") for seed in (0, 1))
    assert said.getvalue().count("(kept)") == 4


def test_a_run_that_does_not_stop_when_solved_goes_on_and_tells_both(tmp_path: Path) -> None:
    settings = {"threshold": 0.0, "budget": 60, "collect": {"seed_episodes": 0, "steps": 20}}
    outcomes = {}
    for stop in (True, False):
        run(config(**settings, evaluation={"stop": stop, "confirmations": 1}), tmp_path / str(stop))
        outcomes[stop] = json.loads((tmp_path / str(stop) / "result.json").read_text())
    until, whole = outcomes[True], outcomes[False]
    assert (until["real_steps"], whole["real_steps"]) == (20, 60)
    for name in ("solved", "real_steps_to_solve", "fresh_return_mean", "fresh_return_std"):  # of the policy that solved it
        assert until[name] == whole[name]
    rows = [json.loads(line) for line in (tmp_path / "False" / "metrics.jsonl").read_text().splitlines()]
    assert whole["eval_return_mean"] == rows[-1]["eval_return_mean"] and len(rows) == 3
    # On the same fresh episodes, by the policy at the end of the budget: another one where it learned on.
    assert until["last_fresh_return_mean"] == until["fresh_return_mean"]
    there = spikedream.load(tmp_path / "False").evaluate(2)
    assert (whole["last_fresh_return_mean"], whole["last_fresh_return_std"]) == (there.mean(), there.std())


@pytest.mark.parametrize(("cut", "limit", "length"), [(7, 20, 7), (30, 20, 20)])
def test_training_episodes_are_cut_short_and_evaluation_s_are_not(cut: int, limit: int, length: int, tmp_path: Path) -> None:
    chosen = config(
        env="Pendulum-v1", max_episode_steps=limit, budget=45, collect={"seed_episodes": 0, "steps": 15, "episode_steps": cut},
        agent={"actor": {"kind": "MLP", "hidden": [4]}},
    )  # fmt: skip
    trainer, _ = run(chosen, tmp_path / "run")
    ends = np.flatnonzero(np.asarray(trainer.state.replay.in_order().truncated)[:, 0])
    assert ends.tolist() == list(range(length - 1, 45, length))
    assert trainer.progress.row["eval_length_mean"] == limit


def test_random_first_steps_can_be_counted_in_steps_and_not_in_episodes(tmp_path: Path) -> None:
    chosen = config(collect={"seed_steps": 33, "steps": 10}, budget=50, env="Pendulum-v1")
    trainer, calls = run(chosen, tmp_path / "a")
    assert calls.at("evaluate")[0] == 33
    log_prob = np.asarray(trainer.state.replay.data.log_prob)[:50, 0]
    assert len(set(log_prob[:33])) == 1 and len(set(log_prob[33:])) > 1


def test_a_run_keeps_the_precision_that_was_fastest_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, resume in (("bfloat16", False), ("float32", True)):
        monkeypatch.setattr("spikedream.runners.sync.fastest", lambda where=where: where)
        trainer = Trainer(config(precision="fastest"), tmp_path / "a", Notes(), resume, alone=False)
        assert trainer.algorithm.precision == trainer.progress.precision == "bfloat16"
        trainer.save()
        trainer.close()
