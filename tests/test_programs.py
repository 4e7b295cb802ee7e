"""The comparison of programs itself: a number that only thrown-away values depend on is no part of what is computed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from programs import program

X = jnp.arange(3.0)


def plain(used: float, unused: float) -> jax.Array:
    _ = jnp.sin(X * unused)
    return X * used


def call(used: float, unused: float) -> jax.Array:
    return jax.jit(lambda x: (x * used, x * unused))(X)[0]


def scan(used: float, unused: float) -> jax.Array:
    def step(carry, x):
        kept, lost = carry
        return (kept * used + x, lost * unused + kept), lost

    return jax.lax.scan(step, (0.0, 0.0), X)[0][0]


def scan_through_another_carry(used: float, unused: float) -> jax.Array:
    def step(carry, x):
        _, second, lost = carry
        return (second, second * used + x, lost + unused), lost

    return jax.lax.scan(step, (0.0, 0.0, 0.0), X)[0][0]


def loop(used: float, unused: float) -> jax.Array:
    def step(carry):
        turn, kept, lost = carry
        return turn + 1, kept * used, lost * unused + kept

    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, X, X))[1]


def condition_of_a_loop(used: float, unused: float) -> jax.Array:
    return jax.lax.while_loop(lambda c: c[0] < used, lambda c: (c[0] + 1, c[1] + 1, c[2] * unused), (0.0, X, X))[1]


def branch(used: float, unused: float) -> jax.Array:
    return jax.lax.cond(X[0] > 0, lambda x: (x, x * unused), lambda x: (x * used, x), X)[0]


def constant(used: float, unused: float) -> jax.Array:
    return jax.jit(lambda x: (x + jnp.array([used, 1.0, 2.0]), x + jnp.array([unused, 1.0, 2.0])))(X)[0]


@jax.custom_jvp
def doubled(x: jax.Array, by: float) -> jax.Array:
    return x + x


@doubled.defjvp
def doubled_jvp(primals, tangents):
    x, by = primals
    return doubled(x, by), by * tangents[0]


def derivative(used: float, unused: float) -> jax.Array:
    return jax.grad(lambda x: doubled(x, used).sum())(X) + doubled(X, unused)


def sampled(used: float, unused: float) -> jax.Array:
    return used * jax.random.normal(jax.random.key(0), (3,)) + 0 * jax.random.normal(jax.random.key(1), (int(unused),)).shape[0]


def shape(used: float, unused: float) -> jax.Array:
    _ = jnp.zeros(int(unused)).sum()
    return jnp.zeros(int(used)).sum()


@pytest.mark.parametrize(
    "function",
    [plain, call, scan, scan_through_another_carry, loop, condition_of_a_loop, branch, constant, derivative, sampled, shape],
)
def test_a_program_holds_the_numbers_that_count_and_no_others(function: Callable) -> None:
    def text(used: float, unused: float) -> str:
        return program(lambda: function(used, unused))

    assert text(2.0, 3.0) == text(2.0, 3.0), "the same function traced twice"
    assert text(2.0, 3.0) == text(2.0, 5.0), "a number that is thrown away"
    assert text(2.0, 3.0) != text(4.0, 3.0), "a number that counts"
