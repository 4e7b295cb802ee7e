"""The command line: `spikedream COMMAND ...`. Errors are one line on standard error and a non-zero exit."""

import gc
import json
import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

import spikedream
from spikedream import config as configuration
from spikedream import flags
from spikedream.bounds import check_bounds
from spikedream.commands import Compress, Energy, Evaluate, Export, Presets, Resume, ServeEnv, Train, Watch
from spikedream.config import Config, ConfigError
from spikedream.envs.real_time import Pace
from spikedream.envs.server import Server
from spikedream.experiments.bench import Bench, run_bench
from spikedream.experiments.embedded import Embedded, run_embedded
from spikedream.experiments.record import command_of
from spikedream.experiments.study import Study, run_study
from spikedream.export import emulator, prices
from spikedream.export.energy import write_energy
from spikedream.reports.compare import Compare, run_compare
from spikedream.reports.display import display
from spikedream.reports.drawing import show
from spikedream.reports.energy_shown import show_energy
from spikedream.reports.report import record_video, write_report
from spikedream.reports.watch import configuration_of
from spikedream.reports.watch import watch as follow
from spikedream.runners.stop import stopping
from spikedream.runs.run import Run
from spikedream.snn.sparsity import DENSITY

EXPECTED = (
    spikedream.BrokenEnvironment, spikedream.CheckpointError, spikedream.ClusterError, ConfigError, spikedream.Diverged,
    FileExistsError, ImportError, ValueError,
)  # fmt: skip


def train(arguments: list[str], console: Console) -> int:
    command = parse_train(arguments)
    title = f"{command.config.preset} · {command.config.env} · seed {command.config.seed}"
    with display(console, title) as listener:
        for line in command.given_up:
            listener.note(line)
        run = spikedream.train(command.config, out=command.out, listener=listener)
    return _conclude(run, console)


def parse_train(arguments: list[str]) -> Train:
    names = [a for a in arguments[:1] if not a.startswith("-")]
    changes: dict[str, Any] = {}
    out: Path | None = None
    asks_help, conventional, without_value = False, False, []
    for path, values in flags.split(arguments[len(names) :]):
        if path in (["help"], ["h"]):
            asks_help = True
        elif path == ["realtime"] and not values:
            flags.put(changes, path, True)
        elif path == ["keep_improving"] and not values:
            flags.put(changes, ["evaluation", "stop"], False)
        elif path == ["twin"] and not values:
            conventional = True
        elif path in (["twin"], ["keep_improving"]):
            raise ConfigError(f"{flags.written(path)} takes no value, and {' '.join(values)!r} is given; leave the flag out for no")
        elif path == ["out"]:
            out = Path(flags.single(path, values))
        elif values:
            flags.put(changes, path, flags.value(path, values))
        else:
            without_value.append(path)
    named = configuration.resolve(names[0], changes, conventional) if names else None
    config, given_up = named or (configuration.merge(Config(), changes), ())
    if asks_help or not names:
        default = Train(name=names[0] if names else tyro.MISSING, config=config)
        settings = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
        tyro.cli(Train, prog="spikedream train", args=["--help"] if asks_help else [], default=default, config=settings)
    for path in without_value:
        raise flags.lacks_value(path, configuration.find(config, path))
    if config.start_from is not None:
        _check_no_file(Path(config.start_from))
    return Train(names[0], config, out, given_up)


def resume(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Resume, prog="spikedream resume", args=arguments)
    _check_no_file(command.run)
    with display(console, str(command.run)) as listener:
        run = spikedream.resume(command.run, listener=listener)
    return _conclude(run, console)


