"""Replay on the disk: what is new is appended, and what was saved comes back whatever happened since."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DISCRETE, filled, same

from spikedream.replay.ring import Replay, ReplayBuffer
from spikedream.runs import checkpoint
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.replay_log import ReplayLog

ENVIRONMENTS, ROWS = 2, 6


def steps(start: int, number: int):
    """Rows of two environments; no two hold the same numbers."""
    data = filled(DISCRETE, 40, 40, jax.random.key(0)).data
    return jax.tree.map(lambda x: x[2 * start : 2 * (start + number)].reshape(number, 2, *x.shape[2:]), data)


def empty() -> Replay:
    return ReplayBuffer(ENVIRONMENTS * ROWS).init(DISCRETE, ENVIRONMENTS)


def blank(replay: Replay) -> Replay:
    """All of it but the transitions, as the rest of a checkpoint restores it."""
    return jax.tree.map(lambda x: x, Replay(**{**vars(replay), "data": jax.tree.map(jnp.zeros_like, replay.data)}))


def added(replay: Replay, start: int, number: int) -> Replay:
    return replay.add(steps(start, number), jnp.asarray(number))


def test_what_is_new_is_appended_and_everything_comes_back(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), empty()
    first = log.save(replay)
    assert first.rows == 0
    replay = added(replay, 0, 3)
    second = log.save(replay)
    before = (tmp_path / second.file).read_bytes()
    replay = added(replay, 3, 5)  # over the ring's edge
    third = log.save(replay)
    assert second.file == third.file and (tmp_path / third.file).read_bytes().startswith(before)
    assert (third.rows, third.width) == (8, ENVIRONMENTS * (4 + 2 + 1 + 4 + 3))
    other = ReplayLog(tmp_path)
    assert same(other.load(third, blank(replay)).data, replay.data)
    # The log that was read goes on where the other left it.
    later = added(replay, 8, 1)
    assert other.save(later) == log.save(later)


def test_what_was_written_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), added(empty(), 0, 2)
    saved = log.save(replay)
    log.save(added(replay, 2, 3))  # and then the process was killed, before the checkpoint was complete
    resumed = ReplayLog(tmp_path)
    assert same(resumed.load(saved, blank(replay)).data, replay.data)
    other = added(replay, 7, 2)
    assert same(ReplayLog(tmp_path).load(resumed.save(other), blank(other)).data, other.data)


def test_a_file_of_twice_the_rings_size_is_followed_by_one_of_the_ring(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), empty()
    extents = []
    for start in range(0, 18, 2):
        replay = added(replay, start, 2)
        extents.append(log.save(replay))
    assert {extent.file for extent in extents} == {"replay-0-2.f32", "replay-8-14.f32"}
    assert extents[-1].rows <= 2 * ROWS and extents[-1].first == 8
    assert same(ReplayLog(tmp_path).load(extents[-1], blank(replay)).data, replay.data)
    old = extents[3]  # a checkpoint of before can still be gone back to
    assert int(jnp.asarray(ReplayLog(tmp_path).load(old, blank(replay)).data.reward).size) == ENVIRONMENTS * ROWS


def test_more_new_rows_than_the_ring_holds_leave_those_that_it_holds(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), added(empty(), 0, 1)
    log.save(replay)
    for start in (1, 6, 11):
        replay = added(replay, start, 5)
    extent = log.save(replay)
    assert extent.first == 10 and extent.rows == ROWS
    assert same(ReplayLog(tmp_path).load(extent, blank(replay)).data, replay.data)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), added(empty(), 0, 4)
    extent = log.save(replay)
    with pytest.raises(CheckpointError, match="the configuration needs"):
        ReplayLog(tmp_path).load(extent._replace(width=3), blank(replay))
    content = bytearray((tmp_path / extent.file).read_bytes())
    content[17] ^= 1
    (tmp_path / extent.file).write_bytes(content)
    with pytest.raises(CheckpointError, match="is not as it was written"):
        ReplayLog(tmp_path).load(extent, blank(replay))
    (tmp_path / extent.file).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        ReplayLog(tmp_path).load(extent, blank(replay))


def test_a_file_that_was_cut_short_names_only_a_checkpoint_that_it_still_serves(tmp_path: Path) -> None:
    log, replay, extents = ReplayLog(tmp_path), empty(), []
    for step in range(3):
        replay = added(replay, 2 * step, 2)
        extents.append(log.save(replay))
        checkpoint.save(tmp_path, step, {"x": np.arange(3)}, {"replay": extents[-1]._asdict()}, extents[-1].file)
    older, newest = checkpoint.heads(tmp_path)
    file, row = tmp_path / extents[-1].file, 4 * extents[-1].width
    os.truncate(file, 5 * row)
    with pytest.raises(CheckpointError) as error:
        ReplayLog(tmp_path).load(extents[2], blank(replay))
    assert str(error.value).endswith(f"; the one before it, {older.name}, is whole: to go on from there, delete {newest}")
    ReplayLog(tmp_path).load(extents[1], blank(replay))
    os.truncate(file, 3 * row)  # which the checkpoint before needs, too
    with pytest.raises(CheckpointError, match=f"is cut short: of {6 * row:,} bytes it holds {3 * row:,}; .*is damaged, too$"):
        ReplayLog(tmp_path).load(extents[2], blank(replay))


def test_a_configuration_that_does_not_fit_does_not_blame_the_checkpoint(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), added(empty(), 0, 2)
    extent = log.save(replay)
    for step in range(2):
        checkpoint.save(tmp_path, step, {"x": np.arange(3)}, {"replay": extent._asdict()}, extent.file)
    with pytest.raises(CheckpointError, match=r"the configuration needs \d+$"):
        ReplayLog(tmp_path).load(extent._replace(width=3), blank(replay))


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    log, replay = ReplayLog(tmp_path), added(empty(), 0, 1)
    saved = log.save(replay)
    broken = replay.add(jax.tree.map(lambda x: np.full_like(x, np.nan), steps(1, 1)), jnp.asarray(1))
    with pytest.raises(CheckpointError, match="not finite"):
        log.save(broken)
    assert same(ReplayLog(tmp_path).load(saved, blank(replay)).data, replay.data)
