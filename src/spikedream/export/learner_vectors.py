"""Test vectors of a learner: what is learned in JAX from stretches of real steps, for exported code to be compared with."""

import math
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy import ndarray

from spikedream.agents.dyna import Dyna
from spikedream.agents.online import StreamActorCritic, StreamState
from spikedream.algorithm import TrainState
from spikedream.envs.make import make_own, translation_of
from spikedream.export.program import literal
from spikedream.export.vectors import PATIENCE, TOLERANCE, UNDECIDED, check_enough
from spikedream.runs.run import Run
from spikedream.snn.networks import SpikingNetwork, SpikingParams
from spikedream.snn.neurons import LIF
from spikedream.types import Transition

STRETCH = 3  # steps that a test vector learns from
REHEARSED = 2  # gradient steps of the model on remembered ones after each, where it dreams
DREAMT = 2  # imagined ones after each, likewise

RealStep = tuple[ndarray, int, float, ndarray, bool, bool]  # observation, choice, reward, next, terminated, truncated


class LearnedStretch(NamedTuple):
    """A stretch of steps, and what JAX learns from them."""

    steps: list[RealStep]
    errors: list[float]  # temporal-difference error of each, its magnitude
    output: ndarray  # of the actor afterwards, at the last observation
    greedy_output: ndarray  # of what acts greedily, its average where there is one, likewise
    rehearsed: list[int]  # which of the steps the model rehearsed, after each as many
    begun: list[int]  # for each imagined one, in which of the steps a dream began that began there, or -1 for the newest state
    dreamt: list[int]  # choices of the imagined steps, after each real one as many
    model_errors: list[float]  # of each real step; none where nothing is dreamed
    dream: ndarray  # where the dream stands in the end, (obs_size,)


def test_vectors(run: Run, count: int) -> tuple[list[LearnedStretch], int]:
    """Each begins where the run stands, with no traces and no dream; and how many were left out, because a membrane was nearer to
    its threshold than `UNDECIDED`, or a dream to its end.

    Raises BrokenEnvironment where the environment cannot be played, and Unexportable where nearly all are left out.
    """
    rng, env = np.random.default_rng(0), make_own(run.config.env, run.config.env_kwargs, run.config.max_episode_steps)
    translation, found, left_out, obs = translation_of(run.config.env, env), [], 0, None
    learning = Learning(run)
    while len(found) < count and left_out < PATIENCE * count:
        steps: list[RealStep] = []
        for _ in range(STRETCH):
            if obs is None:
                obs = np.asarray(translation.observation(env.reset(seed=int(rng.integers(2**31)))[0]), np.float32)
            choice = int(rng.integers(run.spec.action_size))
            raw, reward, terminated, truncated, _ = env.step(translation.action(choice))
            following = np.asarray(translation.observation(raw), np.float32)
            steps.append((obs, choice, float(reward), following, bool(terminated), bool(truncated)))
            obs = None if terminated or truncated else following
        learned, margin = learning(steps, len(found) + left_out)
        if margin < UNDECIDED:
            left_out += 1
        else:
            found.append(learned)
    env.close()
    check_enough(len(found), left_out, count, "stretch of steps")
    return found, left_out


class Dreamt(NamedTuple):
    """An imagined step."""

    obs: Array  # (obs_size,) normalised
    choice: Array  # ()
    following: Array  # (obs_size,)


