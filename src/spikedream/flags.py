"""Settings as they are written on the command line."""

from dataclasses import is_dataclass
from typing import Any

import yaml

from spikedream.config import ConfigError


def split(arguments: list[str]) -> list[tuple[list[str], list[str]]]:
    """`--a-b.c x y` as (["a_b", "c"], ["x", "y"])."""
    found: list[tuple[list[str], list[str]]] = []
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            flag, given, value = argument.lstrip("-").partition("=")
            found.append((flag.replace("-", "_").split("."), [value] if given else []))
        elif found:
            found[-1][1].append(argument)
        else:
            raise ConfigError(f"{argument!r} is no setting; settings are written as --agent.horizon 20")
    return found


def written(path: list[str]) -> str:
    return "--" + ".".join(path).replace("_", "-")


def single(path: list[str], values: list[str]) -> str:
    if len(values) != 1:
        raise ConfigError(f"{written(path)} takes one value, not {len(values)}")
    return values[0]


def value(path: list[str], values: list[str]) -> Any:
    """As YAML reads it; several values, at least one, are a list."""
    try:
        read = [None if value == "None" else yaml.safe_load(value) for value in values]
    except yaml.YAMLError as error:
        raise ConfigError(f"{written(path)} {' '.join(values)} cannot be read: {' '.join(str(error).split())}") from error
    return read if len(read) > 1 else read[0]


def lacks_value(path: list[str], present: Any) -> ConfigError:
    """Of a flag alone, without which its setting is the `present` one."""
    shown = type(present).__name__ if is_dataclass(present) else present
    return ConfigError(f"{written(path)} takes a value; without the flag it is {shown}")


def put(changes: dict[str, Any], path: list[str], new: Any) -> None:
    """A part's name, or that it is switched on, and its settings may come in any order."""
    *parents, last = path
    for name in parents:
        inner = changes.get(name)
        changes[name] = inner if isinstance(inner, dict) else {} if inner in (None, True) else {"kind": inner}
        changes = changes[name]
    if isinstance(changes.get(last), dict) and isinstance(new, str):
        changes[last]["kind"] = new
    elif not (isinstance(changes.get(last), dict) and new is True):
        changes[last] = new
