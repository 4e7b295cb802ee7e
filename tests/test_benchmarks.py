"""What benchmarks record is what was asked for."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from spikedream import config as configuration
from spikedream.types import Spec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ARGUMENTS = {"preset": "hopper", "steps": 100, "every": 50, "seed": 0, "first": None}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_recorded_command_names_what_is_not_at_its_default(script) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", type=Path, metavar="PYTHON")
    parser.add_argument("--parts", nargs="+", default=["update"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(
        ["--torch", "/here/python", "--parts", "model update", "step", "--turns", "1", "--autocast", "--record"]
    )
    command = script("called").called("/anywhere/x.py", parser, given)
    assert command == "python benchmarks/x.py --torch PYTHON --parts 'model update' step --turns 1 --autocast"


def test_results_of_other_arguments_are_refused(script, tmp_path: Path) -> None:
    mbpo: ModuleType = script("mbpo")
    for _ in range(2):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"out holds results with --seed 0 and not 1; choose another --out"):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS | {"seed": 1}), tmp_path / "out")
    (tmp_path / "ours.json").write_text("[]")
    with pytest.raises(SystemExit, match="nobody knows the arguments"):
        mbpo.keep_arguments(argparse.Namespace(**ARGUMENTS), tmp_path)


def test_a_preset_of_other_sizes_than_pytorch_has_is_refused(script) -> None:
    pytorch: ModuleType = script("pytorch")
    pytorch.same_sizes(configuration.named("popsan-halfcheetah"), Spec(17, 6, False))
    with pytest.raises(SystemExit, match=r"popsan-ant .* env Ant-v4 and not HalfCheetah-v4, observation 27 .*, members 5"):
        pytorch.same_sizes(configuration.named("popsan-ant"), Spec(27, 8, False))
