"""Which runs repeat one another, and what to call them: from their configurations as plain data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikedream.config import ConfigError, to_data
from spikedream.spelling import nearest

ABSENT = "none"  # how a setting is written that a run does not have


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names: `{"agent": {"horizon": 15}}` to `{"agent.horizon": 15}`."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings, by dotted names, that are not the same in all; a setting that is missing is None."""
    names = sorted({name for s in settings for name in s})
    return [name for name in names if any(s.get(name) != settings[0].get(name) for s in settings)]


def check_unchanged(directory: Path, there: Any, wanted: Any) -> None:
    """Raises ConfigError where the configuration of the run in `directory` is not the `wanted` one."""
    if there != wanted:
        old, new = (flatten(to_data(config)) for config in (there, wanted))
        name = differing([old, new])[0]
        raise ConfigError(
            f"{directory} holds a run with other settings ({name} is {old.get(name)} there, {new.get(name)} is wanted);"
            " delete it, or give another --out"
        )


def group(
    configs: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]], by: str | None
) -> tuple[list[str], list[str]]:
    """The fields that tell the methods apart, and each run's method by name.

    Args:
        configs: each run's configuration, nested.
        settings: the same by dotted names, without the seed.
        by: the field to group by; by default the runs of one method differ only in seed, and the preset's name or as few settings
            as possible tell the methods apart.

    Raises:
        ConfigError: no run has the field `by`.
    """
    if by is not None:
        field = _known(by.replace("-", "_"), configs, settings)
        return [field], [_text(field, [field], _value(config, field)) for config in configs]
    fields = _distinguishing(settings)
    if not fields:
        return [], [str(configs[0].get("preset", configs[0]["env"]))] * len(configs)
    return fields, [", ".join(_text(f, fields, s.get(f)) for f in fields) for s in settings]


def _known(field: str, configs: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> str:
    if any(_value(config, field) is not None for config in configs):
        return field
    known = sorted({"seed"} | {name for s in settings for name in s})
    if field in known:  # None in every run
        return field
    near = nearest(field, known, cutoff=0.0)
    raise ConfigError(f"no run has a setting {field!r}; the nearest is {near[0]!r}")


def _value(config: Mapping[str, Any], field: str) -> Any:
    """Of a setting, or of a part (then its kind)."""
    value: Any = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value.get("kind") if isinstance(value, Mapping) else value


def _distinguishing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few fields as tell apart all runs that differ: each one taken splits further; the preset's name first, then kinds of
    parts, then settings near the root."""
    candidates = differing(settings)
    wanted = len({_key(s, candidates) for s in settings})
    chosen: list[str] = []
    for name in sorted(candidates, key=lambda n: (n != "preset", not n.endswith("kind"), n.count("."), n)):
        parts = len({_key(s, chosen) for s in settings})
        if parts == wanted:
            break
        if len({_key(s, [*chosen, name]) for s in settings}) > parts:
            chosen.append(name)
    return chosen


def _key(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return repr([settings.get(name) for name in names])


def _text(field: str, fields: Sequence[str], value: Any) -> str:
    """A preset's name stands alone; other settings as name=value, the name as short as the other `fields` allow."""
    text = ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    if field == "preset":
        return text
    others = [f.removesuffix(".kind") for f in fields if f != field]
    words = field.removesuffix(".kind").split(".")
    for count in range(1, len(words) + 1):
        name = ".".join(words[-count:])
        if not any(f"{other}".endswith(f".{name}") or other == name for other in others):
            break
    return f"{name}={text}"