class Learning:
    """Learns from stretches, each from where the run stands."""

    def __init__(self, run: Run):
        agent = cast(StreamActorCritic, run.algorithm.agent)
        self._agent, self._dyna, self._size = agent, agent.dyna, run.spec.action_size
        # What is rehearsed and imagined comes step by step, to know what was drawn and chosen.
        awake = agent if agent.dyna is None else replace(agent, dyna=replace(agent.dyna, begin=2**30, rehearsals=0))
        self._algorithm = replace(run.algorithm, agent=awake)
        data = self._algorithm.buffer.init(run.spec, self._algorithm.environments).data
        stands: StreamState = run.state.agent
        returns, dreamer = stands.returns._replace(running=jnp.zeros(())), stands.dyna
        if dreamer is not None and self._dyna is not None:
            dreamer = replace(dreamer, age=jnp.full((), self._dyna.horizon, jnp.int32))
        traces, dreamt = (jax.tree.map(jnp.zeros_like, x) for x in (stands.traces, stands.dreamt))
        stands = replace(stands, traces=traces, dreamt=dreamt, returns=returns, dyna=dreamer)
        self._stands = replace(run.state, replay=replace(run.state.replay, data=data), agent=stands)
        self._imagine, self._rehearse = jax.jit(self._imagined), jax.jit(self._rehearsed)

    def __call__(self, steps: list[RealStep], stretch: int) -> tuple[LearnedStretch, float]:
        """And the smallest margin."""
        state, agent, margin = jax.tree.map(jnp.array, self._stands), self._agent, math.inf
        errors, model_errors, rehearsed, begun, dreamt = [], [], [], [], []
        rng = np.random.default_rng(stretch)
        for i, step in enumerate(steps):
            before: StreamState = state.agent
            state, metrics = self._algorithm.learn(jax.tree.map(jnp.array, state), _row(self._size, step))
            errors.append(float(metrics["td_error"]))
            scale = state.replay.normalizer
            for seen in (scale.obs(jnp.asarray(step[0])), scale.obs(jnp.asarray(step[3]))):
                margin = min(margin, self._of_both(before, seen))
            if self._dyna is None:
                continue
            model_errors.append(float(metrics["model_error"]))
            margin = min(margin, self._of_model(self._dyna, before, scale.obs(jnp.asarray(step[0])), step[1]))
            state = replace(state, agent=self._remembering(state, i + 1))
            for _ in range(REHEARSED):
                rehearsed.append(int(rng.integers(i + 1)))
                before, (seen, choice, *_) = state.agent, steps[rehearsed[-1]]
                margin = min(margin, self._of_model(self._dyna, before, scale.obs(jnp.asarray(seen)), choice))
                state = replace(state, agent=self._rehearse(state, i - rehearsed[-1]))
            for key in jax.random.split(jax.random.fold_in(jax.random.key(stretch), i), DREAMT):
                before = state.agent
                after, imagined = self._imagine(state, key)
                state = replace(state, agent=after)
                dreamt.append(int(imagined.choice))
                starts = [np.asarray(step[0] if step[4] else step[3]), *(seen for seen, *_ in steps[: i + 1])]
                begun.append(
                    int(np.argmin([np.abs(np.asarray(scale.obs(jnp.asarray(x)) - imagined.obs)).sum() for x in starts])) - 1
                )
                for seen in (imagined.obs, imagined.following):
                    margin = min(margin, self._of_both(before, seen))
                margin = min(margin, self._of_model(self._dyna, before, imagined.obs, dreamt[-1]), self._of_end(state))
        last, policy = state.replay.normalizer.obs(jnp.asarray(steps[-1][0])), agent.policy_of(state.agent)
        actors = [policy.actor, agent.steady(policy)]
        margin = min(margin, *(_margin(cast(SpikingNetwork, agent.actor), actor, np.asarray(last)) for actor in actors))
        output, greedy = (np.asarray(agent.actor(actor, last).value) for actor in actors)
        dream = np.zeros(0) if self._dyna is None else np.asarray(state.agent.dyna.obs)
        return LearnedStretch(steps, errors, output, greedy, rehearsed, begun, dreamt, model_errors, dream), margin

    def _remembering(self, state: TrainState, number: int) -> StreamState:
        """As many of the newest real steps, and none before them."""
        dreamer = state.agent.dyna
        places = (state.replay.newest() - jnp.arange(number)) % state.replay.capacity
        index = jnp.resize(places, dreamer.kept.reward.shape)
        kept = jax.tree.map(lambda ring: ring[index, 0], state.replay.data)
        return replace(state.agent, dyna=replace(dreamer, kept=kept))

    def _rehearsed(self, state: TrainState, age: Array) -> StreamState:
        dyna, experience = self._dyna, state.replay
        assert dyna is not None and state.agent.dyna is not None
        step = experience.gather((experience.newest()[0] - age) % experience.capacity)
        return replace(state.agent, dyna=dyna.fit_one(state.agent.dyna, experience, step, jax.random.key(0))[0])

    def _imagined(self, state: TrainState, key: Array) -> tuple[StreamState, Dreamt]:
        """What is chosen is told by where it leads."""
        dyna, experience = self._dyna, state.replay
        assert dyna is not None and state.agent.dyna is not None
        real = jax.tree.map(lambda x: x[0], experience.gather(experience.newest()))
        start_key, key = jax.random.split(key)
        before = dyna.awake(state.agent.dyna, experience, real, start_key)
        after = self._agent._dream(replace(dyna, steps=1), replace(state.agent, dyna=before), experience, real, key)
        assert after.dyna is not None
        obs, following = (experience.normalizer.obs(dream.obs) for dream in (before, after.dyna))
        each = jax.vmap(lambda action: dyna.imagine(before, experience, obs, action, key).obs)(jnp.eye(self._size))
        return after, Dreamt(obs, jnp.abs(each - following[None]).sum(1).argmin(), following)

    def _of_both(self, state: StreamState, obs: Array) -> float:
        networks = zip((self._agent.actor, self._agent.critic), state.params, strict=True)
        return min(_margin(cast(SpikingNetwork, network), params, np.asarray(obs)) for network, params in networks)

    def _of_model(self, dyna: Dyna, state: StreamState, obs: Array, choice: int) -> float:
        assert state.dyna is not None
        seen = np.concatenate([obs, np.eye(self._size, dtype=np.float32)[choice]])
        return _margin(cast(SpikingNetwork, dyna.dynamics), state.dyna.networks.dynamics, seen)

    def _of_end(self, state: TrainState) -> float:
        """How near a dream comes to where it ends, in standard deviations of the observation."""
        dreamer, scale = state.agent.dyna, np.asarray(state.replay.normalizer.scale)
        bounds = (np.asarray(bound) for bound in (dreamer.low, dreamer.high))
        return min(float((np.abs(np.asarray(dreamer.obs) - bound) / scale).min()) for bound in bounds)


