"""What operations cost: tables of picojoules, each with its source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml

from spikedream.config import ConfigError, text_of
from spikedream.spelling import suggestion

DEFAULT = "45nm"
ELEMENTARY = ("add", "multiply", "divide", "square_root", "exponential", "random_number")
# What may have a price of its own beside these: all kinds that networks tell of themselves, and what learning adds.
KINDS = (
    "synaptic_operation", "multiply_accumulate", "bias", "neuron_update", "spike", "activation", "layer_normalisation",
    "batch_normalisation", "receptive_field", "membrane_read", "population_vector", "weighted_sum", "influence", "backward",
    "optimizer",
)  # fmt: skip


class EnergyLine(NamedTuple):
    """So many operations of one kind of one part of a network."""

    network: str
    part: str
    kind: str
    arithmetic: tuple[tuple[str, float], ...]  # what one consists of
    number: float


@dataclass(frozen=True)
class PriceTable:
    """Prices of operations. One that has no price of its own costs what it consists of."""

    name: str
    source: str
    picojoules: Mapping[str, float | None]  # None: not known

    def price(self, line: EnergyLine) -> float | None:
        """Picojoules of all operations of a line, or None where the table knows that nobody knows.

        Raises:
            ConfigError: the table lacks an operation.
        """
        if line.kind in self.picojoules:
            each = self.picojoules[line.kind]
            return None if each is None else line.number * each
        missing = [name for name, _ in line.arithmetic if name not in self.picojoules]
        if missing:
            lacks = repr(line.kind) if missing == [line.kind] else f"{missing[0]!r}, of which {line.kind!r} consists"
            raise ConfigError(
                f"energy table {self.name} has no price for {lacks} ({line.network}, {line.part}); name it under operations, in"
                " picojoules, or as null where it is not known"
            )
        prices = [(self.picojoules[name], times) for name, times in line.arithmetic]
        known = [line.number * times * each for each, times in prices if each is not None]
        return sum(known) if len(known) == len(prices) else None

    def check_complete(self) -> None:
        """Raises ConfigError where an elementary operation is missing, whatever is to be counted."""
        missing = [name for name in ELEMENTARY if name not in self.picojoules]
        if missing:
            raise ConfigError(
                f"energy table {self.name} has no price for {', '.join(missing)}; name each under operations, in picojoules, or as"
                " null where it is not known"
            )

    def total(self, lines: Iterable[EnergyLine]) -> "Total":
        known, unknown = 0.0, 0
        for line in lines:
            energy = self.price(line)
            known, unknown = known + (energy or 0.0), unknown + (energy is None and line.number > 0)
        return Total(known, unknown == 0)


class Total(NamedTuple):
    known: float  # picojoules of what has a price
    complete: bool  # whether everything has

    @property
    def picojoules(self) -> float | None:
        return self.known if self.complete else None


def tables() -> dict[str, str]:
    """Those that spikedream brings: name to description, which is the file's first line."""
    files = sorted(resources.files("spikedream.export").joinpath("energy_tables").iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text().splitlines()[0].removeprefix("#").strip() for file in files}


def load(name: str) -> PriceTable:
    """A table that spikedream brings, by its name, or the user's own, by the path of its YAML file.

    Raises:
        ConfigError: there is none, or it is not as it must be.
    """
    if name.endswith((".yaml", ".yml")):
        return parse(text_of(Path(name)), name)
    if name not in tables():
        raise ConfigError(
            f"no energy table {name!r} ({suggestion(name, tables())}); a table of your own is named by its .yaml file"
        )
    return parse(resources.files("spikedream.export").joinpath("energy_tables", f"{name}.yaml").read_text(), name)


def parse(text: str, name: str) -> PriceTable:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"energy table {name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping) or set(data) != {"source", "operations"} or not isinstance(data["operations"], Mapping):
        raise ConfigError(f"energy table {name} must have a `source` and, under `operations`, picojoules by name")
    prices = dict(data["operations"])
    for operation, value in prices.items():
        if operation not in ELEMENTARY + KINDS:
            hint = suggestion(str(operation), ELEMENTARY + KINDS)
            raise ConfigError(f"energy table {name} prices {str(operation)!r}, which is no operation; {hint}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < float("inf")):
            raise ConfigError(f"energy table {name}: {operation} is {value!r}; it must be picojoules, at least 0, or null")
    return PriceTable(name, str(data["source"]), {str(operation): value for operation, value in prices.items()})
