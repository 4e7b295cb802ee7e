"""Every kind of world model, agent and network, small, and what they are tried on."""

import functools
import typing
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from small import SPECS, encoders, filled, kinds, known, small

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.dreams import Dreams
from spikedream.agents.dyna import Dyna
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC, AnyPlanner
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.online import StreamActorCritic
from spikedream.agents.policy_head import SquashedGaussian
from spikedream.agents.ppo import PPO
from spikedream.agents.representation import SALE
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.agents.stable_baselines_heads import HEADS
from spikedream.config import AnyAgent, AnyWorldModel, twin
from spikedream.ops.distributions import Huber
from spikedream.ops.imagination import Imagination
from spikedream.ops.schedule import ImaginedShare
from spikedream.ops.slow_copy import HardCopy
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.batch_norm import BatchNormMLP
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import BPTT, AnyNetwork, AnyRule, SpikingNetwork
from spikedream.snn.neurons import AnyNeuron
from spikedream.snn.readouts import AnyReadout
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment

KEY, OTHER = jax.random.key(0), jax.random.key(1)
CAPACITY = 24
WITHOUT_CHANCE = {TrueEnvironment}  # nothing in these depends on the key

# Every kind with its defaults, and with the parts that it may have beside them.
AGENTS: dict[str, Any] = {
    **{kind.__name__: small(kind()) for kind in kinds(AnyAgent)},
    **{f"MPC-{kind.__name__}": small(MPC(search=kind(), policy=twin(Dreamer()))) for kind in kinds(AnyPlanner)},
    "MPC-collects": small(MPC(policy=twin(Dreamer()), when="collect", proposals=2)),
    "PPO-imagines": small(twin(PPO(imagination=Imagination(threshold=0.0)))),
    "OffPolicy-SAC": small(twin(OffPolicy(policy=SquashedGaussian(), n_step=3, target="mean", critics=3, subset=2))),
    "OffPolicy-TD7": small(
        twin(OffPolicy(representation=SALE(), actor_sees="both", slow=HardCopy(2), clip_value=True, value=Huber()))
    ),
    "OffPolicy-CrossQ": small(twin(OffPolicy(policy=SquashedGaussian(), slow=None, critic=BatchNormMLP()))),
    "OffPolicy-dreams": small(
        twin(OffPolicy(dreams=Dreams(starts=3, horizon=2, every=1, begin=0, capacity=9, trust=None, stretches=3)))
    ),
    "StreamActorCritic-dyna": small(StreamActorCritic(dyna=Dyna(steps=3, begin=0))),
    "Evolution-twin": small(twin(Evolution(deviation_rate=0.1))),
    "StableBaselines-SAC": small(StableBaselines("SAC")),
    "StableBaselines-DQN": small(StableBaselines("DQN")),
    "StableBaselines-TD3": small(StableBaselines("TD3")),
    "Dreamer-from-both": small(twin(Dreamer(imagined_share=ImaginedShare(0.5, 0.5), start_noise=0.5, error_limit=1.0))),
}
PRIORITIES = typing.get_args(typing.get_type_hints(ReplayBuffer)["priority"])

world_kinds = pytest.mark.parametrize("kind", kinds(AnyWorldModel))
both_specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
WITHOUT_VALUES = (Evolution, StableBaselines)  # none that the loop can ask


def plays(agent, spec):
    if isinstance(agent, StableBaselines):
        return spec.discrete in HEADS[agent.algorithm]
    return not (spec.discrete and isinstance(agent, OffPolicy))


def learns(agent):
    return not isinstance(agent, MPC) or agent.policy is not None


PLAYED = [(name, spec) for name in AGENTS for spec in SPECS if plays(AGENTS[name], SPECS[spec])]
every_agent = pytest.mark.parametrize(
    ("agent", "spec"), [(AGENTS[name], SPECS[spec]) for name, spec in PLAYED], ids=["-".join(names) for names in PLAYED]
)


def world_model(kind, spec):
    if kind is TrueEnvironment:
        return TrueEnvironment("CartPole" if spec.discrete else "Pendulum")
    return small(kind())


@functools.cache
def experience(spec):
    return filled(spec, 20, CAPACITY, jax.random.key(7))


def known_world(spec):
    """A world that costs nothing to compile, for the agents' own contract."""
    model = world_model(TrueEnvironment, spec)
    return known(model, model.init(spec, KEY), spec)


@partial(jax.jit, static_argnums=(0, 1))
def begun(model, spec, key=KEY):
    return model.init(spec, key)


@partial(jax.jit, static_argnums=0)
def fitted(model, state, replay, key):
    return model.update(state, replay, key, model.updates)


def initialised(model, spec):
    state = begun(model, spec)
    if isinstance(model, TrueEnvironment):
        return state
    ensemble = state.ensemble if isinstance(model, Recurrent) else state
    # As after a fit, in which episodes have ended and rewards were seen.
    ensemble = eqx.tree_at(lambda s: (s.rewards, s.endings), ensemble, (jnp.array([-9.0, 9.0]), jnp.ones(())))
    return replace(state, ensemble=ensemble) if isinstance(model, Recurrent) else ensemble


def exercised_parts():
    """Every part in a network; neurons, encoders and readouts side by side, as many of each as of what there is the most."""
    spiking = small(SpikingNetwork())
    beside = [[kind() for kind in kinds(AnyNeuron)], encoders(), [kind() for kind in kinds(AnyReadout)]]
    for place in range(max(map(len, beside))):
        neuron, encoder, readout = (parts[place % len(parts)] for parts in beside)
        yield replace(spiking, neuron=neuron, encoder=encoder, readout=readout)
    yield from (replace(spiking, rule=kind()) for kind in kinds(AnyRule) if kind is not BPTT)
    yield replace(spiking, persistent=True)
    yield from (small(kind()) for kind in kinds(AnyNetwork) if kind is not SpikingNetwork)


def label(network):
    if not isinstance(network, SpikingNetwork):
        return type(network).__name__
    mode = network.encoder.mode if isinstance(network.encoder, GaussianPopulation) else ""
    parts = (network.neuron, network.encoder, network.readout)
    rule = type(network.rule).__name__
    return "-".join([*(type(part).__name__ for part in parts), mode, rule, "persistent" * network.persistent]).strip("-")


every_network = pytest.mark.parametrize("network", list(exercised_parts()), ids=label)
