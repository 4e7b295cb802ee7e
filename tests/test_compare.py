"""Comparisons of runs, mostly of run directories that are written here by hand."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from written_runs import call, write_run

from spikedream.config import ConfigError
from spikedream.reports.compare import better, header_and_rows
from spikedream.reports.comparison import Comparison, compare, find_runs, open_record
from spikedream.reports.picture import threshold_in_sight
from spikedream.reports.profile import profiles
from spikedream.reports.statistics import improvement, iqm, summary

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


def nothing_for_a_return(place: Path) -> None:
    metrics = write_run(place / "a") / "metrics.jsonl"
    rows = [json.loads(line) | {"eval_return_mean": None} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
        (nothing_for_a_return, ["."], "a/metrics.jsonl is not a run's: its eval_return_mean is null, where a number belongs"),
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
