"""The tables of README.md and docs/results.md, made from the files in `results/`.

`results/tables.yaml` says which there are:

    measured:
      file: README.md
      columns:                                  # a column without `show` holds the text that a row has under its title
        - {title: task}
        - {title: real steps, show: steps}      # of the results file that the row names under `of`
        - {title: twin, show: steps, of: twin}  # of the one that it names under `twin`
      rows:
        - {task: CartPole-v1, of: cartpole, twin: cartpole-twin}

and the document holds `<!-- table: measured -->` and `<!-- end -->`, between which the table is written.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spikedream.config import ConfigError
from spikedream.experiments import record
from spikedream.experiments.record import END, FRESH, STEPS, Row
from spikedream.reports.statistics import summary
from spikedream.spelling import suggestion

FEW = 3  # solved seeds, up to which each one's steps are told where not all are solved
BLOCK = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)
UNKNOWN = "–"
# Marks and what they say. A row that is stale is so until somebody measures: the check disregards its mark.
STALE, BEFORE = "†", "§"
LEGEND = {
    STALE: "measured with earlier code or settings",
    BEFORE: "its witness, trained again, no longer did as it did",
}


@dataclass(frozen=True)
class Table:
    name: str
    file: Path  # the document
    header: list[str]
    rows: list[list[str]]
    marks: list[list[str]]  # of each cell: of its results, where the row's cells before it have not told them
    common: str  # the marks that all results have: told once below the table
    sources: list[list[str]]  # of each cell: the results that it comes from, comma-separated
    place: Path  # of the results

    def lines(self) -> list[str]:
        """In Markdown."""
        used = [mark for mark in LEGEND if any(mark in cell for row in self.marks for cell in row)]
        body = [
            [text + "".join(f" {m}" for m in mark if m not in self.common) for text, mark in zip(row, marks, strict=True)]
            for row, marks in zip(self.rows, self.marks, strict=True)
        ]
        lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (self.header, *body)]
        lines.insert(1, "|" + "---|" * len(self.header))
        for mark in used:
            said = f"All figures here: {LEGEND[mark]}." if mark in self.common else f"{LEGEND[mark].capitalize()}."
            lines += ["", f"{mark} {said}"]
        return lines


def tables(root: Path = Path()) -> list[Table]:
    """All of them, with their results in `root`.

    Raises:
        ConfigError: `tables.yaml` or a results file is wrong.
    """
    place = root / record.RESULTS
    file = place / "tables.yaml"
    try:
        data = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    rows: dict[str, Row] = {}
    return [_table(name, layout, place, rows, f"{file}: {name}") for name, layout in data.items()]


def _table(name: str, layout: Mapping[str, Any], place: Path, rows: dict[str, Row], where: str) -> Table:
    texts, marks, sources, used = [], [], [], set()
    for entry in layout["rows"]:
        cells = [_cell(column, entry, place, rows, where) for column in layout["columns"]]
        seen: set[str] = set()  # each file's marks once a row
        texts.append([text for text, _ in cells])
        told = ["".join(_marks(rows[n]) for n in names if not (n in seen or seen.add(n))) for _, names in cells]
        marks.append(["".join(dict.fromkeys(of)) for of in told])
        sources.append([", ".join(names) for _, names in cells])
        used |= seen
    header = [column["title"] for column in layout["columns"]]
    common = "".join(mark for mark in LEGEND if all(mark in _marks(rows[n]) for n in used))
    return Table(name, place.parent / layout["file"], header, texts, marks, common, sources, place)


def _marks(row: Row) -> str:
    return STALE * row.stale + BEFORE * row.measured_before


def _cell(
    column: Mapping[str, Any], entry: Mapping[str, Any], place: Path, rows: dict[str, Row], where: str
) -> tuple[str, list[str]]:
    """A cell's text and the results that it comes from."""
    if "show" not in column:
        return str(entry.get(column["title"]) or ""), []
    if column["show"] not in SHOW:
        raise ConfigError(f"{where} shows {column['show']!r}; {suggestion(column['show'], SHOW)}")
    named = entry.get(column.get("of", "of"))
    if named is None:
        return "" if column["show"] == "peers" else UNKNOWN, []
    several = named if isinstance(named, Mapping) else {"": named}  # label to results
    beside = column.get("to", entry.get("of"))
    for name in (*several.values(), beside):
        if name is not None and name not in rows:
            rows[name] = record.load(name, place)
    show, other = SHOW[column["show"]], rows.get(beside)
    text = "; ".join((f"{label}: " if label else "") + show(rows[name], column, other) for label, name in several.items())
    return f"**{text}**" if column.get("bold") else text, list(several.values())


