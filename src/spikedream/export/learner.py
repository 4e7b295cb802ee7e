"""The streaming actor-critic in C99: a device that learns from each of its own steps, without Python and without a library.

The C program is one, in `c_learner`; a run gives it its sizes, its hyper-parameters, and where learning stands.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy import ndarray

from spikedream.agents.dyna import Dyna
from spikedream.agents.online import StreamActorCritic, StreamState
from spikedream.export import learner_vectors
from spikedream.export.program import literal
from spikedream.export.vectors import TOLERANCE, UNDECIDED, check_asked
from spikedream.nodes import Unexportable
from spikedream.runs.checkpoint import make_directory
from spikedream.runs.run import Run
from spikedream.snn.encoders import DirectCurrent, GaussianPopulation, ReceptiveFields
from spikedream.snn.learning_rules.eprop import EProp
from spikedream.snn.networks import SpikingNetwork, SpikingParams
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import MembraneReadout, RateReadout
from spikedream.snn.surrogates import ArcTan, FastSigmoid, Rectangular, Triangular

LEARNER_FILES, ARITHMETIC = Path(__file__).parent / "c_learner", Path(__file__).parent / "c" / "arithmetic.h"
WITH_CARTPOLE = ("cartpole.h", "train.c")  # only where the environment is that one
WITH_MODEL = ("dreams.h", "dreams.c", "model.h", "model.c")  # only where it dreams


@dataclass(frozen=True)
class ExportedLearner:
    """What was written."""

    directory: Path
    parameters: int  # numbers that are learned
    state: int  # bytes of `struct learner`
    vectors: int
    left_out: int  # stretches on which rounding decides who fires: no test vectors


def export_learner(run: Run, out: str | Path | None = None, vectors: int = 32, dyna: bool = False) -> ExportedLearner:
    """Write the learner of a run as it stands: what it has learned, and how it goes on.

    Args:
        run: of a `StreamActorCritic` with discrete actions, trained or not.
        out: a directory, of which files of the same names are replaced; by default `export/learner` in the run's.
        vectors: stretches of steps that stand beside it, with what is learned from them in JAX.
        dyna: with the model that it learns too, and dreams in.

    Raises:
        Unexportable: the agent, or a part of it, has no form there.
        BrokenEnvironment: the environment cannot be played.
    """
    check_asked(vectors)
    agent = _checked(run, dyna)
    directory = Path(out) if out is not None else run.directory / "export" / "learner"
    found, left_out = learner_vectors.test_vectors(run, vectors)
    make_directory(directory)
    absent = (() if run.config.env == "CartPole-v1" else WITH_CARTPOLE) + (() if dyna else WITH_MODEL)
    for name in (*WITH_CARTPOLE, *WITH_MODEL, "model_start.h"):
        (directory / name).unlink(missing_ok=True)
    for file in LEARNER_FILES.iterdir():
        if file.name not in absent:
            shutil.copyfile(file, directory / file.name)
    shutil.copyfile(ARITHMETIC, directory / ARITHMETIC.name)
    (directory / "settings.h").write_text(_settings(run, agent))
    (directory / "start.h").write_text(_start(run))
    (directory / "vectors.h").write_text(learner_vectors.as_c(found))
    if dyna:
        (directory / "model_start.h").write_text(_model_start(run))
    actor, obs_size = cast(SpikingNetwork, agent.actor), run.spec.obs_size
    sizes = [_flat(params).size for params in _state(run).params]
    parameters, average = sum(sizes), 0 if agent.average is None else sizes[0]
    beside = 3 * obs_size + actor.encoder.channels(obs_size) + 3 * actor.hidden[0] + run.spec.action_size + 15
    state = 4 * (2 * parameters + average + beside)
    if dyna:
        model, memory = _flat_model(_state(run)).size, cast(Dyna, agent.dyna).memory
        state = 4 * (3 * parameters + average + beside + 3 * model + 5 * obs_size + 13) + (8 * obs_size + 5) * memory
        parameters += model
    done = ExportedLearner(directory, parameters, state, len(found), left_out)
    (directory / "README.md").write_text(_readme(run, done, cast(Dyna, agent.dyna) if dyna else None))
    return done


def _readme(run: Run, done: ExportedLearner, dreams: Dyna | None) -> str:
    files, then, near = "`learner.c`, `network.c` and the headers", "", ""
    if dreams is not None:
        files, near = "`learner.c`, `network.c`, `dreams.c`, `model.c` and the headers", ", or a dream of its end"
        then = f"""
    /* As often as there is time; here {dreams.rehearsals} and {dreams.steps} times for each real step: */
    learner_rehearse(&learner);
    if (learner_may_dream(&learner))
        learner_dream(&learner);"""
    train = "\n`./train`, made by `make train`, goes on learning with the environment inside, and prints how it goes.\n"
    return f"""# A learner of {run.config.env} in C99

