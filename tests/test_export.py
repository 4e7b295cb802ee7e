"""What leaves Python does what the policy does: nodes against JAX, C against the nodes bit for bit, NIR by its own equations."""

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, kinds, small

import spikedream
from spikedream import config as configuration
from spikedream import nodes as chain_nodes
from spikedream.agents.dreamer import Dreamer
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.policy_head import Deterministic, SquashedGaussian
from spikedream.agents.representation import SALE
from spikedream.cli import main
from spikedream.config import twin
from spikedream.envs.spaces import decode_actions
from spikedream.export import c99, emulator, neuromorphic
from spikedream.nodes import Bounds, Chain, Choice, Unexportable, described
from spikedream.ops.distributions import Categorical, TanhNormal
from spikedream.ops.slow_copy import HardCopy
from spikedream.snn.conventional import GRU, MLP, Linear
from spikedream.snn.encoders import AnyEncoder, DirectCurrent, GaussianPopulation
from spikedream.snn.fixed_point import FixedPoint
from spikedream.snn.networks import RTRL, AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF, AdaptiveCubaLIF, AdaptiveLIF, AnyNeuron, CubaLIF
from spikedream.snn.readouts import (
    AnyReadout,
    LeakyReadout,
    MembraneReadout,
    PopulationReadout,
    PopulationVectorReadout,
    RateReadout,
)
from spikedream.snn.sparsity import RandomConnections

KEY = jax.random.key(0)
INPUTS, OUTPUTS, SAMPLES = 4, 3, 20
COMPILER = shutil.which("cc")
with_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) is installed")

# Every neuron with either reset, every encoder and every readout; what they may have beside; and the conventional networks.
NETWORKS: dict[str, Any] = {
    "LIF soft, current, rates": SpikingNetwork((9, 7), 4, LIF(), DirectCurrent(), RateReadout(), fan_in=2),
    "LIF hard recurrent, fields, population": SpikingNetwork(
        (8,), 5, LIF(reset="hard", recurrent=True), GaussianPopulation(), PopulationReadout(5), persistent=True
    ),
    "CubaLIF soft recurrent, current, membranes": SpikingNetwork(
        (9,), 4, CubaLIF((0.2, 0.7), reset="soft", recurrent=True), DirectCurrent(), MembraneReadout(), persistent=True
    ),
    "AdaptiveLIF soft, fields, leaky": SpikingNetwork((9,), 6, AdaptiveLIF(), GaussianPopulation(6), LeakyReadout()),
    "AdaptiveLIF hard recurrent, current, rates": SpikingNetwork((9,), 6, AdaptiveLIF(reset="hard", recurrent=True)),
    "AdaptiveCubaLIF recurrent in branches, squashed fields, rates": SpikingNetwork(
        (8,), 6, AdaptiveCubaLIF(recurrent=True), GaussianPopulation(6, 1.0, squash=True), RateReadout(), branches=(0.3, 0.8)
    ),
    "LIF soft recurrent, current, population of LIF": SpikingNetwork(
        (8,), 4, LIF(recurrent=True), DirectCurrent(), PopulationReadout(4, LIF(reset="hard", threshold=0.5)), bias=(0.0, 2.0)
    ),
    "fixed point, current, population": SpikingNetwork(
        (9, 7), 5, LIF(), DirectCurrent(), PopulationReadout(4), fan_in=2, bias=(0.0, 2.0), fixed_point=FixedPoint()
    ),
    "fixed point, multiplied, sparse and recurrent, fields, rates": SpikingNetwork(
        (16,), 4, CubaLIF((0.2, 0.7), recurrent=True, threshold=1.0), GaussianPopulation(), RateReadout(), persistent=True,
        bias=(0.0, 2.0), sparsity=RandomConnections(0.2), fixed_point=FixedPoint(5, 3, "multiply"),
    ),
    "LIF soft, fields as currents, rates": SpikingNetwork(
        (9,), 4, LIF((0.8, 0.8)), GaussianPopulation(6, mode="current"), RateReadout(), bias=(0.0, 0.5), rule=RTRL()
    ),
    "CubaLIF, squashed fields as currents beside others, rates": SpikingNetwork(
        (8,), 5, CubaLIF(), GaussianPopulation(5, 1.0, 0.05, "current", squash=True, currents=2), RateReadout()
    ),
    "fixed point, fields as currents, rates": SpikingNetwork(
        (12,), 4, LIF(), GaussianPopulation(6, mode="current"), RateReadout(), bias=(0.0, 2.0), fixed_point=FixedPoint()
    ),
    "sparse, current, population": SpikingNetwork(
        (20, 12), 4, LIF(recurrent=True), DirectCurrent(), PopulationReadout(4), bias=(0.0, 2.0), sparsity=RandomConnections(0.1)
    ),
    **{f"MLP {f}": MLP((6, 5), activation=f, fan_in=2) for f in ("silu", "tanh", "relu", "elu")},
    "Linear": Linear(),
}  # fmt: skip
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


