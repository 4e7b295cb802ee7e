"""A trained policy made small: fixed point, and a run that goes on from another to fewer weights, spikes and bits."""

import copy
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spikedream
from spikedream import config as configuration
from spikedream.cli import main
from spikedream.config import ConfigError
from spikedream.export import emulator
from spikedream.export.energy import energy
from spikedream.nodes import Unexportable
from spikedream.runners.compress import compressed, compression
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.fixed_point import FixedPoint, OnGrid
from spikedream.snn.networks import RTRL, SpikingNetwork
from spikedream.snn.neurons import LIF, AdaptiveLIF
from spikedream.snn.readouts import MembraneReadout, PopulationReadout
from spikedream.snn.sparsity import synapses

KEY = jax.random.key(0)


def test_a_step_in_fixed_point_is_the_one_computed_by_hand():
    """In units of 2^-9 the threshold is 512. A decay of 0.8 loses 51.2 of 256 parts: 64 by the nearest shift, 51 by multiplication.
    From 300: 300 - 75 + 100, and 300 - floor(59.8) + 100. From 1000: 1000 - 250 + 100 - 512, and 1000 - floor(199.2) + 100 - 512.
    Of -301 the loss is rounded down, too: -301 + 76 + 100, and -301 + 60 + 100. What 16 bits cannot hold is cut off, then reset."""
    neuron, unit, most = LIF(decay=(0.8, 0.8)).init(4, KEY), 2.0**-9, 2**15 - 1
    for decay, wanted in (("shift", (325, 338, -125, most - 512)), ("multiply", (341, 389, -141, most - 512))):
        cell = FixedPoint(decay=decay).neuron(LIF())
        before = cell.start(4)._replace(v=jnp.array([300.0, 1000.0, -301.0, most]) * unit)
        after = cell.step(OnGrid(neuron, jnp.asarray(unit)), before, jnp.array([100.0, 100.0, 100.0, 20_000.0]) * unit)
        np.testing.assert_array_equal(after.v / unit, wanted)
        np.testing.assert_array_equal(after.spikes, [0, 1, 0, 1])


def test_fixed_point_has_few_bits_and_a_gradient():
    network = SpikingNetwork((12,), ticks=3, readout=PopulationReadout(4), bias=(0.0, 2.0), fixed_point=FixedPoint(4))
    params, x = network.init(4, 2, KEY), jnp.ones(4)
    window, decoder = network.describe(params)
    for weight in (*(layer.synapses.weight / 2**window.fraction for layer in window.layers), decoder.weight):
        assert (weight == np.rint(weight)).all() and np.abs(weight).max() <= 7
    gradient = jax.jit(jax.grad(lambda p: jnp.square(network(p, x).value).sum()))(params)
    for leaf in (gradient.layers[0].synapse.weight, gradient.layers[0].neuron.decay, gradient.readout.decoder):
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0
    updates = [each for each in network.operations(params, x) if each.kind == "neuron_update"]
    assert [dict(each.arithmetic) for each in updates] == [{"add": 3}, {"add": 5}]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"neuron": AdaptiveLIF()}, "fixed_point is for LIF and CubaLIF without norm and decay_input"),
        ({"neuron": LIF(norm="layer")}, "fixed_point is for LIF and CubaLIF without norm"),
        ({"readout": MembraneReadout()}, "readouts of spike counts, RateReadout and PopulationReadout, not MembraneReadout"),
        ({"encoder": GaussianPopulation(currents=1)}, "set encoder.currents to 0"),
        ({"rule": RTRL()}, "by BPTT alone, not by RTRL; set rule to BPTT"),
        ({"neuron": LIF(recurrent=True), "branches": (0.3, 0.8)}, "recurrent neurons of one group"),
    ],
)
def test_what_has_no_form_in_fixed_point_is_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        SpikingNetwork((4,), fixed_point=FixedPoint(), **changes)


# ---- whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> spikedream.Run:
    out = tmp_path_factory.mktemp("compress") / "run"
    return spikedream.train("debug", seed=1, out=out, settings={"budget": 12}, report=False)


