"""The configuration: presets, files, twins, and no setting that nobody reads."""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from small import DISCRETE, changed, filled

from spikedream import config as configuration
from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Config
from spikedream.snn.networks import MLP, SpikingNetwork

# Fields that act outside `fit` and `dream`; test_cli.py and test_resume.py hold them.
SHELL = {
    "seed",
    "budget",
    "threshold",
    "max_episode_steps",
    "action_repeat",
    "replay",
    "collect",
    "improve",
    "evaluation",
    "env",
    "env_kwargs",
    "preset",
}
# Fields whose effect needs other settings than the small configuration's; each is tested under its own name elsewhere.
CONDITIONAL = {
    "world_model.patience",  # test_probes: early stopping
    "agent.gradient_clip", "world_model.gradient_clip",  # no effect on gradients below the bound
    "agent.advantage_floor",  # acts once the deviation of the advantages is below it
    "agent.restart",  # acts on dreams that outlive their horizon; test_probes
    "agent.clip",  # acts once a ratio leaves the clipping range
    "world_model.obs_bound",  # acts on far states only
    "world_model.terminal_weight",  # an upper bound
    *(f"{network}.neuron.recurrent_gain" for network in (  # acts on recurrent neurons; test_numbers_of_parts
        "world_model.dynamics", "world_model.ending", "agent.actor", "agent.actor.readout", "agent.critic",
    )),
    "world_model.support_margin", "world_model.support_weight",  # act beyond the range of the experience; test_probes
    "agent.context", "agent.imagined_share.begin", "agent.imagined_share.steps",  # test_numbers_of_parts
    *(f"{network}.{field}" for network in (  # the same class as the actor's, which holds them
        "world_model.dynamics", "world_model.ending", "agent.critic",
    ) for field in ("ticks", "neuron.decay", "neuron.surrogate.sharpness", "bias", "gain")),
}  # fmt: skip


def small_config() -> Config:
    changes = {
        "world_model": {
            "members": 2, "updates": 4, "check_every": 2, "batch": 8, "holdout": 0.2,
            "dynamics": {"hidden": [6], "ticks": 3}, "ending": {"hidden": [8], "ticks": 3},
        },
        "agent": {
            "trajectories": 8, "horizon": 4, "restart": 0.5,
            "actor": {"hidden": [6], "ticks": 3, "readout": {"neurons": 2}}, "critic": {"hidden": [6], "ticks": 3},
        },
    }  # fmt: skip
    return configuration.merge(Config(), changes)


