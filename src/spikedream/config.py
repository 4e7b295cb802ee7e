"""The complete description of a run: a tree of dataclasses, its presets, and its YAML form.

A field that holds a part (network, neuron, world model ...) is written as that part's fields plus `kind`, the name of its class; a
bare name stands for the kind with its defaults, or with those of the field where it is the field's own kind: a `SpikingNetwork` as
the actor of `OffPolicy` is population-coded. Fields that are not written keep their defaults.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
import yaml

from spikedream import constraints
from spikedream.agents.actor_critic import Learner
from spikedream.agents.dreamer import Dreamer
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.online import StreamActorCritic
from spikedream.agents.ppo import PPO
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.algorithm import Algorithm
from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.fitting import Fitting
from spikedream.bonuses.intrinsic_curiosity import IntrinsicCuriosity
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.bounds import check_bounds
from spikedream.envs.real_time import Pace
from spikedream.knowledge import Knowledge
from spikedream.processes import AnyRunner, Sync
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.product import Precision
from spikedream.spec import Spec
from spikedream.spelling import suggestion
from spikedream.verbs import Checkpointing, Collect, Evaluation, Fit, Improve, check_period
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.fine_tuning import FineTuning, Plateau
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment

# A new kind is named here, once; the command line, presets and contract tests read these unions.
AnyWorldModel = Ensemble | Recurrent | TrueEnvironment
AnyAgent = Dreamer | Evolution | MPC | OffPolicy | PPO | StableBaselines | StreamActorCritic
AnyBonus = Disagreement | RandomNetworkDistillation | IntrinsicCuriosity

# The kinds that fit a field which is declared by what it must offer: so that agents need not know each other.
OFFERED: dict[Any, tuple[type, ...]] = {Learner: (Dreamer,)}


class ConfigError(Exception):
    """A setting is unknown or has a wrong type or value; the message names it and says what would be right."""


@dataclass(frozen=True)
class Logging:
    """Where the numbers go, beside the run's own directory."""

    wandb: str | None = None  # a project of W&B


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's outcome."""

    preset: Annotated[str, tyro.conf.Suppress] = "custom"  # name of the preset or environment that it was made from; only a label
    env: str = "CartPole-v1"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None  # in place of the environment's own time limit
    action_repeat: int | None = 1  # the environment's own steps for which an action is held; None: measured, at the start
    realtime: Pace | None = None  # the wall clock on which the environment advances while experience is collected
    seed: int = 0
    budget: int = 1000  # real steps after which an unsolved run stops; 0: all that it learns is from the run that it starts from
    precision: Literal["float32", "bfloat16", "fastest"] = (
        "float32"  # of products while it learns; the last is measured at the start
    )
    start_from: str | None = None  # an earlier run, of which is taken over what `start_with` says
    # World model and experience; world model and agent, and the scales that these have learned in; or all of it.
    start_with: Literal["world", "weights", "everything"] = "world"
    strict: bool = False  # stop where the first experience shows that little can come of it
    threshold: float | None = None  # mean return at which it stops as solved; the environment's own when absent
    replay: ReplayBuffer = ReplayBuffer()
    collect: Collect = Collect()
    fit: Fit = Fit()
    improve: Improve = Improve()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    logging: Logging = Logging()
    runner: AnyRunner = Sync()
    knowledge: Knowledge = Knowledge()
    world_model: AnyWorldModel = Ensemble()
    agent: AnyAgent = Dreamer()
    bonus: AnyBonus | None = None

    def __post_init__(self) -> None:
        check_bounds(self, seed=(0, 2**31 - 1), budget=(0, None))
        check_period(self, "action_repeat")
        if self.max_episode_steps is not None:
            check_bounds(self, max_episode_steps=(1, None))

    @property
    def repeat(self) -> int:
        """Its own steps for which the environment holds an action; 1 until that is measured."""
        return self.action_repeat or 1

    @property
    def environments(self) -> int:
        """Whose steps are experience, of all collectors together."""
        return self.collect.environments * self.runner.collectors

    @property
    def explores(self) -> bool:
        """Whether its first steps are random: with something learned it acts by that, or does not act before it learns."""
        return self.start_from is None and bool(self.collect.seed_steps or self.collect.seed_episodes)

    def algorithm(self, spec: Spec, fastest: Precision = "float32") -> Algorithm:
        """`fastest` is the precision that is measured to be so; it makes no difference to how a policy acts."""
        parts = (self._dreamt_in(), _settled(self.agent, spec), self.bonus, self.replay, self.improve.block)
        precision = fastest if self.precision == "fastest" else self.precision
        return Algorithm(spec, *parts, self.environments, self.knowledge, precision)

    def _dreamt_in(self) -> AnyWorldModel:
        """The world model; what stands for the truth is told with what the environment is made, or raises ValueError."""
        model = self.world_model
        return model.made_with(self.env_kwargs) if isinstance(model, TrueEnvironment) else model

    def check(self) -> None:
        """Raises ValueError unless the loop goes as the agent needs it in order to learn."""
        steps, name = self.agent.on_policy_steps, type(self.agent).__name__
        self._dreamt_in()
        self.knowledge.check()
        self.runner.check(self)
        if self.replay.capacity < self.environments:
            raise ValueError(
                f"replay.capacity is {self.replay.capacity}; {self.environments} environments side by side need as many"
            )
        if self.start_from is None and self.start_with != "world":
            raise ValueError(f'start_with is "{self.start_with}", but there is no run to start from; name it by start_from')
        if self.budget == 0 and (self.start_from is None or self.start_with == "weights"):
            without = "without start_from" if self.start_from is None else 'with start_with "weights"'
            raise ValueError(f"budget is 0, but {without} there is nothing to learn from; it must be at least 1")
        if self.replay.priority == "loss" and not isinstance(self.agent, OffPolicy):
            raise ValueError(f'replay.priority is "loss", which {name} does not tell; OffPolicy does, for others use "td_error"')
        if self.start_from is not None and (self.agent.online or (steps is not None and self.start_with != "weights")):
            raise ValueError(
                f"start_from needs an agent that learns from any experience, which {name} does not; Dreamer and MPC do"
                + ("" if self.agent.online else ', and start_with "weights" takes over none')
            )
        constraints.refuse_unmet(self)
        if steps is None:
            return
        if steps % self.collect.environments:
            raise ValueError(
                f"agent.rollout is {steps}, which {self.collect.environments} environments (collect.environments) cannot share"
                " equally"
            )
        if self.replay.capacity < steps:
            raise ValueError(
                f"replay.capacity is {self.replay.capacity}; {name} learns from the newest {steps} steps (agent.rollout)"
            )


