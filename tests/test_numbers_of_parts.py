"""No number that nobody reads, in parts that test_config's small configuration lacks: each in settings in which it counts."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from programs import floats, outcome
from small import DISCRETE, filled, with_changed

from spikedream import config as configuration
from spikedream.config import Config

NETWORK = {"kind": "MLP", "hidden": [6]}
ACTIVITY = {"activity_penalty": 0.1, "activity_target": 0.2}
PRUNED = {"kind": "SpikingNetwork", "hidden": [6], "ticks": 2, "sparsity": {"kind": "Pruning", "begin": 1, "steps": 4, "every": 2}}
MEMORY = {"kind": "GRU", "hidden": 4}
ENSEMBLE = {"members": 2, "updates": 2, "check_every": 2, "batch": 4, "dynamics": NETWORK, "ending": NETWORK}
DREAMER = {"trajectories": 4, "horizon": 2, "critic": NETWORK, "start_noise": 0.0}
OFF_POLICY = {"kind": "OffPolicy", "critic": NETWORK, "batch": 4, "policy_delay": 1}
SEARCH = {"kind": "MPPI", "candidates": 12, "iterations": 1, "temperature": 2.0}
SHARE = {"start": 0.9, "end": 0.3, "begin": 10, "steps": 20}  # 24 steps are held
HORIZON = {"first": 1, "begin": 10, "steps": 20}
FINE_TUNING = ("holdout_newest", "share", "plateau.patience", "plateau.factor")
SCENES: dict[str, tuple[dict, str, list[str]]] = {  # settings, the verb that shows it, fields
    "remembering world": (
        {"world_model": {"kind": "Recurrent", "network": MEMORY, "latent": 2, "context": 2, "open_loop": 2, "ensemble": ENSEMBLE},
         "agent": DREAMER | {"actor": NETWORK}, "replay": {"priority": "model_error"}},
        "fit",
        ["replay.alpha", "replay.beta",
         *(f"world_model.{x}" for x in ("latent", "context", "open_loop", "burn_in", "warm_up"))],
    ),
    "fine-tuned world": (
        {"world_model": ENSEMBLE | {"updates": 8, "patience": 4, "fine_tuning": {
            "holdout_newest": 0.2, "share": 0.5, "plateau": {"patience": 1}}}},
        "fit", ["world_model.patience", *(f"world_model.fine_tuning.{x}" for x in FINE_TUNING)],
    ),
    "fine-tuned remembering world": (
        {"world_model": {"kind": "Recurrent", "network": MEMORY, "latent": 2, "context": 2, "ensemble": ENSEMBLE | {
            "updates": 8, "patience": 4,
            "fine_tuning": {"holdout_newest": 0.2, "share": 0.5, "of": "random", "plateau": {"patience": 1}}}}},
        "fit", [f"world_model.ensemble.fine_tuning.{x}" for x in ("holdout_newest", "share", "plateau.factor")],
    ),
    "remembering agent": (
        {"world_model": ENSEMBLE, "agent": DREAMER | {"actor": MEMORY, "context": 3, "imagined_share": SHARE}},
        "dream", ["agent.context", *(f"agent.imagined_share.{x}" for x in SHARE)],
    ),
    "recurrent neurons": (
        {"world_model": ENSEMBLE, "agent": DREAMER | {"actor": {"kind": "SpikingNetwork", "hidden": [6], "ticks": 2,
                                                                "neuron": {"kind": "LIF", "recurrent": True,
                                                                           "recurrent_fan_in": 2},
                                                                "rule": {"kind": "SnAp", "order": 2}}}},
        "dream", [f"agent.actor.{x}" for x in ("neuron.recurrent_gain", "neuron.recurrent_fan_in", "rule.order")],
    ),
    "branched networks": (
        {"world_model": ENSEMBLE | {"dynamics": {
            "kind": "SpikingNetwork", "hidden": [6], "ticks": 2, "branches": [0.3, 0.8],
            "neuron": {"kind": "AdaptiveCubaLIF", "recurrent": True, "norm": "layer", "decay_input": True, "learn_threshold": True},
            "encoder": {"kind": "GaussianPopulation", "fields": 4, "mode": "current", "squash": True},
            "readout": {"kind": "PopulationVectorReadout", "hidden": 4, "neurons": 4}}}},
        "fit",
        [*(f"world_model.dynamics.{x}" for x in ("branches", "encoder.fields", "encoder.span", "encoder.width")),
         *(f"world_model.dynamics.readout.{x}" for x in ("hidden", "neurons", "span", "share", "gain")),
         *(f"world_model.dynamics.neuron.{x}" for x in (
             "synapse_decay", "adaptation_decay", "adaptation", "threshold", "recurrent_gain"))],
    ),
    "pruned dreamer": (
        {"world_model": ENSEMBLE, "agent": {**DREAMER, "actor": PRUNED, **ACTIVITY}},
        "dream",
        [*(f"agent.actor.sparsity.{x}" for x in ("density", "begin", "steps", "every")), *(f"agent.{x}" for x in ACTIVITY)],
    ),
    "pruned ppo": (
        {"agent": {"kind": "PPO", "critic": NETWORK, "rollout": 8, "batch": 8, "imagination": None, "actor": PRUNED, **ACTIVITY}},
        "dream", ["agent.actor.sparsity.density", *(f"agent.{x}" for x in ACTIVITY)],
    ),
    "pruned off-policy agent": (
        {"agent": OFF_POLICY | {"actor": PRUNED, **ACTIVITY}}, "dream", ["agent.actor.sparsity.density"],
    ),
    "fixed point": (
        {"world_model": ENSEMBLE, "agent": {**DREAMER, "actor": {
            "kind": "SpikingNetwork", "hidden": [6], "ticks": 2, "fixed_point": {"kind": "FixedPoint", "bits": 4, "fraction": 2}}}},
        "dream", [f"agent.actor.fixed_point.{x}" for x in ("bits", "fraction")],
    ),
    "pruned world model": (
        {"world_model": ENSEMBLE | {"dynamics": PRUNED}},
        "fit", [f"world_model.dynamics.sparsity.{x}" for x in ("density", "begin", "steps", "every")],
    ),
    "priors that are searched for": (
        {"world_model": ENSEMBLE | {"search": {"kind": "PriorSearch", "curvatures": [1.0, 0.1], "effort": 0.5}}},
        "fit", [f"world_model.search.{x}" for x in ("curvatures", "holdout", "effort", "margin")],
    ),
    "curiosity while blind": (
        {"world_model": ENSEMBLE, "agent": DREAMER | {"actor": NETWORK},
         "bonus": {"kind": "Disagreement", "weight": {"kind": "WhileBlind"}}},
        "fit and dream", [f"bonus.weight.{x}" for x in ("awake", "unexplained", "cap")],
    ),
    "policy selection": (
        {"world_model": ENSEMBLE, "agent": DREAMER | {"actor": NETWORK, "selection": {
            "kind": "PolicySelection", "rates": [0.1], "starts": 2, "steps": 3}}},
        "dream", [f"agent.selection.{x}" for x in ("rates", "starts", "steps", "caution")],
    ),
    "planner": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "MPC", "uncertainty_penalty": 0.5, "horizon": 3, "search": SEARCH}},
        "act", ["agent.horizon", "agent.gamma", "agent.uncertainty_penalty", "agent.search.candidates"],
    ),
    "planner with a policy": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "MPC", "horizon": 3, "search": SEARCH, "proposals": 3,
                   "policy": {"kind": "Dreamer", **DREAMER, "actor": NETWORK}}},
        "act", ["agent.proposals", "agent.policy.gamma"],
    ),
    "evolution": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "Evolution", "actor": NETWORK, "population": 4, "trajectories": 2, "horizon": 3, "deviation_rate": 0.1}},
        "dream",
        [f"agent.{x}" for x in ("population", "trajectories", "horizon", "start_noise", "gamma", "deviation", "deviation_rate",
                                "learning_rate", "uncertainty_penalty")],
    ),
    "evolution that remembers": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "Evolution", "actor": MEMORY, "population": 4, "trajectories": 2, "horizon": 3, "context": 3}},
        "dream", ["agent.context"],
    ),
    "ppo": (
        {"world_model": ENSEMBLE,
         "agent": {"kind": "PPO", "actor": NETWORK, "critic": NETWORK, "rollout": 12, "passes": 3, "batch": 8, "clip": 0.02,
                   "value_clip": 5e-3, "target_kl": 0.002, "learning_rate": 0.006, "gradient_clip": 0.01, "advantage_floor": 5.0,
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
    "td7": (
        {"agent": OFF_POLICY | {"representation": {"kind": "SALE", "size": 4, "state": NETWORK, "pair": NETWORK},
                                "actor_sees": "both", "slow": {"kind": "HardCopy", "every": 2}, "weight_decay": 0.1,
                                "value": {"kind": "Huber", "threshold": 0.1},
                                "activity_penalty": 0.1, "activity_target": 0.2,
                                "actor": {"kind": "SpikingNetwork", "hidden": [6], "ticks": 2,
                                          "encoder": {"kind": "GaussianPopulation", "fields": 3, "currents": 2}}}},
        "dream",
        [*(f"agent.{x}" for x in (
            "momentum", "actor.encoder.currents",
            "critics", "policy_delay", "gamma", "batch", "learning_rate", "critic_learning_rate", "weight_decay",
            "activity_penalty", "activity_target", "n_step", "slow.every", "value.threshold", "representation.size",
            "representation.learning_rate", "policy.noise", "policy.target_noise", "policy.target_clip"))],
    ),
    "dreams": (
        {"world_model": ENSEMBLE,
         "agent": OFF_POLICY | {"actor": NETWORK, "dreams": {
             "kind": "Dreams", "starts": 4, "horizon": 3, "every": 2, "begin": 1, "capacity": 48, "share": SHARE, "doubt": 0.5,
             "penalty": 0.5, "stretches": 4, "age": 3, "schedule": {"kind": "HorizonSchedule", **HORIZON},
             "trust": {"kind": "Tightening", "limit": 0.5, "factor": 0.5}}}},
        "dream",
        [*(f"agent.dreams.{x}" for x in ("starts", "horizon", "every", "begin", "capacity", "age", "penalty", "doubt")),
         *(f"agent.dreams.schedule.{x}" for x in HORIZON),
         *(f"agent.dreams.trust.{x}" for x in ("limit", "factor")), *(f"agent.dreams.share.{x}" for x in SHARE)],
    ),
    "trust in first steps": (
        {"world_model": ENSEMBLE,
         "agent": OFF_POLICY | {"actor": NETWORK, "dreams": {"kind": "Dreams", "starts": 4, "horizon": 2, "capacity": 8,
                                                             "trust": {"kind": "FirstStep", "quantile": 0.5}}}},
        "dream", ["agent.dreams.trust.quantile", "agent.dreams.trust.factor"],
    ),
    "trust by calibration": (
        {"world_model": ENSEMBLE | {"fine_tuning": {"holdout_newest": 0.2}},
         "agent": OFF_POLICY | {"actor": NETWORK, "dreams": {"kind": "Dreams", "starts": 4, "horizon": 2, "capacity": 8,
                                                             "trust": "Calibrated", "stretches": 4}}},
        "dream", ["agent.dreams.trust.error", "agent.dreams.stretches"],
    ),
    "crossq": (
        {"agent": OFF_POLICY | {"actor": NETWORK, "slow": None, "critic": {"kind": "BatchNormMLP", "hidden": [6]}}},
        "dream", [f"agent.critic.{x}" for x in ("gain", "momentum", "warm_up", "scale_limit", "shift_limit")],
    ),
    "sac": (
        {"agent": OFF_POLICY | {"actor": NETWORK, "policy": "SquashedGaussian", "subset": 1}},
        "dream",
        [*(f"agent.{x}" for x in ("slow.rate", "subset", "policy.min_std", "policy.max_std")),
         *(f"agent.policy.temperature.{x}" for x in ("entropy", "first", "learning_rate"))],
    ),
}  # fmt: skip
VERBS = {"fit": ("fit", "fit"), "dream": ("dream",), "fit and dream": ("fit", "dream"), "act": ()}


def scene(name: str) -> Config:
    return configuration.merge(Config(improve=configuration.Improve(block=1)), SCENES[name][0])


outcome_as_it_is = functools.cache(lambda name: outcome(scene(name), *VERBS[SCENES[name][1]]))


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, (_, _, fields) in SCENES.items() for field in fields])
def test_every_number_of_the_other_parts_changes_the_outcome(name: str, field: str) -> None:
    assert outcome(with_changed(scene(name), field), *VERBS[SCENES[name][1]]) != outcome_as_it_is(name)


def shown(config: Config, verb: str) -> list[np.ndarray]:
    """What one verb leaves behind, in a state as if the world had been fitted and episodes had paid."""
    algorithm = config.algorithm(DISCRETE)
    state, held = algorithm.init(jax.random.key(0)), filled(DISCRETE, 24, 32, jax.random.key(1))
    if verb == "init":
        return [np.asarray(x) for x in floats(state)]
    rows = jax.tree.map(lambda x: x[:24], held.data)
    state = dataclasses.replace(state, replay=algorithm.remember(state.replay, rows, np.int32(24)))
    if config.replay.priority != "uniform":
        index = jax.numpy.arange(32)
        replay = state.replay.prioritise(index, index.astype(float), (index < 24).astype(float))
        state = dataclasses.replace(state, replay=replay)
    if verb != "fit":
        known = (jax.numpy.array([-1.0, 1.0]), jax.numpy.asarray(0.6), jax.numpy.full(4, -9.0), jax.numpy.full(4, 9.0))
        fields = lambda s: (s.world.rewards, s.world.confidence, s.world.low, s.world.high)  # noqa: E731
        state = eqx.tree_at(fields, state, known)
    if verb == "act":
        obs = jax.numpy.full((1, 4), 0.1)
        left = algorithm.act(algorithm.policy(state), state.carry, obs, state.keys.evaluate, True).carry
    elif verb == "dream":
        left = algorithm.dream(state)[0].agent
    else:
        left = algorithm.fit(state, np.int32(config.world_model.updates))[0].world
    return [np.asarray(x) for x in floats(left)]


@pytest.mark.parametrize(
    ("name", "verb", "field"),
    [
        ("remembering agent", "init", "agent.critic.gain"),
        ("remembering world", "fit", "replay.beta"),
        ("ppo", "dream", "agent.clip"),
        ("planner", "act", "agent.uncertainty_penalty"),
    ],
)
def test_another_outcome_is_other_numbers(name: str, verb: str, field: str) -> None:
    """The tests above compare what would be computed; here each verb computes it."""
    ours, base = shown(with_changed(scene(name), field), verb), shown(scene(name), verb)
    assert any(not np.array_equal(a, b) for a, b in zip(ours, base, strict=True))


def test_no_number_of_the_other_parts_is_forgotten() -> None:
    """What a field holds that has fields of its own is held by its own tests."""

    def numbers(part: Any) -> set[str]:
        plain = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return {n for n, v in plain.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    found = {name: {f.partition(".")[2] for f in fields} for name, (_, _, fields) in SCENES.items()}
    assert numbers(scene("remembering world").world_model) <= found["remembering world"]
    assert numbers(scene("planner").agent) <= found["planner"] | found["planner with a policy"]
    dynamics = scene("branched networks").world_model.dynamics
    for part in ("encoder", "readout", "neuron"):
        there = {f"dynamics.{part}.{x}" for x in numbers(getattr(dynamics, part)) - {"currents"}}
        assert there <= found["branched networks"] and "actor.encoder.currents" in found["td7"]
    for name, prefix in (
        ("priors that are searched for", "world_model.search"), ("curiosity while blind", "bonus.weight"),
        ("policy selection", "agent.selection"),
    ):  # fmt: skip
        part = functools.reduce(getattr, prefix.split("."), scene(name))
        assert {f"{prefix}.{x}" for x in numbers(part) | ({"curvatures", "rates"} & set(vars(part)))} == set(SCENES[name][2])
    ppo = scene("ppo").agent
    assert numbers(ppo) <= found["ppo"] | found["pruned ppo"]
    assert {f"imagination.{x}" for x in numbers(ppo.imagination)} <= found["ppo"]
    assert numbers(ppo.imagination.share) == set(SHARE)
    evolution = {*SCENES["evolution"][2], *SCENES["evolution that remembers"][2]}
    assert {f"agent.{x}" for x in numbers(scene("evolution").agent)} == evolution
    td7, sac = scene("td7").agent, scene("sac").agent
    assert numbers(td7) | {"subset"} <= found["td7"] | found["sac"]
    for agent, name, parts in ((td7, "td7", ("slow", "value", "representation", "policy")), (sac, "sac", ("slow", "policy"))):
        assert {f"{part}.{x}" for part in parts for x in numbers(getattr(agent, part))} <= found[name]
    assert {f"critic.{x}" for x in numbers(scene("crossq").agent.critic)} <= found["crossq"]
    dreams = scene("dreams").agent.dreams
    assert {f"dreams.{x}" for x in numbers(dreams) - {"stretches"}} <= found["dreams"] and numbers(dreams.share) == set(SHARE)
    assert numbers(dreams.schedule) == set(HORIZON)
    for name in ("dreams", "trust in first steps", "trust by calibration"):
        assert {f"dreams.trust.{x}" for x in numbers(scene(name).agent.dreams.trust)} <= found[name]
    assert {f"policy.temperature.{x}" for x in numbers(sac.policy.temperature)} <= found["sac"]
    tuning = scene("fine-tuned world").world_model.fine_tuning
    assert {*numbers(tuning), *(f"plateau.{x}" for x in numbers(tuning.plateau))} == set(FINE_TUNING)
    assert numbers(configuration.ReplayBuffer()) == {"capacity", "alpha", "beta"}
