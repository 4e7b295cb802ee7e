"""Parallel runs in real processes, and what happens to them: parts are killed, hang, or bring rubbish; the disk is full; the run is
stopped. `make test-extras`."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spikedream.runs.run import Run

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

TESTS = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "env": "environments:Waits-v0", "threshold": 1e9, "budget": 2000,
    "evaluation": {"episodes": 2}, "collect": {"seed_episodes": 2, "steps": 20},
    "improve": {"first": 2, "then": 2, "block": 1},
    "world_model": {"members": 1, "updates": 8, "dynamics": {"hidden": [8], "ticks": 2}},
    "agent": {"trajectories": 8, "horizon": 3},
    "runner": {"kind": "Parallel", "collectors": 2, "rows": 8},
}  # fmt: skip


class Process:
    """A run of the command line in a process group of its own, and its descendants."""

    def __init__(self, *arguments: str, begin: Sequence[str] = (sys.executable, "-m", "spikedream")):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        environment.pop("XLA_FLAGS", None)
        self.popen = subprocess.Popen(
            [*begin, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        self.seen: set[int] = set()

    def descendants(self) -> dict[int, str]:
        """Process id to command line, of all that live."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        found, front = set(), {self.popen.pid}
        while front:
            front = {pid for pid, parent in parents.items() if parent in front and pid not in found}
            found |= front
        self.seen |= found
        return {pid: names[pid] for pid in found}

    def parts(self, kind: str) -> list[int]:
        return [pid for pid, name in self.descendants().items() if name.startswith(f"ray::{kind}")]

    def kill(self, *kinds: str) -> int:
        """By SIGKILL, all of these kinds at once; how many there were."""
        victims = [pid for kind in kinds for pid in self.parts(kind)]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(victims)

    def until(self, condition: Callable[[], Any], seconds: float = 180) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            assert self.popen.poll() is None, self.popen.communicate()
            time.sleep(0.05)
        raise AssertionError(f"nothing within {seconds} s; {self.descendants()}")

    def end(self, seconds: float = 240) -> tuple[int, str, str]:
        self.descendants()
        out, error = self.popen.communicate(timeout=seconds)
        return self.popen.returncode, out, error

    def left(self) -> list[int]:
        """Descendants that outlived it, which have a minute to go."""
        end = time.monotonic() + 60  # Ray's own agents look for their parent now and then
        while time.monotonic() < end:
            alive = [pid for pid in self.seen if Path(f"/proc/{pid}/stat").exists() and not _zombie(pid)]
            if not alive:
                return []
            time.sleep(0.1)
        return alive


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a run in `tmp_path / "run"`; whatever it leaves is ended after the test."""
    processes = []

    def start(**changes: Any) -> Process:
        file = tmp_path / "settings.yaml"
        data = json.loads(json.dumps(SETTINGS))
        for name, value in changes.items():
            data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(data))
        processes.append(Process("train", str(file), "--out", str(tmp_path / "run")))
        return processes[-1]

    yield start
    for process in processes:
        for pid in [*process.descendants(), *process.seen, process.popen.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        process.popen.communicate()


def rows(directory: Path) -> list[dict[str, Any]]:
    file = directory / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_whole(directory: Path, budget: int) -> dict[str, Any]:
    """Checks that every step that counts is there, once, in order; the result."""
    run = Run(directory)
    assert run.result is not None and run.counters["finished"]
    steps = run.experience().in_order()
    environments = steps.reward.shape[1]
    assert run.counters["real_steps"] - steps.reward.size < environments  # what fills no row waits in the checkpoint
    assert run.counters["real_steps"] >= budget
    ended = np.maximum(steps.terminated, steps.truncated)[:-1] > 0
    follows = (np.asarray(steps.next_obs)[:-1] == np.asarray(steps.obs)[1:]).all(-1)
    assert (follows | ended).all()
    return run.result


def test_a_run_in_many_processes_ends_and_leaves_none_of_them(train, tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("spikedream-*"))
    process = train(budget=300)
    process.until(lambda: len(process.parts("Collecting")) == 2)
    status, out, error = process.end()
    assert status == 0, error
    assert "environments:Waits-v0" in out and error == ""
    is_whole(tmp_path / "run", 300)
    assert {f.name for f in (tmp_path / "run").iterdir()} >= {
        "config.yaml",
        "result.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert process.left() == [] and set(Path("/tmp").glob("spikedream-*")) == before


KINDS = ("Collecting", "Modelling", "Dreaming", "Evaluating")


def test_whatever_is_killed_the_run_goes_on_and_nothing_is_lost(train, tmp_path: Path) -> None:
    process = train(budget=4000, env_kwargs={"seconds": 0.01})
    process.until(lambda: len(rows(tmp_path / "run")) >= 1)
    killed = 0
    for kinds in (*((kind,) for kind in KINDS), ("Modelling", "Dreaming"), KINDS):
        at = len(rows(tmp_path / "run"))
        process.until(lambda kinds=kinds: all(len(process.parts(kind)) == 1 + (kind == "Collecting") for kind in kinds))
        killed += process.kill(*kinds)
        process.until(lambda at=at: len(rows(tmp_path / "run")) > at + 1)
    status, _, error = process.end()
    assert status == 0, error
    is_whole(tmp_path / "run", 4000)
    last = rows(tmp_path / "run")[-1]
    assert killed >= 11 and last["parallel/restarts"] >= killed - 4 and last["parallel/refused"] == 0
    assert process.left() == []


def test_an_environment_that_hangs_is_given_up_for_a_fresh_one(train, tmp_path: Path) -> None:
    process = train(
        budget=1000, env_kwargs={"once": str(tmp_path / "claimed"), "seconds": 0.02}, runner={"step_seconds": 1.0}
    )  # fmt: skip
    status, out, error = process.end()
    assert status == 0, error
    assert "is started anew: no answer within" in out
    is_whole(tmp_path / "run", 1000)


def test_a_collector_that_always_fails_ends_the_run_with_one_line(train, tmp_path: Path) -> None:
    process = train(
        env="environments:NanObservation-v0", collect={"seed_steps": 100, "steps": 100},
        runner={"failures": 3, "rows": 64, "seconds": 10.0},
    )  # fmt: skip
    status, _, error = process.end()
    assert status == 1 and error.count("\n") == 1
    assert (
        "failed 3 times, one right after the other: environments:NanObservation-v0 returned an observation that is not finite"
        in error
    )
    assert process.left() == [] and Run(tmp_path / "run").counters["real_steps"] == 0  # a checkpoint is there


def test_rubbish_is_refused_counted_and_its_collector_started_anew(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}]
import spikedream, yaml
from rubbish import Rubbish
from spikedream.runners import parallel
parallel.Collecting = Rubbish
config = spikedream.config.load(__import__("pathlib").Path({str(tmp_path / "settings.yaml")!r}))
spikedream.train(config, out={str(tmp_path / "run")!r}, report=False)
"""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS | {"budget": 200}))
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    is_whole(tmp_path / "run", 200)
    assert rows(tmp_path / "run")[-1]["parallel/refused"] >= 2


