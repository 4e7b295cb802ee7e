"""What can be asked for on the command line, and by which flags; commands that make many runs have theirs beside what they do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from spikedream.config import Config
from spikedream.export import prices
from spikedream.export.directory import Target


@dataclass
class Train:
    """Learn an environment. Any setting of the configuration is a flag; `--agent.actor MLP` swaps a whole part. `--twin` makes
    every spiking network conventional, and `--keep-improving` goes on to the end of the budget once it is solved."""

    name: tyro.conf.Positional[str]  # a preset (`spikedream presets`) or a Gymnasium id, also as module:Id-v0
    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None  # the run directory; runs/<name>/<date-time>-s<seed> when absent
    given_up: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # a line each, for a person


@dataclass
class Evaluate:
    """Greedy episodes of a run on fresh seeds."""

    run: tyro.conf.Positional[Path]
    episodes: int | None = None  # 100 when absent; 3 with --render
    repetition: int = 0  # another number, other seeds
    best: bool = False  # what acted in its best evaluation, where `--checkpoint.best True` has kept that
    video: bool = False  # also record one episode
    render: bool = False  # in the environment's own window, at its own pace


@dataclass
class Export:
    """The greedy policy of a run as files that need neither Python nor JAX, with test vectors beside it."""

    run: tyro.conf.Positional[Path]
    to: Target = "c"  # C99, or a NIR graph for neuromorphic tool chains
    out: Path | None = None  # RUN/export/c or RUN/export/nir when absent
    board: str | None = None  # a small computer that must hold it, emulated by QEMU: cortex-m4, cortex-m3 or rv32
    bits: int | None = None  # of its weights, in fixed point, without fine-tuning: `spikedream compress` does that
    learner: bool = False  # what learns, too: C that goes on learning from each of its own steps; --board lets it, on CartPole-v1
    dyna: bool = False  # with --learner: also the model that it learns, and dreams in
    best: bool = False  # what acted in its best evaluation, where `--checkpoint.best True` has kept that
    vectors: int = 32  # observations of the environment, and what the policy does there, to test it by


@dataclass
class Compress:
    """Fine-tune a run's policy, without a real step, to fewer weights, fewer spikes and fewer bits: a run of its own."""

    run: tyro.conf.Positional[Path]
    density: float | None = None  # share of the actor's weights that is left
    rate: float | None = None  # firing rate that its neurons are quieted to
    bits: int | None = None  # of its weights, in fixed point from then on: 2 to 8
    updates: int = 2000  # of the agent, in dreams where it dreams, else on replayed steps
    out: Path | None = None  # the new run's directory; that of the run with -compressed behind when absent
    episodes: int = 100  # fresh ones, in which the return is measured before and after


@dataclass
class Resume:
    """Go on with a stopped run, to the numbers of an undisturbed one."""

    run: tyro.conf.Positional[Path]


@dataclass
class Watch:
    """Follow a run that is going on elsewhere, or look at what a finished one did. Ctrl-C ends the watching, not the run."""

    run: tyro.conf.Positional[Path]
    every: float = 1.0  # seconds between two looks
    video: bool = False  # film an episode of what it has saved, after each evaluation: RUN/videos/step<real steps>-0.mp4
    open: bool = False  # show each new video in what this system shows videos with


@dataclass
class Energy:
    """Count a run's operations and price them: what a decision takes and what learning took, beside the conventional twin."""

    run: tyro.conf.Positional[Path]
    table: str = prices.DEFAULT  # 45nm, 45nm-int8, 45nm-int32, 45nm-sram, loihi, or a YAML file of your own
    episodes: int = 1  # greedy ones in which decisions are counted
    json: bool = False  # everything, for programs


@dataclass
class ServeEnv:
    """Play an environment in real time for a learner elsewhere, who trains on RemoteEnvironment-v0: docs/hardware.md."""

    env: tyro.conf.Positional[str]  # a Gymnasium id, also as module:Id-v0
    env_kwargs: str = "{}"  # its keyword arguments, as YAML
    host: str = "127.0.0.1"  # 0.0.0.0 listens to everybody on the network: there is no password
    port: int = 7777  # 0: any that is free
    tick: float = 0.02  # seconds of one of its steps
    late: Literal["hold", "idle"] = "hold"  # what it is given in a tick without an action: the last one, or none
    silence: int = 10  # ticks without an action after which it is given none
    patience: float = 5.0  # seconds for which a lost line may come back
    sessions: int = 1  # episodes at a time


@dataclass
class Presets:
    """List the named experiments."""
