"""The commands in README.md and docs can be called as they stand there, and the benchmarks import what there is."""

import ast
import importlib
import shlex
from pathlib import Path

import pytest

from spikedream.cli import parse_train

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def trainings() -> list[str]:
    lines = (line.strip().partition("#")[0].strip() for file in DOCUMENTS for line in file.read_text().splitlines())
    return sorted({line for line in lines if line.startswith("spikedream train ") and "mine" not in line})  # a reader's own


@pytest.mark.parametrize("command", trainings())
def test_what_is_said_to_be_trained_has_settings_that_go_together(command: str) -> None:
    parse_train(shlex.split(command)[2:]).config.check()


def test_the_documents_say_what_to_train() -> None:
    assert len(trainings()) > 10


def imports(script: Path) -> list[tuple[str, str | None]]:
    """Modules of ours that it imports, wherever in it, and the names it takes from them."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.partition(".")[0] == "spikedream"]


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_a_benchmark_imports_what_there_is(script: Path) -> None:
    lacking, extras = [], set()
    for module, name in imports(script):
        try:
            there = importlib.import_module(module)
            if name is not None and not hasattr(there, name):
                importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] == "spikedream":
                lacking.append(f"{module}: {name}")
            else:
                extras.add(str(error.name))
    assert not lacking
    if extras:
        pytest.skip(f"not installed: {', '.join(sorted(extras))}")


def test_benchmarks_import_something() -> None:
    assert sum(len(imports(script)) for script in BENCHMARKS) > 50