def test_with_a_full_disk_the_run_goes_on_and_is_saved_when_there_is_room(train, tmp_path: Path) -> None:
    process = train(budget=1500, env_kwargs={"seconds": 0.02})  # it must not be through before there is room
    process.until(lambda: len(rows(tmp_path / "run")) >= 2)
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    hard = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (size // 2, hard))  # as a full disk, to this process
    time.sleep(6)
    assert process.popen.poll() is None
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (hard, hard))
    status, out, error = process.end()
    assert status == 0, error
    assert "the run goes on and tries again" in out
    is_whole(tmp_path / "run", 1500)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_is_saved_and_goes_on(name: str, train, tmp_path: Path) -> None:
    process = train(budget=1000, env_kwargs={"seconds": 0.01})
    process.until(lambda: len(rows(tmp_path / "run")) >= 2)
    process.descendants()
    if name == "SIGINT":
        os.killpg(process.popen.pid, signal.SIGINT)  # as a terminal does
    else:
        process.popen.send_signal(signal.SIGTERM)
    status, _, error = process.end(60)
    assert status == 130 and "go on with: spikedream resume" in error and error.count("\n") == 1
    assert process.left() == []
    stopped = Run(tmp_path / "run").counters["real_steps"]
    again = Process("resume", str(tmp_path / "run"))
    status, _, error = again.end()
    assert status == 0, error
    assert is_whole(tmp_path / "run", 1000)["real_steps"] > stopped > 0
    assert again.left() == []


