"""Watching a run from outside."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli import call
from test_resume import Notes

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.reports import watch as watching
from spikedream.reports.display import LivePanel
from spikedream.reports.watch import watch
from spikedream.runners.status import Status, StatusLog
from spikedream.runs.checkpoint import CheckpointError

ROW = {"turn": 0, "real_steps": 10, "imagined_steps": 5000, "eval_return_mean": 1.5, "wall_seconds": 2.0}
RESULT = {
    "solved": True, "real_steps_to_solve": 20, "real_steps": 20, "threshold": 1.0, "eval_return_mean": 2.0, "eval_return_std": 0.5,
    "eval_episodes": 3, "fresh_return_mean": 1.9, "wall_seconds": 4.0, "compile_seconds": 1.0,
}  # fmt: skip


class Told(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.at: list[tuple[int, int]] = []

    def record(self, row: Any) -> None:
        self.rows.append(row["real_steps"])

    def progress(self, real_steps: int, budget: int) -> None:
        self.at.append((real_steps, budget))


def begun(directory: Path) -> Path:
    directory.mkdir()
    configuration.save(Config(preset="made", seed=4, budget=50), directory / "config.yaml")
    return directory


def line(steps: int) -> str:
    return json.dumps(ROW | {"real_steps": steps}) + "\n"


def test_rows_are_told_as_they_come_and_those_done_again_after_a_resume_too(tmp_path: Path) -> None:
    directory, told = begun(tmp_path / "run"), Told()
    metrics = directory / "metrics.jsonl"
    looks = iter([
        lambda: metrics.write_text(line(10) + line(20)[:9]),  # in the middle of a line
        lambda: metrics.write_text(line(10) + line(20)),
        lambda: metrics.write_text(line(10)),  # resumed from a checkpoint before the second row
        lambda: metrics.write_text(line(10) + line(20) + line(30)),
        lambda: metrics.write_text(line(9) * 4),  # resumed, and longer again before anybody looked
        lambda: (directory / "result.json").write_text(json.dumps(RESULT)),
    ])  # fmt: skip
    assert watch(directory, told, 0.1, lambda seconds: next(looks)()) == RESULT
    assert told.rows == [10, 20, 20, 30, 9, 9, 9, 9] and told.at[:3] == [(10, 50), (20, 50), (30, 50)] and not told.texts


def test_a_run_that_says_nothing_is_mentioned_once_and_watching_can_be_broken_off(tmp_path: Path) -> None:
    directory, told = begun(tmp_path / "run"), Told()
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 40:
            raise KeyboardInterrupt

    assert watch(directory, told, watching.QUIET / 10, sleep) is None
    assert len(told.texts) == 1 and f"spikedream resume {directory}" in told.texts[0]


def test_a_new_evaluation_is_filmed_and_the_newest_video_told_and_shown(tmp_path: Path) -> None:
    directory, told, filmed, shown = begun(tmp_path / "run"), Told(), [], []
    metrics, videos = directory / "metrics.jsonl", directory / "videos"
    videos.mkdir()

    def film(steps: int) -> None:
        filmed.append(steps)
        if steps == 20:
            raise CheckpointError("it is gone")
        (videos / f"step{steps}-0.mp4").touch()

    looks = iter([
        lambda: metrics.write_text(line(5) + line(10)),
        lambda: metrics.write_text(line(5) + line(10) + line(20)),
        lambda: (videos / "episode-0.part.mp4").touch(),  # still being written
        lambda: os.utime(_made(videos / "episode-0.mp4"), (2e9, 2e9)),  # of somebody else
        lambda: (directory / "result.json").write_text(json.dumps(RESULT)),
    ])  # fmt: skip
    watch(directory, told, 0.1, lambda seconds: next(looks)(), film, shown.append)
    assert filmed == [10, 20] and shown == [videos / "step10-0.mp4", videos / "episode-0.mp4"]
    first, missed, other = told.texts
    assert first == f"newest video: {shown[0]}" and other == f"newest video: {shown[1]}"
    assert missed == "not filmed at 20 real steps: it is gone"


def _made(path: Path) -> Path:
    path.touch()
    return path


def test_a_finished_run_is_told_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = begun(tmp_path / "run")
    (directory / "metrics.jsonl").write_text(line(10) + line(20))
    (directory / "result.json").write_text(json.dumps(RESULT))
    status, out, _ = call(capsys, "watch", str(directory))
    first, second, outcome, report = out.splitlines()
    assert status == 0 and "real      10" in first and "real      20" in second
    assert outcome.startswith("CartPole-v1: solved after 20 real steps") and report == str(directory / "report.html")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [("nowhere", [], "no run directory"), (".", [], "has no config.yaml"), ("run", ["--every", "0"], "--every is 0 seconds")],
)
def test_what_cannot_be_watched_is_one_line(
    name: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "run")
    status, _, err = call(capsys, "watch", str(tmp_path / name), *arguments)
    assert status == 1 and message in err and len(err.splitlines()) == 1


def test_the_panel_of_a_watcher_has_the_budget_and_no_verbs() -> None:
    console = Console(file=io.StringIO(), width=110)
    panel = LivePanel(console, "made · CartPole-v1 · seed 4")
    panel.phase("watch", 0, 1)
    panel.record(ROW)
    panel.progress(10, 50)
    console.print(panel._draw())
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "10 of 50 real steps" in text and "collect" not in text and "1.5" in text


def test_a_watcher_of_a_run_in_several_processes_sees_what_its_parts_have_done(tmp_path: Path) -> None:
    directory, console = begun(tmp_path / "run"), Console(file=io.StringIO(), width=110)
    panel = LivePanel(console, "made")
    told = StatusLog().measured(Status(90, 60, 8, 2, 3, 4, 0.5, 7, 2, 2, True, True, False))
    (directory / "metrics.jsonl").write_text(json.dumps(ROW | {"updates": 8} | told) + "\n")
    (directory / "result.json").write_text(json.dumps(RESULT))
    watch(directory, panel, 0.1)
    console.print(panel._draw())
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "7 steps wait · policies 0.5 versions behind" in text and "model 3 · 30 steps behind" in text
    assert "policy 4 · 8 updates" in text and "0 parts started anew" in text
    assert watching.parts_of(ROW) == {}
