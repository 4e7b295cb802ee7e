"""Results are data: what the files in `results/` must be, and that the tables say what they say."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.experiments import record, results, tables
from spikedream.experiments.baselines import from_zoo
from spikedream.experiments.cells import Processes
from spikedream.experiments.grid import Cell
from spikedream.experiments.record import END, FRESH, SECONDS, STEPS, Row
from spikedream.runs import provenance

ROOT = Path(__file__).parent.parent
HERE = "one processor"


def test_every_table_says_what_its_files_say() -> None:
    assert tables.check(ROOT) == []


@pytest.mark.learning
@pytest.mark.parametrize("name", results.measured(ROOT / record.RESULTS))
def test_a_witness_does_again_as_it_did(name: str) -> None:
    assert results.witness(name, ROOT / record.RESULTS, Console())


# ---- rows


def measured(steps: list[float | None], fresh: list[float], **changes: Any) -> Row:
    seconds: list[float | None] = [10.0 - i for i in range(len(steps))]
    scores: dict[str, list[float | None]] = {STEPS: steps, FRESH: [*fresh], END: [None] * len(steps), SECONDS: seconds}
    made = {"threshold": 475.0, "budget": 300, "processor": HERE, "code": provenance.code(Config()), "witness": 0, "settings": {}}
    return Row("spikedream bench p", list(range(len(steps))), scores, **made | changes)


def test_a_row_names_its_command_and_not_where_its_runs_were_written() -> None:
    arguments = ["mine.yaml", "--jobs", "2", "--seeds", "3", "--out=o", "--record", "a b", "--", "--out", "x"]
    assert record.command_of("study", arguments) == "spikedream study mine.yaml --seeds 3 --record 'a b' -- --out x"
    assert not [name for name in results.rows() if "--out" in record.load(name).command]


def test_figures_are_computed_from_the_seeds() -> None:
    row = measured([100, 80, 90, 70], [500, 470, 480, 490])
    figure = row.figure(STEPS)
    assert (figure["median"], figure["iqm"], figure["lowest"], figure["highest"]) == (85, 85, 70, 100)
    assert (row.solved, row.stay_good) == (4, 3)
    assert tables.interval(row).startswith("85 [") and tables.interval(row).endswith("], 70 to 100")
    assert tables.steps(row) == "85, 70 to 100; 4 of 4" and tables.fresh(row) == "3 of 4"
    assert tables.still(row) == "3 of 4 still at 475 or more, lowest 470" and tables.end(row) == "–"
    whole = dataclasses.replace(row, scores={**row.scores, END: [-180.0, -150.0, -160.0, -170.0]})
    assert tables.end(whole) == "-165 (-180 to -150)"


def test_a_seed_that_did_not_solve_counts_as_worse_than_any() -> None:
    most = measured([100, None, 90, 80, 70], [500, 20, 480, 490, 500])
    assert most.figure(STEPS)["median"] == 90 and tables.steps(most) == "90, 70 to 100; 4 of 5 in 300"
    assert tables.fresh(most) == "4 of 4" and most.figure(FRESH)["lowest"] == 480  # of the solved ones
    few = measured([None, 90, None, 80], [1, 480, 2, 20])
    assert tables.interval(few) == "80, 90" and tables.solved(few) == "2 of 4 in 300" and tables.fresh(few) == "1 of 2"
    none = measured([None, None], [9, 42])
    assert tables.steps(none) == "0 of 2 in 300" and tables.interval(none) == "–" and tables.still(none) == "return 9 to 42"


def test_a_ratio_is_of_medians() -> None:
    slow, quick = measured([700, 710, 720], [500] * 3), measured([90, 100, 110], [500] * 3)
    assert tables.peers(slow, {}, quick) == "710, 700 to 720; 3 of 3; 7.1 times as many"
    slower = measured([14_500.0], [500.0])
    assert tables.peers(slower, {}, quick).endswith("; 140 times as many")  # and not 1.4e+02
    assert tables.ratio(slow, {"score": STEPS}, quick) == "7.1"


def test_a_row_is_stale_when_the_source_or_its_preset_has_changed() -> None:
    config = configuration.named("debug")
    row = measured([9.0], [1.0], settings=record.settings_of(config))
    assert not row.stale and dataclasses.replace(row, code="of before").stale
    tied = record.of_preset(row, "debug", twin=False)
    assert tied.preset == "debug" and not tied.stale
    assert dataclasses.replace(tied, settings=tied.settings | {"budget": 61}).stale
    assert record.of_preset(row, "debug", twin=True).preset is None  # those are not the twin's settings
    twin = measured([9.0], [1.0], settings=record.settings_of(configuration.twin(config)))
    assert record.of_preset(twin, "debug", twin=True).preset == "debug"
    baseline = from_zoo("PPO", "CartPole-v1")
    theirs = measured([9.0], [1.0], settings=record.settings_of(baseline), code=provenance.code(baseline))
    assert not theirs.stale and dataclasses.replace(theirs, code=row.code).stale


# ---- files


def test_a_row_survives_its_file(tmp_path: Path) -> None:
    row = measured([9.0, None], [1.0, 2.0])
    record.save(row, "x", tmp_path)
    assert record.load("x", tmp_path) == row


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(schema=7), "x.json has schema 7; this version of spikedream reads 1"),
        (lambda data: data.pop("commit"), "x.json lacks 'commit'"),
        (lambda data: data.update(colour="red"), "x.json has an unknown key 'colour'"),
        (lambda data: data["scores"][FRESH].pop(), "x.json: fresh_return has 1 values for 2 seeds"),
        (lambda data: data["scores"][FRESH].__setitem__(1, None), "x.json lacks fresh_return of seed 1"),
        (lambda data: data["seeds"].append(0), r"x.json: seeds are whole numbers, each once, not \[0, 1, 0\]"),
        (lambda data: data.update(witness=5), "x.json: its witness, seed 5, is not among its seeds"),
        (lambda data: data.update(scores={}), "x.json holds no scores"),
        (lambda data: data["scores"][STEPS].__setitem__(0, 8.0), "x.json is not as it was written: .*again by: spikedream bench p"),
        (lambda data: data.update(measured_before=True), "x.json is not as it was written"),
    ],
)
def test_a_wrong_results_file_is_one_line_that_names_it(change: Any, says: str, tmp_path: Path) -> None:
    file = record.save(measured([9.0, None], [1.0, 2.0]), "x", tmp_path)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=says) as error:
        record.load("x", tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_results_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*x.json: No such file"):
        record.load("x", tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigError, match=r"x.json is not JSON"):
        record.load("x", tmp_path)


def test_a_benchmark_records_its_scores_by_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/anywhere/benchmarks/act.py", "--rows", "1 000"])
    record.record_scores("x", {"ms": [3, 1, 2]}, tmp_path)
    row = record.load("x", tmp_path)
    assert row.command == "python benchmarks/act.py --rows '1 000'"
    assert tables.spread(row, {"score": "ms", "digits": 1}) == "2.0 (1.0 to 3.0)" and row.processor == provenance.processor()
    assert not row.stale and row.solved is None and row.witness is None
    assert dataclasses.replace(row, command="python benchmarks/turn.py").stale
    assert dataclasses.replace(row, command="python benchmarks/no_more.py").stale


# ---- tables

LAYOUT = """
small:
  file: README.md
  columns: [{title: task}, {title: steps, show: steps}, {title: its twin, show: steps, of: twin}]
  rows: [{task: one, of: a, twin: b}, {task: two, of: b}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working copy with one table of two rows."""
    place = tmp_path / record.RESULTS
    record.save(measured([90.0, 100.0, 110.0], [500.0] * 3), "a", place)
    record.save(measured([70.0], [500.0]), "b", place)
    (place / "tables.yaml").write_text(LAYOUT)
    (tmp_path / "README.md").write_text("before\n\n<!-- table: small -->\nanything\n<!-- end -->\n\nafter\n")
    assert tables.write(tmp_path) == [tmp_path / "README.md"] and tables.write(tmp_path) == []
    return tmp_path


def test_tables_are_written_between_their_marks(project: Path) -> None:
    assert (project / "README.md").read_text() == (
        "before\n\n<!-- table: small -->\n| task | steps | its twin |\n|---|---|---|\n"
        "| one | 100, 90 to 110; 3 of 3 | 70; 1 of 1 |\n| two | 70; 1 of 1 | – |\n<!-- end -->\n\nafter\n"
    )
    assert tables.check(project) == []


def test_a_figure_that_differs_from_its_file_is_named_with_the_cell(project: Path) -> None:
    file = project / "README.md"
    file.write_text(file.read_text().replace("90 to 110", "60 to 110").replace("| two | 70;", "| two | 71;"))
    assert tables.check(project) == [
        f"{file}, table small, row 1, column 'steps': '100, 60 to 110; 3 of 3' stands there, {project}/results/a.json gives"
        " '100, 90 to 110; 3 of 3'; `make tables` writes what the files give",
        f"{file}, table small, row 2, column 'steps': '71; 1 of 1' stands there, {project}/results/b.json gives '70; 1 of 1';"
        " `make tables` writes what the files give",
    ]
    file.write_text(file.read_text().replace("| two |", "| three |").replace("71;", "70;").replace("60 to", "90 to"))
    (line,) = tables.check(project)
    assert "row 2, column 'task': 'three' stands there" in line and "tables.yaml gives 'two'" in line
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "three" not in line))
    assert "table small: 3 lines under ['| task | steps | its twin |'] stand there, the files give 4" in tables.check(project)[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no table", "no place for table small"),
        ("<!-- table: small -->\n<!-- end -->\n<!-- table: other -->\n<!-- end -->", "a table other too many"),
        ("<!-- table: small -->\n<!-- end -->\n<!-- table: small -->\n<!-- end -->", "a table small too many"),
    ],
)
def test_a_document_without_a_place_for_a_table_is_named(text: str, says: str, project: Path) -> None:
    (project / "README.md").write_text(text)
    with pytest.raises(ConfigError, match=f"README.md has {says}"):
        tables.check(project)


def test_earlier_code_is_marked_and_fails_no_check(project: Path) -> None:
    row = record.load("a", project / record.RESULTS)
    record.save(dataclasses.replace(row, code="of before"), "a", project / record.RESULTS)
    assert tables.check(project) == []  # though the table in the document has no mark yet
    tables.write(project)
    text = (project / "README.md").read_text()
    assert "| one | 100, 90 to 110; 3 of 3 † | 70; 1 of 1 |" in text and "\n† Measured with earlier code or settings.\n" in text
    assert tables.check(project) == []
    record.save(dataclasses.replace(row, code=row.code), "a", project / record.RESULTS)
    assert tables.check(project) == []  # nor when it has one too many
    said = io.StringIO()
    assert results.run_results(results.Results(root=project), Console(file=said)) == 0 and said.getvalue() == ""


def test_what_all_rows_have_in_common_is_said_once(project: Path) -> None:
    for name in ("a", "b"):
        row = record.load(name, project / record.RESULTS)
        record.save(dataclasses.replace(row, code="of before", measured_before=name == "b"), name, project / record.RESULTS)
    tables.write(project)
    text = (project / "README.md").read_text()
    assert "† All figures here: measured with earlier code or settings." in text and text.count("†") == 1
    assert "| 70; 1 of 1 § |" in text and "| two | 70; 1 of 1 § |" in text and "§ Its witness, trained again" in text


# ---- recording, and calling a witness


def result(**changes: Any) -> dict[str, Any]:
    made_by = {"version": "1", "commit": "c", "code": "h", "processor": HERE}
    figures = {"real_steps_to_solve": 40, "fresh_return_mean": 490.0, "eval_return_mean": 480.0, "wall_seconds": 3.0}
    return {"real_steps": 40, "budget": 100, "threshold": 475.0, "solved": True} | made_by | figures | changes


def cells(place: Path, *several: dict[str, Any]) -> list[Cell]:
    made = []
    for seed, own in enumerate(several):
        directory = place / f"s{seed}"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps(own))
        made.append(Cell("e", "m", seed, Config(seed=seed), directory))
    return made


def test_a_row_of_runs_holds_their_scores_seed_by_seed_and_the_quickest_is_its_witness(tmp_path: Path) -> None:
    unsolved = result(real_steps_to_solve=None, solved=False, real_steps=100, wall_seconds=1.0, eval_return_mean=30.0)
    went_on = result(real_steps=100, wall_seconds=2.0, eval_return_mean=470.0)
    row = record.from_cells(cells(tmp_path, result(), unsolved, went_on), "the command")
    assert row.scores[STEPS] == [40, None, 40] and row.scores[FRESH] == [490.0] * 3
    assert row.scores[END] == [None, 30.0, 470.0]  # the first stopped as solved
    assert (row.witness, row.commit, row.code, row.processor, row.budget) == (2, "c", "h", HERE, 100)
    assert row.settings == record.settings_of(Config(seed=9)) and "seed" not in row.settings


def test_a_row_of_runs_that_went_to_their_end_holds_their_learning_curve(tmp_path: Path) -> None:
    whole = cells(tmp_path / "whole", result(real_steps=100), result(real_steps=100))
    for cell, shift in zip(whole, (0, 1), strict=True):
        # Forty evaluations, of which every second is kept; the very first of each seed came after other steps.
        rows = [{"real_steps": 3 + shift, "eval_return_mean": 0.0}]
        rows += [{"real_steps": 10 * n, "eval_return_mean": n + shift} for n in range(1, 41)]
        (cell.directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = record.from_cells(whole, "the command").scores
    curve = {name: values for name, values in scores.items() if name.startswith("return at ")}
    assert list(curve)[:2] == ["return at 20", "return at 40"] and len(curve) == 20 and curve["return at 400"] == [40, 41]
    stopped = cells(tmp_path / "stopped", result(real_steps=100), result())
    assert not any(name.startswith("return at ") for name in record.from_cells(stopped, "the command").scores)


def test_runs_of_different_code_make_no_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"whose commit is not the same, as in .*s0 and .*s1: run them anew"):
        record.from_cells(cells(tmp_path, result(), result(commit="d")), "the command")


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({}, []),
        ({"real_steps_to_solve": 41}, ["real_steps_to_solve is 41, was 40"]),
        ({"fresh_return_mean": 489.0}, ["fresh_return is 489.0, was 490.0"]),
        ({"processor": "other", "real_steps_to_solve": 55, "fresh_return_mean": 480.0}, []),  # inside the range
        ({"processor": "other", "real_steps_to_solve": 61}, ["real_steps_to_solve is 61 on other, outside the row's 40 to 60"]),
        ({"processor": "other", "real_steps_to_solve": None}, ["real_steps_to_solve is None, and every seed solved"]),
    ],
)
def test_a_witness_repeats_exactly_on_its_processor_and_within_the_row_on_another(found: dict[str, Any], wrong: list[str]) -> None:
    row = measured([40, 60], [490.0, 470.0])
    told = results.contradictions(row, result(**found))
    assert len(told) == len(wrong) and all(part in line for part, line in zip(wrong, told, strict=True))


def test_a_row_of_one_seed_is_judged_by_its_own_processor_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = measured([40], [490.0], measured_before=True)
    assert results.contradictions(row, result(processor="other", real_steps_to_solve=41)) == []
    assert results.contradictions(row, result(real_steps_to_solve=41)) == [f"{STEPS} is 41, was 40 on the same processor ({HERE})"]
    record.save(row, "x", tmp_path)
    assert results.witness("x", tmp_path, Console(width=500)) and record.load("x", tmp_path) == row  # nothing is trained
    assert f"x: only {HERE} can judge it; this is {provenance.processor()}" in capsys.readouterr().out


def test_what_an_accelerator_did_is_judged_by_accelerators_alone() -> None:
    row = dataclasses.replace(measured([40, 60], [490.0, 470.0]), processor="H100, Xeon, 16 cores")
    assert not results.judges(row, "Xeon, 2 cores") and results.judges(row, "H200, Xeon, 16 cores")
    assert results.judges(measured([40, 60], [490.0, 470.0]), "H100, Xeon, 16 cores")


def test_a_witness_that_does_otherwise_is_noted_in_the_file_and_by_the_table(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, config = project / record.RESULTS, configuration.named("debug")
    old = measured([90.0, 100.0], [500.0, 490.0], settings=record.settings_of(config), witness=1, code="earlier")
    record.save(old, "a", place)
    tables.write(project)
    outcome: dict[str, Any] = {"real_steps_to_solve": 100, "fresh_return_mean": 490.0, "code": provenance.code(config)}

    def train(_: Processes, arguments: list[str], directory: Path, settings: Path, log: Path) -> int:
        assert configuration.load(Path(arguments[2])) == dataclasses.replace(config, seed=1) and arguments[-1] == str(directory)
        directory.mkdir()
        (directory / "result.json").write_text(json.dumps(result(**outcome)))
        return 0

    monkeypatch.setattr(Processes, "run", train)
    command = results.Results(witness="a", root=project)
    assert old.stale and "95, 90 to 100; 2 of 2 †" in (project / "README.md").read_text()
    outcome |= {
        "processor": "another",
        "real_steps_to_solve": 95,
    }  # inside the range, which vouches for nothing
    assert results.run_results(command, Console()) == 0 and record.load("a", place).stale
    outcome["real_steps_to_solve"] = 100  # to the last digit, which does
    assert results.run_results(command, Console()) == 0 and not record.load("a", place).stale
    record.save(old, "a", place)
    del outcome["processor"]
    assert results.run_results(command, Console()) == 0 and not record.load("a", place).measured_before
    assert not record.load("a", place).stale
    tables.write(project)
    assert "95, 90 to 100; 2 of 2 |" in (project / "README.md").read_text()
    outcome["real_steps_to_solve"] = 95
    assert results.run_results(command, Console()) == 1 and record.load("a", place).measured_before
    assert f"a, seed 1: real_steps_to_solve is 95, was 100.0 on the same processor ({HERE})" in capsys.readouterr().out
    assert "row 1, column 'steps': '95, 90 to 100; 2 of 2' stands there" in tables.check(project)[0]  # until the table says so
    tables.write(project)
    assert "95, 90 to 100; 2 of 2 §" in (project / "README.md").read_text()
    outcome["real_steps_to_solve"] = 100
    assert results.run_results(command, Console()) == 0 and not record.load("a", place).measured_before


def test_a_row_without_a_witness_says_why(tmp_path: Path) -> None:
    record.save(Row("c", [0], {"ms": [3.0]}), "x", tmp_path)
    with pytest.raises(ConfigError, match=r"x.json has no witness: it is not of runs"):
        results.witness("x", tmp_path, Console())