def numeric_fields(part: Any, path: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Dotted names and values of every number below `part`."""
    for f in dataclasses.fields(part):
        value, name = getattr(part, f.name), f"{path}{f.name}"
        if dataclasses.is_dataclass(value) and f.name not in SHELL:
            yield from numeric_fields(value, f"{name}.")
        elif f.name not in SHELL and name not in CONDITIONAL and not isinstance(value, bool):
            first = value[0] if isinstance(value, tuple) and value else value
            if isinstance(first, int | float):
                yield name, value


def start(config: Config) -> tuple[Algorithm, TrainState]:
    algorithm = config.algorithm(DISCRETE)
    state = algorithm.init(jax.random.key(0))
    return algorithm, dataclasses.replace(state, replay=filled(DISCRETE, 24, 32, jax.random.key(1)))


def numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree) if jax.dtypes.issubdtype(x.dtype, np.floating)]


def fitted_twice(config: Config) -> list[np.ndarray]:
    algorithm, state = start(config)
    return numbers(algorithm.fit(algorithm.fit(state)[0])[0].world)


@functools.cache
def fitted_base() -> TrainState:
    algorithm, state = start(base_config())
    return algorithm.fit(state)[0]


def dreamed_twice(config: Config) -> list[np.ndarray]:
    """In the world of the unchanged configuration."""
    algorithm, state = start(config)
    world, replay = jax.tree.map(lambda x: x.copy(), (fitted_base().world, fitted_base().replay))  # the phases donate
    state = dataclasses.replace(state, world=world, replay=replay)
    return numbers(algorithm.dream(algorithm.dream(state)[0])[0].agent)


def fitted_and_dreamed(config: Config) -> list[np.ndarray]:
    algorithm, state = start(config)
    return numbers(algorithm.dream(algorithm.fit(state)[0])[0].agent)


def base_config() -> Config:
    return dataclasses.replace(small_config(), improve=configuration.Improve(block=2))


@functools.cache
def base_outcome(of: Callable[[Config], list[np.ndarray]]) -> list[np.ndarray]:
    return of(base_config())


@pytest.mark.parametrize(("name", "value"), list(numeric_fields(small_config())))
def test_every_number_changes_the_outcome(name: str, value: Any) -> None:
    change: Any = changed(value)
    for key in reversed(name.split(".")):
        change = {key: change}
    config = configuration.merge(base_config(), change)

    def differs(of: Callable[[Config], list[np.ndarray]]) -> bool:
        ours, base = of(config), base_outcome(of)
        pairs = zip(ours, base, strict=True)
        return len(ours) != len(base) or any(a.shape != b.shape or not np.array_equal(a, b) for a, b in pairs)

    if name.startswith("agent."):
        assert differs(dreamed_twice)
    else:
        assert differs(fitted_twice) or differs(fitted_and_dreamed)


@pytest.mark.parametrize("name", list(configuration.presets()))
def test_every_preset_loads_and_survives_its_file(name: str, tmp_path) -> None:
    config = configuration.named(name)
    assert config.preset == name
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config


def test_a_twin_has_no_spiking_network_and_the_same_widths() -> None:
    config = configuration.named("cartpole")
    twin = configuration.twin(config)
    assert isinstance(twin.agent.actor, MLP) and isinstance(twin.world_model.dynamics, MLP)
    assert isinstance(config.agent.actor, SpikingNetwork) and twin.agent.actor.hidden == config.agent.actor.hidden
    assert dataclasses.replace(twin, preset="cartpole-mlp") == configuration.named("cartpole-mlp")
    assert dataclasses.replace(twin.agent, actor=config.agent.actor, critic=config.agent.critic) == config.agent


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert configuration.parse("agent: {learning_rate: 3e-4}", "here").agent.learning_rate == 3e-4


def test_a_part_that_may_be_absent_is_switched_on_and_off_in_a_file() -> None:
    curious = configuration.parse("bonus: {kind: RandomNetworkDistillation, weight: {start: 0.02}}", "here")
    assert type(curious.bonus).__name__ == "RandomNetworkDistillation" and curious.bonus.weight.start == 0.02
    assert configuration.parse("bonus: Disagreement", "here").bonus == configuration.Disagreement()
    assert configuration.merge(curious, {"bonus": None}).bonus is None
    assert configuration.parse("{base: mountaincar, bonus: null}", "here").bonus is None
    assert configuration.named("mountaincar").bonus is not None
    plan = configuration.parse("agent: {kind: MPC, policy: {kind: Dreamer, horizon: 7}, when: collect}", "here")
    assert plan.agent.policy.horizon == 7
    assert configuration.merge(plan, {"agent": {"policy": None, "when": "always"}}).agent.policy is None
    with pytest.raises(configuration.ConfigError, match=r'agent\.when = "collect" needs a policy'):
        configuration.merge(plan, {"agent": {"policy": None}})
    # A setting of what is not there has no kind to belong to.
    with pytest.raises(configuration.ConfigError, match="bonus has no kind 'NoneType'"):
        configuration.parse("bonus: {features: 3}", "here")


@pytest.mark.parametrize("kind", ["Disagreement", "RandomNetworkDistillation", "IntrinsicCuriosity"])
def test_optional_parts_survive_their_file(kind: str, tmp_path) -> None:
    text = f"{{bonus: {kind}, world_model: Recurrent, agent: {{kind: MPC, policy: Dreamer}}, replay: {{priority: td_error}}}}"
    config = configuration.parse(text, "here")
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config
    twin = configuration.twin(config)
    assert "Spiking" not in str(configuration.to_data(twin))
    assert twin.world_model.network.persistent and type(twin.world_model.network).__name__ == "GRU"
