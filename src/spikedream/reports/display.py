"""How a run looks while it learns: a live panel on a terminal, plain lines anywhere else."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

VERBS = ("collect", "fit", "dream", "evaluate", "confirm")
SLOW_MS = 1.0  # decisions that take less are of no concern while a run learns
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
    Column("ms/decision", _decision, "{:>4} ms/decision"),
    Column("seconds", _value("wall_seconds", ".1f"), "{:>6} s"),
)


class PlainLines:
    """One line a turn, for logs and pipes."""

    def __init__(self, console: Console):
        self._console = console

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *_: object) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...

    def record(self, row: Row) -> None:
        told = [(column.line, column.text(row)) for column in COLUMNS if column.line]
        line = "  ".join(form.format(text) for form, text in told if text is not None)
        self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class LivePanel:
    """The turns so far and the phase under way, redrawn in place."""

    ROWS = 12  # latest turns shown

    def __init__(self, console: Console, title: str):
        self._title, self._rows, self._notes = title, [], []
        self._phase: tuple[str, int, int] = ("compile", 0, 1)
        self._live = Live(self._draw(), console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> "LivePanel":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._phase = ("", 1, 1)
        self._live.update(self._draw(), refresh=True)
        self._live.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        self._phase = (name, done, total)
        self._live.update(self._draw())

    def record(self, row: Row) -> None:
        self._rows.append(dict(row))
        self._live.update(self._draw())

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._live.update(self._draw())

    def _draw(self) -> Panel:
        name, done, total = self._phase
        parts: list[Any] = [self._table()] if self._rows else []
        if name:
            verbs = Text("  ").join(Text(v, style="bold yellow" if v == name else "dim") for v in VERBS[:4])
            line = Table.grid(padding=(0, 2))
            line.add_row(verbs, ProgressBar(total=max(total, 1), completed=done, width=30), Text(f"{done}/{total}", style="dim"))
            parts += [Text(""), line]
        parts += [Text(note, style="yellow") for note in self._notes]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="blue", expand=False)

    def _table(self) -> Table:
        """Of the columns that any shown turn has something to say about."""
        table = Table(box=None, pad_edge=False, header_style="bold cyan")
        rows = self._rows[-self.ROWS :]
        told = {column.title: [column.text(row) for row in rows] for column in COLUMNS}
        told = {title: texts for title, texts in told.items() if any(text is not None for text in texts)}
        for title in told:
            table.add_column(title, justify="right", no_wrap=True, style="bold green" if title == "return" else "")
        for texts in zip(*told.values(), strict=True):
            table.add_row(*("-" if text is None else text for text in texts))
        return table


def display(console: Console, title: str) -> "PlainLines | LivePanel":
    return LivePanel(console, title) if console.is_terminal else PlainLines(console)