Made by `spikedream export --learner` from {run.config.preset}, seed {run.config.seed}. It observes {run.spec.obs_size} numbers in
the environment's own units, chooses one of {run.spec.action_size} actions, by its index from 0, and learns from each step; it
begins with what the run had learned.

    #include "learner.h"

    static struct learner learner;
    learner_start(&learner, seed); /* once; a seed that is not 0 */
    int choice = learner_act(&learner, observation, 0); /* 1: the most probable one */
    learner_learn(&learner, observation, choice, reward, next, terminated, truncated);{then}

{files} are all it needs: no allocation, no library, {done.parameters} numbers that are learned,
`sizeof(struct learner)` = {done.state} bytes of state on a machine without padding, and its stack. Compile with
`-ffp-contract=off`, and no `-ffast-math`: then every machine computes the same bits.

`make test` compares what it learns from {done.vectors} stretches of random steps in the environment with what JAX learns from them,
to {TOLERANCE:g} ({done.left_out} more were left out, on which a membrane came within {UNDECIDED:g} of its threshold{near},
where rounding decides).
{train if run.config.env == "CartPole-v1" else ""}"""


def _state(run: Run) -> StreamState:
    return run.state.agent


def _checked(run: Run, dyna: bool) -> StreamActorCritic:
    """The agent, of which every part has its form in C. Raises Unexportable, and says what has none."""
    agent = run.algorithm.agent
    if not isinstance(agent, StreamActorCritic):
        raise Unexportable(f"--learner is for agents that learn from each step, StreamActorCritic, not {type(agent).__name__}")
    if dyna and agent.dyna is None:
        raise Unexportable("--dyna is for agents that dream beside the real episode; this one's agent.dyna is None")
    if agent.dyna is not None:
        _check_dreams(agent.dyna, dyna)
    if not run.spec.discrete:
        raise Unexportable("--learner is for discrete actions; continuous ones have no form there")
    for name in ("actor", "critic"):
        network = getattr(agent, name)
        lacking = _lacking(network)
        if lacking is None and not isinstance(network.readout, RateReadout):
            lacking = "a RateReadout"
        if lacking:
            raise Unexportable(f"--learner needs {lacking} as the {name}")
    actor, critic = agent.actor, agent.critic
    assert isinstance(actor, SpikingNetwork) and isinstance(critic, SpikingNetwork)
    alike = replace(actor, bias=critic.bias, gain=critic.gain, readout=critic.readout, rule=critic.rule) == critic
    if not alike or _follows_reset(actor) != _follows_reset(critic):
        raise Unexportable("--learner needs an actor and a critic of the same layer; only readout, bias and gain may differ")
    return agent


def _check_dreams(dreams: Dyna, asked: bool) -> None:
    if not asked:
        raise Unexportable("--learner exports what learns from real steps alone, and this agent dreams: add --dyna")
    if dreams.ending is not None or dreams.start_noise:
        what = "a network for the ending" if dreams.ending is not None else f"start_noise {dreams.start_noise:g}"
        raise Unexportable(f"--dyna has no form for {what}; set agent.dyna.ending to None and agent.dyna.start_noise to 0")
    dynamics: Any = dreams.dynamics
    lacking = _lacking(dynamics)
    if lacking is None and not isinstance(dynamics.readout, MembraneReadout):
        lacking = "a MembraneReadout"
    if lacking is None and not isinstance(dynamics.encoder, DirectCurrent):
        lacking = "DirectCurrent"
    if lacking:
        raise Unexportable(f"--dyna needs {lacking} as the dynamics")


def _lacking(network: Any) -> str | None:
    """What it would have to be."""
    if not isinstance(network, SpikingNetwork) or len(network.hidden) != 1:
        return "a SpikingNetwork of one hidden layer"
    neuron, encoder = network.neuron, network.encoder
    if not isinstance(neuron, LIF) or neuron.recurrent or neuron.norm != "none" or neuron.decay_input or neuron.detach_reset:
        return "plain LIF neurons, not recurrent ones or ones with norm, decay_input or detach_reset,"
    if neuron.learn_threshold:
        return "fixed thresholds (learn_threshold false)"
    if isinstance(encoder, GaussianPopulation) and (encoder.mode != "current" or encoder.currents or encoder.squash):
        return "DirectCurrent, or GaussianPopulation with mode current, without currents and squash, before the layer"
    if network.persistent or network.branches or network.fan_in is not None or network.sparsity is not None or network.fixed_point:
        return "a network without persistent, branches, fan_in, sparsity and fixed_point"
    if isinstance(network.rule, EProp) and network.rule.feedback != "symmetric":
        return "the readout's own weights for feedback: rule RTRL, or EProp with feedback symmetric,"
    return None


def _follows_reset(network: SpikingNetwork) -> bool:
    """Whether the gradient does."""
    return not isinstance(network.rule, EProp) or network.rule.reset


# ---- as C


@singledispatch
def _bump(surrogate: Any) -> str:
    """The surrogate's derivative, of `x`."""
    raise Unexportable(f"--learner has nothing for the surrogate {type(surrogate).__name__}")


