"""Run directories that are written by hand, and the command line called in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from spikedream.cli import main

CURVE = ((10, 0.0), (20, 100.0))  # real steps and return of the turns


def write_run(directory: Path, turns: Any = CURVE, finished: bool = True, threshold: float | None = 90.0, **settings: Any) -> Path:
    """A run directory: solved at its last turn if that reaches the threshold; a second of wall time each real step."""
    directory.mkdir(parents=True)
    config = {"preset": "p", "env": "CartPole-v1", "env_kwargs": {}, "max_episode_steps": None, "seed": 0, "threshold": threshold}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | settings))
    rows = [{"turn": i, "real_steps": x, "eval_return_mean": y, "wall_seconds": float(x)} for i, (x, y) in enumerate(turns)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        solved = threshold is not None and rows[-1]["eval_return_mean"] >= threshold
        result = rows[-1] | {
            "fresh_return_mean": rows[-1]["eval_return_mean"],
            "budget": 20,
            "threshold": threshold,
            "solved": solved,
            "real_steps_to_solve": rows[-1]["real_steps"] if solved else None,
        }
        (directory / "result.json").write_text(json.dumps(result))
    return directory


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `spikedream ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 1, captured.out, captured.err
