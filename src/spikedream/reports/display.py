"""How a run looks while it learns: a live panel on a terminal, plain lines anywhere else."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spikedream.reports.energy_shown import amount

VERBS = ("collect", "fit", "dream", "evaluate", "confirm")
SLOW_MS = 1.0  # decisions that take less are of no concern while a run learns
SOON = 60.0  # seconds; a run that takes no longer needs no estimate of when it ends
Row = Mapping[str, Any]


class Column(NamedTuple):
    """What a turn's row says about one thing."""

    title: str  # in the live panel
    text: Callable[[Row], str | None]  # None where it says nothing
    line: str  # how it stands on a plain line; empty where it does not


def _value(name: str, form: str) -> Callable[[Row], str | None]:
    """ "-" where the turn has no such number but the run has."""
    return lambda row: None if name not in row else "-" if row[name] is None else format(row[name], form)


def _confidence(row: Row) -> str | None:
    value = row.get("model_confidence", row.get("confidence"))
    return None if value is None else f"{value:.0%}"


def _loss(row: Row) -> str | None:
    # The confidence says the same on a scale that everybody can read, which a likelihood is not.
    return None if _confidence(row) is not None else _value("model_loss", ".4f")(row)


def _train_return(row: Row) -> str | None:
    return None if "train_episodes" not in row else _value("train_return_mean", ".1f")({"train_return_mean": None} | dict(row))


def _imagined(row: Row) -> str | None:
    steps = row["imagined_steps"]
    return None if not steps else f"{steps / 1e6:.1f}M" if steps >= 999_950 else f"{steps / 1e3:.1f}k"


def _firing(row: Row) -> str | None:
    return f"{row['firing_rate/actor_greedy']:.0%}" if row.get("firing_rate/actor_greedy") else None


def _decision(row: Row) -> str | None:
    milliseconds = row.get("decision_ms") or 0.0
    return f"{milliseconds:.1f}" if milliseconds >= SLOW_MS else None


def _energy(row: Row) -> str | None:
    if "decision_picojoules" not in row:
        return None
    picojoules = row["decision_picojoules"]
    return "-" if picojoules is None else amount(picojoules)


COLUMNS = (
    Column("turn", _value("turn", "d"), "turn {:>3}"),
    Column("real steps", _value("real_steps", ",d"), "real {:>7}"),
    Column("imagined", _imagined, "imagined {:>6}"),
    Column("return", _value("eval_return_mean", ".1f"), "return {:>7}"),
    Column("training", _train_return, "train {:>7}"),
    Column("model loss", _loss, "loss {:>6}"),
    Column("confidence", _confidence, "confidence {:>3}"),
    Column("uncertainty", _value("dream_uncertainty", ".3f"), ""),
    Column("beta", _value("beta", ".4f"), "beta {}"),
    Column("firing", _firing, "firing {:>3}"),
    Column("a decision", _energy, "{:>7}/decision"),
    Column("ms/decision", _decision, "{:>4} ms/decision"),
    Column("restarts", lambda row: str(row["parallel/restarts"]) if row.get("parallel/restarts") else None, "restarts {:>2}"),
    Column("seconds", _value("wall_seconds", ".1f"), "{:>6} s"),
)
# Left out, the first ones first, where a terminal is narrow: a figure that is cut off is worse than none.
DISPENSABLE = ("uncertainty", "model loss", "beta", "confidence", "turn", "training", "ms/decision", "a decision", "imagined")


class StepRate:
    """How fast real steps are made, by the last twenty minutes: that evens out evaluations, and follows what changes. The first
    turn does not count, whose random steps are quick.

    Args:
        clock: seconds from anywhere.
    """

    WINDOW = 1200.0  # seconds
    SPACING = 1.0  # seconds between two moments that are kept

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()  # moments, and real steps so far
        self.real_steps = self.budget = 0

    def progress(self, real_steps: int, budget: int) -> None:
        now, self.real_steps, self.budget = self._clock(), real_steps, budget
        if not self._seen or now - self._seen[-1][0] >= self.SPACING:
            self._seen.append((now, real_steps))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self.WINDOW:
            self._seen.popleft()

    @property
    def steps_a_second(self) -> float | None:
        """None where nothing is known yet."""
        if len(self._seen) < 2 or self._seen[-1][1] == self._seen[0][1]:
            return None
        (begun, before), (now, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - begun)

    @property
    def seconds_left(self) -> float | None:
        """To the end of the budget; None where nothing is known yet."""
        pace = self.steps_a_second
        return None if pace is None else (self.budget - self.real_steps) / pace


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 2:03:04 or 3:04."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def rate(steps_a_second: float) -> str:
    return f"{steps_a_second:,.0f}" if steps_a_second >= 10 else f"{steps_a_second:.1f}"