def _settled(agent: AnyAgent, spec: Spec) -> AnyAgent:
    """With what depends on the actions."""
    if isinstance(agent, MPC) and isinstance(agent.policy, Dreamer):
        return dataclasses.replace(agent, policy=agent.policy.settled(spec))
    return agent.settled(spec) if isinstance(agent, Dreamer) else agent


def twin(part: Any) -> Any:
    """The same configuration with every spiking network replaced by its conventional twin."""
    if isinstance(part, SpikingNetwork):
        return part.twin()
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    return dataclasses.replace(part, **{f.name: twin(getattr(part, f.name)) for f in dataclasses.fields(part)})


# ---- to and from plain data

AUTOMATIC = "automatic"  # the preset that is used where none is named

# Written without a kind: there is no other.
PLAIN = (Config, Collect, Fit, Improve, Evaluation, Checkpointing, Logging, Knowledge, Pace, ReplayBuffer, Fitting,
         FineTuning, Plateau)  # fmt: skip


def to_data(value: Any) -> Any:
    """Dataclasses to plain mappings; every part is written with its kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data = {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return data if type(value) in PLAIN else {"kind": type(value).__name__, **data}
    return [to_data(x) for x in value] if isinstance(value, tuple) else value


def merge(base: Any, changes: Any, hint: Any = None, path: str = "", default: Any = None) -> Any:
    """`base` with the settings of the plain data `changes`.

    Args:
        base: a dataclass value (or, below the top, any value that it holds).
        changes: settings to change; nested mappings for nested parts.
        hint: the declared type of `base`; its own class at the top.
        path: dotted name of `base`, for messages.
        default: the declared default of the field that holds `base`.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type, naming the setting.
    """
    hint = hint or type(base)
    options = kinds(hint)
    if changes is None and type(None) in typing.get_args(hint):
        return None
    if not options:
        if isinstance(base, Mapping) and isinstance(changes, Mapping):
            changes = {**base, **changes}
        return _plain(changes, hint, path)
    if isinstance(changes, str):
        changes = {"kind": changes}
    if changes is True and type(None) in typing.get_args(hint):
        changes = {}  # switched on
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{path or 'the configuration'} takes a mapping of settings, not {changes!r}")
    changes = dict(changes)
    kind = changes.pop("kind", next(iter(options)) if base is None and len(options) == 1 else type(base).__name__)
    if kind not in options:
        raise ConfigError(f"{path} has no kind {kind!r}; {suggestion(str(kind), options)}")
    base = next((part for part in (base, default) if kind == type(part).__name__), None) or options[kind]()
    hints, defaults = typing.get_type_hints(type(base)), {f.name: f.default for f in dataclasses.fields(base)}
    for name in changes:
        _check_name(base, str(name), path, options)
    prefix = f"{path}." if path else ""
    new = {n: merge(getattr(base, n), v, hints[n], prefix + n, defaults[n]) for n, v in changes.items()}
    try:
        return dataclasses.replace(base, **new)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def find(part: Any, names: Sequence[str]) -> Any:
    """What stands under a dotted name, split at its dots; None below what is switched off or is no part. Raises ConfigError where
    there is no such setting."""
    options: Mapping[str, type] = {}
    for i, name in enumerate(names):
        if not dataclasses.is_dataclass(part):
            return None
        _check_name(part, name, ".".join(names[:i]), options)
        options, part = kinds(typing.get_type_hints(type(part))[name]), getattr(part, name)
    return part


def _check_name(part: Any, name: str, path: str, options: Mapping[str, type]) -> None:
    """`options` are the kinds that could stand in place of `part`."""
    own = [f.name for f in dataclasses.fields(part)]
    if name not in own:
        inner = [known for known in _names(part) if known.endswith(f".{name}")]
        where, kind = f"{path}.{name}" if path else name, type(part).__name__
        others = [other for other, option in options.items() if name in {f.name for f in dataclasses.fields(option)}]
        if others and not inner:
            flag = f"--{path.replace('_', '-')} {others[0]}"
            raise ConfigError(f"unknown setting {where!r} of {kind}; it is one of {' and '.join(others)} ({flag})")
        raise ConfigError(f"unknown setting {where!r}; {suggestion(name, inner or own) if own else f'{kind} has none'}")


def _names(part: Any) -> Iterator[str]:
    """Dotted names of the settings of a part, at any depth."""
    for f in dataclasses.fields(part):
        yield f.name
        if dataclasses.is_dataclass(value := getattr(part, f.name)):
            yield from (f"{f.name}.{name}" for name in _names(value))


def kinds(hint: Any) -> dict[str, type]:
    """The dataclasses that a declared type allows, by name; empty for plain types."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = [kind for option in options for kind in OFFERED.get(option, (option,))]
    return {option.__name__: option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)}


