"""Whether runs fit into the memory where they learn."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from small import CONTINUOUS, small

from spikedream import config as configuration
from spikedream import training
from spikedream.agents.dreams import Dreams
from spikedream.agents.off_policy import OffPolicy
from spikedream.algorithm import Algorithm
from spikedream.replay.ring import ReplayBuffer
from spikedream.runners.together import Together
from spikedream.runs import memory
from spikedream.world_models.ensemble import Ensemble

DREAMS = Dreams(starts=4, horizon=2, capacity=1_000_000, trust=None)  # of 3 + 1 + 1 + 3 + 1 + 1 numbers a step
ALGORITHM = Algorithm(CONTINUOUS, small(Ensemble()), small(OffPolicy(dreams=DREAMS)), None, ReplayBuffer(100), 1)
RING = 40_000_000  # bytes


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "physical_bytes", lambda: 2 * RING)


def test_seeds_that_run_together_need_their_memory_together() -> None:
    memory.check_memory(ALGORITHM)
    with pytest.raises(ValueError, match=r"2 seeds together would hold 0.1 GiB, and this machine has 0.1: .* run fewer of them"):
        memory.check_memory(ALGORITHM, 2)


def test_they_are_counted_before_the_first_of_them_is_made(tmp_path: Path) -> None:
    settings = {"env": "Pendulum-v1", "agent": {"kind": "OffPolicy", "dreams": {"kind": "Dreams", "capacity": 1_500_000}}}
    config = configuration.merge(configuration.Config(), settings)
    with pytest.raises(ValueError, match=r"2 seeds together .*: its largest array is agent.dreams.ring.obs; lower"):
        Together([config, config], [tmp_path / "a", tmp_path / "b"], [training._Silence()] * 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stats", [{"bytes_limit": RING // 2}, {}, None])
def test_where_an_accelerator_trains_its_memory_counts(stats: dict | None, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    if stats:
        with pytest.raises(ValueError, match=r"this run would hold 0.0 GiB, and the accelerator has 0.0: its largest"):
            memory.check_memory(ALGORITHM)
        monkeypatch.setattr(memory, "physical_bytes", lambda: 1)  # it does not learn there
        stats["bytes_limit"] = 4 * RING
    memory.check_memory(ALGORITHM)
