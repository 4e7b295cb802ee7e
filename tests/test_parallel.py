"""What a parallel run decides, without its processes: bounds, rows, refusals, and that everything is taken in once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small import DISCRETE
from test_cli import call
from test_resume import DREAMER, ENSEMBLE, Notes

from spikedream import config as configuration
from spikedream.config import Config, ConfigError, Evaluation
from spikedream.envs.make import spec_of
from spikedream.envs.real_time import Timing
from spikedream.envs.registration import copied
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.processes import Parallel
from spikedream.runners import crew, parallel
from spikedream.runners.account import Account
from spikedream.runners.crew import Lost
from spikedream.runners.intake import Intake
from spikedream.runners.lanes import Handover, Lanes, Request, rubbish
from spikedream.runners.newest import Newest
from spikedream.runners.parallel import Driver
from spikedream.runners.parts import Collecting, Evaluating, Seat, Task
from spikedream.runners.schedule import Schedule
from spikedream.runners.stop import ClusterError, Interrupted
from spikedream.runners.sync import Trainer
from spikedream.runs import evaluate
from spikedream.runs.evaluate import Evaluator
from spikedream.runs.run import Run
from spikedream.types import Transition

TINY: dict[str, Any] = {
    "env": "CartPole-v1", "max_episode_steps": 20, "threshold": 1e9, "budget": 60, "world_model": ENSEMBLE, "agent": DREAMER,
    "collect": {"seed_episodes": 1, "steps": 10}, "improve": {"first": 2, "then": 2, "block": 1},
    "runner": {"kind": "Parallel", "collectors": 2, "rows": 4},
}  # fmt: skip


def config(**changes: Any) -> Config:
    return configuration.merge(configuration.merge(Config(evaluation=Evaluation(episodes=2)), TINY), changes)


# ---- bounds


def test_learning_keeps_the_pace_of_experience_and_experience_that_of_learning() -> None:
    schedule = Schedule(config(improve={"first": 30, "then": 20, "block": 10}))  # 2 blocks for 10 real steps
    assert [schedule.blocks(steps, 40) for steps in (40, 44, 45, 50, 140)] == [3, 3, 4, 5, 23]
    assert schedule.learned(0, 40) == 0 and schedule.learned(3, 40) == 40 and schedule.learned(5, 40) == 50
    assert schedule.most(5, 40, 50) == 60  # one turn ahead of what was dreamt about, 10 ahead of the fit and that one's turn
    assert schedule.most(9, 40, 40) == 60 and schedule.most(3, 40, None) == 40
    ahead = Schedule(config(improve={"first": 30, "then": 20, "block": 10}, runner={"ahead": 2.0, "lead": 0.5}))
    assert ahead.blocks(50, 40) == 7 and ahead.learned(7, 40) == 50 and ahead.most(7, 40, 50) == 55
    assert Schedule(config(runner={"lead": None})).most(0, 40, 40) == np.inf


def test_a_fit_is_due_after_its_period_of_real_steps() -> None:
    schedule = Schedule(config(fit={"every": 25, "then": 3}))
    assert [schedule.fit(30, at) for at in (None, 30, 6, 5)] == [ENSEMBLE["updates"], 0, 0, 3]
    assert Schedule(config(fit={"every": 20}, runner={"ahead": 2.0})).fit(30, 20) == ENSEMBLE["updates"]


# ---- rows of several collectors


def handover(numbers: list[int], serial: int = 1, terminated: bool = False, **changes: Any) -> Handover:
    """Steps of one environment whose rewards are `numbers`; the last one may end the episode."""
    rows = len(numbers)

    def field(*size: int) -> Any:
        return np.zeros((rows, 1, *size), np.float32)

    steps = Transition(field(4), field(2), field(), field(4), field(), field(), field())
    steps.reward[:, 0] = numbers
    steps.terminated[-1:] = terminated
    steps = steps._replace(**{name: value for name, value in changes.items() if name in Transition._fields})
    rest = {name: value for name, value in changes.items() if name not in Transition._fields}
    return Handover(serial, steps, np.zeros(1, bool), rows, (), 0, 0.1)._replace(**rest)


def told(rows: list[Transition]) -> list[list[tuple[int, int]]]:
    """Reward and truncation of each environment, row by row."""
    return [[(int(r), int(t)) for r, t in zip(row.reward, row.truncated, strict=True)] for row in rows]


def test_equally_fast_collectors_fill_rows_side_by_side_and_the_newest_step_waits() -> None:
    lanes = Lanes(2, 1, queue=4)
    lanes.add(0, handover([1, 2]))
    assert lanes.take() == [] and lanes.waiting == 2
    lanes.add(1, handover([11, 12], terminated=True))
    assert told(lanes.take()) == [[(1, 0), (11, 0)]]
    lanes.add(0, handover([3]))
    assert told(lanes.take()) == [[(2, 0), (12, 0)]] and lanes.waiting == 1


def test_a_lane_that_is_behind_is_filled_and_every_break_is_marked() -> None:
    lanes = Lanes(2, 1, queue=2)
    for numbers in ([1, 2], [3, 4], [5, 6], [7, 8]):
        lanes.add(0, handover(numbers))  # the third goes to the other lane; the fourth, to its own, is shared out in the end
    assert lanes.moved == 1
    lanes.end()
    assert told(lanes.take()) == [[(1, 0), (5, 0)], [(2, 0), (6, 1)], [(3, 0), (7, 0)], [(4, 1), (8, 1)]] and lanes.waiting == 0


def test_what_a_lost_collector_has_brought_stays_and_its_episode_ends_there() -> None:
    lanes = Lanes(1, 1, queue=4)
    lanes.add(0, handover([1, 2]))
    lanes.lost(0)
    assert told(lanes.take()) == [[(1, 0)], [(2, 1)]]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_to_collectors_every_step_comes_through_once(seed: int) -> None:
    rng, lanes, number = np.random.default_rng(seed), Lanes(3, 1, queue=3), 0
    seen: list[int] = []
    for _ in range(200):
        what = rng.integers(8)
        if what < 6:
            rows = int(rng.integers(1, 6))
            lanes.add(int(rng.integers(3)), handover(list(range(number, number + rows)), terminated=bool(rng.integers(2))))
            number += rows
        elif what == 6:
            lanes.lost(int(rng.integers(3)))
        else:  # stopped and resumed
            saved, lanes = lanes.save(), Lanes(3, 1, queue=3)
            lanes.restore(saved)
        rows = lanes.take()
        seen += [int(r) for row in rows for r in row.reward]
    lanes.end()
    seen += [int(r) for row in lanes.take() for r in row.reward]
    left = [int(row.reward[0]) for lane in lanes._lanes for row in lane]
    assert sorted(seen + left) == list(range(number)) and len(left) < 3


def test_steps_that_stand_one_after_the_other_follow_each_other_or_a_break_is_between() -> None:
    rng, lanes, now = np.random.default_rng(0), Lanes(3, 1, queue=3), [0, 1000, 2000]
    rows: list[Transition] = []
    for _ in range(300):
        who, length = int(rng.choice(3, p=[0.6, 0.3, 0.1])), int(rng.integers(1, 5))
        lanes.add(who, handover(list(range(now[who], now[who] + length))))
        now[who] += length
        if rng.integers(20) == 0:
            lanes.lost(who)
            now[who] += 1
        rows += lanes.take()
    breaks = 0
    for before, after in zip(told(rows), told(rows)[1:], strict=False):
        for (number, truncated), (following, _) in zip(before, after, strict=True):
            assert truncated or following == number + 1
            breaks += truncated
    assert 0 < breaks < 300


# ---- rubbish, and what comes twice


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"obs": np.full((2, 1, 4), np.nan, np.float32)}, "obs holds numbers that are not finite"),
        ({"reward": np.full((2, 1), np.inf, np.float32)}, "reward holds numbers that are not finite"),
        ({"next_obs": np.zeros((2, 1, 3), np.float32)}, r"next_obs is float32\[2, 1, 3\], not float32\[2, 1, 4\]"),
        ({"action": np.zeros((2, 1, 2))}, r"action is float64\[2, 1, 2\], not"),
        ({"truncated": np.full((2, 1), 0.5, np.float32)}, "truncated holds neither 0 nor 1"),
        ({"reward": None}, "0 rows where 1 to 4 were asked for"),
        ({"taken": 99}, "99 steps taken in 2 rows"),
        ({"taken": 1}, "1 steps taken in 2 rows"),
        ({"timing": "late"}, "timing is of the type str"),
        ({"begins": np.zeros(3, bool)}, "begins has the shape"),
    ],
)
def test_rubbish_is_refused_with_what_is_wrong_about_it(wrong: dict[str, Any], says: str) -> None:
    assert rubbish(handover([1, 2]), DISCRETE, 1, 4, 1) is None
    found = rubbish(handover([1, 2], **wrong), DISCRETE, 1, 4, 1)
    assert found is not None and re.search(says, found)
    assert rubbish("a message", DISCRETE, 1, 4, 1) == "a str in place of steps"  # pyright: ignore[reportArgumentType]


def test_a_handover_is_taken_in_once_and_rubbish_not_at_all(tmp_path: Path) -> None:
    chosen = config(collect={"seed_steps": 8}, runner={"collectors": 1})
    account = Account(chosen, tmp_path, Notes())
    intake = Intake(chosen, DISCRETE, account, Schedule(chosen), ["learner"])
    intake.replay = chosen.replay.init(DISCRETE)
    [(collector, request)] = list(intake.requests([0], 0))
    assert (collector, request.rows, request.random) == (0, 4, True) and not list(intake.requests([], 0))
    brought = handover([1, 2, 3], request.serial, terminated=True)
    assert intake.receive(0, brought._replace(serial=99), 0) == "an answer to what nobody asked"
    assert "not finite" in str(intake.receive(0, handover([1], request.serial, obs=np.full((1, 1, 4), np.nan, np.float32)), 0))
    assert account.progress.real_steps == 0 and intake.added == 0
    assert intake.receive(0, brought, 0) is None and intake.receive(0, brought, 0) is None
    assert account.progress.real_steps == 3 and intake.added == 3
    steps, before = intake.new_to("learner")
    assert steps is not None and steps.reward[:, 0].tolist() == [1, 2, 3] and before == 0
    assert intake.new_to("learner") == (None, 3)


@pytest.mark.parametrize("clock", [{"realtime": {}}, {"env": "RemoteEnvironment-v0"}])
def test_where_a_clock_runs_a_late_handover_is_taken_in_and_rubbish_is_not(clock: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(collect={"seed_steps": 30}, runner={"collectors": 1}, **clock)
    account = Account(chosen, tmp_path, Notes())
    intake = Intake(chosen, DISCRETE, account, Schedule(chosen), ["learner"])
    intake.replay = chosen.replay.init(DISCRETE)
    serials = [request.serial for _, request in intake.requests([0, 0], 0)]
    for wrong in ({"taken": 1}, {"taken": np.inf}, {"timing": "late"}, {"reward": np.full((2, 1), np.nan, np.float32)}):
        assert intake.receive(0, handover([1, 2], serials[0], **wrong), 0) is not None
    assert account.progress.real_steps == 0
    for serial, missed in zip(serials, (9, 0), strict=True):
        timing = Timing(2 + missed, missed, [0.001, 0.003], [0.0])
        assert intake.receive(0, handover([1, 2], serial, taken=2 + missed, timing=timing), 0) is None
    assert account.progress.real_steps == 13 and intake.added == 3
    measured = intake.take_timing().metrics()
    assert (measured["realtime/ticks"], measured["realtime/missed"]) == (13, 9 / 13)
    assert measured["realtime/latency_ms"] == pytest.approx(2.0) and intake.take_timing().metrics() == {}


@pytest.mark.parametrize("clock", [{"realtime": {}}, {"env": "RemoteEnvironment-v0"}, {}])
def test_where_a_clock_runs_a_collector_finishes_its_episode_before_it_waits(clock: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(collect={"seed_episodes": 0, "steps": 4}, runner={"collectors": 2}, budget=40, **clock)
    account = Account(chosen, tmp_path, Notes())
    intake = Intake(chosen, DISCRETE, account, Schedule(chosen), ["learner"])
    intake.replay = chosen.replay.init(DISCRETE, 2)

    def asked(*idle: int, blocks: int = 0) -> list[tuple[int, int, bool]]:
        found = list(intake.requests(list(idle), blocks))
        serials.extend(request.serial for _, request in found)
        return [(collector, request.rows, request.finish) for collector, request in found]

    serials: list[int] = []
    assert asked(0) == [(0, 4, False)]  # a whole turn, before anything is learned
    if not clock:
        assert asked(0, 1) == []
        return
    assert asked(0, 1) == [(0, 4, True)]  # it goes on without a gap, and who has begun no episode waits
    assert intake.receive(0, handover([1, 2, 3, 4], serials[0]), 0) is None and asked(0) == [(0, 4, True)]
    assert intake.receive(0, handover([5, 6], serials[1], terminated=True, between=True), 0) is None and asked(0, 1) == []
    assert intake.receive(0, handover([], serials[2], between=True), 0) is None  # there was none left to finish
    assert asked(0, 1) == [] and account.progress.real_steps == 6
    account.progress.done["fit"] = 6
    assert [finish for _, _, finish in asked(0, 1, blocks=100)] == [False, False]
    assert "0 rows where 1 to" in str(intake.receive(0, handover([], serials[3]), 0))


def test_in_real_time_nobody_goes_beyond_the_budget_to_finish(tmp_path: Path) -> None:
    chosen = config(collect={"seed_episodes": 0, "steps": 4}, runner={"collectors": 1}, budget=6, realtime={})
    intake = Intake(chosen, DISCRETE, Account(chosen, tmp_path, Notes()), Schedule(chosen), ["learner"])
    intake.replay = chosen.replay.init(DISCRETE)
    found = [request for _ in range(3) for _, request in intake.requests([0], 0)]
    assert [(request.rows, request.finish) for request in found] == [(4, False), (2, True)]


def test_a_collector_that_is_to_finish_stops_where_its_episode_ends() -> None:
    chosen = config(max_episode_steps=6, runner={"collectors": 1})
    algorithm = chosen.algorithm(DISCRETE)
    collecting = Collecting(Task(chosen, DISCRETE, copied(chosen.env, chosen)[0]), Seat(0, 0))
    policy = Newest(algorithm, algorithm.init(jax.random.key(0)), 0, 0).policy.acting
    brought = [
        collecting.collect(policy if number == 1 else None, 0, Request(number, 4, 10.0, False, None, finish))
        for number, finish in ((1, False), (2, True), (3, True))
    ]
    assert [(each.taken, len(each.steps.reward), each.between) for each in brought] == [(4, 4, False), (2, 2, True), (0, 0, True)]
    assert rubbish(brought[2], DISCRETE, 1, 4, np.inf, 0) is None
    collecting.collector.close()


# ---- a whole run, its parts in this process


class Here:
    """In place of `Crew`: the parts are objects of this process, which answer when they are waited for. `fails` says which answers
    are lost."""

    fails: Iterator[bool] = iter(())

    def __init__(self, address: str | None):
        self._parts: dict[str, Any] = {}
        self._open: list[tuple[str, str, tuple[Any, ...]]] = []

    def start(self, name: str, kind: type, *arguments: Any, accelerated: bool = False) -> None:
        self._parts[name] = kind(*arguments)
        self._open = [question for question in self._open if question[0] != name]

    def asked(self, name: str) -> int:
        return sum(question[0] == name for question in self._open)

    def ask(self, name: str, method: str, *arguments: Any, within: float) -> None:
        assert self.asked(name) < 2 and within > 0
        self._open.append((name, method, arguments))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        name, method, arguments = self._open.pop(0)
        if next(self.fails, False):
            self._open = [question for question in self._open if question[0] != name]
            return [(name, Lost("it died"))]
        return [(name, getattr(self._parts[name], method)(*arguments))]

    def close(self) -> None:
        for part in self._parts.values():
            for held in ("collector", "_evaluator"):
                if hasattr(part, held):
                    getattr(part, held).close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    monkeypatch.setattr(parallel, "Crew", Here)
    monkeypatch.setattr(parallel, "check_ray", lambda: None)
    monkeypatch.setattr(Here, "fails", iter(()))
    return Here


def go(chosen: Config, directory: Path, resume: bool = False, stop: int | None = None) -> Driver:
    driver = Driver(chosen, directory, Notes(), resume)

    def progress(real_steps: int, budget: int) -> None:
        if stop is not None and real_steps >= stop:
            driver.ask_to_stop("SIGTERM")

    driver.listener.progress = progress  # pyright: ignore[reportAttributeAccessIssue]
    try:
        driver.train()
    finally:
        driver.close()
    return driver


def telling(self: Evaluator, what: str, *args: Any, plain: Any = Evaluator._call, **kwargs: Any) -> Any:
    """In place of an evaluator's calls: the environment tells whether it was solved."""
    *rest, info = plain(self, what, *args, **kwargs)
    return *rest, info | {"is_success": np.ones(self.batch, bool)}


