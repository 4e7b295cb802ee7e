"""The streaming actor-critic in C99: a device that learns from each of its own steps, without Python and without a library.

The C program is one, `c_learner/learner.c`; a run gives it its sizes, its hyper-parameters, and where learning stands.
"""

import math
import shutil
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy import ndarray

from spikedream.agents.online import StreamActorCritic, StreamState
from spikedream.envs.make import make_own, translation_of
from spikedream.export.program import literal
from spikedream.nodes import Unexportable
from spikedream.runs.run import Run
from spikedream.snn.encoders import GaussianPopulation, ReceptiveFields
from spikedream.snn.learning_rules.eprop import EProp
from spikedream.snn.networks import SpikingNetwork, SpikingParams
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import RateReadout
from spikedream.snn.surrogates import ArcTan, FastSigmoid, Rectangular, Triangular
from spikedream.types import Transition

LEARNER_FILES, ARITHMETIC = Path(__file__).parent / "c_learner", Path(__file__).parent / "c" / "arithmetic.h"
WITH_CARTPOLE = ("cartpole.h", "train.c")  # only where the environment is that one
STRETCH = 3  # steps that a test vector learns from
UNDECIDED = 1e-4  # a membrane this near to its threshold fires or not by how sums are rounded
TOLERANCE = 1e-3  # of a temporal-difference error and of an output


@dataclass(frozen=True)
class ExportedLearner:
    """What was written."""

    directory: Path
    parameters: int  # numbers that are learned
    state: int  # bytes of `struct learner`
    vectors: int
    left_out: int  # stretches on which rounding decides who fires: no test vectors


def export_learner(run: Run, out: str | Path | None = None, vectors: int = 32) -> ExportedLearner:
    """Write the learner of a run as it stands: what it has learned, and how it goes on.

    Args:
        run: of a `StreamActorCritic` with discrete actions, trained or not.
        out: a directory, of which files of the same names are replaced; by default `export/learner` in the run's.
        vectors: stretches of steps that stand beside it, with what is learned from them in JAX.

    Raises:
        Unexportable: the agent, or a part of it, has no form there.
        BrokenEnvironment: the environment cannot be played.
    """
    agent = _checked(run)
    directory = Path(out) if out is not None else run.directory / "export" / "learner"
    found, left_out = _test_vectors(run, agent, vectors)
    directory.mkdir(parents=True, exist_ok=True)
    for file in LEARNER_FILES.iterdir():
        if run.config.env == "CartPole-v1" or file.name not in WITH_CARTPOLE:
            shutil.copyfile(file, directory / file.name)
    shutil.copyfile(ARITHMETIC, directory / ARITHMETIC.name)
    (directory / "settings.h").write_text(_settings(run, agent))
    (directory / "start.h").write_text(_start(run))
    (directory / "vectors.h").write_text(_vectors(found))
    actor = cast(SpikingNetwork, agent.actor)
    parameters = sum(_flat(params).size for params in _state(run).params)
    beside = 3 * run.spec.obs_size + actor.encoder.channels(run.spec.obs_size) + 3 * actor.hidden[0] + run.spec.action_size + 15
    return ExportedLearner(directory, parameters, 4 * (2 * parameters + beside), len(found), left_out)


def _state(run: Run) -> StreamState:
    return run.state.agent


def _checked(run: Run) -> StreamActorCritic:
    """The agent, of which every part has its form in C. Raises Unexportable, and says what has none."""
    agent = run.algorithm.agent
    if not isinstance(agent, StreamActorCritic):
        raise Unexportable(f"--learner is for agents that learn from each step, StreamActorCritic, not {type(agent).__name__}")
    if agent.dyna is not None:
        raise Unexportable("--learner exports what learns from real steps; set agent.dyna to None")
    if not run.spec.discrete:
        raise Unexportable("--learner is for discrete actions; continuous ones have no form there")
    for name in ("actor", "critic"):
        network = getattr(agent, name)
        lacking = _lacking(network)
        if lacking:
            raise Unexportable(f"--learner needs {lacking} as the {name}")
    actor, critic = agent.actor, agent.critic
    assert isinstance(actor, SpikingNetwork) and isinstance(critic, SpikingNetwork)
    alike = replace(actor, bias=critic.bias, gain=critic.gain, readout=critic.readout, rule=critic.rule) == critic
    if not alike or _follows_reset(actor) != _follows_reset(critic):
        raise Unexportable("--learner needs an actor and a critic of the same layer; only readout, bias and gain may differ")
    return agent


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
    if not isinstance(network.readout, RateReadout):
        return "a RateReadout"
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
    }
    lines = [f"#define LEARNER_{name} {literal(x) if isinstance(x, float) else x}" for name, x in values.items()]
    where = f"{run.config.env}, {run.config.preset}, seed {run.config.seed}: by spikedream export --learner"
    return f"/* {where} */\n" + "\n".join(lines) + "\n"


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
    numbers = {
        "START_COUNT": moments.count,
        "START_RETURN_COUNT": state.returns.count,
        "START_RETURN_MEAN": state.returns.mean,
        "START_RETURN_SQUARES": state.returns.squares,
    }
    lines = [f"static const float {name}[{x.size}] = {{{', '.join(map(literal, x))}}};" for name, x in tables.items()]
    lines += [f"#define {name} {literal(float(x))}" for name, x in numbers.items()]
    return "/* Where learning stands. */\n" + "\n".join(lines) + "\n"


