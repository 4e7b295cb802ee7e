"""`spikedream study`: every method on every environment with every seed, each in a process of its own, and a comparison in the end.

A study can be stopped at any time and started again: finished cells are kept, unfinished ones are gone on with.
"""

import html
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from spikedream.experiments import grid
from spikedream.experiments.cells import FAILED, FINISHED, PLAIN, SKIPPED, WAITING, Outcome, check_cells_unchanged, kept, run_cells
from spikedream.experiments.grid import Cell, Grid
from spikedream.experiments.record import from_cells, save
from spikedream.reports import profile
from spikedream.reports.compare import (
    COLOURS,
    SHORT,
    header_and_rows,
    interval,
    print_table,
    returns_at_marks,
    scores,
    statistics,
    write_comparison,
)
from spikedream.reports.comparison import Comparison, compare, open_record
from spikedream.reports.page import Section, html_table, note, write_page
from spikedream.reports.profile import Profile
from spikedream.runs.checkpoint import make_directory, write_file


@dataclass
class Study:
    """A grid of methods, environments and seeds from a YAML file; a study that was stopped, or asked for in part, goes on."""

    name: tyro.conf.Positional[str]  # a study that comes with spikedream, or a .yaml file
    jobs: int = 1  # cells at a time
    seeds: int | None = None  # only the first so many of the study's seeds
    environments: tuple[str, ...] = ()  # only these of the study's environments
    methods: tuple[str, ...] = ()  # only these of its methods
    held_out: bool = False  # also those that the study holds out, on which no setting was chosen; what comes first is what counts
    together: bool = False  # a method's seeds on an environment in one program, which fills a machine that one seed leaves idle
    cluster: bool = False  # cells on the Ray cluster at RAY_ADDRESS, or on a Ray of this machine; `jobs` of them at a time
    out: Path | None = None  # runs/studies/<name> when absent; parts that were run before count in the comparison
    record: str | None = None  # also write results/<record>-<environment>-<method>.json of what was asked for: rows for tables


def run_study(command: Study, console: Console, line: str = "") -> int:
    """Run the cells that are asked for, compare all that there are, write; 0 when none failed. `line` is the command, for the
    record."""
    study = grid.named(command.name)
    out = command.out or Path("runs/studies") / study.name
    environments = grid.wanted(study, command.environments, command.held_out)
    # What was asked for by name must be usable, and so must all where nothing was; others are left out where they are not.
    cells = grid.expand(study, out, environments if command.environments or study.held_out else ())
    part = grid.part(study, cells, command.seeds, environments, command.methods)
    check_cells_unchanged(cells)
    outcomes = run_cells(part, command.jobs, console, command.together, command.cluster)
    if outcomes is None:
        return 130
    outcomes += [kept(cell) or Outcome(cell, WAITING, "not asked for yet") for cell in cells if cell not in part]
    outcomes.sort(key=lambda outcome: cells.index(outcome.cell))
    comparisons = _compare(study, cells, out)
    profiles = _profiles(comparisons)
    _write(study, outcomes, comparisons, profiles, out)
    _print(study, outcomes, comparisons, profiles, console)
    console.print(out / "index.html", **PLAIN)
    if command.record is not None:
        _record(command.record, part, outcomes, line, console)
    return 1 if any(outcome.status == FAILED for outcome in outcomes) else 0


def _record(name: str, part: Sequence[Cell], outcomes: Sequence[Outcome], line: str, console: Console) -> None:
    """A row for each method on each environment whose cells are all finished."""
    finished = {outcome.cell.directory for outcome in outcomes if outcome.status == FINISHED}
    for environment, method in dict.fromkeys((cell.environment, cell.method) for cell in part):
        own = [cell for cell in part if (cell.environment, cell.method) == (environment, method)]
        if all(cell.directory in finished for cell in own):
            console.print(save(from_cells(own, line), f"{name}-{grid.folder(environment)}-{method}"), **PLAIN)
        else:
            console.print(f"{environment} · {method}: not recorded, since not all its seeds are finished", **PLAIN)


# ---- what is made of them


def _compare(study: Grid, cells: Sequence[Cell], out: Path) -> dict[str, tuple[Comparison, Path]]:
    """Environment to its comparison and the page that shows it; environments where nothing has been measured are left out."""
    comparisons = {}
    for environment in dict.fromkeys(cell.environment for cell in cells):
        own = [cell.directory for cell in cells if cell.environment == environment]
        measured = [directory for directory in own if (directory / "config.yaml").exists() and open_record(directory)]
        if measured:
            comparison = compare(measured, "preset", statistic=study.statistic, marks=study.marks)
            comparisons[environment] = comparison, write_comparison(comparison, own[0].parent.parent)
    return comparisons


