"""A study file, and the cells (method, environment, seed) that it stands for.

    name: spikes-or-not
    seeds: 5                          # or a list: [0, 1, 2]
    environments:
      CartPole-v1: {budget: 500}      # an environment id or a preset, and settings for all methods there
    methods:
      spiking: {base: cartpole}       # settings as in a preset file
      conventional: {base: cartpole, twin: true}
      ppo: {sb3: PPO, only: [CartPole-v1], on: {CartPole-v1: {budget: 50000}}}
    statistic: mean                   # over seeds; the interquartile mean (iqm) where it is not said
    marks: [100, 300]                 # real steps at which returns are compared, too
    held_out: [CartPole-v1]           # environments on which no setting was chosen: they are run when that is asked for alone

A method that is not `only` for some environments runs on all. Its settings `on` one environment come on top of its others, and all
of them on top of the environment's. What decides whether a run counts as solved belongs to the environment: it is the same for all.
With `evaluation: {stop: false}` runs go to the end of their budgets, and are compared by their returns there.

`sb3` is an algorithm of Stable-Baselines3, model-free, as RL Baselines3 Zoo sets it; a method with `settings` of its own, be they
none (`settings: {}`), needs no others.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import jax
import yaml

from spikedream import config as configuration
from spikedream.config import Config, ConfigError, text_of
from spikedream.envs.make import spec_of
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.experiments import baselines
from spikedream.experiments.baselines import Baseline
from spikedream.reports.statistics import Statistic
from spikedream.spelling import suggestion

SHARED_BY_METHODS = (
    "env",
    "env_kwargs",
    "max_episode_steps",
    "threshold",
    "evaluation",
)  # come from the environment, not from a method
NAME = re.compile(r"\w[\w.+ -]*")  # also a directory's


@dataclass(frozen=True)
class Grid:
    """As its file says."""

    name: str
    seeds: tuple[int, ...]
    environments: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    statistic: Statistic = "iqm"
    marks: tuple[int, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def developed_on(self) -> tuple[str, ...]:
        """The environments that are not held out."""
        return tuple(environment for environment in self.environments if environment not in self.held_out)


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    environment: str  # its key in the study
    method: str
    seed: int
    config: Config | Baseline
    directory: Path

    def __str__(self) -> str:
        return f"{self.environment} · {self.method} · seed {self.seed}"


def studies() -> dict[str, str]:
    """Name to text of the studies that come with spikedream."""
    files = sorted(resources.files("spikedream.studies").iterdir(), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text() for f in files if f.name.endswith(".yaml")}


def named(name: str) -> Grid:
    """A study from a YAML file, or one that comes with spikedream.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    if not name.endswith((".yaml", ".yml")):
        known = studies()
        if name not in known:
            raise ConfigError(f"no study {name!r}; spikedream comes with {', '.join(known)}, and your own is a .yaml file")
        return parse(known[name], f"study {name}")
    return parse(text_of(Path(name)), name)