def test_a_run_is_compressed_without_a_real_step_evaluated_and_exported(run: spikedream.Run) -> None:
    config = compressed(run, density=0.25, rate=0.1, bits=8, updates=8)
    new = spikedream.train(config, out=run.directory.with_name("compressed"), report=False)
    agent, result = new.config.agent, new.result
    assert (agent.activity_target, agent.actor.fixed_point) == (0.1, FixedPoint(8)) and result is not None
    assert (result["real_steps"], result["inherited_steps"]) == (0, int(run.experience().size))
    same = jax.tree.map(np.array_equal, run.experience().in_order(), new.experience().in_order())
    assert same.obs and same.action and same.reward and not same.truncated  # the episode under way is given up
    for ours, theirs in zip(jax.tree.leaves(run.state.world.members), jax.tree.leaves(new.state.world.members), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    params = new.state.agent.actor.present
    assert all(0.2 < float((w != 0).mean()) < 0.3 for w in synapses((params.layers, params.readout)))
    assert new.evaluate(2).returns.shape == (2,)
    exported = spikedream.export_policy(new, "c", vectors=8)
    assert exported.weights < 0.5 * spikedream.export_policy(run, "c", vectors=1).weights
    assert "int8_t" in (exported.directory / "actor.c").read_text()
    if shutil.which("cc"):
        tested = subprocess.run(["make", "-s", "-C", str(exported.directory), "test"], capture_output=True, text=True)
        assert tested.returncode == 0 and tested.stdout.endswith("passed\n") and not tested.stderr


def test_the_rate_that_is_told_is_that_of_the_neurons_which_is_regulated(tmp_path: Path) -> None:
    """A silent layer between an encoder and an output population that fire, the latter by its bias whatever is observed."""
    actor = {"encoder": {"kind": "GaussianPopulation"}, "bias": [-9.0, -9.0]}
    run = spikedream.train("debug", out=tmp_path / "run", settings={"budget": 12, "agent": {"actor": actor}}, report=False)
    rates = energy(run, learning=False)["firing_rate"]
    assert rates["actor, encoder"] > 0.01 and rates["actor, layer 1"] == 0 < rates["actor, output population"]
    assert compression(run, run, 2).after.firing_rate == pytest.approx(rates["actor, output population"] / 2)


@pytest.mark.embedded
@pytest.mark.parametrize("board", emulator.BOARDS.values(), ids=emulator.BOARDS)
def test_a_small_computer_computes_the_same_in_fixed_point(board, run: spikedream.Run, tmp_path: Path) -> None:
    done = spikedream.export_policy(run, "c", tmp_path, board.name, bits=8)
    here = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
    there = emulator.emulate(done.directory, board)
    assert there.passed and here.stdout == there.output and there.flash < 8192


def test_a_run_is_exported_in_fixed_point_as_it_is(run: spikedream.Run, tmp_path: Path) -> None:
    done = spikedream.export_policy(run, "c", tmp_path, vectors=4, bits=8)
    assert "int8_t" in (done.directory / "actor.c").read_text() and run.algorithm.agent.actor.fixed_point is None
    with pytest.raises(Unexportable, match="bits is 9; it must be from 2 to 8"):
        spikedream.export_policy(run, "c", tmp_path, bits=9)
    with pytest.raises(Unexportable, match="NIR has no fixed point"):
        spikedream.export_policy(run, "nir", tmp_path, bits=8)


@pytest.mark.learning
def test_cartpole_is_compressed_without_loss(tmp_path: Path) -> None:
    first = spikedream.train("cartpole", seed=7, out=tmp_path / "run", settings={"agent": {"actor": {"hidden": [32]}}})
    done = spikedream.compress_policy(first, density=0.3, rate=0.1, bits=8)
    assert done.run.directory == tmp_path / "run-compressed"
    assert done.before.return_mean >= 475 and done.after.return_mean >= 0.98 * done.before.return_mean
    assert done.after.firing_rate <= 0.1 < done.before.firing_rate and done.after.density < 0.35 and done.before.density == 1
    record = json.loads((done.run.directory / "compression.json").read_text())
    assert record["from"] == str(first.directory) and record["after"]["density"] == done.after.density


def test_what_cannot_be_compressed_says_why(run: spikedream.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(run.directory)])
    assert stop.value.code == 1 and "nothing is asked for: name a density, a rate or bits" in capsys.readouterr().err
    for flag, value, bounds in (
        ("--updates", "0", "at least 1"),
        ("--episodes", "0", "at least 1"),
        ("--rate", "2.0", "from 0 to 1"),
        ("--density", "0.0", "from 1e-06 to 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compress", str(run.directory), "--bits", "8", flag, value])
        assert stop.value.code == 1
        assert capsys.readouterr().err == f"spikedream: {flag} is {value}; it must be {bounds}\n"
    with pytest.raises(ConfigError, match="density is 2; it must be from"):
        compressed(run, 2, None, None, 10)
    for settings, why in (
        ({"agent": {"kind": "PPO"}}, "PPO cannot be compressed: it learns from new steps"),
        ({"agent": {"actor": "MLP"}}, "the actor is MLP; what is compressed is a SpikingNetwork"),
    ):
        other = replace_config(run, settings)
        with pytest.raises(ConfigError, match=why):
            compressed(other, 0.5, None, None, 10)
    with pytest.raises(ValueError, match="budget is 0, but without start_from there is nothing to learn from"):
        replace(run.config, budget=0).check()
    with pytest.raises(ValueError, match='budget is 0, but with start_with "weights" there is nothing to learn from'):
        replace(run.config, budget=0, start_from=str(run.directory), start_with="weights").check()
    for what in ("weights", "everything"):
        with pytest.raises(ValueError, match=f'start_with is "{what}", but there is no run to start from'):
            replace(run.config, start_with=what).check()


def replace_config(run: spikedream.Run, settings: dict) -> spikedream.Run:
    other = copy.copy(run)
    other.config = configuration.merge(run.config, settings)
    return other