# ---- figures in words


def number(value: float | None, digits: int | None = None) -> str:
    """Thousands apart; as many decimals as asked for, or else as few as three digits need."""
    if value is None:
        return UNKNOWN
    if digits is not None:
        return f"{value:,.{digits}f}"
    text = (
        f"{value:,.0f}"
        if abs(value) >= 1000 or float(value).is_integer()
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.3g}"
    )
    return text.removesuffix(".0")


def solved(row: Row, *_: Any) -> str:
    """`10 of 10`, or `3 of 10 in 20,000`."""
    if row.solved is None:
        return UNKNOWN
    within = "" if row.solved == len(row.seeds) or row.budget is None else f" in {row.budget:,}"
    return f"{row.solved} of {len(row.seeds)}{within}"


def steps(row: Row, *_: Any) -> str:
    """`96, 57 to 181; 20 of 20`."""
    if row.solved is None:
        return f"{_middle(row)} ({len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''})"
    return f"{_middle(row)}; {solved(row)}" if row.solved else solved(row)


def peers(row: Row, column: Mapping[str, Any], own: Row | None) -> str:
    """The same, with how many times the median of the row's own results."""
    mine, theirs = (r.figure(STEPS).get("median") if r else None for r in (own, row))
    if not mine or not theirs or not row.solved:
        return steps(row)
    return f"{steps(row)}; {float(f'{theirs / mine:.2g}'):,g} times as many"


def ratio(row: Row, column: Mapping[str, Any], other: Row | None) -> str:
    """How many times the median of the results that the column names under `to`, of its `score`."""
    ours, theirs = (r.figure(column["score"]).get("median") if r else None for r in (row, other))
    return f"{ours / theirs:.1f}" if ours and theirs else UNKNOWN


def _middle(row: Row, interval: bool = False) -> str:
    """`84, 71 to 133`, or with the interval `84 [75, 98], 71 to 133`; each of few values where not all seeds are solved."""
    f = row.figure(STEPS)
    values = f.get("values")
    if values and row.solved != len(row.seeds) and len(values) <= FEW:
        return ", ".join(number(value) for value in values)
    bracket = f" [{number(f['low'])}, {number(f['high'])}]" if interval and f.get("low") is not None else ""
    middle = number(f["median"]) if f.get("median") is not None else UNKNOWN
    spread = f"{number(f.get('lowest'))} to {number(f.get('highest'))}" if f.get("lowest") != f.get("highest") else ""
    return f"{middle}{bracket}, {spread}" if spread and middle != UNKNOWN else spread or middle


def interval(row: Row, *_: Any) -> str:
    return _middle(row, interval=True) if row.solved else UNKNOWN


def fresh(row: Row, *_: Any) -> str:
    """`6 of 10`: of the solved policies, those that reach the threshold on fresh episodes too."""
    return UNKNOWN if row.stay_good is None or not row.solved else f"{row.stay_good} of {row.solved}"


def still(row: Row, *_: Any) -> str:
    """The same in full: with the threshold, and with the lowest mean return; the returns where none solved."""
    f = row.figure(FRESH)
    if not row.solved:
        span = [number(f[end]) for end in ("lowest", "highest") if f.get(end) is not None]
        return f"return {' to '.join(dict.fromkeys(span))}" if span else UNKNOWN
    if row.stay_good is None:
        return UNKNOWN
    lowest = f", lowest {number(f['lowest'])}" if f.get("lowest") is not None else ""
    return f"{row.stay_good} of {row.solved} still at {number(row.threshold)} or more{lowest}"


def end(row: Row, *_: Any) -> str:
    """`-158 (-190 to -143)`: median and range of the returns of seeds that went on to the end of their budget."""
    f = row.figure(END)
    return f"{number(f['median'])} ({number(f['lowest'])} to {number(f['highest'])})" if f.get("median") is not None else UNKNOWN


def iqm(row: Row, column: Mapping[str, Any], *_: Any) -> str:
    """Interquartile mean and interval of the column's `score`; steps to solve where it names none."""
    f = row.figure(column.get("score", STEPS))
    return UNKNOWN if f.get("iqm") is None else f"{number(f['iqm'])} [{number(f['low'])}, {number(f['high'])}]"


def mean(row: Row, column: Mapping[str, Any], *_: Any) -> str:
    """`8,645 [8,423, 8,903]`: mean over seeds of the column's `score`, and its 95 % interval; of a single seed that seed."""
    values = row.figure(column["score"]).get("values")
    if values is None:
        return UNKNOWN
    found = summary(np.array(values), "mean")
    bracket = f" [{number(found['low'])}, {number(found['high'])}]" if len(values) > 1 else ""
    return f"{number(found['mean'])}{bracket}"