def test_a_parallel_run_leaves_the_same_files_and_goes_on_where_it_was_stopped(here, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parallel, "TOLD", 0.0)
    monkeypatch.setattr(Evaluator, "_call", telling)
    # Every answer may be lost: that costs time, and nothing else.
    monkeypatch.setattr(here, "fails", iter(np.random.default_rng(0).random(10_000) < 0.15))
    with pytest.raises(Interrupted, match="spikedream resume"):
        go(config(checkpoint={"best": True}, runner={"failures": 50}), tmp_path / "run", stop=30)
    run = Run(tmp_path / "run")
    stopped = run.counters["real_steps"]
    waiting = len(run.counters) and stopped - run.experience().count
    assert 30 <= stopped < 60 and 0 <= waiting <= 8
    driver = go(run.config, tmp_path / "run", resume=True)
    run = Run(tmp_path / "run")
    steps = run.experience().in_order()
    assert run.counters["real_steps"] == 60 and len(run.metrics) == run.counters["evaluations"]
    assert driver.status_log.restarts > 0 and run.result is not None and run.result["real_steps"] == 60
    assert steps.reward.size + driver.intake.lanes.waiting == 60  # nothing lost, nothing twice
    assert run.counters["updates"] == 2 + 2 * (60 - run.counters["first_turn"]) // 10
    best = Run(tmp_path / "run", best=True)
    assert best.counters["best"] == max(row["eval_return_mean"] for row in run.metrics) and best.policy(np.zeros(4)) in (0, 1)
    assert {"parallel/restarts", "parallel/policy_lag", "parallel/model_version"} <= run.metrics[-1].keys()
    alone = Trainer(config(runner="Sync"), tmp_path / "alone", Notes())
    try:
        alone.train()
    finally:
        alone.close()
    own, other = ({name for row in Run(tmp_path / of).metrics for name in row} for of in ("run", "alone"))
    assert {name for name in own if not name.startswith("parallel/")} == other and "eval_success" in other
    ended = np.maximum(steps.terminated, steps.truncated)
    follows = (np.asarray(steps.next_obs[:-1]) == np.asarray(steps.obs[1:])).all(-1)
    assert (follows | (ended[:-1] > 0)).all()


