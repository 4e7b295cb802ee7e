"""The bits that all tests draw are those that JAX draws elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threefry
from jax.extend.random import threefry2x32_p


@pytest.mark.skipif(threefry.COMPILER is None, reason="there is no C compiler")
def test_random_bits_are_drawn_by_our_own_function() -> None:
    assert threefry.NAME in jax.jit(lambda key: jax.random.split(key)).lower(jax.random.key(0)).as_text()


@pytest.mark.parametrize(
    ("key", "words", "hashed"),  # the known answers of Random123
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key: tuple[int, int], words: tuple[int, int], hashed: tuple[int, int]) -> None:
    arguments = [jnp.uint32(x) for x in (*key, *words)]
    assert tuple(int(x) for x in jax.jit(threefry2x32_p.bind)(*arguments)) == hashed


def test_one_key_hashes_many_words_and_many_keys_are_told_apart() -> None:
    keys, counts = jnp.arange(3, dtype=jnp.uint32), jnp.arange(10, 14, dtype=jnp.uint32)
    alone = np.array([[[int(x) for x in threefry2x32_p.bind(key, ~key, count, count)] for count in counts] for key in keys])
    bind = jax.vmap(threefry2x32_p.bind, in_axes=(None, None, 0, 0))
    together = np.stack(jax.jit(jax.vmap(bind, in_axes=(0, 0, None, None)))(keys, ~keys, counts, counts), axis=-1)
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(alone)) == alone.size