def parse(text: str, origin: str) -> Grid:
    """Raises ConfigError, naming `origin`, where the text is not a study."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{origin} is not a mapping with name, seeds, environments and methods")
    fields = [f.name for f in dataclasses.fields(Grid)]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{origin} has an unknown key {key!r}; {suggestion(str(key), fields)}")
    name = data.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{origin}: name takes a text of letters, digits, spaces and . + -, not {name!r}")
    environments, methods = (_entries(data.get(key), key, origin) for key in ("environments", "methods"))
    # YAML 1.1 reads a bare `on` as true.
    methods = {name: {"on" if key is True else key: value for key, value in own.items()} for name, own in methods.items()}
    for method, settings in methods.items():
        if not NAME.fullmatch(method):
            raise ConfigError(f"{origin}: a method's name takes letters, digits, spaces and . + -, not {method!r}")
        _check_method(settings, environments, f"{origin}: methods.{method}")
    statistic, known = data.get("statistic", "iqm"), get_args(Statistic)
    if statistic not in known:
        raise ConfigError(f"{origin}: statistic is one of {', '.join(known)}, not {statistic!r}")
    marks, held_out = _marks(data.get("marks", []), origin), _held_out(data.get("held_out", []), environments, origin)
    return Grid(name, _seeds(data.get("seeds"), origin), environments, methods, statistic, marks, held_out)


def _held_out(value: Any, environments: Collection[str], origin: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{origin}: held_out takes a list of environments, not {value!r}")
    for environment in value:
        if environment not in environments:
            hint = suggestion(str(environment), environments)
            raise ConfigError(f"{origin}: held_out names {environment!r}, which is not among the environments; {hint}")
    if len(set(value)) == len(environments):
        raise ConfigError(f"{origin}: all environments are held out; name those alone on which no setting was chosen")
    return tuple(value)


def _marks(value: Any, origin: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(mark) is not int or mark < 1 for mark in value):
        raise ConfigError(f"{origin}: marks takes a list of real steps, at least 1 each, not {value!r}")
    return tuple(value)


def _seeds(value: Any, origin: str) -> tuple[int, ...]:
    seeds = range(value) if type(value) is int else value
    if not isinstance(seeds, range | list) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(f"{origin}: seeds takes how many, or a list of whole numbers, not {value!r}")
    if not seeds:
        raise ConfigError(f"{origin} has no seeds")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{origin}: a seed is there twice: {value}")
    return tuple(seeds)


def _entries(value: Any, key: str, origin: str) -> dict[str, dict[str, Any]]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{origin}: {key} takes a mapping from names to settings, not {value!r}")
    if not value:
        raise ConfigError(f"{origin} has no {key}")
    return {str(name): _mapping(settings, f"{origin}: {key}.{name}") for name, settings in value.items()}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where} takes a mapping of settings, not {value!r}")
    return dict(value or {})


def _check_method(settings: dict[str, Any], environments: Iterable[str], where: str) -> None:
    only, on = settings.get("only"), _mapping(settings.get("on"), f"{where}.on")
    if only is not None and (not isinstance(only, list) or not only):
        raise ConfigError(f"{where}.only takes a list of environments, not {only!r}")
    for environment in [*(only or []), *on]:
        if environment not in environments:
            hint = suggestion(str(environment), environments)
            raise ConfigError(f"{where} names {environment!r}, which is not among the environments; {hint}")
    for part in (settings, *(_mapping(value, f"{where}.on.{name}") for name, value in on.items())):
        for name in SHARED_BY_METHODS:
            if name in part:
                raise ConfigError(f"{where} sets {name}, which must be the same for all methods: set it under environments")


# ---- from the file to configurations


def expand(study: Grid, out: Path, asked: Collection[str] = ()) -> list[Cell]:
    """Every cell, its configuration checked against its environment. Seeds come outermost: a study that is stopped early has some
    seeds of everything. Where some environments are `asked` for, others that cannot be used here are left out.

    Raises:
        ConfigError: a setting is wrong, or a method does not fit an environment.
        BrokenEnvironment: an environment cannot be used.
    """
    configs: dict[tuple[str, str], Config | Baseline] = {}
    for environment, settings in study.environments.items():
        where = f"environments.{environment}"
        conditions = _explain(where, lambda e=environment, s=settings: configuration.merge(configuration.named(e), s))
        try:
            spec = spec_of(conditions.env, conditions.env_kwargs, conditions.max_episode_steps)
        except BrokenEnvironment:
            if not asked or environment in asked:
                raise
            continue
        for method, own in study.methods.items():
            if environment in own.get("only", study.environments):
                where = f"methods.{method} on {environment}"
                config = _explain(where, lambda c=conditions, s=settings, o=own, e=environment: _configure(c, s, o, e))
                if isinstance(config, Config):
                    _explain(where, config.check)
                    # A part that does not fit the environment says so when it is made.
                    _explain(where, lambda c=config, spec=spec: jax.eval_shape(c.algorithm(spec).init, jax.random.key(0)))
                configs[environment, method] = dataclasses.replace(config, preset=method)
    return [
        Cell(environment, method, seed, dataclasses.replace(config, seed=seed), out / folder(environment) / method / f"s{seed}")
        for seed in study.seeds
        for (environment, method), config in configs.items()
    ]


def wanted(study: Grid, environments: Collection[str], held_out: bool) -> tuple[str, ...]:
    """Those of the `environments`, or of all where there are none: with `held_out` those that are held out too. Raises ConfigError
    where the study has no such environment, or one is held out that was not asked for as such."""
    for environment in environments:
        if environment not in study.environments:
            raise ConfigError(
                f"study {study.name} has no environment {environment!r}; {suggestion(environment, study.environments)}"
            )
        if environment in study.held_out and not held_out:
            raise ConfigError(
                f"study {study.name} holds out {environment}: no setting is to be chosen by what happens there; to run it all the"
                " same, add --held-out"
            )
    if held_out and not study.held_out:
        raise ConfigError(f"study {study.name} holds out no environments; leave out --held-out")
    return tuple(environments) or (tuple(study.environments) if held_out else study.developed_on)


def part(
    study: Grid, cells: Iterable[Cell], seeds: int | None, environments: Collection[str], methods: Collection[str] = ()
) -> list[Cell]:
    """Of the `cells`, those of the first `seeds` seeds, or of all where that is None, of the `environments`, and of the `methods`,
    or of all where there are none. Raises ConfigError where the study has not so many seeds, no such method, or none for one of the
    environments."""
    for method in methods:
        if method not in study.methods:
            raise ConfigError(f"study {study.name} has no method {method!r}; {suggestion(method, study.methods)}")
    if seeds is not None and not 1 <= seeds <= len(study.seeds):
        raise ConfigError(f"seeds is {seeds}; study {study.name} has 1 to {len(study.seeds)}")
    first = study.seeds[:seeds]
    chosen = [c for c in cells if c.seed in first and c.environment in environments and c.method in (methods or study.methods)]
    idle = set(environments) - {c.environment for c in chosen}
    if idle:
        asked = f" ({', '.join(methods)})" if methods else ""
        raise ConfigError(f"no method of study {study.name}{asked} runs on {', '.join(sorted(idle))}")
    return chosen


def folder(environment: str) -> str:
    """The name of an environment or preset as a directory's."""
    return environment.replace("/", "-").replace(":", "-")


