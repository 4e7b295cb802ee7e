"""The commands in README.md and docs can be called as they stand there."""

import shlex
from pathlib import Path

import pytest

from spikedream.cli import parse_train

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def trainings() -> list[str]:
    lines = (line.strip().partition("#")[0].strip() for file in DOCUMENTS for line in file.read_text().splitlines())
    return sorted({line for line in lines if line.startswith("spikedream train ") and "mine" not in line})  # a reader's own


@pytest.mark.parametrize("command", trainings())
def test_what_is_said_to_be_trained_has_settings_that_go_together(command: str) -> None:
    parse_train(shlex.split(command)[2:]).config.check()


def test_the_documents_say_what_to_train() -> None:
    assert len(trainings()) > 10
