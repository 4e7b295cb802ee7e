"""A trained policy made small and quiet: the same loop, which starts from everything that a run was, collects and fits nothing, and
goes on improving the agent with a sparser, quieter or coarser actor."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.config import Config, ConfigError
from spikedream.export.energy import energy
from spikedream.processes import Sync
from spikedream.runs.checkpoint import write_file
from spikedream.runs.run import Run
from spikedream.snn.fixed_point import FixedPoint
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.sparsity import Pruning

PENALTY = 5.0  # on activity above the rate asked for; see `activity_above`
PRUNED_BY = 0.5  # of the updates, after which the density is reached
SLOWER = 0.25  # learning rates, of those with which the policy was learned: it is to stay good


def compressed(run: Run, density: float | None, rate: float | None, bits: int | None, updates: int) -> Config:
    """What to train so that the policy of `run` has this share of its weights, this firing rate and weights of so many bits; None
    leaves each as it is.

    Raises:
        ConfigError: nothing is asked, or the agent cannot be improved so.
    """
    if density is None and rate is None and bits is None:
        raise ConfigError("nothing is asked for: name a density, a rate or bits")
    config, agent = run.config, run.config.algorithm(run.spec).agent
    if isinstance(agent, MPC) and agent.policy is not None:
        agent = replace(agent, policy=_quieter(agent.policy, density, rate, bits, updates))
    else:
        agent = _quieter(agent, density, rate, bits, updates)
    return replace(
        config,
        start_from=str(run.directory),
        start_with="everything",
        budget=0,
        runner=Sync(),  # there is nothing to collect
        realtime=None,
        improve=replace(config.improve, first=updates),
        evaluation=replace(config.evaluation, confirmations=0),
        agent=agent,
    )


def _quieter(agent: Any, density: float | None, rate: float | None, bits: int | None, updates: int) -> Any:
    if not isinstance(agent, Dreamer | OffPolicy):
        raise ConfigError(
            f"{type(agent).__name__} cannot be compressed: it learns from new steps of its own policy or not at all; Dreamer,"
            " OffPolicy and MPC with a policy can"
        )
    if not isinstance(agent.actor, SpikingNetwork):
        raise ConfigError(f"the actor is {type(agent.actor).__name__}; what is compressed is a SpikingNetwork")
    try:
        actor = agent.actor
        if density is not None:
            steps = max(1, int(PRUNED_BY * updates * agent.actor_steps))
            actor = replace(actor, sparsity=Pruning(density, steps=steps, every=max(1, steps // 100)))
        if bits is not None:
            actor = replace(actor, fixed_point=FixedPoint(bits))
        if rate is not None:
            agent = replace(agent, activity_penalty=PENALTY, activity_target=rate)
        rates = {name: SLOWER * getattr(agent, name) for name in ("learning_rate", "critic_learning_rate")}
        return replace(agent, actor=actor, **rates)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Measured:
    """A greedy policy on fresh episodes."""

    return_mean: float
    return_std: float
    firing_rate: float  # mean over its layers of neurons, as `activity_target` has it: the encoder's spikes are none of it
    density: float  # share of the actor's weights that are not zero
    picojoules: float | None  # of a decision, by the default table


@dataclass(frozen=True)
class Compression:
    run: Run  # the new one
    before: Measured
    after: Measured


def compression(before: Run, after: Run, episodes: int) -> Compression:
    """Both measured on the same fresh episodes, also for `compression.json` in the directory of the second."""
    found = Compression(after, _measured(before, episodes), _measured(after, episodes))
    record = {"from": str(before.directory), "episodes": episodes, "before": asdict(found.before), "after": asdict(found.after)}
    write_file(after.directory / "compression.json", json.dumps(record, indent=2).encode())
    return found


def _measured(run: Run, episodes: int) -> Measured:
    played, counted = run.evaluate(episodes), energy(run, learning=False)
    sparsity = counted["neurobench"]["actor"]["connection_sparsity"]
    return Measured(
        return_mean=played.mean(),
        return_std=played.std(),
        firing_rate=played.firing_rate,
        density=1 - (sparsity or 0.0),
        picojoules=counted["decision"]["policy"]["picojoules"],
    )
