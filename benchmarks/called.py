"""The command that a benchmark records, for what has to run in another Python too: the standard library alone."""

import argparse
import shlex
from collections.abc import Collection
from pathlib import Path


def called(script: str, parser: argparse.ArgumentParser, given: argparse.Namespace, without: Collection[str] = ("record",)) -> str:
    """Each argument that is not at its default, but for those `without`; a path is told by what it stands for."""
    words = ["python", f"benchmarks/{Path(script).name}"]
    for action in parser._actions:
        value = getattr(given, action.dest, action.default)
        if value == action.default or action.dest in without:
            continue
        words.append(action.option_strings[-1])
        if isinstance(value, Path):
            words.append(str(action.metavar))
        elif value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)