class PlainLines:
    """One line a turn, for logs and pipes."""

    def __init__(self, console: Console):
        self._console, self._pace = console, StepRate()
        self.progress = self._pace.progress

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *_: object) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def parts(self, doing: Mapping[str, str]) -> None: ...

    def record(self, row: Row) -> None:
        told = [(column.line, column.text(row)) for column in COLUMNS if column.line]
        line = "  ".join(form.format(text) for form, text in told if text is not None)
        pace, left = self._pace.steps_a_second, self._pace.seconds_left
        if pace is not None and left is not None and left > SOON:
            line += f"  {rate(pace)} steps/s  {duration(left)} left"
        self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LivePanel:
    """The turns so far, the phase under way and how far the budget is spent, redrawn in place."""

    ROWS = 12  # latest turns shown
    NOTES = 6  # latest notes shown

    def __init__(self, console: Console, title: str):
        self._console, self._title, self._rows, self._notes, self._pace = console, title, [], [], StepRate()
        self.progress = self._pace.progress
        self._phase: tuple[str, int, int] = ("compile", 0, 1)
        self._parts: Mapping[str, str] = {}  # of a run in several processes
        # Drawn as often as it is shown, not as often as something is told: that is at every step.
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> "LivePanel":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._phase = ("", 1, 1)
        self._live.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        self._phase = (name, done, total)

    def parts(self, doing: Mapping[str, str]) -> None:
        self._parts = doing

    def record(self, row: Row) -> None:
        self._rows.append(dict(row))

    def note(self, text: str) -> None:
        self._notes.append(text)

    def _draw(self) -> Panel:
        name, done, total = self._phase
        parts: list[Any] = [self._table()] if self._rows else []
        if name:
            lines = Table.grid(padding=(0, 2))
            if self._parts:
                parts += [Text(""), self._doing()]
            elif name != "watch":  # who watches a run does not know what it is at
                verbs = Text("  ").join(Text(v, style="bold yellow" if v == name else "dim") for v in VERBS[:4])
                lines.add_row(verbs, self._bar(done, total), Text(f"{done}/{total}", style="dim"))
            self._add_budget(lines)
            parts += [Text(""), lines]
        parts += [Text(note, style="yellow") for note in self._notes[-self.NOTES :]]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="blue", expand=False)

    def _doing(self) -> Table:
        """What each part of a run in several processes does; one that is idle is dim."""
        table = Table.grid(padding=(0, 2))
        for name, doing in self._parts.items():
            table.add_row(Text(name, style="bold yellow"), Text(doing, style="dim" if doing.startswith("waiting") else ""))
        return table

    def _bar(self, done: int, total: int) -> ProgressBar:
        return ProgressBar(total=max(total, 1), completed=done, width=30 if self._console.width >= 100 else 12)

    def _add_budget(self, lines: Table) -> None:
        """Real steps of the budget, and as far as it is known how many a second and how long the rest of it takes."""
        pace, left, spent, budget = self._pace.steps_a_second, self._pace.seconds_left, self._pace.real_steps, self._pace.budget
        if budget:
            known = "" if pace is None or left is None else f"{rate(pace)} steps/s · {duration(left)} left"
            lines.add_row(Text(f"{spent:,} of {budget:,} real steps"), self._bar(spent, budget), Text(known))

    def _table(self) -> Table:
        """Of the columns that any shown turn has something to say about, as many as there is room for."""
        table = Table(box=None, pad_edge=False, header_style="bold cyan")
        rows = self._rows[-self.ROWS :]
        told = {column.title: [column.text(row) for row in rows] for column in COLUMNS}
        told = {title: texts for title, texts in told.items() if any(text is not None for text in texts)}
        for title in DISPENSABLE:
            widths = [max(map(len, (name, *(text or "-" for text in texts)))) + 2 for name, texts in told.items()]
            if sum(widths) + 2 <= self._console.width:  # with the panel's border
                break
            told.pop(title, None)
        for title in told:
            table.add_column(title, justify="right", no_wrap=True, style="bold green" if title == "return" else "")
        for texts in zip(*told.values(), strict=True):
            table.add_row(*("-" if text is None else text for text in texts))
        return table


def display(console: Console, title: str) -> "PlainLines | LivePanel":
    return LivePanel(console, title) if console.is_terminal else PlainLines(console)
