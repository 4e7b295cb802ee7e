"""The command line: `spikedream COMMAND ...`. Errors are one line on standard error and a non-zero exit."""

import dataclasses
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.table import Table

import spikedream
from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.experiments.bench import Bench, run_bench
from spikedream.experiments.study import Study, run_study
from spikedream.reports.compare import Compare, run_compare
from spikedream.reports.display import display
from spikedream.reports.drawing import show
from spikedream.reports.report import record_video
from spikedream.runs.run import Run

EXPECTED = (
    spikedream.BrokenEnvironment, spikedream.CheckpointError, ConfigError, spikedream.Diverged, FileExistsError, ImportError,
    ValueError,
)  # fmt: skip


@dataclass
class Train:
    """Learn an environment. Any setting of the configuration is a flag; `--agent.actor MLP` swaps a whole part."""

    name: tyro.conf.Positional[str]  # a preset (`spikedream presets`) or a Gymnasium id, also as module:Id-v0
    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None  # the run directory; runs/<name>/<date-time>-s<seed> when absent


@dataclass
class Evaluate:
    """Greedy episodes of a run on fresh seeds."""

    run: tyro.conf.Positional[Path]
    episodes: int | None = None  # 100 when absent; 3 with --render
    repetition: int = 0  # another number, other seeds
    video: bool = False  # also record one episode
    render: bool = False  # in the environment's own window, at its own pace


@dataclass
class Resume:
    """Go on with a stopped run, to the numbers of an undisturbed one."""

    run: tyro.conf.Positional[Path]


@dataclass
class Presets:
    """List the named experiments."""


def train(arguments: list[str], console: Console) -> int:
    command = _parse_train(arguments)
    title = f"{command.config.preset} · {command.config.env} · seed {command.config.seed}"
    with display(console, title) as listener:
        run = spikedream.train(command.config, out=command.out, listener=listener)
    return _conclude(run, console)


