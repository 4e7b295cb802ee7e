"""Prices, the calls that learning makes, and NeuroBench's measures."""

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from small import CONTINUOUS, DISCRETE, filled, kinds, small

import spikedream
from spikedream.agents.dreamer import Dreamer
from spikedream.agents.dyna import Dyna
from spikedream.agents.evolution import Evolution
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.online import StreamActorCritic
from spikedream.agents.ppo import PPO
from spikedream.agents.representation import SALE
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.algorithm import Algorithm
from spikedream.config import AnyAgent, AnyWorldModel, ConfigError, twin
from spikedream.export import prices
from spikedream.export.agent_calls import AGENTS, described, of_agent
from spikedream.export.calls import ADAM, Calls, Totals
from spikedream.export.energy import Counted, EnergyUse, _lines, _memories, _of_call, _phases, priced
from spikedream.export.model_calls import MODELS, of_model
from spikedream.export.neurobench import neurobench
from spikedream.export.prices import EnergyLine, PriceTable
from spikedream.ops.distributions import Regression
from spikedream.ops.slow_copy import HardCopy, PolynomialAverage
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.conventional import MLP
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.operations import ARITHMETIC, tally
from spikedream.snn.readouts import PopulationReadout, RateReadout
from spikedream.spec import Spec
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.true_environment import TrueEnvironment
from spikedream.world_models.weights import Weights

KEY = jax.random.key(0)
TOTALS = Totals(decisions=7, fits=1, fit_steps=4, updates=1, imagined_steps=12, gradient_steps=6, surveyed=0)


def line(kind: str, number: float, arithmetic: dict[str, float]) -> EnergyLine:
    return EnergyLine("actor", "layer 1", kind, tuple(arithmetic.items()), number)


# ---- prices


def test_published_prices_are_what_is_cited() -> None:
    cmos, byte, word, loihi = (prices.load(name).picojoules for name in ("45nm", "45nm-int8", "45nm-int32", "loihi"))
    assert (cmos["add"], cmos["multiply"]) == (0.9, 3.7)
    assert (byte["add"], byte["multiply"], word["add"], word["multiply"]) == (0.03, 0.2, 0.1, 3.1)
    assert (loihi["synaptic_operation"], loihi["neuron_update"], loihi["spike"]) == (23.6, 81.0, 1.7)
    for name, description in prices.tables().items():
        assert description and len(prices.load(name).source) > 20


def test_an_operation_costs_its_own_price_or_what_it_consists_of() -> None:
    table = PriceTable("mine", "", {"add": 1.0, "multiply": 10.0, "spike": 100.0, "exponential": None})
    assert table.price(line("multiply_accumulate", 3, {"multiply": 1, "add": 1})) == 33
    assert table.price(line("neuron_update", 2, {"multiply": 1, "add": 2})) == 24
    assert table.price(line("spike", 2, {"add": 1})) == 200
    assert table.price(line("spike", 2, {})) == 200
    assert table.price(line("reset", 2, {})) == 0
    assert table.price(line("activation", 2, {"exponential": 1, "add": 1})) is None
    total = table.total([line("add", 2, {"add": 1}), line("activation", 1, {"exponential": 1})])
    assert total.picojoules is None and total.known == 2