def _explain(where: str, make: Any) -> Any:
    try:
        return make()
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _configure(conditions: Config, shared: Mapping[str, Any], method: Mapping[str, Any], environment: str) -> Config | Baseline:
    """Of a method on an environment, whose own configuration and settings are `conditions` and `shared`."""
    layers = [{k: v for k, v in method.items() if k not in ("on", "only")}, dict((method.get("on") or {}).get(environment) or {})]
    fixed = {name: getattr(conditions, name) for name in SHARED_BY_METHODS}
    if "sb3" in method:
        return dataclasses.replace(_baseline(conditions.env, shared, layers[0] | layers[1]), **fixed)
    starts = {"base": environment, "twin": False}
    for layer in layers:
        starts |= {name: layer.pop(name) for name in starts if name in layer}
    config = configuration.parse(yaml.safe_dump(starts), "the method")
    for layer in (shared, *layers):
        config = configuration.merge(config, layer)
    return dataclasses.replace(config, **fixed)


def _baseline(env: str, shared: Mapping[str, Any], settings: dict[str, Any]) -> Baseline:
    """The Zoo's settings with changes: `budget`, and the fields of `baselines.StableBaselines3`. A method that gives `settings`
    changes the library's own where the Zoo has none."""
    baseline = baselines.from_zoo(settings.pop("sb3"), env, "settings" in settings)
    budget = {"budget": settings.pop("budget", shared.get("budget", baseline.budget))}
    own = _mapping(settings.get("settings"), "settings")
    agent = configuration.merge(baseline.agent, {**settings, "settings": baseline.agent.settings | own})
    return dataclasses.replace(configuration.merge(baseline, budget), agent=agent)
