"""What a run's decisions and its learning take: operations counted, and priced by a table.

Decisions are counted in greedy episodes, with the spikes that occur there. Learning is the number of calls that each phase
made, times what a call takes of the trained networks on replayed steps: what they spiked while they learned is not known, all
else is exact. Beside the run's own networks stand its conventional twin and a linear policy, of which the structure says all.
What is done once for a batch (means, losses, random numbers) is not counted, nor are evaluations.

A gradient is counted by one rule. Of a product, each multiply-accumulate is done once more for the weights and once more for
the inputs, so that backward is twice forward (Kaplan et al. 2020, section 2.1). A product of spikes has an addition of the
error for each synaptic operation, and a multiply-accumulate for each weight that is not zero and each tick, since a surrogate
passes the error on where no spike was. All else is counted twice, and the optimiser's step once for each parameter. Where a layer
learns forward in time, its rule tells what is done in place of that (`spikedream.snn.learning_rules.influence.operations`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, PolicyState, TrainState
from spikedream.config import twin
from spikedream.envs.host import REPORT, HostEnvironments, episode_seed
from spikedream.export import prices
from spikedream.export.agent_calls import described, of_agent
from spikedream.export.calls import Calls, Memories, Parts, Totals
from spikedream.export.model_calls import of_model
from spikedream.export.neurobench import NeuroBench, neurobench
from spikedream.export.prices import EnergyLine, PriceTable
from spikedream.replay.ring import Replay, surveyed
from spikedream.runs.checkpoint import write_file
from spikedream.runs.run import Run
from spikedream.snn.conventional import Linear
from spikedream.snn.operations import memory
from spikedream.types import PyTree

SAMPLES = 256  # replayed steps on which the networks that learn are counted


class Counted(NamedTuple):
    """Of one set of networks."""

    decision: list[EnergyLine]  # of one decision, in the mean
    phases: dict[str, list[EnergyLine] | None]  # of all learning so far, where it was asked for; None where not everything is known


class EnergyUse(NamedTuple):
    own: Counted
    twin: Counted
    linear: list[EnergyLine]  # of one decision
    decisions: int  # in which the own were counted
    firing_rates: dict[str, float]  # by network and layer, while deciding
    memory: dict[str, dict[str, int]]  # bytes of parameters and state, by network
    neurobench: dict[str, NeuroBench]  # of the networks that decide


def energy(run: Run, table: str = prices.DEFAULT, episodes: int = 1, learning: bool = True) -> dict[str, Any]:
    """Count a run's operations and price them: plain data, energies in picojoules, null where something has no price.

    Args:
        run: finished or not.
        table: the name of a table (`prices.tables`), or the path of a YAML file.
        episodes: greedy ones in which decisions are counted.
        learning: count that too, which compiles for some seconds.

    Raises:
        ConfigError: there is no such table, or it lacks an operation.
        ValueError: fewer than one episode, or parts of which nobody has described what they call.
        BrokenEnvironment, CheckpointError: as their texts say.
    """
    known = prices.load(table)  # what is wrong there is told at once
    return priced(measure(run, episodes, learning), known)


def write_energy(run: Run, found: Mapping[str, Any] | None = None) -> None:
    """Add the sums of `energy`, by the default table, to the `result.json` of a finished run: of `found`, or else of decisions
    alone. What cannot be counted is left out."""
    result = run.result
    if result is None or not described(run.config.world_model, run.config.agent):
        return
    found = energy(run, learning=False) if found is None else found
    sums = {
        "table": found["table"]["name"],
        "decision": {
            name: {"picojoules": counted["picojoules"], "operations": counted["operations"]}
            for name, counted in found["decision"].items()
        },
        "learning_picojoules": {
            name: {phase: counted and counted["picojoules"] for phase, counted in phases.items()}
            for name, phases in found["learning"].items()
        },
    }
    write_file(run.directory / "result.json", json.dumps(result | {"energy": sums}, indent=2).encode())


def of_newest(algorithm: Algorithm, state: TrainState, steps: int = 16) -> float | None:
    """Picojoules of a greedy decision, by the default table: the mean over what was observed in the newest real steps. None where
    nothing has been, where what the parts call is not described, and where a decision depends on those before it."""
    agent, model = algorithm.agent, algorithm.world_model
    remembers = model.recurrent or getattr(getattr(agent, "actor", None), "persistent", False)
    if remembers or not described(model, agent) or not int(state.replay.size):
        return None
    policy = algorithm.policy(state)
    carry = agent.start(policy.policy, policy.world)
    newest = (int(state.replay.added) - 1 - np.arange(min(steps, int(state.replay.added)))) % state.replay.rows
    table, found = prices.load(prices.DEFAULT), []
    for obs in np.asarray(state.replay.data.obs[newest, 0]):
        _, _, parts = _decide(algorithm, policy, carry, obs, jax.random.key(0))
        found.append(table.total(_lines(parts)).picojoules)
    return None if None in found else float(np.mean(found))


# ---- counting


def measure(run: Run, episodes: int = 1, learning: bool = True) -> EnergyUse:
    """As `energy`, without prices."""
    if episodes < 1:
        raise ValueError(f"decisions are counted in at least one episode, not {episodes}")
    algorithm, state, totals = run.algorithm, run.state, _totals(run)
    if not described(algorithm.world_model, algorithm.agent):
        kinds = f"{type(algorithm.world_model).__name__} and {type(algorithm.agent).__name__}"
        raise ValueError(f"what {kinds} call is not described in spikedream.export, so that it cannot be counted")
    decision, decisions = _decisions(run, episodes)
    memories = _memories(algorithm, state)
    own, conventional = Counted(_lines(decision), {}), twin(run.config).algorithm(run.spec)
    if learning:
        each = _of_replayed(algorithm, state, run.experience(), jax.random.fold_in(state.keys.evaluate, 3))
        own = own._replace(phases=_phases(algorithm, state, totals, decision, each))
    linear = Linear().init(run.spec.obs_size, run.spec.action_size, jax.random.key(0))
    return EnergyUse(
        own,
        _twin(conventional, state, totals if learning else None),
        _lines({"linear": Linear().operations(linear, jnp.zeros(run.spec.obs_size))}),
        decisions,
        _firing_rates(decision),
        {name: {"parameters": memory(params), "state": memory(held)} for name, (params, held) in memories.items()},
        {name: neurobench(found, memories[name][0]) for name, found in decision.items()},
    )


def _decisions(run: Run, episodes: int) -> tuple[Parts, int]:
    """The mean operations of a greedy decision, and how many there were."""
    config, algorithm, policy = run.config, run.algorithm, run.algorithm.policy(run.state)
    total, count = None, 0
    for episode in range(episodes):
        seed = episode_seed(config.seed, REPORT, episode)
        env = HostEnvironments(config.env, config.env_kwargs, config.max_episode_steps, seed, action_repeat=config.repeat)
        try:
            env.begin()
            obs, carry = env.obs[0], algorithm.agent.start(policy.policy, policy.world)
            while env.positions[0].obs is not None:
                key = jax.random.fold_in(run.state.keys.evaluate, count)
                action, carry, parts = _decide(algorithm, policy, carry, obs, key)
                parts = jax.tree.map(lambda x: np.asarray(x, np.float64), parts)
                total = parts if total is None else jax.tree.map(np.add, total, parts)
                obs, count = np.asarray(env.step(np.asarray(action)[None], np.zeros(1))[0].next_obs[0]), count + 1
        finally:
            env.close()
    return jax.tree.map(lambda x: x / count, total), count


@partial(jax.jit, static_argnums=0)
def _decide(algorithm: Algorithm, policy: PolicyState, carry: PyTree, obs: Array, key: Array) -> tuple[Array, PyTree, Parts]:
    """A greedy decision on one raw observation, and its operations."""
    obs = policy.world.normalizer.obs(obs)
    decision = algorithm.agent.act(policy.policy, policy.world, carry, obs, key, True)
    return decision.action, decision.carry, _of_decision(algorithm, policy, carry, obs, decision.action, key)


@partial(jax.jit, static_argnums=0)
def _of_decision(algorithm: Algorithm, policy: PolicyState, carry: PyTree, obs: Array, action: Array, key: Array) -> Parts:
    return of_agent(algorithm.agent).decision(policy.policy, policy.world, carry, obs, action, key)


@partial(jax.jit, static_argnums=0)
def _of_call(algorithm: Algorithm, state: TrainState, memory: Any, action: Array, key: Array) -> Parts:
    """Of one call of every network that learns, and of the world model's step."""
    world = algorithm.world(state)
    found = of_agent(algorithm.agent).each(state.agent, world, memory, action, key)
    return found | of_model(algorithm.world_model).step(state.world, memory, action, key) if _fits(algorithm) else found


