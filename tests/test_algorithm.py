"""What registered world models, agents and bonuses must honour once they are joined in an `Algorithm`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import AGENTS, CAPACITY, KEY, OTHER, PRIORITIES, experience, learns, world_model
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from small import DISCRETE, SPECS, finite, kinds, same, shapes, small

from spikedream.agents.dreamer import Dreamer
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC, AnyPlanner
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.online import StreamActorCritic
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.algorithm import Algorithm
from spikedream.bonuses.disagreement import Disagreement
from spikedream.bonuses.intrinsic_curiosity import IntrinsicCuriosity
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.config import AnyAgent, AnyBonus, AnyWorldModel, twin
from spikedream.replay.ring import ReplayBuffer
from spikedream.runs import checkpoint
from spikedream.snn.conventional import GRU
from spikedream.types import Transition
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.fine_tuning import FineTuning
from spikedream.world_models.priors import PriorSearch
from spikedream.world_models.recurrent import Recurrent
from spikedream.world_models.true_environment import TrueEnvironment


def sized(algorithm):
    """How often each verb has been compiled."""
    verbs = ("init", "start", "restart", "act", "remember", "learn", "fit", "dream")
    return {verb: getattr(type(algorithm), verb)._cache_size() for verb in verbs}


def one_turn(algorithm, state, spec):
    """Each verb once, as the runner calls them."""
    policy, obs = algorithm.policy(state), np.full((1, spec.obs_size), 0.1, np.float32)
    carry = algorithm.restart(policy, state.carry, np.array([True]))
    act = algorithm.act(policy, carry, obs, state.keys.collect, False)
    number = np.zeros((1, 1), np.float32)
    action, log_prob = np.asarray(act.action)[None], np.asarray(act.log_prob)[None]
    step = Transition(obs[None], action, number + 0.5, obs[None] + 0.1, number, number, log_prob)
    state = replace(state, carry=act.carry, keys=replace(state.keys, collect=act.key))
    if algorithm.agent.online:
        state, learned = algorithm.learn(state, step)
        state, rest = algorithm.fit(state, np.int32(algorithm.world_model.updates))
        return state, {**learned, **rest}
    state = replace(state, replay=algorithm.remember(state.replay, step, np.int32(1)))
    state, fitted = algorithm.fit(state, np.int32(algorithm.world_model.updates))
    state, dreamt = algorithm.dream(state)
    return state, {**fitted, **dreamt}


def copied(state):
    """The phases donate what they are given. By way of NumPy, for which nothing is compiled."""

    def copy(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(copy(jax.random.key_data(leaf))) if is_key else jnp.asarray(np.array(leaf))

    return jax.tree.map(copy, state)


RND, ICM = small(twin(RandomNetworkDistillation())), small(twin(IntrinsicCuriosity()))
JOINED = [  # world model, agent, bonus, how experience is drawn, for which action spaces
    (Ensemble, "Dreamer", None, "uniform", SPECS),
    (TrueEnvironment, "Dreamer", None, "td_error", ["discrete"]),
    (Recurrent, "Dreamer-from-both", RND, "model_error", ["continuous"]),
    (Ensemble, "MPC-MPPI", Disagreement(), "td_error", ["discrete"]),
    (TrueEnvironment, "MPC-RandomShooting", None, "uniform", ["discrete"]),
    (Ensemble, "MPC", None, "model_error", ["continuous"]),
    (Ensemble, "PPO-imagines", ICM, "td_error", ["continuous"]),
    (TrueEnvironment, "OffPolicy-TD7", None, "loss", ["continuous"]),
    (Ensemble, "OffPolicy-dreams", None, "uniform", ["continuous"]),
    (TrueEnvironment, "StreamActorCritic-dyna", None, "uniform", ["discrete"]),
    (TrueEnvironment, "Evolution-twin", None, "uniform", ["discrete"]),
]
TRACED = [  # what is joined of the same parts in another way; compiling these, too, would see no more
    (Recurrent, "Dreamer", RND, "model_error", ["discrete"]),
    (Recurrent, "MPC", None, "model_error", ["continuous"]),
    (Recurrent, "Dreamer-from-both", Disagreement(), "uniform", ["continuous"]),
    (Recurrent, "Evolution", RND, "model_error", ["continuous"]),
    (Ensemble, "PPO", RND, "model_error", ["discrete"]),
    (Ensemble, "OffPolicy", RND, "td_error", ["continuous"]),
    (Ensemble, "OffPolicy-SAC", None, "loss", ["continuous"]),
    (Ensemble, "OffPolicy-dreams", Disagreement(), "loss", ["continuous"]),
    (Ensemble, "StreamActorCritic", None, "td_error", ["continuous"]),
    (Ensemble, "StreamActorCritic-dyna", None, "uniform", ["continuous"]),
]


def test_every_kind_is_joined_with_others():
    worlds, names, bonuses, priorities, _ = zip(*JOINED, strict=True)
    assert set(worlds) == set(kinds(AnyWorldModel)) and set(priorities) == set(PRIORITIES)
    assert {type(bonus) for bonus in bonuses if bonus} == set(kinds(AnyBonus))
    agents = [AGENTS[name] for name in names]
    assert {type(agent) for agent in agents} == set(kinds(AnyAgent)) - {StableBaselines}  # joined in test_stable_baselines.py
    assert {type(agent.search) for agent in agents if isinstance(agent, MPC)} == set(kinds(AnyPlanner))


def imagined_steps(agent, metrics):
    """Of two updates, or of one real step."""
    agent = agent.policy if isinstance(agent, MPC) else agent
    if isinstance(agent, StreamActorCritic):
        return agent.dyna.steps if agent.dyna else 0
    if isinstance(agent, Dreamer):
        return 2 * agent.trajectories * agent.horizon
    if isinstance(agent, Evolution):
        return 2 * agent.population * agent.trajectories * agent.horizon
    if isinstance(agent, OffPolicy):
        return 2 * agent.dreams.starts * agent.dreams.horizon if agent.dreams else 0
    if agent is None or agent.imagination is None:
        return 0
    assert 0 < int(metrics["rollouts"]) <= 2 * agent.imagination.most
    return agent.imagination.horizon * int(metrics["rollouts"])


@pytest.mark.parametrize(
    ("world_kind", "name", "bonus", "priority", "spec"),
    [
        pytest.param(w, a, b, p, SPECS[s], id="-".join([w.__name__, a, type(b).__name__ if b else "no", p, s]))
        for w, a, b, p, specs in JOINED
        for s in specs
    ],
)
def test_algorithm_runs_repeats_compiles_once_and_survives_a_checkpoint(world_kind, name, bonus, priority, spec):
    agent, model = AGENTS[name], world_model(world_kind, spec)
    if (world_kind, name, spec) != (Ensemble, "Dreamer", DISCRETE):  # what networks are made of matters little to the joints
        agent, model = twin(agent), twin(model)  # whose programs are half as long
    algorithm = Algorithm(spec, model, agent, bonus, ReplayBuffer(CAPACITY, priority), block=2)
    start = algorithm.init(KEY)
    held = experience(spec)
    start = replace(start, replay=algorithm.remember(start.replay, jax.tree.map(lambda x: x[:20], held.data), np.int32(20)))
    first, metrics = one_turn(algorithm, copied(start), spec)
    assert finite(first) and finite(metrics)
    assert int(first.counters.imagined_steps) == imagined_steps(agent, metrics)
    assert int(first.counters.updates) == (1 if agent.online else 2)
    assert ("bonus_mean" in metrics) is (bonus is not None)
    assert not same(first.world, start.world) or not (agent.uses_world or bonus)
    if priority == "loss":
        assert len(np.unique(first.replay.priority.tree.weight(agent.judged(first.agent).index))) > 1
    elif priority != "uniform":
        weights = first.replay.priority.tree.weight(jnp.arange(20))
        assert len(np.unique(weights)) > (1 if world_kind is not TrueEnvironment or priority == "td_error" else 0)
    assert int(first.replay.count) == 21
    verbs = ("collect", "fit", "dream")
    assert not any(same(getattr(first.keys, verb), getattr(start.keys, verb)) for verb in verbs)

    compiled = sized(algorithm)
    assert same((first, metrics), one_turn(algorithm, copied(start), spec)), "the same state gave another turn"
    other = copied(replace(start, keys=algorithm.init(OTHER).keys))
    another = one_turn(algorithm, other, spec)[0]
    assert not same(*((s.agent if learns(agent) else s.world) for s in (first, another))), "another key gave the same turn"
    second, _ = one_turn(algorithm, copied(first), spec)
    assert sized(algorithm) == compiled, "a verb was compiled again on the state of a later turn"

    arrays = checkpoint.flatten(first, "state")
    template = jax.eval_shape(algorithm.init, KEY)
    restored = checkpoint.unflatten(template, "state", arrays)
    assert same(restored, first)
    assert same(second, one_turn(algorithm, restored, spec)[0]), "a restored run went another way"
    assert sized(algorithm) == compiled, "a verb was compiled again on a restored state"


def key_uses(jaxpr, names, uses):
    """Adds to `uses` {key: ways} what a program and those inside it make of keys. `names` of its inputs are those that the program
    around it knows them by."""
    for equation in jaxpr.eqns:
        given = [names.get(x, x) if isinstance(x, Var) else x for x in equation.invars]
        if equation.primitive.name in ("random_split", "random_bits", "random_fold_in"):
            uses.setdefault(given[0], set()).add((equation.primitive.name, equation.params.get("shape")))
        programs = [x for name, x in equation.params.items() if name != "cond_jaxpr"]  # of a while loop: takes other inputs
        for inner in jax.tree.leaves(programs, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                key_uses(inner, dict(zip(inner.invars, given[len(given) - len(inner.invars) :], strict=True)), uses)


def keys_used_in_two_ways(jaxpr):
    """Of a program and those inside it: keys that are split and also folded in, split into different numbers or split and drawn
    from. As `fold_in(key, i)` is `split(key, n)[i]` for every n, what comes of the one and of the other would be the same
    randomness. Drawing the same twice is meant: it compares things under the same chance."""
    uses = {}
    key_uses(jaxpr, {}, uses)
    return [key for key, ways in uses.items() if len(ways) > 1]


@pytest.mark.parametrize("other", [lambda k: jax.random.fold_in(k, 1), lambda k: jax.random.split(k, 3), jax.random.uniform])
def test_a_key_that_is_used_in_two_ways_is_seen(other):
    split, keys = jax.random.split, jax.random.split(KEY)

    def looped(key):  # one way before a loop, the other inside it
        return split(key), jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, other(key)), (0, other(KEY)))

    assert keys_used_in_two_ways(jax.make_jaxpr(lambda k: (split(k), other(k)))(KEY).jaxpr)
    assert keys_used_in_two_ways(jax.make_jaxpr(looped)(KEY).jaxpr)
    inside = jax.make_jaxpr(lambda k: jax.lax.scan(lambda c, x: (c, (split(x), jax.jit(other)(x))), 0, k))(keys)
    assert keys_used_in_two_ways(inside.jaxpr)
    one = jax.make_jaxpr(lambda k: [(split(x), split(x), other(y)) for x, y in [split(k)]])(KEY)
    assert not keys_used_in_two_ways(one.jaxpr)


@pytest.mark.parametrize(("world_kind", "name", "bonus", "priority", "specs"), [*JOINED, *TRACED])
def test_no_verb_changes_the_state_s_form_or_uses_a_key_in_two_ways(world_kind, name, bonus, priority, specs):
    spec = SPECS[next(iter(specs))]
    algorithm = Algorithm(spec, world_model(world_kind, spec), AGENTS[name], bonus, ReplayBuffer(CAPACITY, priority), block=2)
    state, obs = jax.eval_shape(algorithm.init, KEY), jnp.zeros((1, spec.obs_size))
    act = lambda s: algorithm.act(algorithm.policy(s), s.carry, obs, s.keys.collect, False)  # noqa: E731
    verbs = [(algorithm.init, (KEY,)), (algorithm.fit, (state, 4)), (algorithm.dream, (state,)), (act, (state,))]
    if algorithm.agent.online:
        verbs.append((algorithm.learn, (state, jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:])), state.replay.data))))
    for verb, arguments in verbs:
        jaxpr, after = jax.make_jaxpr(verb, return_shape=True)(*arguments)
        assert not keys_used_in_two_ways(jaxpr.jaxpr)
        if verb in (algorithm.fit, algorithm.dream, algorithm.learn):
            assert shapes(after[0]) == shapes(state)


HOLDING = FineTuning(holdout_newest=0.25, share=0.5, of="random")


@pytest.mark.parametrize(
    "model",
    [small(Ensemble(search=PriorSearch())), Recurrent(GRU(4), 2, small(Ensemble(fine_tuning=HOLDING)), context=2)],
    ids=["searches", "holds out"],
)
def test_no_fit_uses_a_key_in_two_ways(model):
    """Of those that no algorithm above has. Whether `chosen` shares none with the steps of a fit: test_fine_tuning.py."""
    state = jax.eval_shape(lambda k: model.init(DISCRETE, k), KEY)
    jaxpr = jax.make_jaxpr(model.update)(state, experience(DISCRETE), KEY, 4)
    assert not keys_used_in_two_ways(jaxpr.jaxpr)