def _profiles(comparisons: dict[str, tuple[Comparison, Path]]) -> dict[str, Profile]:
    """Of each method; none where there are not several environments."""
    return profile.profiles(comparison for comparison, _ in comparisons.values()) if len(comparisons) > 1 else {}


def _tables(
    study: Grid, comparisons: dict[str, tuple[Comparison, Path]], wide: bool = True
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows: of one environment all scores in one table, but for the returns at marks where it may not be `wide`;
    of several a table for each score, a row for each environment."""
    if len(comparisons) == 1:
        ((environment, (comparison, _)),) = comparisons.items()
        yield environment, *header_and_rows(comparison, marks=wide)
        return
    methods = dict.fromkeys(label for comparison, _ in comparisons.values() for label in comparison.methods)
    titles = {score: title for comparison, _ in comparisons.values() for score, title in scores(comparison).items()}
    for score, title in titles.items():
        rows = [
            [_marked(study, environment), *(_entry(comparison, label, score) for label in methods)]
            for environment, (comparison, _) in comparisons.items()
        ]
        yield title, ["environment", *methods], rows


def _marked(study: Grid, environment: str) -> str:
    return f"{environment} (held out)" if environment in study.held_out else environment


def _entry(comparison: Comparison, label: str, score: str) -> str:
    method = comparison.methods.get(label)
    if method is None or score != "real_steps_to_solve" or score not in method.scores:
        return "–" if method is None else interval(comparison, label, score)
    solved = f"{method.solved} of {len(method.runs)} solved"
    return f"{interval(comparison, label, score)} · {solved}" if method.solved else solved


def _print(
    study: Grid,
    outcomes: Sequence[Outcome],
    comparisons: dict[str, tuple[Comparison, Path]],
    profiles: dict[str, Profile],
    console: Console,
) -> None:
    for title, header, rows in _tables(study, comparisons):
        console.print(f"{title}: {SHORT[study.statistic]} [95 % interval] over seeds", **PLAIN)
        print_table(header, rows, console)
    for line in profile.lines(profiles):
        console.print(line, **PLAIN)
    for outcome in outcomes:
        if outcome.status in (FAILED, SKIPPED):
            console.print(f"{outcome.cell}: {outcome.text}", **PLAIN)


def _write(
    study: Grid,
    outcomes: Sequence[Outcome],
    comparisons: dict[str, tuple[Comparison, Path]],
    profiles: dict[str, Profile],
    out: Path,
) -> None:
    """`index.html` for people and `study.json` for programs."""
    make_directory(out)
    fields: dict[str, Callable[[Outcome], Any]] = {
        "environment": lambda o: o.cell.environment,
        "method": lambda o: o.cell.method,
        "seed": lambda o: o.cell.seed,
        "status": lambda o: o.status,
        "text": lambda o: o.text,
        "directory": lambda o: os.path.relpath(o.cell.directory, out),
    }
    pages = {environment: os.path.relpath(page, out) for environment, (_, page) in comparisons.items()}
    data = {
        "name": study.name,
        "cells": [{field: get(outcome) for field, get in fields.items()} for outcome in outcomes],
        "comparisons": {environment: str(Path(page).with_name("compare.json")) for environment, page in pages.items()},
        "held_out": list(study.held_out),
        "profiles": {label: of.to_data() for label, of in profiles.items()},
    }
    write_file(out / "study.json", json.dumps(data, indent=1).encode())
    links = " · ".join(
        f'<a href="{html.escape(page)}">{html.escape(_marked(study, environment))}</a>' for environment, page in pages.items()
    )
    tables = "".join(
        note(title) + html_table(header, [[html.escape(cell) for cell in row] for row in rows])
        for title, header, rows in _tables(study, comparisons, wide=False)
    )
    if len(comparisons) == 1:
        tables += "".join(returns_at_marks(comparison) for comparison, _ in comparisons.values())
    counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in (FINISHED, FAILED, SKIPPED, WAITING)]
    lines = [[html.escape(str(get(outcome))) for get in fields.values()] for outcome in outcomes]
    trouble = [line for line, outcome in zip(lines, outcomes, strict=True) if outcome.status in (FAILED, SKIPPED)]
    sections = [
        Section("summary", "Summary", note(statistics(study.statistic)) + tables if tables else note("Nothing has been measured.")),
        Section("environments", "Learning curves and probabilities of improvement", f"<p>{links or '–'}</p>"),
        Section("cells", "Cells", note(", ".join(counts)) + (html_table(fields, trouble) if trouble else "")
                + f"<details><summary>all {len(lines)}</summary>{html_table(fields, lines)}</details>"),
    ]  # fmt: skip
    if profiles:
        colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(profiles)}
        sections.insert(1, Section("profile", "Profile", profile.section(profiles, colours)))
    several = f"{len(comparisons)} environment{'s' if len(comparisons) != 1 else ''}"
    write_page(out / "index.html", study.name, several, sections, plotly=bool(profiles))
