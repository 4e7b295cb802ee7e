"""Products in bfloat16: the same as in float32 up to rounding, mapped and differentiated in every way that networks are."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import outcome

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.snn.product import NARROW, UNROLLED, WORTHWHILE, fastest, narrow_dot, precisely, product
from spikedream.snn.readouts import PopulationVectorReadout

KEY = jax.random.key(0)
X, W = jax.random.normal(KEY, (6, 5, 64)), jax.random.normal(jax.random.key(1), (3, 64, 72))


def over_samples(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: product(one, w[0]))(x)


def over_samples_and_members(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: jax.vmap(lambda member: product(one, member))(w))(x)


def over_members_and_samples(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(lambda member: jax.vmap(lambda one: product(one, member))(x))(w)


def over_both_at_once(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(product)(x[:3], w)


def twice(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: product(product(one, w[0])[:, :64], w[1]))(x)


WAYS = [over_samples, over_samples_and_members, over_members_and_samples, over_both_at_once, twice]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_product_and_gradients_are_those_of_float32_up_to_rounding(way: Callable) -> None:
    def found(precision) -> list[np.ndarray]:
        with precisely(precision):
            loss = lambda x, w: jnp.square(way(x, w)).sum()  # noqa: E731
            gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(X, W)
            mapped = jax.jit(jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, 0)))(X, jnp.stack([W, 2 * W]))
            return [np.asarray(y) for y in (jax.jit(way)(X, W), *gradients, mapped)]

    for exact, narrow in zip(found("float32"), found("bfloat16"), strict=True):
        assert exact.shape == narrow.shape and narrow.dtype == np.float32
        assert 0 < np.abs(exact - narrow).mean() < 0.01 * np.abs(exact).mean()


def test_spikes_are_exact_and_small_products_are_left_alone() -> None:
    spikes = (jax.random.uniform(KEY, (5, 64)) < 0.3).astype(jnp.float32)
    coarse = W[0].astype(jnp.bfloat16).astype(jnp.float32)
    small = jnp.ones((64, WORTHWHILE // 64 - 1)) / 3
    with precisely("bfloat16"):
        np.testing.assert_allclose(product(spikes, coarse), spikes @ coarse, rtol=1e-6)
        np.testing.assert_array_equal(product(X[0], small), X[0] @ small)
        assert jax.config.values["jax_default_matmul_precision"] == NARROW
    assert "narrow_dot" not in str(jax.make_jaxpr(product)(X[0], W[0]))


def test_general_contractions_with_batches_and_several_summed_axes() -> None:
    keys = jax.random.split(KEY)
    x, y = jax.random.normal(keys[0], (4, 3, 5, 2)), jax.random.normal(keys[1], (5, 7, 2, 3))
    dimensions = (((0 + 2, 3), (0, 2)), ((1,), (3,)))
    exact = lambda x, y: jax.lax.dot_general(x, y, dimensions)  # noqa: E731
    narrow = lambda x, y: narrow_dot.bind(x, y, dimensions=dimensions)  # noqa: E731
    np.testing.assert_allclose(narrow(x, y), exact(x, y), atol=0.1)
    for argument in (0, 1):
        wanted, found = (jax.grad(lambda *xy, f=f: jnp.square(f(*xy)).sum(), argument)(x, y) for f in (exact, narrow))
        np.testing.assert_allclose(found, wanted, atol=0.02 * float(jnp.abs(wanted).max()))


def test_a_population_vector_is_learned_in_bfloat16_at_the_sizes_of_an_ensemble() -> None:
    readout, spikes = PopulationVectorReadout(), jax.random.normal(KEY, (256, 2, 255))
    params = jax.vmap(lambda k: readout.init(255, 18, k))(jax.random.split(KEY, 3))

    def gradients(precision) -> list[np.ndarray]:
        with precisely(precision):
            value = lambda p: jax.vmap(lambda x: readout.decode(p, None, x, x)[0])(spikes)  # noqa: E731
            found = jax.jit(jax.vmap(jax.grad(lambda p: jnp.square(value(p)).mean())))(params)
            return [np.asarray(x) for x in jax.tree.leaves(found)]

    for exact, narrow in zip(gradients("float32"), gradients("bfloat16"), strict=True):
        assert 0 < np.abs(exact - narrow).mean() < 0.05 * np.abs(exact).mean()


def test_very_many_products_side_by_side_are_made_in_float32() -> None:
    count = UNROLLED + 1
    x, w = jax.random.normal(KEY, (count, 2, 64)), jax.random.normal(KEY, (count, 64, 64))
    with precisely("bfloat16"):
        many = jax.jit(jax.vmap(product))
        np.testing.assert_allclose(many(x, w), jnp.matmul(x, w), rtol=1e-4, atol=1e-4)


def test_the_precision_of_a_configuration_is_that_of_what_is_learned() -> None:
    network = {"kind": "MLP", "hidden": [128, 64]}
    parts = {"world_model": {"members": 2, "updates": 2, "check_every": 2, "batch": 4, "dynamics": network, "ending": network},
             "agent": {"trajectories": 4, "horizon": 2, "actor": network, "critic": network}, "improve": {"block": 1}}  # fmt: skip
    wide = configuration.merge(Config(), parts)
    assert outcome(replace(wide, precision="bfloat16"), "dream") != outcome(wide, "dream")
    assert outcome(replace(wide, precision="bfloat16"), "fit") != outcome(wide, "fit")
    assert outcome(replace(wide, precision="bfloat16")) == outcome(wide)  # acting is not learning
    assert fastest() in ("float32", "bfloat16")