@_bump.register
def _(surrogate: ArcTan) -> str:
    inner = f"({literal(math.pi / 2 * surrogate.sharpness)} * (x))"
    return f"({literal(surrogate.sharpness / 2)} / (1.0f + {inner} * {inner}))"


@_bump.register
def _(surrogate: FastSigmoid) -> str:
    inner = f"(1.0f + {literal(surrogate.sharpness)} * magnitude(x))"
    return f"(1.0f / ({inner} * {inner}))"


@_bump.register
def _(surrogate: Rectangular) -> str:
    return f"(magnitude(x) < {literal(surrogate.width / 2)} ? {literal(1 / surrogate.width)} : 0.0f)"


@_bump.register
def _(surrogate: Triangular) -> str:
    inverse = literal(1 / surrogate.width)
    return f"(magnitude(x) < {literal(surrogate.width)} ? (1.0f - magnitude(x) * {inverse}) * {inverse} : 0.0f)"


def _settings(run: Run, agent: StreamActorCritic) -> str:
    network = cast(SpikingNetwork, agent.actor)
    neuron, encoder = cast(LIF, network.neuron), network.encoder
    values = {
        "INPUTS": run.spec.obs_size,
        "FIELDS": encoder.fields if isinstance(encoder, GaussianPopulation) else 1,
        "HIDDEN": network.hidden[0],
        "CHOICES": run.spec.action_size,
        "TICKS": network.ticks,
        "GAMMA": agent.gamma,
        "TRACE_DECAY": agent.trace_decay,
        "STEP_SIZE": agent.step_size,
        "CRITIC_STEP_SIZE": agent.critic_step_size,
        "CAUTION": agent.caution,
        "CRITIC_CAUTION": agent.critic_caution,
        "ENTROPY": agent.entropy,
        "THRESHOLD": neuron.threshold,
        "SOFT_RESET": int(neuron.reset == "soft"),
        "FOLLOWS_RESET": int(_follows_reset(network)),
        "LEARNS_DECAY": float(neuron.learn_decay),
        "SURROGATE(x)": _bump(neuron.surrogate),
        "AVERAGES": int(agent.average is not None),
        "AVERAGE_DEGREE": 0.0 if agent.average is None else agent.average.degree,
        "DREAMS": 0 if agent.dyna is None else agent.dyna.steps,
    }
    lines = _defined("LEARNER", values)
    if agent.dyna is not None:
        lines += _of_dreams(agent.dyna)
    where = f"{run.config.env}, {run.config.preset}, seed {run.config.seed}: by spikedream export --learner"
    return f"/* {where} */\n" + "\n".join(lines) + "\n"


