"""The configuration: presets, files, twins, and no setting that nobody reads."""

import dataclasses
import functools
import typing
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from small import DISCRETE, filled

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.snn.networks import MLP, SpikingNetwork

# Fields that act outside `fit` and `dream`; test_cli.py and test_resume.py hold them.
SHELL = {
    "seed",
    "budget",
    "threshold",
    "max_episode_steps",
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
    "world_model.support_margin", "world_model.support_weight",  # act beyond the range of the experience; test_probes
    "agent.context", "agent.imagined_share.begin", "agent.imagined_share.steps",  # below: `scenes`
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


def changed(value: Any) -> Any:
    """Another value that is valid wherever the first one was."""
    if isinstance(value, tuple):
        return [changed(value[0]), *value[1:]] if len(value) > 1 else [changed(value[0])]
    if isinstance(value, int):
        return value * 2
    return value * 0.5 if value else 0.1


def outcome(config: Config) -> list[np.ndarray]:
    """What two turns of fitting and dreaming leave behind."""
    algorithm = config.algorithm(DISCRETE)
    state = algorithm.init(jax.random.key(0))
    state = dataclasses.replace(state, replay=filled(DISCRETE, 24, 32, jax.random.key(1)))
    for _ in range(2):
        state, _ = algorithm.fit(state)
        state, _ = algorithm.dream(state)
    return [np.asarray(x) for x in jax.tree.leaves((state.world, state.agent)) if jax.dtypes.issubdtype(x.dtype, np.floating)]


@functools.cache
def base_outcome() -> list[np.ndarray]:
    return outcome(dataclasses.replace(small_config(), improve=configuration.Improve(block=2)))


@pytest.mark.parametrize(("name", "value"), list(numeric_fields(small_config())))
def test_every_number_changes_the_outcome(name: str, value: Any) -> None:
    change: Any = changed(value)
    for key in reversed(name.split(".")):
        change = {key: change}
    config = configuration.merge(dataclasses.replace(small_config(), improve=configuration.Improve(block=2)), change)
    ours, base = outcome(config), base_outcome()
    assert len(ours) != len(base) or any(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(ours, base, strict=True))


# ---- parts that the small configuration does not have, each in settings in which its numbers count


NETWORK = {"kind": "MLP", "hidden": [6]}
MEMORY = {"kind": "GRU", "hidden": 4}
ENSEMBLE = {"members": 2, "updates": 2, "check_every": 2, "batch": 4, "dynamics": NETWORK, "ending": NETWORK}
DREAMER = {"trajectories": 4, "horizon": 2, "critic": NETWORK, "start_noise": 0.0}
SEARCH = {"kind": "MPPI", "candidates": 12, "iterations": 1, "temperature": 2.0}
SHARE = {"start": 0.9, "end": 0.3, "begin": 10, "steps": 20}  # 24 steps are held
SCENES: dict[str, tuple[dict, str, list[str]]] = {  # settings, the verb that shows it, fields
    "remembering world": (
        {"world_model": {"kind": "Recurrent", "network": MEMORY, "latent": 2, "context": 2, "open_loop": 2, "ensemble": ENSEMBLE},
         "agent": DREAMER | {"actor": NETWORK}, "replay": {"priority": "model_error"}},
        "fit", ["replay.alpha", "replay.beta", *(f"world_model.{x}" for x in ("latent", "context", "open_loop", "burn_in"))],
    ),
    "remembering agent": (
        {"world_model": ENSEMBLE, "agent": DREAMER | {"actor": MEMORY, "context": 3, "imagined_share": SHARE}},
        "dream", ["agent.context", *(f"agent.imagined_share.{x}" for x in SHARE)],
    ),
    "planner": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "Planner", "uncertainty_penalty": 0.5, "horizon": 3, "search": SEARCH}},
        "act", ["agent.horizon", "agent.gamma", "agent.uncertainty_penalty", "agent.search.candidates"],
    ),
    "planner with a policy": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "Planner", "horizon": 3, "search": SEARCH, "proposals": 3,
                   "policy": {"kind": "Dreamer", **DREAMER, "actor": NETWORK}}},
        "act", ["agent.proposals", "agent.policy.gamma"],
    ),
    "ppo": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "PPO", "actor": NETWORK, "critic": NETWORK, "rollout": 12, "passes": 3, "batch": 8, "clip": 0.02,
                   "value_clip": 5e-3, "target_kl": 0.012, "learning_rate": 0.006, "gradient_clip": 0.01, "advantage_floor": 5.0,
                   "imagination": {"kind": "Imagination", "threshold": 0.5, "least": 4, "most": 16, "chunk": 1, "horizon": 3,
                                   "uncertainty_limit": 1.0, "recent": 5, "share": SHARE}}},
        "dream",
        [*(f"agent.{x}" for x in (
            "rollout", "passes", "batch", "gamma", "return_lambda", "clip", "value_clip", "target_kl", "entropy", "learning_rate",
            "critic_learning_rate", "gradient_clip", "advantage_floor",
        )),
         *(f"agent.imagination.{x}" for x in (
             "threshold", "least", "most", "horizon", "discount", "chunk", "uncertainty_limit", "recent", "rounds",
         )),
         *(f"agent.imagination.share.{x}" for x in SHARE)],
    ),
}  # fmt: skip