def _parse_train(arguments: list[str]) -> Train:
    names = [a for a in arguments[:1] if not a.startswith("-")]
    base = configuration.named(names[0]) if names else Config()
    base, rest = _swap_parts(base, arguments)
    default = Train(name=names[0] if names else tyro.MISSING, config=base)
    return tyro.cli(
        Train,
        prog="spikedream train",
        args=rest,
        default=default,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _swap_parts(base: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Takes out of the command line the flags that name a part (`--world-model.dynamics MLP`) and puts those parts in, so that the
    rest can be parsed as fields of the parts chosen. Settings given beside a part go in with it: either alone may not be valid."""
    rest: list[str] = []
    flags: list[tuple[list[str], list[str]]] = []  # (path, values)
    for argument in arguments:
        if argument.startswith("--"):
            flag, given, value = argument.partition("=")
            flags.append((flag.removeprefix("--").replace("-", "_").split("."), [value] if given else []))
        else:
            (flags[-1][1] if flags else rest).append(argument)
    for path, values in flags:
        if values and _choices(base, path):
            beside = {p[-1]: v[0] for p, v in flags if p[:-1] == path[:-1] and len(v) == 1 and _choices(base, p) == {}}
            change: Any = {name: None if value == "None" else yaml.safe_load(value) for name, value in beside.items()}
            change[path[-1]] = None if values[0] == "None" else values[0]
            for name in reversed(path[:-1]):
                change = {name: change}
            base = configuration.merge(base, change)
            rest += values[1:]
        else:
            rest += ["--" + ".".join(path).replace("_", "-"), *values]
    return base, rest


def _choices(base: Any, path: list[str]) -> dict[str, type] | None:
    """The kinds of part that may stand at `path`: none where it is a plain setting; None where there is no such setting."""
    hint = None
    for name in path:
        if not dataclasses.is_dataclass(base) or not hasattr(base, name):
            return None
        hint, base = typing.get_type_hints(type(base)).get(name), getattr(base, name)
    return configuration.kinds(hint)


def resume(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Resume, prog="spikedream resume", args=arguments)
    with display(console, str(command.run)) as listener:
        run = spikedream.resume(command.run, listener=listener)
    return _conclude(run, console)


def evaluate(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Evaluate, prog="spikedream evaluate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    run = spikedream.load(command.run)
    if command.render:
        returns = show(run, 3 if command.episodes is None else command.episodes, command.repetition)
    else:
        returns = run.evaluate(100 if command.episodes is None else command.episodes, command.repetition)
    console.print(
        f"{run.config.env}: return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} greedy episodes on fresh seeds"
        f" (lowest {returns.min():.1f}, highest {returns.max():.1f})",
        highlight=False,
        soft_wrap=True,
    )
    if command.video:
        console.print(f"video: {record_video(run)}", highlight=False, soft_wrap=True)
    return 0


def presets(arguments: list[str], console: Console) -> int:
    tyro.cli(Presets, prog="spikedream presets", args=arguments)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, description in configuration.presets().items():
        table.add_row(f"[bold]{name}[/]", description)
    console.print(table)
    return 0


def bench(arguments: list[str], console: Console) -> int:
    ours, settings = arguments, ()
    if "--" in arguments:
        ours, settings = arguments[: arguments.index("--")], tuple(arguments[arguments.index("--") + 1 :])
    command = tyro.cli(Bench, prog="spikedream bench", args=ours, config=(tyro.conf.FlagCreatePairsOff,))
    return run_bench(command, _parse_train([command.name, *settings]).config, console)


def compare(arguments: list[str], console: Console) -> int:
    return run_compare(tyro.cli(Compare, prog="spikedream compare", args=arguments), console)


def study(arguments: list[str], console: Console) -> int:
    return run_study(tyro.cli(Study, prog="spikedream study", args=arguments), console)


def _conclude(run: Run, console: Console) -> int:
    result = run.result
    assert result is not None, "a run that ended without an exception has a result"
    if result["solved"]:
        outcome = f"solved after {result['real_steps_to_solve']} real steps"
    elif result["threshold"] is None:
        outcome = f"{result['real_steps']} real steps done (no threshold: give one with --threshold)"
    else:
        outcome = f"not solved in {result['real_steps']} real steps"
    console.print(
        f"{run.config.env}: {outcome} · return {result['eval_return_mean']:.1f} ± {result['eval_return_std']:.1f} over"
        f" {result['eval_episodes']} greedy episodes · {result['wall_seconds']:.1f} s"
        f" ({result['compile_seconds']:.1f} s of it compiling)\n{run.directory / 'report.html'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


COMMANDS: dict[str, Callable[[list[str], Console], int]] = {
    "train": train, "evaluate": evaluate, "resume": resume, "presets": presets, "bench": bench,
    "compare": compare, "study": study,
}  # fmt: skip

USAGE = """usage: spikedream COMMAND ...

  train PRESET_OR_ENV_ID   learn an environment
  evaluate RUN             greedy episodes of a run, on fresh seeds
  resume RUN               go on with a stopped run
  presets                  list the named experiments
  bench PRESET             many seeds, with intervals
  compare RUN_OR_GLOB ...  runs side by side: curves, intervals, who is better
  study STUDY              methods x environments x seeds from a file, and their comparison

`spikedream COMMAND --help` says more."""


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console()
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(spikedream.__version__ if "--version" in arguments else USAGE)
        sys.exit(0 if arguments else 2)
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"spikedream: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    try:
        status = command(arguments[1:], console)
    except EXPECTED as error:
        print(f"spikedream: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("spikedream: interrupted; `spikedream resume RUN` goes on from the newest checkpoint", file=sys.stderr)
        status = 130
    except spikedream.Interrupted as stop:
        print(f"spikedream: {stop}", file=sys.stderr)
        status = 130
    sys.exit(status)
