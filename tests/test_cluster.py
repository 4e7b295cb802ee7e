"""Where cells of a study run on other machines: what goes there, and what comes back. The machines here are this one;
test_parallel_on_ray.py has a cluster."""

import io
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_cli import call

from spikedream.experiments import cluster
from spikedream.experiments.cluster import Place, Room, unpack
from spikedream.runners import crew, reaper
from spikedream.runners.stop import ClusterError

PROGRAM = """
import pathlib, signal, sys, time
settings, out = map(pathlib.Path, sys.argv[1:3])
out.mkdir(exist_ok=True)
before = (out / "steps").read_text() if (out / "steps").exists() else ""
(out / "steps").write_text(before + settings.read_text())
def stop(*_):
    (out / "saved").touch()
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print("working", flush=True)
if settings.read_text() == "wait":
    time.sleep(60)
"""


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Room]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "cell_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    room = Room()
    yield room
    room.close()
    assert not room._home.exists()


def until_ended(room: Room, stop: bool = False) -> cluster.Seen:
    said = ""
    for _ in range(300):
        seen = room.look(stop)
        said += seen.said
        if seen.status is not None:
            return seen._replace(said=said)
        time.sleep(0.02)
    raise AssertionError(said)


def place(tmp_path: Path, settings: str) -> Place:
    there = tmp_path / "study" / "debug"
    there.mkdir(parents=True, exist_ok=True)
    (there / "s1.yaml").write_text(settings)
    return Place(there / "s1", there / "s1.yaml")


def test_what_is_seen_from_both_sides_is_written_in_place(room: Room, tmp_path: Path) -> None:
    there = place(tmp_path, "quick")
    assert room.sees(there.settings, "quick") and not room.sees(there.settings, "slow") and not room.sees(tmp_path / "none", "")
    room.begin(["cell_program", str(there.settings), str(there.directory)], there.directory, None)
    assert until_ended(room) == (0, "working\n", None) and (there.directory / "steps").read_text() == "quick"


def test_what_is_not_seen_goes_there_and_comes_back_and_goes_on(room: Room, tmp_path: Path) -> None:
    there = place(tmp_path, "again")
    there.directory.mkdir()
    (there.directory / "steps").write_text("before ")
    (there.directory / "old").touch()
    packed = there.packed()
    room.begin(["cell_program", str(there.settings), str(there.directory)], there.directory, packed)
    seen = until_ended(room)
    assert seen.status == 0 and (there.directory / "steps").read_text() == "before " and seen.written is not None
    (there.directory / "stray").touch()  # of a run that was here before
    there.replace(seen.written)
    assert (there.directory / "steps").read_text() == "before again"
    assert {file.name for file in there.directory.iterdir()} == {"steps", "old"}
    assert {file.name for file in there.directory.parent.iterdir()} == {"s1", "s1.yaml"}


def test_a_cell_that_is_stopped_saves_and_comes_back(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FETCHED", 0.0)
    there = place(tmp_path, "wait")
    room.begin(["cell_program", str(there.settings), str(there.directory)], there.directory, there.packed())
    while not (seen := room.look(False)).said:
        time.sleep(0.02)
    assert seen.status is None and room.look(False).written is not None  # now and then while it goes on
    seen = until_ended(room, stop=True)
    assert seen.status == 7 and seen.written is not None
    there.replace(seen.written)
    assert (there.directory / "saved").exists()


def test_nothing_is_unpacked_outside_its_directory(tmp_path: Path) -> None:
    content, here = io.BytesIO(), tmp_path / "here"
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(__file__, "../stray")
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(content.getvalue(), here)
    assert not (tmp_path / "stray").exists()


def test_a_process_that_is_killed_leaves_none_and_no_directory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-S", {reaper.__file__!r}, str(os.getpid()), {str(home)!r}], stdin=subprocess.PIPE)
print(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""
    process: Any = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True)
    grandchild = int(process.stdout.readline())
    time.sleep(1.5)  # one look
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 20
    while (reaper.began(grandchild) is not None or home.exists()) and time.monotonic() < end:
        time.sleep(0.05)
    assert reaper.began(grandchild) is None and not home.exists()


class Answers:
    """In place of Ray: what each machine says of its versions; None where it says nothing."""

    def __init__(self, found: dict[str, dict[str, str | None] | None]):
        self._found = found

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"NodeID": "gone", "NodeManagerAddress": "10.0.0.9", "Alive": False}
        return [gone, *({"NodeID": f"id {name}", "NodeManagerAddress": name, "Alive": True} for name in self._found)]

    def remote(self, function: Any) -> Any:
        def options(num_cpus: int, scheduling_strategy: Any) -> Any:
            assert num_cpus == 0 and not scheduling_strategy.soft
            return SimpleNamespace(remote=lambda: scheduling_strategy.node.removeprefix("id "))

        return SimpleNamespace(options=options)

    def wait(self, asked: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == len(asked) and timeout > 0
        return [x for x in asked if self._found[x] is not None], [x for x in asked if self._found[x] is None]

    def get(self, answer: str) -> Any:
        return self._found[answer]


def test_every_machine_of_a_cluster_must_have_the_same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def strategy(node: str, soft: bool) -> Any:
        return SimpleNamespace(node=node, soft=soft)

    for name, module in (
        ("ray", SimpleNamespace()), ("ray.util", SimpleNamespace()),
        ("ray.util.scheduling_strategies", SimpleNamespace(NodeAffinitySchedulingStrategy=strategy)),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    own = crew._probe()()

    def check(second: dict[str, str | None] | None) -> None:
        joined: Any = crew.Crew.__new__(crew.Crew)
        joined._ray = Answers({"10.0.0.1": own, "10.0.0.2": second})
        joined._check_versions()

    check(own)
    says = (
        rf"machine 10\.0\.0\.2 differs from this one: spikedream missing there, {own['spikedream']} here; install the same on both"
    )
    with pytest.raises(ClusterError, match=says):
        check(own | {"spikedream": None})
    with pytest.raises(ClusterError, match=r"machine 10\.0\.0\.2 runs nothing: it has not answered within 60 s"):
        check(None)


def test_without_ray_or_with_seeds_together_a_study_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(crew.importlib.util, "find_spec", lambda name: None)
    asked = ["study", "debug", "--cluster", "--out", str(tmp_path / "out")]
    status, _, error = call(capsys, *asked)
    assert (status, error) == (1, "spikedream: Ray is not installed: pip install 'spikedream[ray]', or leave --cluster out\n")
    status, _, error = call(capsys, *asked, "--together")
    assert status != 0 and "leave out --together or --cluster" in error