def evaluate(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Evaluate, prog="spikedream evaluate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    run = _opened(command.run, command.best)
    success = None
    if command.render:
        returns = show(run, 3 if command.episodes is None else command.episodes, command.repetition)
    else:
        evaluated = run.evaluate(100 if command.episodes is None else command.episodes, command.repetition)
        returns, success = evaluated.returns, evaluated.success
    told = "" if success is None else f"; {success.sum()} of {len(success)} succeeded"
    console.print(
        f"{run.config.env}: return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} greedy episodes on fresh seeds"
        f" (lowest {returns.min():.1f}, highest {returns.max():.1f}){told}",
        highlight=False,
        soft_wrap=True,
    )
    if command.video:
        console.print(f"video: {record_video(run)}", highlight=False, soft_wrap=True)
    return 0


def export(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Export, prog="spikedream export", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    run = _opened(command.run, command.best)
    if command.dyna and not command.learner:
        raise spikedream.Unexportable("--dyna goes with --learner: a policy alone does not dream")
    if command.learner:
        return _export_learner(command, run, console)
    done = spikedream.export_policy(run, command.to, command.out, command.board, command.vectors, command.bits)
    size = f"{done.weights:,} bytes of parameters" if command.to == "c" else f"policy.nir of {done.weights:,} bytes"
    state = "" if done.state is None else f", {done.state:,} bytes of state"
    left_out = f" ({done.left_out} too close to call left out)" if done.left_out else ""
    console.print(
        f"{done.directory}: {size}{state}, {done.vectors} test vectors{left_out}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if command.board is None:
        return 0
    ran = emulator.emulate(done.directory, emulator.BOARDS[command.board])
    most, mean = max(ran.instructions), sum(ran.instructions) / len(ran.instructions)
    console.print(
        f"{command.board}: self-test {'passed' if ran.passed else 'FAILED'} · {mean:,.0f} instructions a decision, at most"
        f" {most:,} · flash {ran.flash:,} bytes, RAM {ran.ram:,}, start-up and stack included",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0 if ran.passed else 1


def _export_learner(command: Export, run: Run, console: Console) -> int:
    if command.to != "c" or command.bits is not None:
        raise spikedream.Unexportable("--learner is for --to c, in float32: without --bits")
    if command.board is not None and command.board not in emulator.BOARDS:
        raise spikedream.Unexportable(f"there is no board {command.board!r}; boards are {', '.join(emulator.BOARDS)}")
    done = spikedream.export_learner(run, command.out, command.vectors, command.dyna)
    console.print(
        f"{done.directory}: {done.parameters:,} numbers that learn, {done.state:,} bytes of state, {done.vectors} test vectors",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if command.board is None:
        return 0
    board = emulator.BOARDS[command.board]
    board.check(4 * done.parameters, done.state, "learner")
    learned = emulator.train_on(done.directory, board)
    last = max(learned.returns, default=0)
    outcome = f"solved after {learned.solved:,} steps" if learned.solved else f"not solved in {last:,} steps"
    console.print(
        f"{command.board}: {outcome}, return"
        f" {learned.returns.get(last, 0)} · {learned.instructions:,} instructions a step, at most {learned.most:,} · code"
        f" {learned.code:,} bytes, flash {learned.flash:,}, RAM {learned.ram:,}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0 if learned.solved else 1


def compress(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Compress, prog="spikedream compress", args=arguments)
    bounds = {"density": DENSITY, "rate": (0, 1), "updates": (1, None), "episodes": (1, None)}
    try:
        check_bounds(command, **{name: limits for name, limits in bounds.items() if getattr(command, name) is not None})
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    run = _opened(command.run)
    with display(console, f"{command.run} · compressed") as listener:
        done = spikedream.compress_policy(
            run, command.density, command.rate, command.bits, command.updates, command.out, command.episodes, listener
        )
    for when, found in (("before", done.before), ("after", done.after)):
        energy = "unknown" if found.picojoules is None else f"{found.picojoules:,.0f} pJ a decision"
        console.print(
            f"{when}: return {found.return_mean:.1f} ± {found.return_std:.1f} over {command.episodes} fresh episodes ·"
            f" {found.density:.0%} of the weights · firing {found.firing_rate:.1%} · {energy}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(done.run.directory, highlight=False, soft_wrap=True)
    return 0


def presets(arguments: list[str], console: Console) -> int:
    tyro.cli(Presets, prog="spikedream presets", args=arguments)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, description in configuration.presets().items():
        table.add_row(Text(name, style="bold"), Text(description))  # as it is: brackets name an extra
    console.print(table)
    return 0


def bench(arguments: list[str], console: Console) -> int:
    ours, settings = arguments, ()
    if "--" in arguments:
        ours, settings = arguments[: arguments.index("--")], tuple(arguments[arguments.index("--") + 1 :])
    command = tyro.cli(Bench, prog="spikedream bench", args=ours, config=(tyro.conf.FlagCreatePairsOff,))
    trained = parse_train([command.name, *settings])
    if trained.out is not None or "seed" in {path[0] for path, _ in flags.split(list(settings))}:
        raise ConfigError(
            "a bench has many seeds: --seeds, --first-seed and --out stand before --, and no --seed or --out behind it"
        )
    for given_up in trained.given_up:
        console.print(given_up, highlight=False, soft_wrap=True)
    return run_bench(command, trained.config, console, command_of("bench", arguments))


def compare(arguments: list[str], console: Console) -> int:
    return run_compare(tyro.cli(Compare, prog="spikedream compare", args=arguments), console)


def study(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Study, prog="spikedream study", args=arguments)
    return run_study(command, console, command_of("study", arguments))


def embedded(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Embedded, prog="spikedream embedded", args=arguments)
    return run_embedded(command, console, command_of("embedded", arguments))


def watch(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Watch, prog="spikedream watch", args=arguments)
    if command.every <= 0:
        raise ConfigError(f"--every is {command.every:g} seconds; it must be above 0")
    _check_no_file(command.run)
    config = configuration_of(command.run)
    with display(console, f"{config.preset} · {config.env} · seed {config.seed}") as listener:
        film = (lambda steps: record_video(spikedream.load(command.run), name=f"step{steps}")) if command.video else None
        show = (lambda path: webbrowser.open(path.absolute().as_uri())) if command.open else None
        result = follow(command.run, listener, command.every, film=film, show=show)
    if result is not None:
        _tell(config.env, result, command.run, console)
    return 0


def energy(arguments: list[str], console: Console) -> int:
    command = tyro.cli(Energy, prog="spikedream energy", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    run = _opened(command.run)
    found = spikedream.energy(run, command.table, command.episodes)
    if command.table == prices.DEFAULT and run.result is not None:
        write_energy(run, found)
        write_report(run)  # which tells what learning took
    if command.json:
        print(json.dumps(found, indent=2))
    else:
        show_energy(found, console)
    return 0


def serve_env(arguments: list[str], console: Console) -> int:
    command = tyro.cli(ServeEnv, prog="spikedream serve-env", args=arguments)
    kwargs = configuration.merge(Config(), {"env_kwargs": flags.value(["env_kwargs"], [command.env_kwargs])}).env_kwargs

    def say(text: str) -> None:
        print(f"spikedream: {text}", file=sys.stderr, flush=True)

    try:
        server = Server(
            command.env, kwargs, command.host, command.port, Pace(command.tick, command.late), command.silence, command.patience,
            command.sessions, say,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"cannot listen on {command.host}:{command.port}: {error}") from error
    print(f"{command.env} on {command.host}:{server.port}, {1000 * command.tick:g} ms a step; Ctrl-C ends it", flush=True)
    with stopping(server.stop):
        server.run()
    return 0


def _opened(run: Path, best: bool = False) -> Run:
    _check_no_file(run)
    return spikedream.load(run, best)


def _check_no_file(run: Path) -> None:
    """Raises CheckpointError where a file is named for a run's directory."""
    if run.is_file():
        graph = "; NIR graphs are what spikedream writes of policies, and it does not read them" if run.suffix == ".nir" else ""
        raise spikedream.CheckpointError(f"{run} is a file, not a run directory{graph}")


def _conclude(run: Run, console: Console) -> int:
    result = run.result
    assert result is not None, "a run that ended without an exception has a result"
    _tell(run.config.env, result, run.directory, console)
    return 0


def _tell(env: str, result: dict[str, Any], directory: Path, console: Console) -> None:
    if result["solved"]:
        outcome = f"solved after {result['real_steps_to_solve']} real steps"
    elif result["threshold"] is None:
        outcome = f"{result['real_steps']} real steps done (no threshold: give one with --threshold)"
    else:
        outcome = f"not solved in {result['real_steps']} real steps"
    last, fresh = result.get("last_fresh_return_mean"), result["fresh_return_mean"]
    console.print(
        f"{env}: {outcome} · return {result['eval_return_mean']:.1f} ± {result['eval_return_std']:.1f} over"
        f" {result['eval_episodes']} greedy episodes, {fresh if last is None else last:.1f} on fresh ones ·"
        f" {result['wall_seconds']:.1f} s ({result['compile_seconds']:.1f} s of it compiling)\n{directory / 'report.html'}",
        highlight=False,
        soft_wrap=True,
    )


COMMANDS: dict[str, Callable[[list[str], Console], int]] = {
    "train": train, "evaluate": evaluate, "resume": resume, "presets": presets, "bench": bench,
    "compare": compare, "study": study, "export": export, "energy": energy, "compress": compress, "serve-env": serve_env,
    "watch": watch, "embedded": embedded,
}  # fmt: skip

# After Ctrl-C, and how.
RESUMED, AGAIN = "; `spikedream resume RUN` goes on from the newest checkpoint", "; the same command goes on with what is not done"
GOES_ON = {"train": RESUMED, "resume": RESUMED, "compress": RESUMED, "bench": AGAIN, "study": AGAIN, "embedded": AGAIN}

USAGE = """usage: spikedream COMMAND ...

  train PRESET_OR_ENV_ID   learn an environment
  evaluate RUN             greedy episodes of a run, on fresh seeds
  compress RUN             its policy with fewer weights, spikes and bits, fine-tuned in dreams
  export RUN               its policy as C for a small computer, or as a NIR graph
  resume RUN               go on with a stopped run
  watch RUN                follow one that is going on elsewhere
  embedded                 how fast CartPole is learned with what suits small computers: steps, energy, memory, instructions
  energy RUN               operations counted and priced: of a decision, and of learning
  presets                  list the named experiments
  bench PRESET             many seeds, with intervals
  compare RUN_OR_GLOB ...  runs side by side: curves, intervals, who is better
  serve-env ENV_ID         play it in real time for a learner elsewhere, as a physical environment would
  study STUDY              methods x environments x seeds from a file, and their comparison

`spikedream COMMAND --help` says more."""


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(100_000, 20, 100)  # tracing makes many small objects: looking for garbage among them is a tenth of starting
    sys.path.append(os.getcwd())  # for environments and functions in modules of the user's own
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
        print(f"spikedream: interrupted{GOES_ON.get(arguments[0], '')}", file=sys.stderr)
        status = 130
    except spikedream.Interrupted as stop:
        print(f"spikedream: {stop}", file=sys.stderr)
        status = 130
    sys.exit(status)