def test_when_the_driver_is_killed_its_processes_end_and_the_run_resumes(train, tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("spikedream-*"))
    process = train(budget=1000, env_kwargs={"seconds": 0.01})
    process.until(lambda: len(list((tmp_path / "run" / "checkpoints").glob("*.json"))) >= 2)
    process.descendants()
    process.popen.kill()
    process.popen.communicate()
    assert process.left() == [] and set(Path("/tmp").glob("spikedream-*")) == before
    saved = Run(tmp_path / "run")
    held, known = saved.experience().in_order(), saved.counters["real_steps"]
    assert known > 0
    again = Process("resume", str(tmp_path / "run"))
    status, _, error = again.end()
    assert status == 0, error
    assert is_whole(tmp_path / "run", 1000)["real_steps"] > known and again.left() == []
    after = Run(tmp_path / "run").experience().in_order()
    number = held.reward.shape[0]
    for name in ("obs", "action", "reward", "next_obs", "terminated"):  # what the checkpoint held is there, in its place
        np.testing.assert_array_equal(np.asarray(getattr(after, name))[:number], np.asarray(getattr(held, name)))


def test_when_ray_dies_one_line_says_so_and_what_was_collected_is_kept(train, tmp_path: Path) -> None:
    process = train(budget=100_000, env_kwargs={"seconds": 0.01})
    process.until(lambda: len(rows(tmp_path / "run")) >= 2)
    [raylet] = [pid for pid, name in process.descendants().items() if "raylet/raylet" in name.split(" ")[0]]
    os.kill(raylet, signal.SIGKILL)
    status, _, error = process.end(120)
    assert status != 0 and len(error.strip().splitlines()) <= 2, error
    assert Run(tmp_path / "run").counters["real_steps"] > 0
    assert process.left() == []


# ---- clusters


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of one machine."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"
    home = Path("/tmp") / f"sdc-{os.getpid()}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", "26379", "--num-cpus", "2", "--block"]
    command += ["--temp-dir", str(home), "--include-dashboard", "false", "--disable-usage-stats"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    time.sleep(10)
    assert head.poll() is None, head.communicate()
    yield "127.0.0.1:26379"
    head.terminate()
    head.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    subprocess.run(["rm", "-rf", str(home)], check=False)


def test_a_cluster_is_joined_by_its_address(train, tmp_path: Path, cluster: str) -> None:
    process = train(budget=300, runner={"address": cluster})
    status, _, error = process.end()
    assert status == 0, error
    is_whole(tmp_path / "run", 300)


def test_a_cluster_of_another_version_is_refused(cluster: str) -> None:
    program = f"""
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "9.9.9" if name == "spikedream" else real(name)
from spikedream.cli import main
main(["train", "debug", "--runner", "Parallel", "--runner.address", {cluster!r}])
"""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "src")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "spikedream 0.1.0 there, 9.9.9 here; install the same on both" in done.stderr


STUDY = {
    "name": "small", "seeds": 2, "environments": {"CartPole-v1": {"budget": 60, "max_episode_steps": 30, "threshold": 1e9}},
    "methods": {"mlp": {"bonus": None, "action_repeat": 1, **{name: SETTINGS[name] for name in ("collect", "improve", "agent")},
                        "world_model": SETTINGS["world_model"] | {"dynamics": {"kind": "MLP", "hidden": [8]}}}},
}  # fmt: skip


