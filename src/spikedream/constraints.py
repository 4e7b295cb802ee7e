"""Which settings go together: what some of a configuration demands of the rest, and what happens where that is otherwise."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.intrinsic_curiosity import IntrinsicCuriosity
from spikedream.snn.learning_rules.eprop import EProp
from spikedream.world_models.recurrent import Recurrent


class Demand(NamedTuple):
    """Settings that must have certain values, for the sake of something else."""

    reason: str
    settings: dict[str, Any]  # dotted name to the value


def demands(config: Any) -> Iterator[Demand]:
    """Of a `Config`, met or not."""
    agent, name = config.agent, type(config.agent).__name__
    measured = {"action_repeat": config.repeat}  # any number will do, None will not
    own_alone = {"collect.seed_episodes": 0, "collect.seed_steps": None, **measured}
    if config.realtime is not None:
        yield Demand("for how long an action is held is measured before a clock runs, and in real time one does", measured)
    if config.runner.even_turns:
        kind = type(config.runner).__name__
        yield Demand(f"runner {kind} counts in turns of one length and begins at once", {**measured, "collect.growth": 0.0})
    if agent.online:
        after = {"improve.first": 0, "improve.then": 0, "improve.ratio": None}
        yield Demand(f"{name} learns from each step as it comes, of its own and of one environment, and nothing is left to do after"
                     " that", {"collect.environments": 1, **own_alone, **after})  # fmt: skip
        yield Demand(f"{name} learns from the environment's own rewards", {"bonus": None})
    if getattr(agent, "dyna", None) is not None and config.knowledge.termination is not None:
        yield Demand("dreams in the own model of agent.dyna do not end where knowledge.termination says", {"agent.dyna": None})
    if (steps := agent.on_policy_steps) is not None:
        turn = {"collect.steps": steps, "collect.growth": 0.0, "fit.every": None}
        once = {"improve.first": 1, "improve.then": 1, "improve.ratio": None, "improve.block": 1}
        yield Demand(f"{name} learns once from each {steps} steps of its own policy", {**own_alone, **turn, **once})
        whole = -(-config.budget // steps) * steps
        yield Demand(f"{name} learns from {steps} steps at a time (agent.rollout)", {"budget": whole})
    priority = config.replay.priority
    if priority == "td_error" and not _tells_errors(agent):
        yield Demand(f'priority "td_error" needs a value function, which {name} has not', {"replay.priority": "uniform"})
    if priority != "uniform" and agent.on_policy_steps is not None and not agent.uses_world and config.bonus is None:
        yield Demand(f'replay.priority is "{priority}", but nothing here draws by it', {"replay.priority": "uniform"})
    if getattr(agent, "gamma", 0.0) is None and config.replay.scale != "spread":
        yield Demand('how far ahead rewards count is measured where replay.scale is "spread"', {"agent.gamma": 0.99})
    where = "world_model.ensemble" if isinstance(config.world_model, Recurrent) else "world_model"
    if getattr(attrgetter(where)(config), "reward_weight", 1.0) is None and config.replay.scale != "spread":
        yield Demand(
            'how much the reward\'s error counts is measured where replay.scale is "spread"', {f"{where}.reward_weight": 1.0}
        )
    robust, impacts = (getattr(attrgetter(where)(config), name, False) for name in ("robust", "impacts"))
    without = {f"{where}.impacts": False} if impacts else {}
    if robust and config.replay.scale != "spread":
        measured = 'how far the observation moves is measured where replay.scale is "spread"'
        yield Demand(measured, {f"{where}.robust": False} | without)
    elif impacts and not robust:
        yield Demand("impacts are what robust dynamics miss", without)
    if isinstance(config.bonus, Disagreement) and config.world_model.members < 2:
        yield Demand("Disagreement needs a world model of at least 2 members (RandomNetworkDistillation and IntrinsicCuriosity work"
                     " with any)", {"bonus": None})  # fmt: skip
    choosers: dict[str, Any] = {"agent": agent, "agent.policy": getattr(agent, "policy", None)}
    for owner, chooser in choosers.items():
        if getattr(chooser, "selection", None) is not None and chooser.actor.persistent:
            yield Demand(f"{owner}.actor keeps a state between steps, and PolicySelection would let it begin its dreams at rest,"
                         " not with what it remembered there", {f"{owner}.selection": None})  # fmt: skip
        undecided = _of_a_dream(owner) if isinstance(chooser, Dreamer) and chooser.gradient is None else ()
        if any(setting for part in undecided for setting in _random_feedback(attrgetter(part)(config), part)):
            yield Demand("random feedback would make noise of a gradient through the model", {f"{owner}.gradient": "clipped"})
    for learner, through in _differentiated(config):
        for setting in _random_feedback(attrgetter(through)(config), through):
            yield Demand(f"{learner} learns by the gradient of what enters {through}, which random feedback would make noise",
                         {setting: "symmetric"})  # fmt: skip


def _tells_errors(agent: Any) -> bool:
    valued = agent.policy if isinstance(agent, MPC) else agent
    return valued is not None and not isinstance(valued, Evolution | StableBaselines)


def _differentiated(config: Any) -> Iterator[tuple[str, str]]:
    """What learns by the gradient of the inputs of other parts, and those parts, by their dotted names."""
    agents: dict[str, Any] = {"agent": config.agent, "agent.policy": getattr(config.agent, "policy", None)}
    for owner, agent in agents.items():
        if isinstance(agent, OffPolicy):
            yield f"{owner}.actor", f"{owner}.critic"
            if agent.representation is not None:
                yield f"{owner}.representation.state", f"{owner}.representation.pair"
        if isinstance(agent, Dreamer) and agent.gradient == "model":
            for through in _of_a_dream(owner):
                yield f"{owner}.actor", through
    model = config.world_model
    dynamics = "world_model.ensemble.dynamics" if isinstance(model, Recurrent) else "world_model.dynamics"
    if isinstance(model, Recurrent):
        yield "world_model.network", dynamics
    if getattr(getattr(model, "ensemble", model), "adversarial", 0.0):
        yield "a model with adversarial perturbations", dynamics
    if isinstance(config.bonus, IntrinsicCuriosity):
        yield "bonus.encoder", "bonus.inverse"
        yield "bonus.encoder", "bonus.forward"


def _of_a_dream(owner: str) -> tuple[str, ...]:
    """The parts, by their dotted names, through which the returns of dreams flow back to the actor of `owner`."""
    return f"{owner}.actor", f"{owner}.critic", "world_model", "bonus"


def _random_feedback(part: Any, name: str) -> Iterator[str]:
    """The settings, by their dotted names, of all rules in `part` that have it."""
    if isinstance(part, EProp) and part.feedback == "random":
        yield f"{name}.feedback"
    elif is_dataclass(part):
        for field in fields(part):
            yield from _random_feedback(getattr(part, field.name), f"{name}.{field.name}")


def unmet(config: Any) -> Iterator[Demand]:
    """The demands on a `Config`, each with those settings alone that are otherwise."""
    for reason, settings in demands(config):
        wrong = {name: value for name, value in settings.items() if attrgetter(name)(config) != value}
        if wrong:
            yield Demand(reason, wrong)


def refuse_unmet(config: Any) -> None:
    """Raises ValueError where a `Config` does not meet a demand, saying what would."""
    for reason, settings in unmet(config):
        wanted = (f"{name} to {value} (it is {_short(config, name)})" for name, value in settings.items())
        raise ValueError(f"{reason}; set {', '.join(wanted)}")


def give_way(config: Any, asked: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """A `Config` in which settings have the values that are demanded, save those that `asked`, nested settings, names; and a line
    for each demand on what was given up to it."""
    notes, given = [], config
    for reason, settings in unmet(config):
        free = {name: value for name, value in settings.items() if not _names(asked, name) and attrgetter(name)(given) != value}
        if free:
            changed = (f"{name} is {value} instead of {_short(config, name)}" for name, value in free.items())
            notes.append(f"{reason}: {', '.join(changed)}")
        for name, value in free.items():
            given = _with(given, name, value)
    return given, tuple(notes)


def _short(config: Any, name: str) -> Any:
    value = attrgetter(name)(config)
    return type(value).__name__ if is_dataclass(value) else value


def _names(asked: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    return isinstance(asked, Mapping) and first in asked and (not rest or _names(asked[first], rest))


def _with(part: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(part, **{first: _with(getattr(part, first), rest, value) if rest else value})