def test_a_strict_run_is_given_up_before_anything_is_learned(here, tmp_path: Path) -> None:
    deaf = {"env": "environments:Deaf-v0", "strict": True, "collect": {"seed_steps": 120}, "budget": 200}
    for resume in (False, True):  # what is doubted is doubted again
        with pytest.raises(BrokenEnvironment, match=r"Deaf-v0 was given up \(strict\): no action has made a difference"):
            go(config(**deaf), tmp_path / "run", resume)
    run = Run(tmp_path / "run")
    assert not run.metrics and run.counters["real_steps"] >= run.counters["first_turn"] > 0 and not run.counters["updates"]


def test_in_real_time_the_rows_tell_how_well_it_was_kept(here, tmp_path: Path) -> None:
    driver = go(config(realtime={"tick": 0.001}, budget=40, runner={"collectors": 1}), tmp_path / "run")
    told = [row for row in Run(tmp_path / "run").metrics if "realtime/ticks" in row]
    assert sum(row["realtime/ticks"] for row in told) == driver.progress.real_steps >= 40 and not driver.status_log.refused
    assert {"realtime/missed", "realtime/latency_ms", "realtime/jitter_ms_99"} <= told[0].keys()


def test_what_a_fit_measures_decides_what_the_other_parts_draw(here, tmp_path: Path) -> None:
    driver: Any = go(config(replay={"priority": "td_error"}, budget=40), tmp_path / "run")
    trainer, ranks = driver.crew._parts[parallel.AGENT].replica.state, driver.newest.model.ranks

    def weights(replay: Any) -> np.ndarray:
        return np.asarray(replay.priority.tree.weight(np.arange(ranks.rows * 2)))

    assert 0 < ranks.rows <= trainer.replay.added <= driver.replay.added
    assert len(np.unique(weights(trainer.replay))) > ranks.rows  # measured, each its own
    for other in (driver.replay, Run(tmp_path / "run").state.replay):
        np.testing.assert_array_equal(weights(other), weights(trainer.replay))