def _fits(algorithm: Algorithm) -> bool:
    """Whether its world model is ever fitted and asked; an agent may have a model of its own, or none."""
    return algorithm.agent.uses_world or algorithm.bonus is not None


@partial(jax.jit, static_argnums=0)
def _of_replayed(algorithm: Algorithm, state: TrainState, replay: Replay, key: Array) -> Parts:
    """The mean of `_of_call` over replayed steps."""
    draw_key, recall_key, call_key = jax.random.split(key, 3)
    index = replay.draw_evenly(draw_key, (SAMPLES,))
    memories, keys = algorithm.world(state).recall(replay, index, recall_key), jax.random.split(call_key, SAMPLES)
    found = jax.vmap(partial(_of_call, algorithm, state))(memories, replay.gather(index).action, keys)
    return jax.tree.map(lambda x: x.mean(0), found)


def _twin(algorithm: Algorithm, own: TrainState, totals: Totals | None) -> Counted:
    """Of networks that nobody has trained, with every weight that they may have: their structure says all."""
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))
    state: TrainState = jax.tree.map(_dense, replace(shapes, replay=replace(shapes.replay, data=None)))
    state = replace(state, world=of_model(algorithm.world_model).informed(state.world, own.world))
    policy, key, spec = algorithm.policy(state), jax.random.key(0), algorithm.spec
    obs, action = jnp.zeros(spec.obs_size), jnp.zeros(spec.action_size)
    decision = _of_decision(algorithm, policy, algorithm.agent.start(policy.policy, policy.world), obs, action, key)
    if totals is None:
        return Counted(_lines(decision), {})
    each = _of_call(algorithm, state, algorithm.world(state).start(obs, key), action, key)
    return Counted(_lines(decision), _phases(algorithm, state, totals, decision, each))