def _of_dreams(dreams: Dyna) -> list[str]:
    network = cast(SpikingNetwork, dreams.dynamics)
    neuron = cast(LIF, network.neuron)
    model = {
        "HIDDEN": network.hidden[0],
        "TICKS": network.ticks,
        "THRESHOLD": neuron.threshold,
        "SOFT_RESET": int(neuron.reset == "soft"),
        "FOLLOWS_RESET": int(_follows_reset(network)),
        "LEARNS_DECAY": float(neuron.learn_decay),
        "SURROGATE(x)": _bump(neuron.surrogate),
        "LEARNING_RATE": dreams.learning_rate,
        "GRADIENT_CLIP": dreams.gradient_clip,
    }
    learner = {
        "BEGIN": dreams.begin,
        "HORIZON": dreams.horizon,
        "MARGIN": dreams.margin,
        "MEMORY": dreams.memory,
        "BEGIN_REMEMBERED": dreams.begin_remembered,
        "REHEARSALS": dreams.rehearsals,
    }
    return _defined("LEARNER", learner) + _defined("MODEL", model)


def _defined(whose: str, values: Mapping[str, Any]) -> list[str]:
    return [f"#define {whose}_{name} {literal(x) if isinstance(x, float) else x}" for name, x in values.items()]


def _flat(params: SpikingParams) -> ndarray:
    """A network's numbers in the order of `learner.h`."""
    (layer,) = params.layers
    fields = [params.encoder.mean, params.encoder.width] if isinstance(params.encoder, ReceptiveFields) else []
    if not fields:  # the observation itself: no fields are learned, and their places stay empty
        fields = [jnp.zeros(layer.synapse.weight.shape[0])] * 2
    parts = [*fields, layer.synapse.weight, layer.synapse.bias, layer.neuron.decay, params.readout.weight, params.readout.bias]
    return np.concatenate([np.asarray(x, np.float32).ravel() for x in parts])


def _start(run: Run) -> str:
    state, moments = _state(run), run.state.replay.moments
    tables = {
        "start_actor": _flat(state.params.actor),
        "start_critic": _flat(state.params.critic),
        "start_mean": np.asarray(moments.mean),
        "start_variance": np.asarray(moments.variance),
    }
    if state.average is not None:
        tables["start_average"] = _flat(state.average)
    numbers = {
        "START_COUNT": moments.count,
        "START_RETURN_COUNT": state.returns.count,
        "START_RETURN_MEAN": state.returns.mean,
        "START_RETURN_SQUARES": state.returns.squares,
    }
    if state.dyna is not None:
        tables |= {"start_change": moments.change, "start_low": state.dyna.low, "start_high": state.dyna.high}
        numbers |= {"START_REWARD_LOW": moments.reward_low, "START_REWARD_HIGH": moments.reward_high}
    return "/* Where learning stands. */\n" + _tables(tables, numbers)


def _flat_model(state: StreamState, of: Any = None) -> ndarray:
    """The dynamics' numbers, or their moments `of` the optimiser's state, in the order of `model.h`."""
    assert state.dyna is not None
    params: SpikingParams = (state.dyna.networks if of is None else of).dynamics
    (layer,) = params.layers
    readout = params.readout
    parts = [
        layer.synapse.weight,
        layer.synapse.bias,
        layer.neuron.decay,
        readout.charge.weight,
        readout.charge.bias,
        readout.spikes,
    ]
    return np.concatenate([np.asarray(x, np.float32).ravel() for x in parts])


def _model_start(run: Run) -> str:
    state = _state(run)
    assert state.dyna is not None
    adam = next(x for x in jax.tree.leaves(state.dyna.optimizer, is_leaf=_is_adam) if _is_adam(x))
    count = int(adam.count)
    tables = {"model": _flat_model(state), "first": _flat_model(state, adam.mu), "second": _flat_model(state, adam.nu)}
    # The powers of Adam's two rates, b1 and b2 of `optax.adam`.
    left = {"START_FIRST_LEFT": 0.9**count, "START_SECOND_LEFT": 0.999**count}
    return "/* Where the model stands. */\n" + _tables({f"start_{name}": x for name, x in tables.items()}, left)


def _is_adam(x: Any) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def _tables(tables: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    flat = {name: np.asarray(x) for name, x in tables.items()}
    lines = [f"static const float {name}[{x.size}] = {{{', '.join(map(literal, x))}}};" for name, x in flat.items()]
    return "\n".join([*lines, *(f"#define {name} {literal(float(x))}" for name, x in numbers.items())]) + "\n"