def spread(row: Row, column: Mapping[str, Any], *_: Any) -> str:
    """`20.8 (19.9 to 24.7)`: what `value` says, and the range; of the solved seeds, where it is of steps to solve."""
    lowest, highest = (value(row, {**column, "middle": end}) for end in ("lowest", "highest"))
    middle = value(row, column)
    return middle if lowest in (UNKNOWN, highest) else f"{middle} ({lowest} to {highest})"


def value(row: Row, column: Mapping[str, Any], *_: Any) -> str:
    """The median of the column's `score` alone, or the mean where it says so; `times` what the column says, in another unit."""
    found = row.figure(column["score"]).get(column.get("middle", "median"))
    return number(None if found is None else found * column.get("times", 1), column.get("digits"))


SHOW: dict[str, Callable[..., str]] = {
    "steps": steps, "peers": peers, "ratio": ratio, "solved": solved, "interval": interval, "fresh": fresh,
    "still": still, "end": end, "iqm": iqm, "mean": mean, "spread": spread, "value": value,
}  # fmt: skip


# ---- in the documents


def write(root: Path = Path()) -> list[Path]:
    """Write all tables into their documents; returns those that changed. Raises ConfigError as `tables`, and where a document has
    no place for one."""
    changed = []
    for file, own in _by_document(tables(root)).items():
        text = file.read_text()
        new = BLOCK.sub(lambda m, own=own: f"<!-- table: {m[1]} -->\n" + "\n".join(own[m[1]].lines()) + "\n<!-- end -->", text)
        if new != text:
            file.write_text(new)
            changed.append(file)
    return changed


def check(root: Path = Path()) -> list[str]:
    """A line for each cell that is not what its results give. Raises ConfigError as `write`."""
    wrong = []
    for file, own in _by_document(tables(root)).items():
        for match in BLOCK.finditer(file.read_text()):
            table = own[match[1]]
            wrong += _differences(table, match[2].splitlines(), f"{file}, table {table.name}")
    return [f"{line}; `make tables` writes what the files give" for line in wrong]


def _by_document(found: Sequence[Table]) -> dict[Path, dict[str, Table]]:
    documents: dict[Path, dict[str, Table]] = {}
    for table in found:
        documents.setdefault(table.file, {})[table.name] = table
    for file, own in documents.items():
        there = [match[1] for match in BLOCK.finditer(file.read_text())]
        for name in {*own} ^ {*there} or {n for n in there if there.count(n) > 1}:
            what = f"no place for table {name}" if name in own and name not in there else f"a table {name} too many"
            raise ConfigError(f"{file} has {what}: a table stands between <!-- table: NAME --> and <!-- end -->")
    return documents


def _differences(table: Table, there: Sequence[str], where: str) -> list[str]:
    (old_rows, old_legend), (new_rows, new_legend) = (_parts(lines) for lines in (there, table.lines()))
    if len(old_rows) != len(new_rows) or old_rows[:2] != new_rows[:2]:
        return [
            f"{where}: {len(old_rows)} lines under {old_rows[:1]} stand there, the files give {len(new_rows)} under {new_rows[:1]}"
        ]
    wrong = []
    for i, lines in enumerate(zip(old_rows[2:], new_rows[2:], strict=True)):
        old, new = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
        if len(old) != len(new):
            wrong.append(f"{where}, row {i + 1}: {lines[0]!r} stands there, which has {len(old)} cells in place of {len(new)}")
            continue
        for title, source, x, y in zip(table.header, table.sources[i], old, new, strict=True):
            if x != y:
                files = " and ".join(str(record.path(name, table.place)) for name in source.split(", ") if name)
                origin = files or table.place / "tables.yaml"
                wrong.append(f"{where}, row {i + 1}, column {title!r}: {x!r} stands there, {origin} gives {y!r}")
    if not wrong and old_legend != new_legend:
        wrong.append(f"{where}: {old_legend} stands below it, the files give {new_legend}")
    return wrong


def _parts(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rows, header included, and what stands below; without blank lines."""
    lines = [line for line in map(_unmarked, lines) if line]
    return [line for line in lines if line.startswith("|")], [line for line in lines if not line.startswith("|")]


def _unmarked(line: str) -> str:
    """Without the marks of what is stale, and their legend."""
    return "" if line.startswith(STALE) else line.replace(f" {STALE}", "").rstrip()