# ---- test vectors


class Learned(NamedTuple):
    """A stretch of steps, and what JAX learns from them."""

    steps: list[tuple[ndarray, int, float, ndarray, bool, bool]]  # observation, choice, reward, next, terminated, truncated
    errors: list[float]  # temporal-difference error of each, its magnitude
    output: ndarray  # of the actor afterwards, at the last observation


def _test_vectors(run: Run, agent: StreamActorCritic, count: int) -> tuple[list[Learned], int]:
    """Each begins where the run stands, with no traces; and how many were left out."""
    algorithm, spec = run.algorithm, run.spec
    data = algorithm.buffer.init(spec, algorithm.environments).data
    stands = replace(run.state, replay=replace(run.state.replay, data=data))
    returns = _state(run).returns._replace(running=jnp.zeros(()))
    blank = jax.tree.map(jnp.zeros_like, _state(run).traces)
    stands = replace(stands, agent=replace(_state(run), traces=blank, returns=returns))
    rng, env = np.random.default_rng(0), make_own(run.config.env, run.config.env_kwargs, run.config.max_episode_steps)
    translation, found, left_out, obs = translation_of(run.config.env, env), [], 0, None
    while len(found) < count:
        state, margin, steps, errors = jax.tree.map(jnp.array, stands), math.inf, [], []
        for _ in range(STRETCH):
            if obs is None:
                obs = np.asarray(translation.observation(env.reset(seed=int(rng.integers(2**31)))[0]), np.float32)
            choice = int(rng.integers(spec.action_size))
            raw, reward, terminated, truncated, _ = env.step(translation.action(choice))
            following = np.asarray(translation.observation(raw), np.float32)
            steps.append((obs, choice, float(reward), following, bool(terminated), bool(truncated)))
            before = state
            state, metrics = algorithm.learn(jax.tree.map(jnp.array, before), _row(spec.action_size, steps[-1]))
            errors.append(float(metrics["td_error"]))
            scale = state.replay.normalizer
            for seen in (scale.obs(jnp.asarray(obs)), scale.obs(jnp.asarray(following))):
                for network, params in zip((agent.actor, agent.critic), before.agent.params, strict=True):
                    margin = min(margin, _margin(cast(SpikingNetwork, network), params, np.asarray(seen)))
            obs = None if terminated or truncated else following
        last = state.replay.normalizer.obs(jnp.asarray(steps[-1][0]))
        margin = min(margin, _margin(cast(SpikingNetwork, agent.actor), state.agent.params.actor, np.asarray(last)))
        if margin < UNDECIDED:
            left_out += 1
            continue
        output = agent.actor(state.agent.params.actor, last).value
        found.append(Learned(steps, errors, np.asarray(output)))
    env.close()
    return found, left_out


def _row(size: int, step: tuple[ndarray, int, float, ndarray, bool, bool]) -> Transition:
    """Fields (1, 1, ...)."""
    obs, choice, reward, following, terminated, truncated = step
    fields = (obs, np.eye(size)[choice], reward, following, terminated, truncated, 0.0)
    return Transition(*(cast(Any, np.asarray(x, np.float32)[None, None]) for x in fields))


def _margin(network: SpikingNetwork, params: SpikingParams, obs: ndarray) -> float:
    """How near a membrane comes to its threshold."""
    entering = np.asarray(network.encoder.encode(params.encoder, jnp.asarray(obs), network.ticks, None), np.float64)
    (layer,), neuron = params.layers, cast(LIF, network.neuron)
    current = (entering @ np.asarray(layer.synapse.weight, np.float64))[0] + np.asarray(layer.synapse.bias, np.float64)
    decay, v, nearest = 1 / (1 + np.exp(-np.asarray(layer.neuron.decay, np.float64))), np.zeros_like(current), math.inf
    for _ in range(network.ticks):
        u = decay * v + current
        nearest = min(nearest, float(np.abs(u - neuron.threshold).min()))
        fired = u >= neuron.threshold
        v = np.where(fired, u - neuron.threshold if neuron.reset == "soft" else 0.0, u)
    return nearest


def _vectors(found: list[Learned]) -> str:
    def numbers(values: Any) -> str:
        return "{" + ", ".join(literal(float(x)) for x in np.ravel(values)) + "}"

    rows = []
    for each in found:
        obs, choices, rewards, following, terminated, truncated = zip(*each.steps, strict=True)
        whole = ["{" + ", ".join(str(int(x)) for x in values) + "}" for values in (choices, terminated, truncated)]
        both = ["{" + ", ".join(map(numbers, values)) + "}" for values in (obs, following)]
        parts = [both[0], whole[0], numbers(rewards), both[1], *whole[1:], numbers(each.errors), numbers(each.output)]
        rows.append("    {" + ", ".join(parts) + "}")
    body = ",\n".join(rows)
    return f"""/* Steps, and what JAX learns from them: magnitudes of the errors, and the actor's output afterwards. */
#define VECTORS {len(found)}
#define STRETCH {STRETCH}
#define VECTOR_TOLERANCE {literal(TOLERANCE)}

struct vector {{
    float observation[STRETCH][LEARNER_INPUTS];
    int choice[STRETCH];
    float reward[STRETCH], next[STRETCH][LEARNER_INPUTS];
    int terminated[STRETCH], truncated[STRETCH];
    float error[STRETCH], output[LEARNER_CHOICES];
}};

static const struct vector vectors[VECTORS] = {{
{body},
}};
"""