def test_a_table_of_ones_own_and_what_may_be_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("source: measured\noperations: {add: 1, multiply: 2.5, exponential: null}\n")
    table = prices.load(str(file))
    assert table.picojoules == {"add": 1, "multiply": 2.5, "exponential": None} and table.source == "measured"
    with pytest.raises(ConfigError, match=r"no price for 'divide', of which 'activation' consists \(actor, layer 1\)"):
        table.price(line("activation", 1, {"exponential": 1, "divide": 1}))
    with pytest.raises(ConfigError, match=r"no price for 'random_number' \(actor"):
        table.price(line("random_number", 1, {"random_number": 1}))
    for text, message in (
        ("source: x\noperations: {add: -1}", "add is -1; it must be picojoules"),
        ("source: x\noperations: {add: cheap}", "add is 'cheap'; it must be"),
        ("operations: {add: 1}", "must have a `source`"),
        ("source: [", "is not valid YAML"),
        ("source: x\noperations: {synaptic_op: 3}", "'synaptic_op', which is no operation; did you mean 'synaptic_operation'"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            prices.load(str(file))
    file.write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*mine.yaml: it is no text in UTF-8"):
        prices.load(str(file))
    with pytest.raises(ConfigError, match="did you mean 'loihi'"):
        prices.load("loihii")
    with pytest.raises(ConfigError, match="cannot read"):
        prices.load(str(tmp_path / "none.yaml"))


def test_every_kind_of_operation_that_networks_tell_may_have_a_price() -> None:
    sources = [ast.parse(file.read_text()) for file in Path(spikedream.__file__).parent.rglob("*.py")]
    calls = [node for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    told = {call.args[1].value for call in calls if ast.unparse(call.func) == "tally" and isinstance(call.args[1], ast.Constant)}
    assert told <= {*prices.ELEMENTARY, *prices.KINDS} and set(ARITHMETIC) <= {*prices.ELEMENTARY, *prices.KINDS}
    for name in prices.tables():
        prices.load(name).check_complete()


# ---- a decision by hand


def test_a_decision_of_a_network_of_known_spikes_costs_what_it_does_by_hand() -> None:
    """One neuron that fires at both ticks, by its bias, into a population of two that never does: 45 nm."""
    network = SpikingNetwork(
        hidden=(1,), ticks=2, neuron=LIF(reset="hard"), readout=PopulationReadout(neurons=2, neuron=LIF(threshold=9.0))
    )
    params = network.init(3, 1, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].synapse.weight, params, jnp.array([[0.0], [0.1], [0.1]]))
    params = eqx.tree_at(lambda p: p.layers[0].synapse.bias, params, jnp.array([2.0]))
    lines = _lines({"actor": network.operations(params, jnp.array([0.1, 0.1, -0.1]))})
    mac, update = 3.7 + 0.9, 3.7 + 2 * 0.9
    by_hand = {
        "layer 1": 2 * mac + 0.9 + 2 * update,  # two weights that are not zero, the bias once, two updates, hard resets
        "output population": 2 * 2 * 0.9 + 4 * 0.9 + 4 * update,  # two spikes by two weights; bias and update at each tick
        "decoder": 2 * mac + 0.9,
    }
    table = prices.load("45nm")
    for part, picojoules in by_hand.items():
        assert table.total(x for x in lines if x.part == part).picojoules == pytest.approx(picojoules)
    assert table.total(lines).picojoules == pytest.approx(sum(by_hand.values()))
    # Loihi does not multiply real numbers: what it does is told, the whole is unknown.
    chip = prices.load("loihi").total(lines)
    assert chip.picojoules is None and chip.known == pytest.approx(4 * 23.6 + 6 * 81 + 2 * 1.7)


def test_backward_is_twice_forward_save_where_spikes_meet_weights() -> None:
    parts = {"critic": (tally("layer 1", "activation", 5, {"exponential": 1}),)}
    made = _lines(parts, {"critic": Calls(3, 2, 4)}, {"critic": (jnp.zeros(7), ())})
    assert made == [
        EnergyLine("critic", "layer 1", "activation", (("exponential", 1),), 15),
        EnergyLine("critic", "layer 1", "backward", (("exponential", 1),), 20),
        EnergyLine("critic", "parameters", "optimizer", ADAM, 28),
    ]
    network = SpikingNetwork(hidden=(3, 2), ticks=4, readout=RateReadout())
    params = network.init(2, 1, KEY)
    trains = network(params, jnp.ones(2)).spikes
    found = _lines({"a": network.operations(params, jnp.ones(2))}, {"a": Calls(1, 1)})
    (adds,) = [x for x in found if x.part == "layer 2" and x.kind == "synaptic_operation"]
    back = {x.arithmetic: x.number for x in found if x.part == "layer 2" and x.kind == "backward"}
    assert adds.number == 2 * trains[0].sum()
    assert back[(("multiply", 1), ("add", 1))] == 3 * 2 * 4  # the error meets every weight at every tick
    # The weights' gradient: an addition for each spike; twice the additions of 8 biases; twice a reset's addition for each spike.
    assert back[(("add", 1),)] == adds.number + 2 * 8 + 2 * trains[1].sum()


# ---- what learning calls


def test_every_agent_and_world_model_is_described() -> None:
    assert set(AGENTS) == set(kinds(AnyAgent)) and set(MODELS) == set(kinds(AnyWorldModel))
    assert described(Ensemble(), MPC(policy=Dreamer())) and not described(object(), Dreamer())


AGENTS_TO_DESCRIBE = {
    **{kind.__name__: small(kind()) for kind in kinds(AnyAgent)},
    "MPC-policy": small(MPC(policy=Dreamer(), proposals=2)),
    "StreamActorCritic-dyna": small(StreamActorCritic(dyna=Dyna(ending=SpikingNetwork()))),
    "TD7": small(OffPolicy(representation=SALE(), actor_sees="both", slow=HardCopy(2))),
}


def algorithm_of(agent: Any, spec: Spec, model: Any = None) -> Algorithm:
    model = TrueEnvironment("CartPole" if spec.discrete else "Pendulum") if model is None else model
    return Algorithm(spec, model, agent, None, ReplayBuffer(32), 1)


@pytest.mark.parametrize("name", AGENTS_TO_DESCRIBE)
def test_what_an_agent_calls_tells_its_operations(name: str) -> None:
    agent, spec = AGENTS_TO_DESCRIBE[name], CONTINUOUS
    algorithm = algorithm_of(agent, spec, small(Ensemble()))

    def everything(key: jax.Array) -> Any:
        state = algorithm.init(key)
        world, policy, obs, action = algorithm.world(state), algorithm.policy(state), jnp.zeros(3), jnp.zeros(1)
        of = of_agent(agent)
        carry = agent.start(policy.policy, policy.world)
        decision = of.decision(policy.policy, policy.world, carry, obs, action, key)
        memory = world.start(obs, key)
        each = of.each(state.agent, world, memory, action, key) | of_model(world.model).step(state.world, memory, action, key)
        return decision, each, of.memories(state.agent) | of_model(world.model).memories(state.world)

    decision, each, memories = jax.eval_shape(everything, KEY)
    assert decision and set(decision) <= set(memories)
    learned, own = of_agent(agent).learn(TOTALS), of_agent(agent).fit(TOTALS)
    assert (learned is None) is isinstance(agent, Evolution | StableBaselines)
    for calls in (of_agent(agent).imagine(TOTALS), learned or {}, own, of_model(algorithm.world_model).fit(TOTALS)):
        assert calls is not None and set(calls) <= set(each) and set(calls) <= set(memories)


def test_an_agent_with_a_model_of_its_own_is_not_charged_for_the_one_that_it_never_asks() -> None:
    dyna = Dyna(dynamics=MLP((3,)), ending=MLP((2,)), rehearsals=2)
    algorithm = algorithm_of(small(twin(StreamActorCritic(dyna=dyna))), CONTINUOUS, small(twin(Ensemble(members=3))))
    state = algorithm.init(KEY)
    memories = _memories(algorithm, state)
    assert memories["dynamics"][0] is state.agent.dyna.networks.dynamics
    assert set(memories) == {"actor", "critic", "dynamics", "ending"}
    world, obs, action = algorithm.world(state), jnp.zeros(3), jnp.zeros(1)
    each = _of_call(algorithm, state, world.start(obs, KEY), action, KEY)
    own = of_agent(algorithm.agent).each(state.agent, world, world.start(obs, KEY), action, KEY)
    assert jax.tree.map(float, each) == jax.tree.map(float, own)
    phases = _phases(algorithm, state, TOTALS, {}, each)
    named = {phase: {line.network for line in lines or ()} for phase, lines in phases.items()}
    assert named["fitting"] == {"dynamics", "ending"} and named["learning"] == {"actor", "critic"}
    # One real step is fitted to with two rehearsed ones; twelve imagined steps ask each network once.
    connections = sum(line.number for line in phases["fitting"] or () if line.kind == "optimizer" and line.network == "dynamics")
    assert connections == 3 * sum(x.size for x in jax.tree.leaves(memories["dynamics"][0]))
    dreamt = sum(line.number for line in phases["dreaming"] or () if line.network == "dynamics")
    assert dreamt == 12 * sum(float(operations.number) for operations in each["dynamics"])


def test_the_average_that_acts_is_what_a_decision_is_counted_of() -> None:
    agent = small(StreamActorCritic(average=PolynomialAverage()))
    algorithm = algorithm_of(agent, DISCRETE)
    state = algorithm.init(KEY)
    obs, policy = jnp.full(4, 0.3), algorithm.policy(state).policy
    loud = eqx.tree_at(lambda actor: actor.layers[0].synapse.bias, policy.average, replace_fn=lambda bias: bias + 9)
    spikes = []
    for average in (policy.actor, loud):
        parts = of_agent(agent).decision(replace(policy, average=average), algorithm.world(state), (), obs, jnp.zeros(2), KEY)
        layer = next(x for x in parts["actor"] if x.kind == "neuron_update" and x.part == "layer 1")
        assert layer.activity is not None
        spikes.append(float(layer.activity.nonzero))
    assert spikes[1] > spikes[0]


def macs(jaxpr: Jaxpr) -> float:
    """Of all matrix products, of the branch that does most where there are several."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            continue
        held = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr))
        programs = [getattr(x, "jaxpr", x) for x in held if isinstance(x, ClosedJaxpr | Jaxpr)]
        inner = [macs(program) for program in programs]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * (max(inner, default=0) if eqn.primitive.name == "cond" else sum(inner))
    return total


def products(parts: Any, calls: dict[str, Calls]) -> float:
    """Multiply-accumulates that a program makes of these calls: JAX does not differentiate by what enters a first layer."""
    lines = _lines(parts, calls)
    counted = sum(x.number for x in lines if ("multiply", 1) in x.arithmetic and len(x.arithmetic) == 2 and x.kind != "activation")
    first = {name: sum(float(o.number) for o in found if o.part == "layer 1" and o.connections) for name, found in parts.items()}
    return counted - sum(first[name] * made.backward for name, made in calls.items())


def test_an_update_of_the_dreamer_makes_as_many_multiplications_as_are_counted() -> None:
    """Of conventional networks, where a program holds every one of them."""
    agent = replace(small(twin(Dreamer())), actor=MLP((6, 5)), critic=MLP((7,)), value=Regression())
    algorithm = algorithm_of(agent, DISCRETE, replace(small(twin(Ensemble())), dynamics=MLP((6,)), ending=MLP((5,))))
    state = algorithm.init(KEY)
    world, held = algorithm.world(state), filled(DISCRETE, 20, 32, KEY)
    program = jax.make_jaxpr(lambda k: agent.update(state.agent, world, held, k))(KEY)
    dense = jax.tree.map(lambda x: jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, (state.agent, state.world))
    memory, action = world.start(jnp.zeros(4), KEY), jnp.zeros(2)
    each = of_agent(agent).each(dense[0], world, memory, action, KEY) | of_model(world.model).step(dense[1], memory, action, KEY)
    imagined = agent.trajectories * agent.horizon
    totals = TOTALS._replace(imagined_steps=imagined)
    imagine, learn = of_agent(agent).imagine(totals), of_agent(agent).learn(totals)
    assert imagine is not None and learn is not None
    step = {name: Calls(imagined) for name in of_model(world.model).asked(dense[1])}
    assert macs(program.jaxpr) == products(each, imagine) + products(each, step) + products(each, learn)


def test_a_fit_of_the_ensemble_makes_as_many_multiplications_as_are_counted() -> None:
    model = replace(small(twin(Ensemble())), dynamics=MLP((6, 5)), ending=MLP((5,)))
    state, held = model.init(DISCRETE, KEY), filled(DISCRETE, 20, 32, KEY)
    dense = jax.tree.map(lambda x: jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def one_step(members: Any, key: jax.Array) -> Any:
        batch = held.gather(jnp.zeros((model.members, model.batch), jnp.int32))
        drawn = (batch, jnp.zeros((model.members, model.batch, 0)), jnp.ones((model.members, model.batch)))
        weights = Weights(jnp.ones(()), 1.0, 1.0, jnp.ones((), bool))
        loss = jax.grad(lambda m, d: model.each.loss(m, d, key, scale=state.scale, weights=weights))
        return jax.vmap(loss)(members, drawn)

    calls = of_model(model).fit(TOTALS._replace(fit_steps=1))
    assert calls is not None
    each = of_model(model).step(dense, model.start(state, jnp.zeros(4), KEY), jnp.zeros(2), KEY)
    assert macs(jax.make_jaxpr(one_step)(state.members, KEY).jaxpr) == products(each, calls)
    assert of_model(model).fit(TOTALS._replace(fit_steps=None)) is None
    surveyed = of_model(model).fit(TOTALS._replace(fits=2, surveyed=100))
    assert surveyed is not None and surveyed["dynamics"].forward == 4 * model.batch + 200


@pytest.mark.parametrize("rare", ["ending", "impact"])
def test_what_tells_rare_events_learns_nothing_before_there_was_one(rare: str) -> None:
    for robust in (True, False):
        model = of_model(Ensemble(robust=robust, impacts=rare == "impact"))
        before, after = (model.fit(TOTALS, met) or {} for met in ([], [rare]))
        assert before["dynamics"] == after["dynamics"] and before[rare].steps == after[rare].steps > 0
        assert (before[rare].forward == before[rare].backward == 0) is robust and after[rare].backward > 0


def test_an_update_off_policy_makes_as_many_multiplications_as_are_counted() -> None:
    nets = {"actor": MLP((6,), "relu"), "critic": MLP((7,), "relu")}
    agent = replace(small(twin(OffPolicy(policy_delay=1))), **nets)
    algorithm = algorithm_of(agent, CONTINUOUS)
    state = algorithm.init(KEY)
    world, held = algorithm.world(state), filled(CONTINUOUS, 20, 32, KEY)
    program = jax.make_jaxpr(lambda k: agent.update(state.agent, world, held, k))(KEY)
    each = of_agent(agent).each(state.agent, world, world.start(jnp.zeros(3), KEY), jnp.zeros(1), KEY)
    calls = of_agent(agent).learn(TOTALS)
    assert calls is not None
    counted = products(each, calls)
    # The critics' inputs are differentiated where the actor learns: half a gradient, of the first layer too.
    first = sum(float(o.number) for o in each["critics"] if o.part == "layer 1" and o.connections)
    assert macs(program.jaxpr) == counted + first * agent.batch / 2


def test_ppo_and_what_nobody_knows() -> None:
    learn = of_agent(PPO(batch=10, rollout=100)).learn(TOTALS._replace(updates=2, imagined_steps=0, gradient_steps=6))
    assert learn == {"actor": Calls(60 + 200, 60, 6), "critic": Calls(60 + 600, 60, 6)}
    assert of_agent(PPO()).learn(TOTALS._replace(gradient_steps=None)) is None
    assert of_agent(Dreamer(gradient="model")).learn(TOTALS) is None
    assert of_agent(Dreamer(error_limit=1.0, start_noise=0.1)).learn(TOTALS) is None


def test_what_is_unknown_makes_the_whole_unknown() -> None:
    known = [line("add", 2, {"add": 1})]
    own = Counted(known, {"acting": known, "fitting": None, "dreaming": [], "learning": known})
    full = Counted(known, {"acting": known, "fitting": known, "dreaming": [], "learning": known})
    found = priced(EnergyUse(own, full, known, 1, {}, {}, {}), prices.load("45nm"))
    assert found["learning"]["policy"]["fitting"] is None
    assert found["learning"]["policy"]["total"] == {"picojoules": None, "known_picojoules": 3.6, "arithmetic": None}
    assert found["learning"]["twin"]["total"] == {
        "picojoules": pytest.approx(5.4),
        "known_picojoules": pytest.approx(5.4),
        "arithmetic": 6,
    }


# ---- NeuroBench


def test_neurobench_counts_a_constant_input_at_every_tick() -> None:
    network = SpikingNetwork(hidden=(4,), ticks=3, readout=RateReadout())
    params = network.init(2, 2, KEY)
    params = eqx.tree_at(lambda p: p.layers[0].synapse.weight, params, jnp.array([[0.0, 1, 1, 1], [1, 1, 0, 0]]))
    x = jnp.array([0.5, 0.0])
    train = network(params, x).spikes[0]
    found = neurobench(network.operations(params, x), params)
    fired = int((train.sum(0) > 0).sum())
    assert found["effective_macs"] == 3 * 3 + 2 * fired  # three weights of the one input that is not zero; the readout of counts
    assert found["dense"] == 3 * 8 + 8 and found["effective_acs"] == 0
    assert found["connection_sparsity"] == pytest.approx(3 / 16)
    assert found["activation_sparsity"] == pytest.approx(1 - float(train.mean()))
    assert found["membrane_updates"] == 12
    assert found["footprint"] == 4 * (8 + 4 + 4 + 4 + 8 + 2)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_the_package_neurobench_agrees() -> None:
    """Two hidden layers, the second fed by spikes through weights of which some are zero, as a network of snnTorch."""
    for package in ("torch", "snntorch", "neurobench"):
        pytest.importorskip(package)
    from neurobench_twin import measured

    # Currents so weak that no membrane stays above its threshold after a reset, which snnTorch would reset once more.
    network = SpikingNetwork(hidden=(6, 5), ticks=4, neuron=LIF(decay=(0.5, 0.9)), gain=0.3, bias=(-0.2, 0.8))
    params = network.init(3, 2, KEY)
    weight = params.layers[1].synapse.weight
    params = eqx.tree_at(lambda p: p.layers[1].synapse.weight, params, jnp.where(jnp.abs(weight) < 0.1, 0.0, weight))
    xs = np.asarray(jax.random.normal(KEY, (8, 3)))
    theirs = measured(network, params, xs)
    np.testing.assert_array_equal(theirs["spikes"], jax.vmap(lambda x: network(params, x).spikes[-1])(jnp.asarray(xs)))
    mean = jax.tree.map(lambda x: x.mean(0), jax.vmap(lambda x: network.operations(params, x))(jnp.asarray(xs)))
    ours = neurobench(mean, params)
    assert ours["connection_sparsity"] == pytest.approx(theirs["ConnectionSparsity"], abs=1e-4)
    assert ours["activation_sparsity"] == pytest.approx(theirs["ActivationSparsity"], abs=1e-6)
    for name, value in (("effective_macs", "Effective_MACs"), ("effective_acs", "Effective_ACs"), ("dense", "Dense")):
        assert ours[name] == pytest.approx(theirs["SynapticOperations"][value], rel=1e-6)
    assert ours["membrane_updates"] == pytest.approx(theirs["MembraneUpdates"])
