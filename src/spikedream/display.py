"""How a run looks while it learns: a live panel on a terminal, plain lines anywhere else."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

VERBS = ("collect", "fit", "dream", "evaluate", "confirm")


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format(row[name], form) if row.get(name) is not None else "-"


class PlainLines:
    """One line a turn, for logs and pipes."""

    def __init__(self, console: Console):
        self._console = console

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *_: object) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...

    def record(self, row: Mapping[str, Any]) -> None:
        self._console.print(
            f"turn {row['turn']:>3}  real {row['real_steps']:>6}  imagined {row['imagined_steps']:>10,}"
            f"  return {row['eval_return_mean']:>8.1f}  model loss {_number(row, 'model_loss', '.4f')}"
            f"  firing {_number(row, 'firing_rate/actor_greedy', '.0%')}  {row['wall_seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

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

    def record(self, row: Mapping[str, Any]) -> None:
        self._rows.append(dict(row))
        self._live.update(self._draw())

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._live.update(self._draw())

    def _draw(self) -> Panel:
        table = Table(box=None, pad_edge=False, header_style="bold cyan")
        for name in ("turn", "real steps", "imagined", "return", "model loss", "uncertainty", "firing", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows[-self.ROWS :]:
            table.add_row(
                str(row["turn"]),
                f"{row['real_steps']:,}",
                f"{row['imagined_steps']:,}",
                Text(f"{row['eval_return_mean']:.1f}", style="bold green"),
                _number(row, "model_loss", ".4f"),
                _number(row, "dream_uncertainty", ".3f"),
                _number(row, "firing_rate/actor_greedy", ".0%"),
                f"{row['wall_seconds']:.1f}",
            )
        name, done, total = self._phase
        parts: list[Any] = [table]
        if name:
            verbs = Text("  ").join(Text(v, style="bold yellow" if v == name else "dim") for v in VERBS[:4])
            line = Table.grid(padding=(0, 2))
            line.add_row(verbs, ProgressBar(total=max(total, 1), completed=done, width=30), Text(f"{done}/{total}", style="dim"))
            parts += [Text(""), line]
        parts += [Text(note, style="yellow") for note in self._notes]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="blue", expand=False)


def display(console: Console, title: str) -> "PlainLines | LivePanel":
    return LivePanel(console, title) if console.is_terminal else PlainLines(console)