def _dense(leaf: Any) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.ones(leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.zeros(leaf.shape, leaf.dtype)


def _memories(algorithm: Algorithm, state: TrainState) -> Memories:
    found = of_agent(algorithm.agent).memories(state.agent)
    return found | of_model(algorithm.world_model).memories(state.world) if _fits(algorithm) else found


def _firing_rates(parts: Parts) -> dict[str, float]:
    return {
        f"{name}, {each.part}": float(each.activity.nonzero) / each.activity.outputs
        for name, found in parts.items()
        for each in found
        if each.kind == "neuron_update" and each.activity is not None
    }


# ---- learning


def _totals(run: Run) -> Totals:
    """What the run says that it has done. Fits and gradient steps stand in the rows of its evaluations: where not every turn was
    evaluated, nobody knows them."""
    config, counters, rows = run.config, run.counters, run.metrics
    first = counters["first_turn"] if counters["turn"] else counters["real_steps"]
    own_steps = counters["real_steps"] - first * config.explores
    fits = [row["model_updates"] for row in rows if "model_updates" in row]
    gradient_steps = [row["gradient_steps"] for row in rows if "gradient_steps" in row]
    told = len(rows) == counters["turn"]
    return Totals(
        decisions=own_steps if config.repeat == 1 else None,  # an episode may end while an action is held
        fits=len(fits) if told else None,
        fit_steps=int(sum(fits)) if told else None,
        updates=counters["updates"],
        imagined_steps=counters["imagined_steps"],
        gradient_steps=int(sum(gradient_steps)) if told and gradient_steps else None,
        surveyed=surveyed(config.replay.capacity),
    )


def _phases(
    algorithm: Algorithm, state: TrainState, totals: Totals, decision: Parts, each: Parts
) -> dict[str, list[EnergyLine] | None]:
    agent, model, memories = of_agent(algorithm.agent), of_model(algorithm.world_model), _memories(algorithm, state)
    acting = {name: Calls(totals.decisions) for name in decision} if totals.decisions is not None and agent.collects_so else None
    fits = _fits(algorithm)
    asked = model.asked(state.world) if fits else {}
    met = [name for name, often in asked.items() if often]
    fitting = agent.fit(totals) if not fits else model.fit(totals, met) if algorithm.bonus is None else None
    dreaming = agent.imagine(totals)
    # A memory has to be warmed up before it dreams on, and a bonus has networks of its own.
    if totals.imagined_steps and (algorithm.bonus is not None or algorithm.world_model.recurrent):
        dreaming = None
    if fits and dreaming is not None and totals.imagined_steps:
        dreaming |= {name: Calls(totals.imagined_steps * float(often)) for name, often in asked.items()}
    calls = {"fitting": fitting, "dreaming": dreaming, "learning": agent.learn(totals)}
    found = {"acting": None if acting is None else _lines(decision, acting)}
    return found | {phase: None if made is None else _lines(each, made, memories) for phase, made in calls.items()}


def _lines(parts: Parts, calls: Mapping[str, Calls] | None = None, memories: Memories | None = None) -> list[EnergyLine]:
    """Of so many calls of each network; of one, without its gradient, where that is not said."""
    found: dict[EnergyLine, float] = {}  # of which each has the number 0

    def add(number: float, *what: Any) -> None:
        line = EnergyLine(*what, number=0.0)
        found[line] = found.get(line, 0.0) + number

    for name, operations in parts.items():
        made = Calls(1.0) if calls is None else calls.get(name, Calls())
        for each in operations:
            number = float(each.number)
            if each.gradient == "alone":
                add(number * made.backward, name, each.part, each.kind, each.arithmetic)
                continue
            add(number * made.forward, name, each.part, each.kind, each.arithmetic)
            if each.gradient == "never":
                continue
            if each.spiking and each.connections is not None:
                errors = float(each.connections.nonzero) * each.connections.rows
                add(number * made.backward, name, each.part, "backward", each.arithmetic)
                add(errors * made.backward, name, each.part, "backward", (("multiply", 1), ("add", 1)))
            else:
                add(2 * number * made.backward, name, each.part, "backward", each.arithmetic)
        if memories is not None and made.steps:
            size = sum(x.size for x in jax.tree.leaves(memories[name][0]))
            add(size * made.steps, name, "parameters", "optimizer", made.optimizer)
    return [line._replace(number=number) for line, number in found.items() if number]


# ---- pricing


def priced(measured: EnergyUse, table: PriceTable) -> dict[str, Any]:
    """As `energy` gives it."""

    def learning(counted: Counted) -> dict[str, Any]:
        phases = {phase: None if lines is None else _priced(lines, table) for phase, lines in counted.phases.items()}
        everything = [line for lines in counted.phases.values() for line in lines or ()]
        total = table.total(everything)
        told = None not in counted.phases.values()
        whole = {"picojoules": total.known if total.complete and told else None, "known_picojoules": total.known}
        return phases | {"total": whole | {"arithmetic": _arithmetic(everything) if told else None}}

    return {
        "table": {"name": table.name, "source": table.source},
        "decisions": measured.decisions,
        "decision": {
            "policy": _priced(measured.own.decision, table),
            "twin": _priced(measured.twin.decision, table),
            # Below which no choice of activations comes.
            "twin_without_activations": _priced((x for x in measured.twin.decision if x.kind != "activation"), table),
            "linear": _priced(measured.linear, table),
        },
        "firing_rate": measured.firing_rates,
        "learning": {
            name: learning(counted) for name, counted in (("policy", measured.own), ("twin", measured.twin)) if counted.phases
        },
        "memory_bytes": measured.memory,
        "neurobench": measured.neurobench,
    }


def _priced(lines: Iterable[EnergyLine], table: PriceTable) -> dict[str, Any]:
    lines = list(lines)
    total = table.total(lines)
    rows = [
        {"network": x.network, "part": x.part, "operation": x.kind, "number": x.number, "picojoules": table.price(x)} for x in lines
    ]
    operations: dict[str, float] = {}
    for line in lines:
        operations[line.kind] = operations.get(line.kind, 0.0) + line.number
    return {
        "picojoules": total.picojoules, "known_picojoules": total.known, "operations": operations,
        "arithmetic": _arithmetic(lines), "rows": rows,
    }  # fmt: skip


def _arithmetic(lines: Iterable[EnergyLine]) -> float:
    """Elementary operations, additions and multiplications above all, that they consist of."""
    return sum(line.number * times for line in lines for _, times in line.arithmetic)
