"""Studies: the running of their cells, and what they leave."""

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

import pytest
import yaml
from rich.console import Console
from written_runs import call, write_run

from spikedream import config as configuration
from spikedream.config import ConfigError
from spikedream.experiments import baselines, grid, record, study
from spikedream.experiments.cells import Processes
from spikedream.experiments.study import run_study
from spikedream.runners.stop import Diverged


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
    _, lines, _ = run(str(file), tmp_path / "out", environments=("debug",), seeds=1, methods=("b",))
    assert len(fake.started) == 2 and sum("(kept)" in line for line in lines) == 1
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
    with pytest.raises(ConfigError, match="study debug has no method 'drem'"):
        run("debug", tmp_path, methods=("drem",))


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


def test_a_directory_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    run = write_run(tmp_path / "run")
    for command in (["study", "debug"], ["compare", str(run)], ["bench", "debug", "--seeds", "1"]):
        status, out, error = call(capsys, *command, "--out", str(tmp_path / "file" / "x"))
        assert status == 1 and "Not a directory" in out + error and "Traceback" not in out + error