def scene(name: str) -> Config:
    return configuration.merge(Config(improve=configuration.Improve(block=1)), SCENES[name][0])


def shown(config: Config, verb: str) -> list[np.ndarray]:
    """What one verb leaves behind, in a state as if the world had been fitted and episodes had paid."""
    algorithm = config.algorithm(DISCRETE)
    state, held = algorithm.init(jax.random.key(0)), filled(DISCRETE, 24, 32, jax.random.key(1))
    state = eqx.tree_at(lambda s: (s.replay.data, s.replay.count), state, (held.data, held.count))
    if config.replay.priority != "uniform":
        state = eqx.tree_at(lambda s: s.replay.error, state, jax.numpy.arange(32.0))
    if verb != "fit":
        known = (jax.numpy.array([-1.0, 1.0]), jax.numpy.asarray(0.6), jax.numpy.full(4, -9.0), jax.numpy.full(4, 9.0))
        fields = lambda s: (s.world.rewards, s.world.confidence, s.world.low, s.world.high)  # noqa: E731
        state = eqx.tree_at(fields, state, known)
    if verb == "act":
        left = algorithm.act(state, algorithm.start(state, 1), jax.numpy.full((1, 4), 0.1), np.uint32(0), True).carry
    elif verb == "dream":
        left = algorithm.dream(state)[0].agent
    else:
        left = algorithm.fit(state)[0].world
    return [np.asarray(x) for x in jax.tree.leaves(left) if jax.dtypes.issubdtype(x.dtype, np.floating)]


shown_as_it_is = functools.cache(lambda name: shown(scene(name), SCENES[name][1]))


def value_of(part: Any, name: str) -> Any:
    for field in name.split("."):
        part = getattr(part, field)
    return part


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, (_, _, fields) in SCENES.items() for field in fields])
def test_every_number_of_the_other_parts_changes_the_outcome(name: str, field: str) -> None:
    config = scene(name)
    change: Any = changed(value_of(config, field))
    for key in reversed(field.split(".")):
        change = {key: change}
    ours, base = shown(configuration.merge(config, change), SCENES[name][1]), shown_as_it_is(name)
    assert len(ours) != len(base) or any(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(ours, base, strict=True))


def test_no_number_of_the_other_parts_is_forgotten() -> None:
    """What a field holds that has fields of its own is held by its own tests."""

    def numbers(part: Any) -> set[str]:
        plain = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return {n for n, v in plain.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    found = {name: {f.partition(".")[2] for f in fields} for name, (_, _, fields) in SCENES.items()}
    assert numbers(scene("remembering world").world_model) <= found["remembering world"]
    assert numbers(scene("planner").agent) <= found["planner"] | found["planner with a policy"]
    ppo = scene("ppo").agent
    assert numbers(ppo) <= found["ppo"]
    assert {f"imagination.{x}" for x in numbers(ppo.imagination)} <= found["ppo"]
    assert numbers(ppo.imagination.share) == set(SHARE)
    assert numbers(configuration.ReplayBuffer()) == {"capacity", "alpha", "beta"}


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
    plan = configuration.parse("agent: {kind: Planner, policy: {kind: Dreamer, horizon: 7}, when: collect}", "here")
    assert plan.agent.policy.horizon == 7
    assert configuration.merge(plan, {"agent": {"policy": None, "when": "always"}}).agent.policy is None
    with pytest.raises(configuration.ConfigError, match=r'agent\.when = "collect" needs a policy'):
        configuration.merge(plan, {"agent": {"policy": None}})
    # A setting of what is not there has no kind to belong to.
    with pytest.raises(configuration.ConfigError, match="bonus has no kind 'NoneType'"):
        configuration.parse("bonus: {features: 3}", "here")


@pytest.mark.parametrize("kind", ["Disagreement", "RandomNetworkDistillation", "IntrinsicCuriosity"])
def test_optional_parts_survive_their_file(kind: str, tmp_path) -> None:
    text = f"{{bonus: {kind}, world_model: Recurrent, agent: {{kind: Planner, policy: Dreamer}}, replay: {{priority: td_error}}}}"
    config = configuration.parse(text, "here")
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config
    twin = configuration.twin(config)
    assert "Spiking" not in str(configuration.to_data(twin))
    assert twin.world_model.network.persistent and type(twin.world_model.network).__name__ == "GRU"