def test_a_part_that_always_fails_ends_the_run_with_its_reason(here, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(here, "fails", iter([True] * 1000))
    with pytest.raises(ClusterError, match="collector 0 has failed 3 times, one right after the other: it died"):
        go(config(runner={"failures": 3}), tmp_path / "run")
    assert json.loads(next((tmp_path / "run" / "checkpoints").glob("*.json")).read_text())["counters"]["real_steps"] == 0


def test_an_environment_that_hangs_in_evaluation_is_told_of_in_one_line(here, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "GRACE", 0.0)
    chosen = config(env="environments:Waits-v0", env_kwargs={"hangs_after": 3, "hangs": 2.0}, runner={"step_seconds": 0.25})
    algorithm = chosen.algorithm(spec_of(chosen.env, chosen.env_kwargs, None))
    policy = Newest(algorithm, algorithm.init(jax.random.key(0)), 0, 0).policy
    evaluator = Evaluating(Task(chosen, algorithm.spec, copied(chosen.env, chosen)[0]))
    says = r"Waits-v0 hangs in evaluation: 2 at once have not ended step\(\) within 0.5 s"
    with pytest.raises(BrokenEnvironment, match=says):
        evaluator.evaluate(policy.acting, policy.arrays["state.keys.evaluate"], None, 0, 0, False)
    evaluator._evaluator.close()


# ---- bad input


def test_without_ray_one_line_says_which_extra_there_is(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(crew.importlib.util, "find_spec", lambda name: None)
    status, _, error = call(capsys, "train", "debug", "--runner", "Parallel", "--out", str(tmp_path / "run"))
    assert (status, error) == (1, "spikedream: Ray is not installed: pip install 'spikedream[ray]', or use --runner Sync\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"agent": {"kind": "PPO"}}, "PPO learns only from steps of the very policy that it improves: one would always wait"),
        ({"agent": {"kind": "StreamActorCritic"}}, "StreamActorCritic learns from each step before it takes the next"),
        ({"replay": {"capacity": 1}}, "2 environments side by side need as many"),
    ],
)
def test_what_cannot_be_spread_over_processes_is_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(**changes).check()
    with pytest.raises(ConfigError, match="collectors is 0; it must be at least 1"):
        config(runner={"collectors": 0})
    assert Parallel().collectors == 1