def _plain(value: Any, hint: Any, path: str) -> Any:
    """`value` as the plain type `hint`, or a ConfigError. PyYAML reads `3e-4` as text: numbers are accepted as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _plain(value, next(a for a in arguments if a is not type(None)), path)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path} is {value!r}; {suggestion(str(value), arguments)} (one of {', '.join(arguments)})")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} takes a mapping, not {value!r}")
        return dict(value)
    if origin is tuple:
        if arguments[-1] is ... and isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise ConfigError(f"{path} takes {_type_name(hint)}, not {value!r}")
        element = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(_plain(v, h, f"{path}[{i}]") for i, (v, h) in enumerate(zip(value, element, strict=True)))
    if (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    raise ConfigError(f"{path} takes {_type_name(hint)}, not {value!r}")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        element, *rest = typing.get_args(hint)
        return f"a list of {_type_name(element).removeprefix('a ')}s" if ... in rest else f"a list of {len(rest) + 1} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


# ---- presets and files


def presets() -> dict[str, str]:
    """Name to description (the preset file's first comment line)."""
    found = {}
    for file in sorted(resources.files("spikedream.presets").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            found[file.name.removesuffix(".yaml")] = file.read_text().splitlines()[0].removeprefix("#").strip()
    return found


def named(name: str) -> Config:
    """The configuration of a preset or of a YAML file, or the automatic one on an environment id.

    Raises:
        ConfigError: when `name` is none of these.
    """
    known = presets()
    if name.endswith((".yaml", ".yml")):
        return load(Path(name))
    if name in known:
        text = (resources.files("spikedream.presets") / f"{name}.yaml").read_text()
        return dataclasses.replace(parse(text, f"preset {name}"), preset=name)
    if "-v" not in name and ":" not in name:
        raise ConfigError(f"no preset {name!r} ({suggestion(name, known)}), and environment ids look like CartPole-v1")
    return dataclasses.replace(named(AUTOMATIC), preset=name, env=name)


def resolve(name: str, asked: Mapping[str, Any], conventional: bool = False) -> tuple[Config, tuple[str, ...]]:
    """`named`, or its `conventional` twin, with the settings `asked` for. What the automatic configuration chooses gives way where
    it does not go with them; a line for each reason says what was given up.

    Raises:
        ConfigError: when `name` or a setting is wrong.
    """
    config = merge(twin(named(name)) if conventional else named(name), asked)
    automatic = name == AUTOMATIC or not (name in presets() or name.endswith((".yaml", ".yml")))
    return constraints.give_way(config, asked) if automatic else (config, ())


def parse(text: str, origin: str) -> Config:
    """A configuration from YAML that holds differences from the defaults; `base: PRESET` starts from another preset."""
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{origin} is not a mapping of settings")
    data = dict(data)
    base = named(data.pop("base")) if "base" in data else Config()
    base = twin(base) if data.pop("twin", False) else base
    return merge(base, data)


def save(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_data(config), sort_keys=False))


def load(path: Path) -> Config:
    """Raises ConfigError where the file is missing or wrong."""
    return parse(text_of(path), str(path))


def text_of(path: Path) -> str:
    """Of a YAML file that a user wrote. Raises ConfigError where there is none, or no text in it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is no text in UTF-8 (byte {error.start})") from error
