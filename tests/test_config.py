"""The configuration: presets, files, twins, and no setting that nobody reads."""

import dataclasses
import functools
import typing
from typing import Any

import jax
import pytest
from programs import outcome
from small import CONTINUOUS, with_changed

from spikedream import config as configuration
from spikedream.agents.dreams import Dreams
from spikedream.config import Config, ConfigError
from spikedream.snn.conventional import MLP, Linear
from spikedream.snn.networks import SpikingNetwork

# Fields that act outside `fit` and `dream`; test_cli.py and test_resume.py hold them.
SHELL = {
    "seed",
    "budget",
    "threshold",
    "max_episode_steps",
    "action_repeat",
    "replay",
    "collect",
    "fit",
    "checkpoint",
    "logging",
    "knowledge",
    "start_from",
    "improve",
    "evaluation",
    "env",
    "env_kwargs",
    "preset",
    "precision",
}
# Of an actor that remembers, and of one that fires about that much: test_numbers_of_parts.
CONDITIONAL = {"agent.context", "agent.activity_target"}

CONVENTIONAL = {"kind": "MLP", "hidden": [6]}
SPIKING = {"hidden": [6], "ticks": 2, "neuron": {"recurrent": True}}
ACTOR = SPIKING | {"readout": {"neurons": 2, "neuron": {"recurrent": True}}}
OF_NETWORKS = ("world_model.dynamics.", "world_model.ending.", "agent.critic.")
OF_ACTOR = ("agent.actor.", "agent.activity_penalty")


def small_config(network: dict[str, Any] = SPIKING, actor: dict[str, Any] = ACTOR) -> Config:
    """Small, and with everything in use that a number may be about; world model and critic made of such a `network`."""
    changes = {
        "world_model": {
            "members": 2, "updates": 4, "check_every": 2, "batch": 8, "holdout": 0.2, "dynamics": network, "ending": network,
        },
        "agent": {
            "trajectories": 8, "horizon": 4, "restart": 0.5, "critic": network, "actor": actor, "actor_rate": 0.1,
            "error_limit": 0.5, "critic_first": 2,
            "imagined_share": {"start": 0.9, "end": 0.3, "begin": 10, "steps": 20},
        },
        "improve": {"block": 2},
    }  # fmt: skip
    return configuration.merge(Config(), changes)


def numeric_fields(part: Any, path: str = "") -> typing.Iterator[str]:
    """Dotted names of every number below `part`."""
    for f in dataclasses.fields(part):
        value, name = getattr(part, f.name), f"{path}{f.name}"
        if dataclasses.is_dataclass(value) and f.name not in SHELL:
            yield from numeric_fields(value, f"{name}.")
        elif f.name not in SHELL and name not in CONDITIONAL and not isinstance(value, bool):
            first = value[0] if isinstance(value, tuple) and value else value
            if isinstance(first, int | float):
                yield name


@functools.cache
def base_config(of_networks: bool, of_actor: bool) -> Config:
    """What is not of spiking networks shows with conventional ones too, whose programs are half as long."""
    return small_config(SPIKING if of_networks else CONVENTIONAL, ACTOR if of_actor else CONVENTIONAL)


@functools.cache
def base_outcome(of_networks: bool, of_actor: bool, *verbs: str) -> str:
    return outcome(base_config(of_networks, of_actor), *verbs)


@pytest.mark.parametrize("name", list(numeric_fields(small_config())))
def test_every_number_changes_the_outcome(name: str) -> None:
    """What an agent does after a dream, or what a world model has learned, or what an agent does that dreamed in that."""
    about = name.startswith(OF_NETWORKS), name.startswith(OF_ACTOR)
    config = with_changed(base_config(*about), name)
    shown_by = [("dream",)] if name.startswith("agent.") else [("fit",), ("fit", "dream")]
    assert any(outcome(config, *verbs) != base_outcome(*about, *verbs) for verbs in shown_by)


@pytest.mark.parametrize("name", list(configuration.presets()))
def test_every_preset_loads_and_survives_its_file(name: str, tmp_path) -> None:
    config = configuration.named(name)
    assert config.preset == name
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config


