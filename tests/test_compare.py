"""Comparisons of runs and studies, mostly of run directories that are written here by hand."""

import dataclasses
import functools
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import yaml
from rich.console import Console
from small import CONTINUOUS, DISCRETE

from spikedream import config as configuration
from spikedream.cli import main
from spikedream.config import ConfigError
from spikedream.envs.make import spec_of
from spikedream.envs.spaces import BrokenEnvironment, decode_actions
from spikedream.experiments import baselines, grid, record, study
from spikedream.experiments.cells import Processes
from spikedream.experiments.study import run_study
from spikedream.reports.compare import better, header_and_rows
from spikedream.reports.comparison import Comparison, compare, find_runs, open_record
from spikedream.reports.picture import threshold_in_sight
from spikedream.reports.profile import profiles
from spikedream.reports.statistics import improvement, iqm, summary
from spikedream.runners.stop import Diverged

CURVE = ((10, 0.0), (20, 100.0))  # real steps and return of the turns


def write_run(directory: Path, turns: Any = CURVE, finished: bool = True, threshold: float | None = 90.0, **settings: Any) -> Path:
    """A run directory: solved at its last turn if that reaches the threshold; a second of wall time each real step."""
    directory.mkdir(parents=True)
    config = {"preset": "p", "env": "CartPole-v1", "env_kwargs": {}, "max_episode_steps": None, "seed": 0, "threshold": threshold}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | settings))
    rows = [{"turn": i, "real_steps": x, "eval_return_mean": y, "wall_seconds": float(x)} for i, (x, y) in enumerate(turns)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        solved = threshold is not None and rows[-1]["eval_return_mean"] >= threshold
        result = rows[-1] | {
            "fresh_return_mean": rows[-1]["eval_return_mean"],
            "budget": 20,
            "threshold": threshold,
            "solved": solved,
            "real_steps_to_solve": rows[-1]["real_steps"] if solved else None,
        }
        (directory / "result.json").write_text(json.dumps(result))
    return directory


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `spikedream ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 1, captured.out, captured.err


# ---- statistics


def test_the_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    assert iqm(np.array([100.0, 0, 1, 2, 3, 4, 5, 6])) == (2 + 3 + 4 + 5) / 4
    assert iqm(np.array([1.0, 2, 6])) == 3  # too few to leave any out
    scores = summary(np.array([100.0, 0, 1, 2, 3, 4, 5, 6]))
    assert scores["iqm"] == 3.5 and scores["median"] == 3.5 and scores["lowest"] == 0 and scores["highest"] == 100
    assert scores["lowest"] <= scores["low"] < 3.5 < scores["high"] <= scores["highest"]


def test_the_interval_of_one_seed_is_that_seed() -> None:
    assert summary(np.array([7.0])) == dict.fromkeys(("median", "iqm", "low", "high", "lowest", "highest"), 7.0)


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    assert improvement(np.array([1.0, 2, 3]), np.array([2.0, 2])).probability == (0 + 0 + 0.5 + 0.5 + 1 + 1) / 6
    assert improvement(np.array([1.0, 3]), np.array([0.0, 2, 4, 5])).probability == (1 + 0 + 0 + 0 + 1 + 1 + 0 + 0) / 8
    assert tuple(improvement(np.array([3.0, 4]), np.array([1.0, 2]))) == (1.0, 1.0, 1.0)
    assert tuple(improvement(np.array([3.0]), np.array([1.0, 2]))) == (1.0, None, None)
    assert improvement(np.array([-np.inf, -5]), np.array([-np.inf, -9])).probability == (0.5 + 0 + 1 + 1) / 4


def test_the_interval_of_the_probability_of_improvement_is_a_95_percent_one() -> None:
    # Half of X beats all of Y: resampled, the probability is binomial(100, 1/2) / 100, with its quantiles at 0.40 and 0.60.
    found = improvement(np.repeat([0.0, 1.0], 50), np.array([0.5, 0.5]))
    assert found.low == pytest.approx(0.40, abs=0.011) and found.high == pytest.approx(0.60, abs=0.011)


# ---- reading and grouping


def test_runs_are_found_by_directory_by_pattern_and_at_any_depth_each_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a/deep/s0"), write_run(tmp_path / "a/s1"), write_run(tmp_path / "b")]
    assert find_runs([str(tmp_path)]) == (runs, [])
    assert find_runs([str(tmp_path / "a" / "*"), str(tmp_path / "b"), str(tmp_path)]) == (runs, [])
    assert find_runs([str(tmp_path / "b")]) == (runs[2:], [])


@pytest.mark.parametrize("expands", ["spikedream", "shell"])
def test_what_is_no_run_is_left_out_with_a_note(
    expands: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "s0")
    write_run(tmp_path / "s1", seed=1)
    (tmp_path / "a.log").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.yaml").write_text("theme: dark")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/config.yaml").write_bytes(b"\xff\xfe")
    named = ["*"] if expands == "spikedream" else ["a.log", "binary", "empty", "foreign", "s0", "s1"]
    status, out, err = call(capsys, "compare", *named, "--out", str(tmp_path / "out"))
    assert (status, err) == (0, "")
    for path in ("a.log", "empty"):
        assert out.count(f"note: {path} is left out: there is no run in it.") == 1
    for path in ("binary", "foreign"):
        assert out.count(f"note: {path} is left out: its config.yaml is not a run's.") == 1
    methods = json.loads((tmp_path / "out/compare.json").read_text())["methods"]
    assert [method["seeds"] for method in methods.values()] == [[0, 1]]


def test_where_a_run_is_logged_makes_no_method(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(i), seed=i, logging={"wandb": project}) for i, project in enumerate((None, "mine"))]
    assert [len(method.runs) for method in compare(runs).methods.values()] == [2]


def test_a_method_s_curve_holds_the_last_value_of_runs_that_have_stopped(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "0", ((10, 0), (20, 100))), write_run(tmp_path / "1", ((15, 50), (20, 60), (30, 200)), seed=1)]
    curve = compare(runs).methods["p"].curves["real_steps"]
    assert curve.x.tolist() == [15, 20, 30]  # from where both have been evaluated
    assert curve.middle.tolist() == [25, 80, 150]
    assert curve.low.tolist() == [0, 60, 100] and curve.high.tolist() == [50, 100, 200]


def test_a_method_s_curve_ends_with_its_first_unfinished_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "0", ((10, 0), (20, 10)), finished=False), write_run(tmp_path / "1", ((10, 0), (30, 100)), seed=1)]
    comparison = compare(runs)
    assert comparison.methods["p"].curves["real_steps"].x.tolist() == [10, 20]
    assert "p: unfinished, counted as far as it has come: seed 0." in comparison.notes


WHOLE = {"evaluation": {"stop": False}}  # runs go on to the ends of their budgets


def test_runs_that_go_to_the_end_are_compared_by_their_returns_at_marks_and_there(tmp_path: Path) -> None:
    turns = {
        "a": [((10, 100), (20, 10), (30, 20)), ((10, 0), (20, 30), (30, 60))],
        "b": [((10, 0), (20, 50), (30, 40)), ((10, 0), (20, 50), (30, 40))],
    }
    runs = [
        write_run(tmp_path / f"{name}{seed}", curve, preset=name, seed=seed, **WHOLE)
        for name, curves in turns.items()
        for seed, curve in enumerate(curves)
    ]
    comparison = compare(runs, "preset", statistic="mean", marks=(10, 25, 40))
    a, b = comparison.methods.values()
    assert (a.scores["return at 10"]["mean"], a.scores["return at 25"]["mean"], a.scores["final_return"]["mean"]) == (50, 20, 40)
    assert (a.scores["final_return"]["low"], a.scores["final_return"]["high"]) == (20, 60)
    assert b.scores["return at 25"]["mean"] == 50 and "return at 40" not in b.scores  # no run has come so far
    # What was played on fresh episodes may have been played by an earlier policy.
    assert "fresh_return" not in a.scores and not any("stopped as solved" in note for note in comparison.notes)
    probabilities = {score: pairs["a", "b"].probability for score, pairs in comparison.improvement.items()}
    assert probabilities == {"return at 10": 0.75, "return at 25": 0.0, "final_return": 0.5}
    assert header_and_rows(comparison) == (
        ["method", "seeds", "solved", "real steps to solve", "return at 10", "return at 25", "final return", "wall seconds"],
        [["a", "2", "0 of 2", "–", "50 [0, 100]", "20 [10, 30]", "40 [20, 60]", "30 [30, 30]"],
         ["b", "2", "0 of 2", "–", "0 [0, 0]", "50 [50, 50]", "40 [40, 40]", "30 [30, 30]"]],
    )  # fmt: skip
    assert not any("return at" in title for title in header_and_rows(comparison, marks=False)[0])
    assert better(comparison, "return at 25") == "a higher return at 25"
    data = json.loads(json.dumps(comparison.to_data()))["methods"]["a"]
    assert data["curves"]["real_steps"]["mean"] == [50, 20, 40] and data["return at 25"]["mean"] == 20


def test_a_threshold_that_would_press_the_curves_together_is_not_drawn(tmp_path: Path) -> None:
    for threshold, drawn in ((-90.0, True), (190.0, True), (210.0, False), (-110.0, False), (None, False)):
        directory = write_run(tmp_path / str(threshold), ((10, 0), (20, 100)), threshold=threshold)
        assert threshold_in_sight(compare([directory])) is drawn


def test_a_mark_is_known_of_runs_that_have_come_so_far_and_of_those_that_stopped_as_solved(tmp_path: Path) -> None:
    under_way = open_record(write_run(tmp_path / "0", ((10, 0), (20, 40)), finished=False))
    solved = open_record(write_run(tmp_path / "1", ((10, 0), (20, 100))))
    assert under_way is not None and solved is not None
    assert [under_way.at(mark) for mark in (5, 10, 19, 20, 21)] == [None, 0, 0, 40, None]
    assert [solved.at(mark) for mark in (5, 20, 100)] == [None, 100, 100]
    with pytest.raises(ConfigError, match="marks are numbers of real steps, at least 1, not 0"):
        compare([tmp_path / "0"], marks=(5, 0))


def test_the_mean_and_its_interval_over_many_seeds() -> None:
    values = np.arange(100.0)
    scores = summary(values, "mean")
    error = 1.96 * values.std() / 10
    assert scores["mean"] == 49.5 and "iqm" not in scores
    assert scores["low"] == pytest.approx(49.5 - error, abs=0.5) and scores["high"] == pytest.approx(49.5 + error, abs=0.5)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}, {"seed": 1}], ["p", "p"]),
        ([{"preset": "a", "budget": 1}, {"preset": "b", "budget": 2}], ["a", "b"]),
        ([{"agent": {"kind": "A", "x": 1}}, {"agent": {"kind": "B", "y": 1}}], ["agent=A", "agent=B"]),
        (
            [{"agent": {"gamma": 0.9}}, {"agent": {"gamma": 0.99}}, {"agent": {"gamma": 0.9}}],
            ["gamma=0.9", "gamma=0.99", "gamma=0.9"],
        ),
        ([{"preset": "a"}, {"preset": "b"}, {"preset": "b", "w": 2}], ["a, w=none", "b, w=none", "b, w=2"]),
        (
            [{"a": {"rate": r}, "b": {"rate": s}} for r, s in ((1, 1), (1, 2), (2, 1))],
            ["a.rate=1, b.rate=1", "a.rate=1, b.rate=2", "a.rate=2, b.rate=1"],
        ),
    ],
)
def test_methods_are_named_by_what_tells_them_apart(settings: list[dict[str, Any]], labels: list[str], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(i), **{"seed": i} | own) for i, own in enumerate(settings)]
    found = {run.directory: label for label, method in compare(runs).methods.items() for run in method.runs}
    assert [found[run] for run in runs] == labels


def test_by_a_field_pools_the_rest_and_says_so(tmp_path: Path) -> None:
    settings = [("A", 1, 0), ("A", 2, 1), ("B", 1, 0)]
    runs = [write_run(tmp_path / str(i), agent={"kind": k, "x": x}, seed=s) for i, (k, x, s) in enumerate(settings)]
    for field in ("agent.kind", "agent"):
        comparison = compare(runs, by=field)
        assert [len(method.runs) for method in comparison.methods.values()] == [2, 1]
        assert "agent=A pools runs that also differ in agent.x." in comparison.notes
    assert [*compare(runs, by="preset").methods] == ["p"]
    with pytest.raises(ConfigError, match=r"no run has a setting 'agent.kinds'; the nearest is 'agent.kind'"):
        compare(runs, by="agent.kinds")
    with pytest.raises(ConfigError, match=r"no run has a setting 'kind'; the nearest is 'agent.kind'"):
        compare(runs, by="kind")


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "0", ((10, 0),), finished=False), write_run(tmp_path / "1"), write_run(tmp_path / "2", seed=1)]
    comparison = compare(runs)
    assert [run.directory for run in comparison.methods["p"].runs] == runs[1:]  # the one that came further
    assert any(note.startswith("p: seed 0 is there twice and counts once") for note in comparison.notes)


def test_of_runs_without_fresh_episodes_the_final_return_is_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, ((10, 0),), preset=name, finished=name == "b") for name in ("a", "b")]
    comparison = compare(runs)
    assert [*comparison.improvement] == ["final_return"]  # and not who solved sooner, where nobody did
    assert "fresh_return" in comparison.methods["b"].scores and "fresh_return" not in comparison.methods["a"].scores


def test_conditions_that_differ_between_methods_are_noted(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / n, preset=n, budget=b) for n, b in (("a", 500), ("b", 9000))])
    assert "Not the same for all runs: budget (a 500, b 9000)." in comparison.notes
    assert "a has a single seed (0): no interval." in comparison.notes


def test_a_line_that_was_cut_off_and_a_run_without_a_turn_are_left_out(tmp_path: Path) -> None:
    cut = write_run(tmp_path / "cut", finished=False)
    (cut / "metrics.jsonl").write_text((cut / "metrics.jsonl").read_text() + '{"turn": 2, "real_st')
    empty = write_run(tmp_path / "empty", (), finished=False)
    comparison = compare([cut, empty])
    assert [run.last("real_steps") for run in comparison.methods["p"].runs] == [20]
    assert f"{empty} is left out: no turn of it is finished." in comparison.notes


def test_an_unsolved_run_is_worse_than_every_solved_one_whatever_its_budget(tmp_path: Path) -> None:
    fast = [write_run(tmp_path / f"f{i}", ((10, 0),), preset="short", seed=i) for i in range(2)]  # not solved in 10 steps
    slow = [write_run(tmp_path / f"s{i}", ((500, 100),), preset="long", seed=i) for i in range(2)]  # solved at 500
    comparison = compare([*fast, *slow])
    assert comparison.improvement["real_steps_to_solve"]["short", "long"] == (0.0, 0.0, 0.0)
    assert comparison.methods["short"].scores["real_steps_to_solve"]["iqm"] == 10 and comparison.methods["short"].solved == 0
    mixed = [*slow, write_run(tmp_path / "s2", ((900, 0),), preset="long", seed=2)]
    assert not any("counts with the steps it was given" in note for note in comparison.notes)  # no figure is shown for `short`
    assert any("counts with the steps it was given" in note for note in compare(mixed).notes)


# ---- the command


def test_compare_writes_a_page_a_picture_and_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (fast, slow) in enumerate([(10, 500), (20, 600), (30, 700), (40, 800)]):
        write_run(tmp_path / "runs/fast" / str(seed), ((5, 0), (fast, 100 + seed)), preset="fast <b> [red] $x$", seed=seed)
        write_run(tmp_path / "runs/slow" / str(seed), ((5, 0), (slow, 100 if seed else 10)), preset="slow", seed=seed)
    status, out, err = call(capsys, "compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert next(line for line in lines if "fast" in line)[:10] == ["fast", "<b>", "[red]", "$x$", "4", "4", "of", "4", "25", "[10,"]
    assert "P(fast <b> [red] $x$ has fewer real steps to solve than slow) = 1.00 [1.00, 1.00]" in out
    data = json.loads((tmp_path / "out/compare.json").read_text())
    fast, slow = data["methods"].values()
    assert fast["seeds"] == [0, 1, 2, 3] and fast["solved"] == 4 and slow["solved"] == 3
    assert (
        fast["real_steps_to_solve"]["iqm"] == 25 and slow["real_steps_to_solve"]["iqm"] == 650 and fast["wall_seconds"]["iqm"] == 25
    )
    assert fast["final_return"]["iqm"] == 101.5 and slow["final_return"]["iqm"] == 100
    assert data["threshold"] == 90 and data["by"] == ["preset"] and data["env"] == "CartPole-v1"
    pair = data["probability_of_improvement"]["fresh_return"][0]
    assert (pair["x"], pair["y"], pair["probability"]) == ("fast <b> [red] $x$", "slow", (12 + 4 - 3 * 0.5) / 16)
    page = (tmp_path / "out/compare.html").read_text()
    assert "fast &lt;b&gt;" in page and "fast <b>" not in page and page.count('class="plotly-graph-div"') == 1
    assert "<script src" not in page and "href=" not in page.split("</script>")[-1]
    assert "real environment steps (logarithmic)" in page  # 40 against 800
    picture = imageio.imread(tmp_path / "out/compare.png")
    assert picture.shape[1] == 1760 and len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 50


def test_without_a_threshold_nothing_is_said_of_solving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), threshold=None, seed=seed)
    status, out, _ = call(capsys, "compare", str(tmp_path), "--out", str(tmp_path / "out"))
    assert status == 0 and "solve" not in out
    assert [*json.loads((tmp_path / "out/compare.json").read_text())["probability_of_improvement"]] == ["fresh_return"]


def two_environments(place: Path) -> None:
    write_run(place / "a")
    write_run(place / "b", env="Pendulum-v1", seed=1)
    write_run(place / "c", env="Pendulum-v1", seed=2)


def other_settings_of_an_environment(place: Path) -> None:
    write_run(place / "a")
    write_run(place / "b", max_episode_steps=100)


def unreadable_result(place: Path) -> None:
    (write_run(place / "a") / "result.json").write_text("{")


def foreign_result(place: Path) -> None:
    (write_run(place / "a") / "result.json").write_text('{"real_steps": 3}')


def foreign_configuration(place: Path) -> None:
    (write_run(place / "a") / "config.yaml").write_text("[1]")


@pytest.mark.parametrize(
    ("prepare", "arguments", "says"),
    [
        (lambda place: None, [], "no runs given"),
        (lambda place: None, ["nowhere"], "no run directory nowhere"),
        (lambda place: None, ["."], "no run in .: name run directories, glob patterns, or directories that contain runs"),
        (lambda place: (place / "a.log").touch(), [".", "a.log"], "no run in ., a.log: name run directories"),
        (lambda place: [(place / name).touch() for name in "abcde"], list("abcde"), "no run in a, b, c and 2 more: name"),
        (lambda place: write_run(place / "a"), ["a", "x*"], "no run directory x*"),
        (lambda place: write_run(place / "a", (), finished=False), ["."], "none of the runs has finished a turn yet"),
        (
            two_environments,
            ["."],
            "different environments: CartPole-v1 (1 run), Pendulum-v1 (2 runs); compare them one environment",
        ),
        (other_settings_of_an_environment, ["."], "CartPole-v1 (1 run), CartPole-v1 with max_episode_steps 100 (1 run)"),
        (unreadable_result, ["."], "cannot read a/result.json"),
        (foreign_result, ["."], "a/result.json is not a run's: it lacks eval_return_mean"),
        (foreign_configuration, ["."], "a/config.yaml is not the configuration of a run"),
        (lambda place: write_run(place / "a"), [".", "--by", "preseet"], "no run has a setting 'preseet'; the nearest is 'preset'"),
    ],
)
def test_compare_says_in_one_line_what_is_wrong(
    prepare: Any,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    status, out, err = call(capsys, "compare", *arguments)
    assert status == 1 and says in err and err.startswith("spikedream: ") and err.count("\n") == 1 and out == ""


# ---- studies: from the file to cells

TINY = """
name: tiny
seeds: [4, 2]
environments:
  debug: {threshold: 300}
  Pendulum-v1: {budget: 700, evaluation: {episodes: 3}}
methods:
  spiking: {base: debug, agent: {horizon: 7}, on: {Pendulum-v1: {agent: {gamma: 0.9}}}}
  twin: {base: debug, twin: true, only: [debug]}
  ppo: {sb3: PPO, evaluate_every: 50, settings: {gamma: 0.5}, on: {debug: {budget: 800}}}
"""


def test_a_study_expands_to_methods_environments_and_seeds(tmp_path: Path) -> None:
    cells = grid.expand(grid.parse(TINY, "tiny.yaml"), tmp_path)
    names = [(cell.environment, cell.method, cell.seed) for cell in cells]
    once = [("debug", "spiking"), ("debug", "twin"), ("debug", "ppo"), ("Pendulum-v1", "spiking"), ("Pendulum-v1", "ppo")]
    assert names == [(*pair, seed) for seed in (4, 2) for pair in once]
    spiking, twin, ppo, pendulum, pendulum_ppo = (cell.config for cell in cells[:5])
    assert cells[0].directory == tmp_path / "debug/spiking/s4"
    assert isinstance(spiking, configuration.Config) and isinstance(pendulum, configuration.Config)
    assert (spiking.env, spiking.preset, spiking.seed, spiking.agent.horizon, spiking.budget) == (
        "CartPole-v1",
        "spiking",
        4,
        7,
        60,
    )
    assert spiking.threshold == ppo.threshold == 300 and spiking.evaluation == ppo.evaluation
    assert isinstance(twin, configuration.Config) and type(twin.agent.actor).__name__ == "MLP"
    assert (
        pendulum.env == "Pendulum-v1" and pendulum.agent.horizon == 7 and pendulum.agent.gamma == 0.9 and pendulum.threshold is None
    )
    assert pendulum.budget == 700 and pendulum.evaluation.episodes == 3 and spiking.agent.gamma != 0.9
    assert isinstance(ppo, baselines.Baseline) and isinstance(pendulum_ppo, baselines.Baseline)
    assert ppo.budget == 800 and pendulum_ppo.budget == 700 and ppo.agent.environments == 8 and ppo.agent.evaluate_every == 50
    assert ppo.agent.settings["gamma"] == 0.5 and ppo.agent.settings["gae_lambda"] == 0.8  # ours, and RL Baselines3 Zoo's


def test_a_baseline_that_the_zoo_does_not_know_has_the_library_s_settings_and_its_own(tmp_path: Path) -> None:
    study = (
        "{name: x, seeds: [1], environments: {InvertedPendulum-v5: }, methods: {sac: {sb3: SAC, settings: %s, evaluate_every: 7}}}"
    )
    for written, settings in (("{}", {}), ("{gamma: 0.9}", {"gamma": 0.9})):
        [cell] = grid.expand(grid.parse(study % written, "x"), tmp_path)
        assert isinstance(cell.config, baselines.Baseline) and cell.config.budget == 100_000
        assert cell.config.agent == baselines.StableBaselines3("SAC", evaluate_every=7, settings=settings)


def test_a_baseline_s_settings_survive_their_file(tmp_path: Path) -> None:
    config = next(cell.config for cell in grid.expand(grid.parse(TINY, "tiny.yaml"), tmp_path) if cell.method == "ppo")
    configuration.save(config, tmp_path / "ppo.yaml")  # pyright: ignore[reportArgumentType]
    assert baselines.load(tmp_path / "ppo.yaml") == config


@pytest.mark.parametrize("name", grid.studies())
def test_a_study_that_comes_with_spikedream_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = grid.named(name)
    here = [environment for environment in named.environments if usable(environment)]
    if not here:  # of what it needs only the sizes are known here
        here = list(named.environments)
        monkeypatch.setattr(grid, "spec_of", lambda *_: CONTINUOUS)
    cells = grid.expand(named, tmp_path, here)
    assert named.name == name and {cell.method for cell in cells} == {*named.methods}
    assert {cell.environment for cell in cells} == {*here} and len(here) > len(named.environments) / 3


def usable(environment: str) -> bool:
    """Whether what it needs is installed."""
    config = configuration.named(environment)
    try:
        return bool(spec_of(config.env, config.env_kwargs, config.max_episode_steps))
    except BrokenEnvironment:
        return False


def test_an_environment_that_cannot_be_used_is_left_out_where_others_are_asked_for(tmp_path: Path) -> None:
    study = grid.parse("{name: x, seeds: 1, environments: {debug: , Missing-v0: }, methods: {a: }}", "x")
    assert [cell.environment for cell in grid.expand(study, tmp_path, ["debug"])] == ["debug"]
    for asked in ([], ["debug", "Missing-v0"]):
        with pytest.raises(BrokenEnvironment, match="Missing-v0"):
            grid.expand(study, tmp_path, asked)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 3}, "has an unknown key 'seed'; did you mean 'seeds'?"),
        ({"name": None}, "name takes a text"),
        ({"name": "../x"}, "name takes a text"),
        ({"seeds": None}, "seeds takes how many, or a list of whole numbers, not None"),
        ({"seeds": 0}, "has no seeds"),
        ({"seeds": []}, "has no seeds"),
        ({"seeds": [1, "two"]}, "seeds takes how many, or a list of whole numbers"),
        ({"seeds": True}, "seeds takes how many, or a list of whole numbers"),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"held_out": "debug"}, "held_out takes a list of environments, not 'debug'"),
        ({"held_out": ["debgu"]}, "held_out names 'debgu', which is not among the environments; did you mean 'debug'?"),
        ({"held_out": ["debug"]}, "all environments are held out"),
        ({"environments": {}}, "has no environments"),
        ({"environments": ["CartPole-v1"]}, "environments takes a mapping from names to settings"),
        ({"environments": {"debug": 3}}, "environments.debug takes a mapping of settings, not 3"),
        ({"environments": {"debgu": None}}, "environments.debgu: no preset 'debgu' (did you mean 'debug'?)"),
        ({"environments": {"CartPoll-v1": None}}, "nearest: CartPole-v1"),
        ({"environments": {"debug": {"budgte": 3}}}, "environments.debug: unknown setting 'budgte'; did you mean 'budget'?"),
        ({"statistic": "median"}, "statistic is one of iqm, mean, not 'median'"),
        ({"marks": [100, 0]}, "marks takes a list of real steps, at least 1 each, not [100, 0]"),
        ({"methods": None}, "has no methods"),
        ({"methods": {"a/b": {}}}, "a method's name takes letters"),
        (
            {"methods": {"m": {"agent": {"horizn": 3}}}},
            "methods.m on debug: unknown setting 'agent.horizn'; did you mean 'horizon'?",
        ),
        ({"methods": {"m": {"base": "carpole"}}}, "methods.m on debug: no preset 'carpole'"),
        ({"methods": {"m": {"threshold": 3}}}, "methods.m sets threshold, which must be the same for all methods"),
        ({"methods": {"m": {"on": {"debug": {"env": "x"}}}}}, "methods.m sets env, which must be the same for all methods"),
        ({"methods": {"m": {"on": {"debgu": {}}}}}, "names 'debgu', which is not among the environments; did you mean 'debug'?"),
        ({"methods": {"m": {"only": "debug"}}}, "methods.m.only takes a list of environments, not 'debug'"),
        ({"methods": {"m": {"agent": {"gradient": "model"}}}}, "methods.m on debug: "),
        ({"methods": {"m": {"sb3": "PPPO"}}}, "no Stable-Baselines3 algorithm 'PPPO'; known: PPO, DQN, SAC"),
        ({"methods": {"m": {"sb3": "SAC"}}}, "RL Baselines3 Zoo has no settings for SAC on CartPole-v1; it has: Pendulum-v1"),
        ({"methods": {"m": {"sb3": "SAC"}}}, "MountainCarContinuous-v0; `settings: {}` stands for the library's own"),
        ({"methods": {"m": {"sb3": "PPO", "evalute_every": 3}}}, "unknown setting 'evalute_every'; did you mean 'evaluate_every'?"),
    ],
)
def test_a_wrong_study_is_explained_before_anything_is_run(
    change: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"name": "x", "seeds": 1, "environments": {"debug": None}, "methods": {"m": {}}} | change
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    status, out, err = call(capsys, "study", str(file), "--out", str(tmp_path / "out"))
    assert status == 1 and says in err and err.startswith("spikedream: ") and err.count("\n") == 1
    assert out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["nothing"],
            "no study 'nothing'; spikedream comes with debug, dreams-on-mujoco, embedded, model-based-against-model-free",
        ),
        (["no/such.yaml"], "cannot read no/such.yaml"),
        (["debug", "--jobs", "0"], "jobs is 0; it must be at least 1"),
    ],
)
def test_a_wrong_call_of_study_is_explained(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "study", *arguments)
    assert status == 1 and says in err and err.count("\n") == 1


def test_a_study_that_is_no_yaml_is_explained(tmp_path: Path) -> None:
    for text, says in (("a: b: c", "is not valid YAML"), ("[1]", "is not a mapping with name, seeds")):
        with pytest.raises(ConfigError, match=says):
            grid.parse(text, "x.yaml")


# ---- studies: running the cells


class FakeProcesses:
    """In the place of processes: notes what would be started, and writes what a training would leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "no such cell"):
        self.started: list[list[str]] = []
        self.fails = fails
        monkeypatch.setattr(Processes, "run", lambda _, arguments, directory, settings, log: self.run([*arguments], log))

    def run(self, arguments: list[str], log: Path) -> int:
        self.started.append(arguments)
        directory = Path(arguments[-1])
        log.write_text("some lines\nspikedream: the motor is on fire\n")
        if self.fails in str(directory):
            return 1
        if arguments[1] == "resume":
            (directory / "result.json").write_text((directory.parent.parent / "result.json").read_text())
        else:
            config = yaml.safe_load(Path(arguments[2] if arguments[1] == "train" else arguments[1]).read_text())
            write_run(directory, **config | {"threshold": 90.0})
            (directory / "config.yaml").write_text(yaml.safe_dump(config))
        return 0


def run(name: str, out: Path, jobs: int = 1, **part: Any) -> tuple[int, list[str], dict[str, Any]]:
    """(exit status, lines on the terminal, study.json)"""
    console = Console(record=True, width=300, file=io.StringIO())
    status = run_study(study.Study(name, jobs, out=out, **part), console)
    return status, console.export_text().splitlines(), json.loads((out / "study.json").read_text())


def test_a_failed_cell_is_shown_and_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch, fails="spiking/s1")
    status, lines, data = run("debug", tmp_path / "out", jobs=2)
    assert status == 1 and len(fake.started) == 4
    assert [cell["status"] for cell in data["cells"]] == ["finished", "finished", "failed", "finished"]
    log = tmp_path / "out/debug/spiking/s1.log"
    assert f"debug · spiking · seed 1: FAILED: the motor is on fire ({log})" in lines
    page = (tmp_path / "out/index.html").read_text()
    assert "3 finished, 1 failed, 0 skipped" in page and "the motor is on fire" in page and 'href="debug/compare.html"' in page
    methods = json.loads((tmp_path / "out" / data["comparisons"]["debug"]).read_text())["methods"]
    assert {label: method["seeds"] for label, method in methods.items()} == {"spiking": [0], "conventional": [0, 1]}


def test_a_study_records_a_row_for_each_method_whose_seeds_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FakeProcesses(monkeypatch, fails="conventional/s1")
    _, lines, _ = run("debug", tmp_path / "out", record="mine")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["mine-debug-spiking.json"]
    assert "debug · conventional: not recorded, since not all its seeds are finished" in lines
    row = record.load("mine-debug-spiking")
    assert row.seeds == [0, 1] and row.scores["real_steps_to_solve"] == [20, 20] and row.scores["fresh_return"] == [100.0] * 2


def test_finished_cells_are_kept_and_unfinished_ones_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch)
    out = tmp_path / "out"
    assert run("debug", out)[0] == 0
    assert [a[:2] for a in fake.started] == [["spikedream", "train"]] * 4 and fake.started[2][3:6] == ["--seed", "1", "--out"]
    cell = out / "debug/spiking/s1"
    (cell / "result.json").rename(out / "debug/result.json")
    fake.started.clear()
    status, lines, _ = run("debug", out)
    assert status == 0 and fake.started == [["spikedream", "resume", str(cell)]]
    assert sum(line.endswith("(kept)") for line in lines) == 3


def test_a_study_is_run_in_parts_and_compared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: [7, 3]\nenvironments: {debug: , CartPole-v1: }\nmethods: {a: {budget: 60}, b: {budget: 80}}\n")
    _, lines, data = run(str(file), tmp_path / "out", environments=("debug",), seeds=1)
    assert len(fake.started) == 2 and not any("not asked for" in line for line in lines)
    assert sorted((c["environment"], c["seed"]) for c in data["cells"] if c["status"] == "finished") == [("debug", 7)] * 2
    assert sum(cell["status"] == "waiting" for cell in data["cells"]) == 6
    _, _, data = run(str(file), tmp_path / "out", environments=("CartPole-v1",))
    assert len(fake.started) == 6 and list(data["comparisons"]) == ["debug", "CartPole-v1"]
    assert "6 finished, 0 failed, 0 skipped, 2 waiting" in (tmp_path / "out/index.html").read_text()


def test_a_study_tells_means_and_returns_at_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProcesses(monkeypatch)
    file = tmp_path / "mine.yaml"
    text = (
        "name: x\nseeds: 2\nstatistic: mean\nmarks: [10]\nenvironments: {debug: {evaluation: {stop: false}}}\nmethods: {a: , b: }\n"
    )
    file.write_text(text)
    _, lines, data = run(str(file), tmp_path / "out")
    assert any(line == "debug: Mean [95 % interval] over seeds" for line in lines)
    assert any("return at 10" in line and "final return" in line and "fresh" not in line for line in lines)
    methods = json.loads((tmp_path / "out" / data["comparisons"]["debug"]).read_text())["methods"]
    assert {label: (m["return at 10"]["mean"], m["final_return"]["mean"]) for label, m in methods.items()} == {
        "a": (0, 100), "b": (0, 100),
    }  # fmt: skip
    page = (tmp_path / "out/index.html").read_text()
    assert "Mean over seeds with its 95 % bootstrap interval" in page and "return at 10" in page


def test_a_study_runs_a_method_s_seeds_together_and_leaves_what_fails_to_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, groups = FakeProcesses(monkeypatch), []

    def together(left: Any, console: Console) -> None:
        groups.append([(cell.environment, cell.method, cell.seed) for cell in left])
        if left[0].method == "b":
            raise Diverged("critic_loss became NaN")
        for cell in left:
            write_run(cell.directory, seed=cell.seed, preset=cell.method)
            configuration.save(cell.config, cell.directory / "config.yaml")

    monkeypatch.setattr("spikedream.experiments.cells._run_group", together)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: [7, 3]\nenvironments: {debug: }\nmethods: {a: , b: , ppo: {sb3: PPO, only: [debug]}}\n")
    monkeypatch.setattr(baselines, "installed", lambda: True)
    status, lines, _ = run(str(file), tmp_path / "out", together=True)
    assert status == 0 and groups == [[("debug", "a", 7), ("debug", "a", 3)], [("debug", "b", 7), ("debug", "b", 3)]]
    assert "debug · b: critic_loss became NaN; its seeds go on one by one" in lines
    assert sorted(arguments[-1].split("/debug/")[1] for arguments in fake.started) == ["b/s3", "b/s7", "ppo/s3", "ppo/s7"]
    groups.clear()
    assert run(str(file), tmp_path / "out", together=True)[0] == 0 and groups == []  # all are kept


def test_a_part_that_a_study_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds is 3; study debug has 1 to 2"):
        run("debug", tmp_path, seeds=3)
    with pytest.raises(ConfigError, match="no environment 'debag'; did you mean 'debug'"):
        run("debug", tmp_path, environments=("debag",))


def test_a_cell_of_other_settings_is_not_taken_for_the_study_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProcesses(monkeypatch)
    file = tmp_path / "mine.yaml"
    text = "name: x\nseeds: 1\nenvironments: {debug: {budget: 60}}\nmethods: {m: {}}\n"
    file.write_text(text)
    assert run(str(file), tmp_path / "out")[0] == 0
    file.write_text(text.replace("60", "80"))
    with pytest.raises(ConfigError, match=r"s0 holds a run with other settings \(budget is 60 there, 80 is wanted\); delete it"):
        run(str(file), tmp_path / "out")


def test_a_cell_that_measured_for_how_long_to_hold_an_action_is_still_the_study_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeProcesses(monkeypatch)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: 1\nenvironments: {debug: {budget: 60}}\nmethods: {m: {action_repeat: null}}\n")
    assert run(str(file), tmp_path / "out")[0] == 0
    (there,) = (tmp_path / "out").rglob("config.yaml")
    configuration.save(dataclasses.replace(configuration.load(there), action_repeat=2), there)
    assert run(str(file), tmp_path / "out")[0] == 0


def test_a_baseline_that_is_not_installed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch)
    monkeypatch.setattr(baselines, "installed", lambda: False)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: 1\nenvironments: {CartPole-v1: }\nmethods: {ppo: {sb3: PPO}}\n")
    status, lines, data = run(str(file), tmp_path / "out")
    assert status == 0 and fake.started == [] and data["cells"][0]["status"] == "skipped"
    assert "CartPole-v1 · ppo · seed 0: not installed: pip install 'spikedream[sb3]'" in lines
    with pytest.raises(ImportError, match=r"pip install 'spikedream\[sb3\]'"):
        baselines.run(baselines.from_zoo("PPO", "CartPole-v1"), tmp_path / "run")


def test_a_baseline_is_run_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch)
    monkeypatch.setattr(baselines, "installed", lambda: True)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: [5]\nenvironments: {CartPole-v1: }\nmethods: {ppo: {sb3: PPO}}\n")
    assert run(str(file), tmp_path / "out")[0] == 0
    directory = tmp_path / "out/CartPole-v1/ppo/s5"
    assert fake.started == [["spikedream.experiments.baselines", f"{directory}.yaml", "--seed", "5", "--out", str(directory)]]


def test_processes_are_stopped_together_and_none_is_begun_afterwards(tmp_path: Path) -> None:
    processes, statuses = Processes(), []
    sleep = ["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"]
    run = functools.partial(processes.run, sleep, tmp_path, tmp_path / "settings.yaml", tmp_path / "log")
    thread = threading.Thread(target=lambda: statuses.append(run()))
    thread.start()
    while thread.is_alive() and not processes.running:
        time.sleep(0.01)
    processes.stop()
    thread.join(10)
    assert not thread.is_alive() and statuses == [-15] and run() == -15


# ---- baselines


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


# ---- the whole of it


def test_the_debug_study_runs_and_keeps_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", tmp_path / "small.yaml"
    file.write_text(grid.studies()["debug"].replace("seeds: 2", "seeds: 1"))

    arguments = ["study", str(file), "--jobs", "2", "--out", str(out)]
    command = [sys.executable, "-m", "spikedream", *arguments]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    results = {cell: cell.read_bytes() for cell in sorted(out.glob("debug/*/s*/result.json"))}
    assert len(results) == 2 and (out / "index.html").exists() and (out / "debug/compare.png").exists()
    status, again, _ = call(capsys, *arguments)
    assert status == 0 and again.count("(kept)") == 2
    assert {cell: cell.read_bytes() for cell in results} == results
    comparison = json.loads((out / "debug/compare.json").read_text())
    assert {label: method["seeds"] for label, method in comparison["methods"].items()} == {
        "spiking": [0],
        "conventional": [0],
    }


# ---- profiles


def several_tasks(tmp_path: Path) -> list[Comparison]:
    """Method a solves task 0 with both seeds after 10 and 20 steps, task 1 with one of two; b runs on task 0 alone, and one of its
    two falls back in the end."""
    there = {"threshold": 90.0, "evaluation": {"stop": False}}

    def played(task: int, method: str, seed: int, solved_at: int | None, end: float, fresh: float | None) -> Path:
        place = write_run(tmp_path / f"{task}/{method}/{seed}", [(5, 0.0), (40, end)], **there, preset=method, seed=seed)
        result = json.loads((place / "result.json").read_text())
        result |= {"real_steps_to_solve": solved_at, "solved": solved_at is not None, "last_fresh_return_mean": fresh}
        (place / "result.json").write_text(json.dumps(result))
        return place

    first = [
        played(0, "a", 0, 10, 95, 99),
        played(0, "a", 1, 20, 80, 91),
        played(0, "b", 0, 20, 99, 50),
        played(0, "b", 1, 40, 95, None),
    ]
    second = [played(1, "a", 0, 40, 99, 99), played(1, "a", 1, None, 20, 20)]
    return [compare(runs, "preset") for runs in (first, second)]


def test_a_profile_counts_tasks_alike_and_what_holds_at_the_end(tmp_path: Path) -> None:
    found = profiles(several_tasks(tmp_path))
    a, b = found["a"], found["b"]
    # Seed 1 of a ends at 80 in its last evaluation, but fresh episodes, which are more, say 91; b's seed 0 falls to 50 on them.
    assert (a.tasks, a.solved, a.stays) == (2, 1, 1) and (b.tasks, b.solved, b.stays) == (1, 1, 0)
    assert a.share.x.tolist() == [10, 20, 40] and a.share.middle.tolist() == [0.25, 0.5, 0.75]
    assert b.share.middle.tolist() == [0, 0.5, 1]
    # The first task's seeds are drawn apart from the second's, of which one has never solved it.
    assert a.share.low.tolist() == [0, 0.5, 0.5] and a.share.high.tolist() == [0.5, 0.5, 1]
    assert profiles([]) == {}


def test_a_profile_leaves_out_what_is_unfinished_or_cannot_be_solved(tmp_path: Path) -> None:
    write_run(tmp_path / "open", finished=False, preset="a")
    write_run(tmp_path / "free", threshold=None, preset="b")
    assert profiles([compare([tmp_path / "open"], "preset"), compare([tmp_path / "free"], "preset")]) == {}


def test_what_a_study_holds_out_is_run_only_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProcesses(monkeypatch)
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseeds: 1\nenvironments: {debug: , CartPole-v1: }\nmethods: {a: }\nheld_out: [CartPole-v1]\n")
    _, lines, data = run(str(file), tmp_path / "out")
    assert [cell["environment"] for cell in data["cells"] if cell["status"] == "finished"] == ["debug"] and not data["profiles"]
    with pytest.raises(ConfigError, match="study x holds out CartPole-v1: no setting is to be chosen"):
        run(str(file), tmp_path / "out", environments=("CartPole-v1",))
    status, lines, data = run(str(file), tmp_path / "out", held_out=True)
    assert status == 0 and len(fake.started) == 2 and data["held_out"] == ["CartPole-v1"]
    assert any(line.strip().startswith("CartPole-v1 (held out)") for line in lines)
    assert "a: 2 of 2 tasks solved by most seeds, 2 at the end too" in lines
    assert data["profiles"]["a"]["share"]["middle"] == [1.0]
    page = (tmp_path / "out/index.html").read_text()
    assert "share of runs that have solved their task" in page and "CartPole-v1 (held out)" in page
    with pytest.raises(ConfigError, match="study debug holds out no environments; leave out --held-out"):
        run("debug", tmp_path / "other", held_out=True)
