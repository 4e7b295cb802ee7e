"""What a run's decisions and its learning take, as `spikedream.export.energy` counts and prices it: for terminal and page."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spikedream.reports.page import html_table, note

UNITS = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
UNKNOWN = "unknown"
SHOWN = {"synaptic_operation": "synaptic operations", "multiply_accumulate": "MACs", "neuron_update": "neuron updates"}
MEASURES = {
    "footprint": "footprint in bytes", "connection_sparsity": "connection sparsity", "activation_sparsity": "activation sparsity",
    "effective_macs": "effective MACs", "effective_acs": "effective ACs", "dense": "dense operations",
    "membrane_updates": "membrane updates",
}  # fmt: skip
NOTES = (
    "A decision: the mean over {decisions} of the greedy policy, by the spikes that occurred. Learning: all calls so far, by the"
    " spikes of the trained networks on replayed steps. The twin has conventional networks of the same sizes with every weight, the"
    " linear policy one weight for each observation and action. Arithmetic alone: no memory access, unless the table says so."
)


def show_energy(found: Mapping[str, Any], console: Console) -> None:
    told = (escape(found["table"][x].strip()) for x in ("name", "source"))
    console.print("[bold]{}[/]: {}".format(*told), highlight=False)
    console.print()
    console.print(_decision(found))
    console.print()
    console.print(_operations(found))
    console.print()
    console.print(_learning(found))
    console.print()
    if found["firing_rate"]:
        rates = ", ".join(f"{name} {rate:.1%}" for name, rate in found["firing_rate"].items())
        console.print(f"Firing, spikes per neuron and tick: {rates}.", highlight=False)
    sizes = ", ".join(
        f"{name} {_bytes(held['parameters'])} + {_bytes(held['state'])}" for name, held in found["memory_bytes"].items()
    )
    console.print(f"Memory, parameters + state: {sizes}.", highlight=False)
    for name, measures in found["neurobench"].items():
        told = ", ".join(f"{MEASURES[measure]} {value:,.4g}" for measure, value in measures.items() if value is not None)
        console.print(f"NeuroBench, {name}: {told}.", highlight=False)
    console.print(NOTES.format(decisions=found["decisions"]), style="dim", highlight=False)


def amount(picojoules: float | None, known: float = 0.0) -> str:
    """With its unit; where not everything has a price, that it is more than what has one."""
    if picojoules is None:
        return f"> {amount(known)}" if known else UNKNOWN
    size, unit = next(((size, unit) for size, unit in UNITS if picojoules >= size), UNITS[-1])
    return f"{picojoules / size:.3g} {unit}" if picojoules < 999.5 * size else f"{picojoules / size:,.0f} {unit}"


def _decision(found: Mapping[str, Any]) -> Table:
    decision = found["decision"]
    table = _table("a decision", "energy", "of twin", *SHOWN.values())
    twin = decision["twin"]["picojoules"]
    for name, counted in decision.items():
        energy, numbers = counted["picojoules"], counted["operations"]
        share = "" if name == "twin" or not twin or energy is None else f"{energy / twin:.2f}"
        told = (numbers.get(kind, 0) for kind in ("synaptic_operation", "multiply_accumulate", "neuron_update"))
        table.add_row(
            name.replace("_", " "), amount(energy, counted["known_picojoules"]), share, *(f"{number:,.0f}" for number in told)
        )
    return table


def _operations(found: Mapping[str, Any]) -> Table:
    """Of the policy, part by part."""
    counted = found["decision"]["policy"]
    table = _table("of the policy's decision", "operation", "number", "energy", "share")
    for row in counted["rows"]:
        share = row["picojoules"] / counted["known_picojoules"] if row["picojoules"] and counted["known_picojoules"] else None
        table.add_row(
            f"{row['network']}, {row['part']}", row["operation"].replace("_", " "), f"{row['number']:,.0f}",
            amount(row["picojoules"]), "" if share is None else f"{share:.0%}",
        )  # fmt: skip
    return table


def _learning(found: Mapping[str, Any]) -> Table:
    table = _table("learning so far", *found["learning"]["policy"])
    for name, phases in found["learning"].items():
        told = (UNKNOWN if x is None else amount(x["picojoules"], x["known_picojoules"]) for x in phases.values())
        table.add_row(name, *told)
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i == 0 or title == "operation" else "right", no_wrap=i == 0)
    return table


def _bytes(count: int) -> str:
    return f"{count / 1024:.1f} KiB" if count >= 1024 else f"{count} B"


def energy_html(found: Mapping[str, Any]) -> str:
    """Of `energy` in a run's `result.json`."""
    rows = [
        [name.replace("_", " "), amount(x["picojoules"]), *(f"{x['operations'].get(kind, 0):,.0f}" for kind in SHOWN)]
        for name, x in found["decision"].items()
    ]
    learning = found["learning_picojoules"]
    more = "" if learning else ", and what learning took"  # not counted yet
    told = note(f"Arithmetic by the table {found['table']}. `spikedream energy` tells it part by part{more}.")
    told += html_table(("a decision", "energy", *SHOWN.values()), rows)
    if not learning:
        return told
    rows = [[name, *(amount(x) for x in phases.values())] for name, phases in learning.items()]
    return told + html_table(("learning", *next(iter(learning.values()))), rows)