@pytest.mark.parametrize("where", ["here", "there", "where nothing is seen"])
def test_a_study_runs_on_a_cluster_and_goes_on_after_it_was_stopped(where: str, tmp_path: Path, request, monkeypatch) -> None:
    if where != "here":
        monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("cluster"))
    study, out = tmp_path / "small.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(STUDY))
    command = ["study", str(study), "--cluster", "--jobs", "2", "--out", str(out)]
    if where == "where nothing is seen":  # as on machines that share no directory
        program = "import sys; from spikedream.experiments import cluster; cluster.Place.seen_by = lambda *_: False;"
        begin = [sys.executable, "-c", f"{program} from spikedream.cli import main; main(sys.argv[1:])"]
    else:
        begin = [sys.executable, "-m", "spikedream"]
    process = Process(*command, begin=begin)
    process.until(lambda: list(out.glob("*/mlp/s*/config.yaml")) or list(out.glob("*/mlp/s*.log")))
    if where == "here":
        process.popen.send_signal(signal.SIGINT)
        status, told, error = process.end(90)
        assert status == 130 and "the same command goes on with it" in told and process.left() == [], error
        process = Process(*command, begin=begin)
    status, told, error = process.end()
    assert status == 0, (told, error)
    results = sorted(out.glob("CartPole-v1/mlp/s*/result.json"))
    assert len(results) == 2 and all(json.loads(file.read_text())["real_steps"] == 60 for file in results)
    assert {file.name for file in results[0].parent.parent.iterdir() if file.is_file()} <= {"s0.log", "s1.log"}
    assert all(Run(file.parent).experience().count == 60 for file in results) and (out / "index.html").exists()
    assert process.left() == []


def test_a_cluster_with_one_machine_of_another_version_is_refused(cluster: str, tmp_path: Path) -> None:
    other = tmp_path / "spikedream-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: spikedream\nVersion: 9.9.9\n")
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(TESTS.parent / "src")])
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", cluster, "--num-cpus", "0", "--block"]
    machine = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        time.sleep(10)
        assert machine.poll() is None, machine.communicate()
        process = Process("train", "debug", "--runner", "Parallel", "--runner.address", cluster, "--out", str(tmp_path / "run"))
        status, _, error = process.end(120)
    finally:
        machine.terminate()
        machine.wait(30)
    assert status == 1 and error.count("\n") == 1 and not (tmp_path / "run").exists(), error
    assert "differs from this one: spikedream 9.9.9 there" in error


def test_a_study_where_no_cluster_is_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    status, _, error = Process("study", "debug", "--cluster", "--out", str(tmp_path / "out")).end(60)
    assert status == 1 and "no Ray cluster answers at 127.0.0.1:9" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"), ("somewhere", "it looks like 10.0.0.1:6379")],
)
def test_an_address_where_no_cluster_is_is_one_line_and_soon(address: str, says: str, tmp_path: Path) -> None:
    process = Process("train", "debug", "--runner", "Parallel", "--runner.address", address, "--out", str(tmp_path / "run"))
    status, _, error = process.end(60)
    assert status == 1 and says in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_environment_that_cannot_be_copied_is_said_before_anything_is_started(tmp_path: Path) -> None:
    program = f"""
import threading, gymnasium, spikedream
from gymnasium.envs.classic_control import CartPoleEnv
lock = threading.Lock()
gymnasium.register("Mine-v0", lambda **kwargs: CartPoleEnv() if lock else None, max_episode_steps=50)
from spikedream.cli import main
main(["train", "Mine-v0", "--runner", "Parallel", "--out", {str(tmp_path / "run")!r}])
"""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "src")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "Mine-v0 cannot be copied to another process" in done.stderr and "name it as module:Id-v0" in done.stderr
