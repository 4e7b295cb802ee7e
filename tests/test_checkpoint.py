"""What a checkpoint must honour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import KEY
from small import same

from spikedream.runs import checkpoint


def tree():
    numbers = {"a": jnp.array([1.0, -0.0, jnp.nan, 1e-40]), "n": jnp.arange(2)}
    return {**numbers, "key": jax.random.key(5), "keys": jax.random.split(KEY, 3)}


def test_checkpoint_returns_every_bit_from_the_disk(tmp_path):
    arrays = checkpoint.flatten(tree(), "t")
    checkpoint.save(tmp_path, 7, arrays, {"steps": 7})
    read = checkpoint.load(tmp_path)
    restored = checkpoint.unflatten(tree(), "t", read.arrays)
    assert read.counters == {"steps": 7}
    assert jax.tree.structure(restored) == jax.tree.structure(tree())
    again = checkpoint.flatten(restored, "t")
    assert {name: x.tobytes() for name, x in again.items()} == {name: x.tobytes() for name, x in arrays.items()}
    assert same(jax.random.normal(restored["key"], (3,)), jax.random.normal(jax.random.key(5), (3,)))


def test_unflatten_names_a_missing_array():
    arrays = checkpoint.flatten(tree(), "t")
    del arrays["t['a']"]
    with pytest.raises(checkpoint.CheckpointError, match=r"lacks t\['a'\]"):
        checkpoint.unflatten(tree(), "t", arrays)


def test_unflatten_names_a_superfluous_array():
    arrays = checkpoint.flatten({**tree(), "more": jnp.zeros(1)}, "t")
    with pytest.raises(checkpoint.CheckpointError, match=r"t\['more'\].*does not have"):
        checkpoint.unflatten(tree(), "t", arrays)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("t['a']", np.zeros(3, np.float32)),
        ("t['a']", np.zeros(4, np.float64)),
        ("t['n']", np.zeros(2, np.float32)),
        ("t['key']", np.zeros((1, 2), np.uint32)),
    ],
)
def test_unflatten_names_an_array_of_another_shape_or_type(name, wrong):
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.unflatten(tree(), "t", {**checkpoint.flatten(tree(), "t"), name: wrong})
    assert name in str(error.value) and f"{wrong.dtype}{list(wrong.shape)}" in str(error.value)


def test_two_trees_share_a_file_by_their_prefixes():
    arrays = {**checkpoint.flatten(tree(), "state"), **checkpoint.flatten({"b": jnp.ones(2)}, "statement")}
    assert same(checkpoint.unflatten({"b": jnp.zeros(2)}, "statement", arrays), {"b": jnp.ones(2)})
    assert same(checkpoint.unflatten(tree(), "state", arrays)["keys"], tree()["keys"])


def test_checkpoint_that_was_changed_on_disk_is_refused(tmp_path):
    checkpoint.save(tmp_path, 7, checkpoint.flatten(tree(), "t"), {})
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.load(tmp_path)


def test_only_the_newest_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (3, 20, 100):
        checkpoint.save(tmp_path, step, {"x": np.full(1, step)}, {"steps": step})
    assert len(list(tmp_path.iterdir())) == 2 * checkpoint.KEPT
    assert checkpoint.load(tmp_path).counters == {"steps": 100}
    assert checkpoint.load(tmp_path).arrays["x"].tolist() == [100]


def test_an_empty_directory_holds_no_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path)


def test_a_file_cannot_be_written_below_a_file(tmp_path) -> None:
    (tmp_path / "here").write_text("kept")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot write .*here/x: Not a directory"):
        checkpoint.write_file(tmp_path / "here" / "x", b"")
    assert (tmp_path / "here").read_text() == "kept"
