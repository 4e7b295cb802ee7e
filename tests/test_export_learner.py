"""The learner in C learns what JAX learns, and learns CartPole-v1 where the environment is there too."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_resume import Notes

import spikedream
from spikedream import config as configuration
from spikedream.cli import main
from spikedream.config import Config, named
from spikedream.experiments.embedded import measure
from spikedream.experiments.grid import Cell
from spikedream.export.emulator import BOARDS, missing, train_on
from spikedream.nodes import Unexportable

TINY = {
    "budget": 40, "collect": {"steps": 40}, "evaluation": {"episodes": 1, "confirmations": 0}, "threshold": 1e9,
    "replay": {"capacity": 100},
}  # fmt: skip

DREAMS = {
    "dynamics": {"hidden": [12], "neuron": {"surrogate": "Triangular"}},
    "steps": 2,
    "rehearsals": 2,
    "begin": 20,
    "begin_remembered": 0.6,
}


def drawn(place: Path, dyna: dict | None = None, average: dict | None = None, **network) -> spikedream.Run:
    changes = TINY | {"agent": {"actor": network, "critic": network, "dyna": dyna, "average": average}}
    return spikedream.train(configuration.merge(named("online-cartpole"), changes), out=place, listener=Notes(), report=False)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    "network",
    [
        {"hidden": [12], "neuron": {"surrogate": "Triangular"}},
        {"hidden": [8], "ticks": 3, "encoder": "DirectCurrent", "neuron": {"reset": "hard", "learn_decay": False}},
        {"hidden": [8], "encoder": "DirectCurrent", "rule": {"kind": "EProp", "reset": False}},
    ],
    ids=["receptive fields", "currents, hard reset", "e-prop"],
)
def test_what_is_learned_in_c_is_what_is_learned_in_jax(network: dict, tmp_path: Path) -> None:
    done = spikedream.export_learner(drawn(tmp_path / "run", **network), vectors=8)
    assert {file.name for file in done.directory.iterdir()} == {
        "README.md", "Makefile", "arithmetic.h", "cartpole.h", "functions.h", "learner.c", "learner.h", "network.c", "network.h",
        "neuron.h", "selftest.c", "settings.h", "start.h", "train.c", "vectors.h",
    }  # fmt: skip
    tested = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
    assert tested.returncode == 0 and tested.stdout.split() == ["right"] * 8 + ["passed"], tested.stdout + tested.stderr
    assert f"= {sizeof(done.directory)} bytes of state" in (done.directory / "README.md").read_text()
    subprocess.run(["make", "-s", "-C", str(done.directory), "train"], check=True)
    vectors = done.directory / "vectors.h"
    vectors.write_text(
        vectors.read_text().replace("{0, 0, 0}, {0, 0, 0}", "{1, 1, 1}, {0, 0, 0}")
    )  # as if the task ended each time
    assert subprocess.run(["make", "-s", "-B", "-C", str(done.directory), "test"], capture_output=True).returncode != 0


def sizeof(directory: Path) -> int:
    """Bytes of `struct learner` here."""
    program = '#include <stdio.h>\n#include "learner.h"\nint main(void) { printf("%zu", sizeof(struct learner)); }'
    (directory / "size.c").write_text(program)
    subprocess.run(["cc", "size.c", "-o", "size"], cwd=directory, check=True)
    return int(subprocess.run(["./size"], cwd=directory, capture_output=True, text=True).stdout)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_what_is_dreamed_in_c_is_what_is_dreamed_in_jax(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", DREAMS, {"degree": 9.0}, hidden=[8], encoder="DirectCurrent")
    done = spikedream.export_learner(run, vectors=6, dyna=True)
    tested = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
    assert tested.returncode == 0 and tested.stdout.split() == ["right"] * 6 + ["passed"], tested.stdout + tested.stderr
    settings = done.directory / "settings.h"
    right = settings.read_text()
    for wrong in ("MODEL_LEARNING_RATE 0.5f * ", "LEARNER_AVERAGE_DEGREE 0.5f * "):  # half as fast, half the degree
        settings.write_text(right.replace(wrong.split()[0] + " ", wrong))
        assert subprocess.run(["make", "-s", "-B", "-C", str(done.directory), "test"], capture_output=True).returncode != 0
    assert "learner_dream(&learner)" in (done.directory / "README.md").read_text()
    with pytest.raises(Unexportable, match="add --dyna"):
        spikedream.export_learner(run)


def test_a_learner_that_rounding_decides_everywhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikedream.export.learner_vectors._margin", lambda *_: 0.0)
    monkeypatch.setattr("spikedream.export.learner_vectors.PATIENCE", 3)
    run = drawn(tmp_path / "run", hidden=[8], encoder="DirectCurrent")
    with pytest.raises(Unexportable, match="every stretch of steps is too close to call: 3 of 3"):
        spikedream.export_learner(run, vectors=1)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"hidden": [6, 6]}, "one hidden layer"),
        ({"neuron": {"learn_threshold": True}}, "fixed thresholds"),
        ({"encoder": {"mode": "deterministic"}}, "mode current"),
        ({"rule": {"kind": "EProp", "feedback": "random"}}, "feedback symmetric"),
    ],
)
def test_what_has_no_form_there_is_refused_by_name(network: dict, says: str) -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from spikedream.export.learner import export_learner
    from spikedream.spec import Spec

    config = configuration.merge(named("online-cartpole"), {"agent": {"actor": network, "critic": network}})
    spec = Spec(4, 2, discrete=True)
    run = cast(Any, SimpleNamespace(algorithm=config.algorithm(spec), spec=spec, config=config))
    with pytest.raises(Unexportable, match=says):
        export_learner(run)
    run.algorithm = Config().algorithm(spec)
    with pytest.raises(Unexportable, match="agents that learn from each step, StreamActorCritic, not Dreamer"):
        export_learner(run)


def test_a_learner_that_a_board_cannot_hold_is_refused_before_it_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOARDS, "cortex-m3", replace(BOARDS["cortex-m3"], ram=2048))
    run = drawn(tmp_path / "run", hidden=[12], encoder="DirectCurrent")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.directory), "--learner", "--board", "cortex-m3", "--vectors", "1"])
    said = capsys.readouterr()
    assert stop.value.code == 1 and "numbers that learn" in said.out
    assert said.err.startswith("spikedream: cortex-m3 has 2 KiB of RAM, and this learner needs about 3 KiB; a smaller one")


@pytest.mark.embedded
@pytest.mark.parametrize("board", BOARDS)
def test_a_board_learns_the_bits_that_this_machine_learns(board: str, tmp_path: Path) -> None:
    assert missing(BOARDS[board]) is None
    done = spikedream.export_learner(drawn(tmp_path / "run", hidden=[32], neuron={"surrogate": "Triangular"}), vectors=1)
    there = train_on(done.directory, BOARDS[board], steps=1000, every=500, episodes=5)
    assert learned_here(done.directory, 1000) == there.hash and there.ram <= 48 << 10 and there.code <= 8 << 10


@pytest.mark.embedded
@pytest.mark.parametrize("board", BOARDS)
def test_a_board_dreams_the_bits_that_this_machine_dreams(board: str, tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", {"steps": 2, "begin": 20}, hidden=[32], neuron={"surrogate": "Triangular"})
    done = spikedream.export_learner(run, vectors=1, dyna=True)
    there = train_on(done.directory, BOARDS[board], steps=40, every=40, episodes=1)
    assert learned_here(done.directory, 40, 1) == there.hash and there.ram <= 64 << 10
    assert there.learning > 2 * there.deciding > 0


def learned_here(directory: Path, steps: int, episodes: int = 5) -> int:
    """The hash of what this machine learns."""
    flags = f"CFLAGS=-O2 -DSEED=1u -DSTEPS={steps} -DEVERY={min(steps, 500)} -DEPISODES={episodes}"
    subprocess.run(["make", "-s", "-B", "train", flags], cwd=directory, check=True)
    return int(subprocess.run(["./train"], cwd=directory, capture_output=True, text=True).stdout.split()[-1])


@pytest.mark.embedded
def test_what_the_table_of_embedded_systems_says_of_a_learner_and_of_a_twin(tmp_path: Path) -> None:
    learner = measure(cell(drawn(tmp_path / "learner", hidden=[8])), BOARDS["cortex-m4"], "45nm")
    assert learner.lacking is None and None not in learner.scores.values()
    assert 0 < learner.scores["instructions a decision"] < learner.scores["instructions a learning step"]
    changes = TINY | {"agent": {"actor": "MLP", "critic": "MLP"}}
    twin = spikedream.train(configuration.merge(named("online-cartpole"), changes), out=tmp_path / "twin", report=False)
    found = measure(cell(twin), BOARDS["cortex-m4"], "45nm").scores
    assert found["instructions a decision"] and found["instructions a learning step"] is None and found["firing rate"] is None


def cell(run: spikedream.Run) -> Cell:
    return Cell(run.config.env, "m", run.config.seed, run.config, run.directory)