def _row(size: int, step: RealStep) -> Transition:
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


def as_c(found: list[LearnedStretch]) -> str:
    def numbers(values: Any) -> str:
        return "{" + ", ".join(literal(float(x)) for x in np.ravel(values)) + "}"

    def whole(values: Any) -> str:
        return "{" + ", ".join(str(int(x)) for x in values) + "}"

    rows = []
    for each in found:
        obs, choices, rewards, following, terminated, truncated = zip(*each.steps, strict=True)
        both = ["{" + ", ".join(map(numbers, values)) + "}" for values in (obs, following)]
        parts = [both[0], whole(choices), numbers(rewards), both[1], whole(terminated), whole(truncated)]
        parts += [numbers(each.errors), numbers(each.output), numbers(each.greedy_output)]
        if each.dreamt:
            parts += [whole(each.rehearsed), whole(each.begun), whole(each.dreamt), numbers(each.model_errors), numbers(each.dream)]
        rows.append("    {" + ", ".join(parts) + "}")
    body = ",\n".join(rows)
    return f"""/* Steps, and what JAX learns from them: magnitudes of the errors, and the actor's output afterwards. */
#define VECTORS {len(found)}
#define STRETCH {STRETCH}
#define REHEARSED {REHEARSED} /* steps that the model rehearses after each, where it dreams */
#define DREAMT {DREAMT} /* imagined steps then */
#define VECTOR_TOLERANCE {literal(TOLERANCE)}

struct vector {{
    float observation[STRETCH][LEARNER_INPUTS];
    int choice[STRETCH];
    float reward[STRETCH], next[STRETCH][LEARNER_INPUTS];
    int terminated[STRETCH], truncated[STRETCH];
    float error[STRETCH], output[LEARNER_CHOICES], greedy_output[LEARNER_CHOICES];
#if LEARNER_DREAMS
    int rehearsed[STRETCH * REHEARSED], begun[STRETCH * DREAMT], dreamt[STRETCH * DREAMT];
    float model_error[STRETCH], dream[LEARNER_INPUTS];
#endif
}};

static const struct vector vectors[VECTORS] = {{
{body},
}};
"""