CONTROL = [
    "halfcheetah",
    "ant",
    "hopper",
    "walker2d",
    "humanoid",
    "humanoid-compact",
    "swimmer",
    "reacher",
    "inverted-double-pendulum",
]


@pytest.mark.parametrize("rule", ["Tightening", "FirstStep", "Calibrated"])
@pytest.mark.parametrize("name", CONTROL)
def test_one_flag_lets_a_preset_dream_and_another_takes_it_back(name: str, rule: str) -> None:
    plain, _ = configuration.resolve(name, {})
    dreaming, _ = configuration.resolve(name, {"agent": {"dreams": {"kind": "Dreams", "trust": rule}}})
    dreaming.check()
    assert dreaming.agent.uses_world and not plain.agent.uses_world
    assert dreaming.world_model.members > 1 and dreaming.world_model.holdout_newest > 0 and dreaming.fit.then == 250
    jax.eval_shape(dreaming.algorithm(CONTINUOUS).init, jax.random.key(0))
    assert configuration.merge(dreaming, {"agent": {"dreams": None}}) == plain
    bare, _ = configuration.resolve(name, {"agent": {"dreams": "Dreams"}}, conventional=True)
    assert bare.agent.dreams == Dreams() and isinstance(bare.world_model.dynamics, MLP)


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


def test_a_bare_kind_has_the_defaults_of_the_field_whose_own_kind_it_is() -> None:
    td3 = configuration.named("td3")
    assert isinstance(td3.agent.actor, MLP) and td3.threshold is None
    spiking = configuration.merge(td3, {"agent": {"actor": "SpikingNetwork"}})
    assert spiking.agent.actor == configuration.OffPolicy().actor != SpikingNetwork()
    wider = configuration.merge(td3, {"agent": {"actor": {"kind": "SpikingNetwork", "ticks": 3}}})
    assert spiking.agent.actor.encoder.width**2 == pytest.approx(0.15, rel=2e-3)  # PopSAN's released code tells the variance
    assert not spiking.agent.actor.neuron.learn_decay and not spiking.agent.actor.readout.neuron.learn_decay
    assert wider.agent.actor == dataclasses.replace(configuration.OffPolicy().actor, ticks=3)
    assert configuration.merge(td3, {"agent": {"actor": "Linear"}}).agent.actor == Linear()
    assert dataclasses.replace(spiking.agent, actor=td3.agent.actor) == td3.agent


@pytest.mark.parametrize("name", ["td3", "sac", "td7"])
def test_the_published_algorithms_are_settings_of_one_agent(name: str) -> None:
    """What makes each of them that algorithm; the figures are of the papers and their released code."""
    config = configuration.named(name)
    agent = config.agent
    assert (agent.gamma, agent.batch, agent.learning_rate, agent.critic_learning_rate, agent.critics) == (0.99, 256, 3e-4, 3e-4, 2)
    assert agent.target == "min" and agent.actor.hidden == agent.critic.hidden == (256, 256) and config.improve.ratio == 1
    assert configuration.twin(agent) == agent  # all conventional
    if name == "sac":
        assert (type(agent.policy).__name__, agent.policy.temperature.entropy, agent.policy_delay) == ("SquashedGaussian", -1, 1)
        assert agent.policy_value == "min" and config.collect.seed_steps == 10_000
    else:
        assert (agent.policy.noise, agent.policy.target_noise, agent.policy.target_clip, agent.policy_delay) == (0.1, 0.2, 0.5, 2)
        assert config.collect.seed_steps == 25_000
    if name == "td7":
        assert agent.slow.every == 250 and agent.clip_value and agent.representation.size == 256 and agent.actor_sees == "both"
        assert (config.replay.priority, config.replay.alpha, agent.policy_value) == ("loss", 0.4, "mean")
    else:
        assert agent.slow.rate == 0.005 and agent.representation is None and config.replay.priority == "uniform"


def test_a_settings_file_that_is_no_text_is_named(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"env: \xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot read .*mine.yaml: it is no text in UTF-8 \(byte 5\)"):
        configuration.named(str(tmp_path / "mine.yaml"))