@partial(jax.jit, static_argnums=(0, 1, 2))
def parameters(network: Any, inputs: int = INPUTS, outputs: int = OUTPUTS) -> Any:
    """As after some learning: no weight is zero, no two neurons are alike."""
    params = network.init(inputs, outputs, KEY)
    keys = iter(jax.random.split(jax.random.key(1), 64))
    learned = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape) if x.ndim else x, params)
    return learned if getattr(params, "mask", None) is None else replace(learned, mask=params.mask)


def observations(count: int = SAMPLES, inputs: int = INPUTS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, inputs)).astype(np.float32)


@every_network
def test_nodes_do_what_the_network_does(network: Any) -> None:
    """Over a whole episode, where the network remembers it: spikes are the same, values up to the order of sums."""
    params = parameters(network)
    chain, carry = Chain(described(network, params)), network.start(params)
    call, fired = jax.jit(partial(network, params)), 0.0
    for x in observations():
        out, answer = call(jnp.asarray(x), carry), chain(x)
        carry = out.carry
        assert len(out.spikes) == len(answer.trains)
        for ours, theirs in zip(answer.trains, out.spikes, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            fired += ours.mean()
        np.testing.assert_allclose(answer.values[-1], out.value, atol=1e-5)
        assert {value.dtype for value in answer.values} == {np.dtype("float32")}
    assert fired or not isinstance(network, SpikingNetwork)


PROGRAM = """
#define ACTOR_SPIKE(layer, tick, neuron) printf("%d %d %d\\n", layer, tick, neuron)
#include <stdio.h>
#include "actor.c"
int main(void)
{
    static struct actor actor;
    float x[ACTOR_INPUTS], y[ACTOR_OUTPUTS];
    int i;
    actor_reset(&actor);
    while (fread(x, sizeof x, 1, stdin) == 1) {
        actor_act(&actor, x, y);
        for (i = 0; i < ACTOR_OUTPUTS; i++)
            printf("%a\\n", (double)y[i]);
    }
    return 0;
}
"""


def compiled(nodes: tuple[Any, ...], directory: Path, inputs: int = INPUTS) -> Path:
    made = c99.source(nodes, inputs, "a test")
    (directory / "actor.h").write_text(made.header)
    (directory / "actor.c").write_text(made.code)
    (directory / "main.c").write_text(PROGRAM)
    shutil.copy(Path(c99.__file__).parent / "c" / "arithmetic.h", directory)
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off"]
    subprocess.run([COMPILER, *strict, "main.c", "-o", "main"], cwd=directory, check=True)
    return directory / "main"


@with_compiler
@every_network
def test_c_does_what_the_nodes_do_bit_for_bit(network: Any, tmp_path: Path) -> None:
    nodes = (*described(network, parameters(network)), TanhNormal(1).describe())
    program, chain, lines = compiled(nodes, tmp_path), Chain(nodes), []
    for x in observations():
        answer = chain(x)
        for tick in range(len(answer.trains[0]) if answer.trains else 0):
            lines += [f"{i} {tick} {neuron}" for i, train in enumerate(answer.trains) for neuron in np.flatnonzero(train[tick])]
        lines += [float(y).hex() for y in answer.values[-1]]
    said = (
        subprocess.run([program], input=observations().tobytes(), capture_output=True, check=True).stdout.decode().split("\n")[:-1]
    )
    assert [line if " " in line else float.fromhex(line).hex() for line in said] == lines


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    x = -np.concatenate([np.linspace(0, 87, 100_001), np.logspace(-9, 1, 1001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(chain_nodes.exponential(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    wide = np.linspace(-30, 30, 1001).astype(np.float32)
    np.testing.assert_allclose(chain_nodes.tanh(wide), np.tanh(wide), atol=2e-7)


@pytest.mark.parametrize(
    ("head", "node"),
    [
        (Categorical(4), Categorical(4).describe()),
        (TanhNormal(2), TanhNormal(2).describe()),
        (Deterministic(), Deterministic().describe(4)),
        (SquashedGaussian(), SquashedGaussian().describe(2)),
    ],
)
def test_heads_say_what_their_mode_is(head: Any, node: Any) -> None:
    for out in 3 * observations():
        mode, ours = np.asarray(head.mode(jnp.asarray(out))), node(out)
        np.testing.assert_allclose(np.eye(4)[ours[0]] if isinstance(node, Choice) else ours, mode, atol=1e-6)


def test_bounds_are_those_of_the_environment() -> None:
    spec = replace(CONTINUOUS, action_size=4, action_low=(-2.0, 0.0, -0.3, 5.0), action_high=(2.0, 1.0, 7.1, 6.0))
    bounds = Bounds(chain_nodes.numbers(spec.action_low), chain_nodes.numbers(spec.action_high))
    for out in np.tanh(2 * observations()):
        np.testing.assert_array_equal(bounds(out), decode_actions(spec, out[None])[0])


def test_every_part_describes_itself_or_is_refused_by_name() -> None:
    for kind in kinds(AnyNeuron):
        described(SpikingNetwork((5,), neuron=kind()), SpikingNetwork((5,), neuron=kind()).init(INPUTS, OUTPUTS, KEY))
    for kind in kinds(AnyEncoder):
        described(SpikingNetwork((5,), encoder=kind()), SpikingNetwork((5,), encoder=kind()).init(INPUTS, OUTPUTS, KEY))
    for kind in kinds(AnyReadout):
        if hasattr(kind, "describe"):
            described(SpikingNetwork((5,), readout=kind()), SpikingNetwork((5,), readout=kind()).init(INPUTS, OUTPUTS, KEY))
        else:
            assert kind is PopulationVectorReadout
    refused = {kind.__name__ for kind in kinds(AnyNetwork) if not hasattr(kind, "describe")}
    assert refused == {"GRU"}
    with pytest.raises(Unexportable, match="GRU cannot be exported: it has no method `describe`"):
        described(GRU(), GRU().init(INPUTS, OUTPUTS, KEY))
    for changes, why in (
        ({"encoder": GaussianPopulation(mode="poisson")}, "mode poisson cannot be exported; with mode current, or mode det"),
        ({"encoder": GaussianPopulation(currents=1)}, "currents beside its spikes cannot be exported"),
        ({"neuron": LIF(norm="layer")}, 'LIF with norm "layer" cannot be exported'),
        ({"neuron": CubaLIF(decay_input=True)}, "CubaLIF with decay_input cannot be exported"),
        ({"readout": PopulationVectorReadout()}, "PopulationVectorReadout cannot be exported: it has no method `describe`"),
    ):
        network = SpikingNetwork((5,), **changes)
        with pytest.raises(Unexportable, match=why):
            described(network, network.init(INPUTS, OUTPUTS, KEY))
    with pytest.raises(Unexportable, match="skip"):
        described(MLP((5,), skip=True), MLP((5,), skip=True).init(INPUTS, OUTPUTS, KEY))
    normed = MLP((5,), norm="layer")
    with pytest.raises(Unexportable, match=r"C has nothing for LayerNorm; --to c exports .*Window"):
        c99.source(described(normed, normed.init(INPUTS, OUTPUTS, KEY)), INPUTS, "")


def algorithm(agent: Any, spec: Any, settings: str = "{}") -> tuple[Any, Any]:
    made = replace(configuration.parse(settings, "here"), agent=agent).algorithm(spec)
    return made, made.init(KEY)


@pytest.mark.parametrize(
    ("agent", "spec", "settings", "why"),
    [
        (MPC(), DISCRETE, "{}", "MPC plans .* when = collect"),
        (
            twin(OffPolicy(representation=SALE(), actor_sees="both", slow=HardCopy(2))),
            CONTINUOUS,
            "{}",
            'with actor_sees "observation" it can',
        ),
        (None, DISCRETE, "{world_model: Recurrent}", "what Recurrent remembers .* Ensemble"),
    ],
    ids=["MPC", "OffPolicy", "Recurrent"],
)
def test_policies_that_cannot_leave_say_which_can(agent: Any, spec: Any, settings: str, why: str) -> None:
    made, state = algorithm(small(agent or Dreamer()), spec, settings)
    with pytest.raises(Unexportable, match=why):
        made.describe(made.policy(state))


def test_mpc_that_plans_only_while_collecting_leaves_its_policy() -> None:
    made, state = algorithm(small(MPC(policy=Dreamer(), when="collect")), DISCRETE)
    assert [type(node).__name__ for node in made.describe(made.policy(state))] == [
        "Standardise",
        "Window",
        "PopulationSum",
        "Choice",
    ]


# ---- NIR, by its own equations, and in the tools that read it

TO_NIR = {name: NETWORKS[name] for name in NETWORKS if "LIF" in name and "Adaptive" not in name and "membranes" not in name}
every_graph = pytest.mark.parametrize("name", TO_NIR)


def with_one_threshold(network: Any, params: Any) -> Any:
    """As not learned, the same for all neurons of a layer."""
    fresh = jax.tree_util.tree_leaves_with_path(network.init(INPUTS, OUTPUTS, KEY))
    fixed = {jax.tree_util.keystr(path): leaf for path, leaf in fresh if "threshold" in jax.tree_util.keystr(path)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fixed.get(jax.tree_util.keystr(path), leaf), params)


def written(
    name: str, directory: Path, thresholds: bool = True
) -> tuple[Any, dict[str, Any], np.ndarray, list[list[np.ndarray]], tuple[Any, ...]]:
    """The graph as read back, what stands beside it, what enters it, (samples, ticks, inputs), and the spikes of each layer."""
    nir = pytest.importorskip("nir", reason="nir is not installed: pip install 'spikedream[nir]'")
    network = replace(TO_NIR[name], persistent=False)
    params = parameters(network)
    nodes = described(network, params if thresholds else with_one_threshold(network, params))
    nir.write(directory / "policy.nir", neuromorphic.graph(nodes))
    seen = observations(100)
    entering = np.stack([neuromorphic.entering(nodes, x) for x in seen])
    trains = [list(Chain(nodes)(x).trains) for x in seen]
    assert np.mean([train.mean() for train in trains[0]]) > 0.02
    return nir.read(directory / "policy.nir"), neuromorphic.beside(nodes), entering, trains, nodes


def stepped(node: Any, current: np.ndarray, v: np.ndarray, x: np.ndarray, dt: float, reset: str):
    """One Euler step of NIR's CubaLIF."""
    current = current + (node.w_in * x - current) * dt / node.tau_syn
    v = v + (node.v_leak - v + node.r * current) * dt / node.tau_mem
    spikes = (v > node.v_threshold).astype(float)
    return current, v - spikes * node.v_threshold if reset == "soft" else np.where(spikes > 0, node.v_reset, v), spikes


@every_graph
def test_a_graph_spikes_as_the_policy_by_the_equations_of_nir(name: str, tmp_path: Path) -> None:
    graph, beside, entering, trains, _ = written(name, tmp_path)
    for ticks, wanted in zip(entering, trains, strict=True):
        states: dict[str, Any] = {}
        for tick, x in enumerate(ticks):
            for i, (layer, reset) in enumerate(beside["reset"].items()):
                synapses, node = graph.nodes[layer.replace("neurons", "affine")], graph.nodes[layer]
                x = synapses.weight @ x + synapses.bias
                inner = getattr(node, "nodes", None)
                neurons = inner["neurons"] if inner else node
                current, v, spikes = states.get(layer, [np.zeros(neurons.r.shape)] * 3)
                x = x + inner["recurrent"].weight @ spikes if inner else x
                states[layer] = stepped(neurons, current, v, x, beside["dt"], reset)
                x = states[layer][2]
                np.testing.assert_array_equal(x, wanted[i][tick])


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:nirtorch.load is being deprecated")  # which Norse itself calls
@every_graph
def test_norse_spikes_as_the_policy(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    norse = pytest.importorskip("norse.torch", reason="norse is not installed")
    from norse.torch.functional import reset as resets

    graph, beside, entering, trains, _ = written(name, tmp_path)
    model = norse.from_nir(graph, dt=beside["dt"])
    for path, module in model.named_modules():
        if type(module).__name__ == "LIFBoxCell":
            soft = beside["reset"][next(layer for layer in beside["reset"] if layer in path)] == "soft"
            module.p = module.p._replace(reset_method=resets.reset_subtract if soft else resets.reset_value)
    with torch.no_grad():
        for ticks, wanted in zip(entering, trains, strict=True):
            state = None
            for tick, x in enumerate(torch.from_numpy(ticks).float()):
                spikes, state = model(x[None], state)
                np.testing.assert_array_equal(spikes[0].numpy(), wanted[-1][tick])


@pytest.mark.extras
@every_graph
def test_snntorch_spikes_as_the_policy(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    from snntorch.import_nir import import_from_nir

    graph, beside, entering, trains, _ = written(name, tmp_path, thresholds=False)  # it has one for a layer
    model = import_from_nir(graph)
    neurons = [(path, m) for path, m in model.named_modules() if isinstance(m, snntorch.Synaptic | snntorch.RSynaptic)]
    for path, module in neurons:
        if beside["reset"][next(layer for layer in beside["reset"] if layer in path)] == "soft":
            module.reset_mechanism, module.state_function, module.mem_reset = "subtract", module._base_sub, torch.zeros_like
    with torch.no_grad():
        for ticks, wanted in zip(entering, trains, strict=True):
            for _, module in neurons:
                module.reset_mem()
            state = None
            for tick, x in enumerate(torch.from_numpy(ticks).float()):
                spikes, state = model(x[None], state)
                np.testing.assert_array_equal(spikes[0].numpy(), wanted[-1][tick])


def test_what_nir_cannot_hold_is_refused() -> None:
    pytest.importorskip("nir", reason="nir is not installed: pip install 'spikedream[nir]'")

    def nodes(network: Any) -> tuple[Any, ...]:
        return described(network, network.init(INPUTS, OUTPUTS, KEY))

    with pytest.raises(Unexportable, match="no neuron whose threshold adapts"):
        neuromorphic.graph(nodes(SpikingNetwork((5,), neuron=AdaptiveLIF())))
    with pytest.raises(Unexportable, match="MembraneReadout reads the membranes"):
        neuromorphic.graph(nodes(SpikingNetwork((5,), readout=MembraneReadout())))
    with pytest.raises(Unexportable, match="has none; --to c exports"):
        neuromorphic.graph(nodes(MLP((5,))))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    network = SpikingNetwork((5,))
    with pytest.raises(ImportError, match=r"pip install 'spikedream\[nir\]'"):
        neuromorphic.graph(described(network, network.init(INPUTS, OUTPUTS, KEY)))
    monkeypatch.setattr(emulator.shutil, "which", lambda tool: None)
    with pytest.raises(ImportError, match=r"arm-none-eabi-gcc is not installed, .* apt-get install gcc-arm-none-eabi"):
        emulator.emulate(Path(), emulator.BOARDS["cortex-m4"])


def test_an_emulator_that_does_not_end_is_told_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeps(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(emulator.subprocess, "run", sleeps)
    with pytest.raises(Unexportable, match="qemu-system-arm did not end measure on cortex-m3 within 300 s"):
        emulator._emulate(emulator.BOARDS["cortex-m3"], Path("place/measure"))


def test_an_emulator_that_ends_without_a_word_is_told_with_what_it_complained_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "missing", lambda board: None)
    monkeypatch.setattr(emulator, "_compile", lambda *_: tmp_path / "image")
    dead = subprocess.CompletedProcess(["qemu-system-arm"], 1, "", "starting\nqemu: cannot map memory\n")
    monkeypatch.setattr(emulator, "_emulate", lambda *_, **__: dead)
    (tmp_path / "train.c").touch()
    for ask in (emulator.emulate, lambda *where: emulator.train_on(*where, 0, 10, 10)):
        with pytest.raises(Unexportable, match="qemu-system-arm ended with status 1 on cortex-m4: qemu: cannot map memory"):
            ask(tmp_path, emulator.BOARDS["cortex-m4"])


# ---- whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("export") / "run"
    return spikedream.train("debug", seed=1, out=out, settings={"budget": 12}, report=False)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 1, captured.out, captured.err


@with_compiler
def test_a_run_becomes_c_that_passes_its_own_test(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "export", str(run.directory), "--vectors", "12")
    assert status == 0 and "12 test vectors" in out
    place = run.directory / "export" / "c"
    assert {file.name for file in place.iterdir()} == {
        "README.md", "Makefile", "actor.c", "actor.h", "arithmetic.h", "selftest.c", "vectors.h",
    }  # fmt: skip
    done = subprocess.run(["make", "-s", "-C", str(place), "test"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("passed\n") and not done.stderr
    # The test can fail: another bias of the last layer.
    code = (place / "actor.c").read_text()
    table = code.index("{\n    ", code.rindex("float bias_")) + 6
    (place / "actor.c").write_text(code[:table] + "9.0f, " + code[code.index(",", table) + 2 :])
    done = subprocess.run(["make", "-s", "-C", str(place), "test"], capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout.endswith("failed\n")


def test_a_run_becomes_a_graph_and_what_stands_beside_it(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("nir", reason="nir is not installed: pip install 'spikedream[nir]'")
    done = spikedream.export_policy(run, "nir", tmp_path / "graph", vectors=5)
    vectors = np.load(done.directory / "vectors.npz")
    beside = json.loads((done.directory / "policy.json").read_text())
    assert beside["ticks"] == 3 and beside["encoder"] == {"kind": "Current"} and beside["after"][-1] == {"kind": "Choice"}
    assert list(beside["reset"].values()) == ["soft", "hard"]
    assert vectors["entering"].shape == (5, 3, 4) and vectors["layer_1_neurons"].shape == (5, 3, 8)
    assert set(np.unique(vectors["layer_1_neurons"])) == {0, 1}


@with_compiler
@pytest.mark.parametrize("bits", [None, 8])
def test_what_learned_online_leaves_without_its_learner(bits: int | None, online: Any, tmp_path: Path) -> None:
    """Its receptive fields enter as currents, in C and beside a graph."""
    done = spikedream.export_policy(online, "c", tmp_path, vectors=16, bits=bits)
    tested = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
    assert tested.returncode == 0 and tested.stdout.endswith("passed\n") and not tested.stderr
    if bits is None and importlib.util.find_spec("nir"):
        graph = spikedream.export_policy(online, "nir", tmp_path / "graph", vectors=4)
        beside = json.loads((graph.directory / "policy.json").read_text())
        assert [node["kind"] for node in beside["before"]] == ["Standardise", "GaussianCurrents"]
        assert np.load(graph.directory / "vectors.npz")["entering"].shape == (4, 4, 40)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"budget": 60, "collect": {"steps": 60}, "evaluation": {"episodes": 2}}
    out = tmp_path_factory.mktemp("export") / "online"
    return spikedream.train("online-cartpole", seed=1, out=out, settings=settings, report=False)


def test_a_policy_whose_choices_are_always_tied_is_refused(run: Any) -> None:
    silent = copy.copy(run)
    silent.state = replace(run.state, agent=jax.tree.map(jnp.zeros_like, run.state.agent))
    with pytest.raises(Unexportable, match="every observation is too close to call: 100 of 100"):
        spikedream.export_policy(silent, vectors=1)


def test_what_is_told_of_a_graph_is_the_size_of_its_file(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nir", reason="nir is not installed: pip install 'spikedream[nir]'")
    status, out, _ = call(capsys, "export", str(run.directory), "--to", "nir", "--out", str(tmp_path), "--vectors", "4")
    assert status == 0 and f": policy.nir of {(tmp_path / 'policy.nir').stat().st_size:,} bytes, 4 test vectors" in out


def test_bad_wishes_are_told_in_one_line(run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(run.directory)
    status, _, error = call(capsys, "export", directory, "--board", "z80")
    assert status == 1 and "boards are cortex-m4, cortex-m3, rv32" in error and error.count("\n") == 1
    for how in (("--vectors", "0"), ("--vectors", "-3", "--to", "nir"), ("--vectors", "0", "--learner")):
        status, _, error = call(capsys, "export", directory, *how)
        assert (status, error) == (1, f"spikedream: --vectors is {how[1]}; it must be at least 1\n")
    tiny = replace(emulator.BOARDS["cortex-m3"], flash=4096)
    monkeypatch.setitem(emulator.BOARDS, "cortex-m3", tiny)
    status, _, error = call(capsys, "export", directory, "--board", "cortex-m3")
    assert status == 1 and "cortex-m3 has 4 KiB of flash, and this actor needs about" in error


def test_what_was_written_is_told_before_a_compiler_turns_out_to_be_missing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator.shutil, "which", lambda tool: None)
    status, out, error = call(
        capsys, "export", str(run.directory), "--out", str(tmp_path), "--board", "cortex-m4", "--vectors", "4"
    )
    assert status == 1 and out.startswith(f"{tmp_path}: ") and "apt-get install gcc-arm-none-eabi" in error


@pytest.mark.embedded
@pytest.mark.parametrize("board", emulator.BOARDS.values(), ids=emulator.BOARDS)
def test_a_small_computer_computes_the_bits_of_this_one(board: Any, run: Any, tmp_path: Path) -> None:
    """Spikes and outputs of the self-test, byte for byte; `make test-embedded` installs what this needs."""
    done = spikedream.export_policy(run, "c", tmp_path, board.name)
    here = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
    there = emulator.emulate(done.directory, board)
    assert there.passed and here.stdout == there.output and there.output.count("\n") == done.vectors + 1
    assert done.weights < there.flash < done.weights + 8192 and done.state <= there.ram < done.state + 512
    assert len(there.instructions) == done.vectors and 1000 < min(there.instructions) < max(there.instructions) < 200_000
