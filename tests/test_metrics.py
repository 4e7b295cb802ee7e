"""What a run records, and where it goes."""

import importlib.util
import json
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spikedream.runs import metrics
from spikedream.runs.metrics import Recorder

ROW = {"turn": 0, "real_steps": 10, "eval_return_mean": 1.5, "decision_ms": None, "firing_rate/actor": 0.25}


def test_rows_are_written_at_any_step_and_those_that_are_done_again_are_cut(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(ROW)
    kept = recorder.size()
    recorder.write({"real_steps": 10, "model_loss": 1.0})  # no turn, and the same step again
    recorder.write({"real_steps": 73})
    recorder.close()
    assert [row["real_steps"] for row in Recorder.rows(tmp_path)] == [10, 10, 73]
    recorder = Recorder(tmp_path, kept)
    recorder.write(ROW | {"real_steps": 20})
    recorder.close()
    assert [row["real_steps"] for row in Recorder.rows(tmp_path)] == [10, 20]


def test_a_disk_that_fills_up_within_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(ROW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (recorder.size() + 10, hard))  # as a full disk, to this process
    try:
        with pytest.raises(OSError):
            recorder.write(ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.write(ROW | {"real_steps": 20})
    recorder.close()
    assert [row["real_steps"] for row in Recorder.rows(tmp_path)] == [10, 20]


def test_wandb_that_is_not_installed_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"W&B is not installed: pip install 'spikedream\[wandb\]'"):
        metrics.check_wandb()
    with pytest.raises(ImportError, match="W&B is not installed"):
        Recorder(tmp_path, wandb="project")
    assert not (tmp_path / "wandb").exists()


def records(content: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format, as W&B writes it: 7 bytes of head, blocks of 32 KiB, a record in one piece or several."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:  # no room for another head in this block
            position += 2**15 - position % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):  # not written to its end yet
            return
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def logged(file: Path) -> list[dict[str, float]]:
    """The rows of a session of W&B that stayed offline, read from its own file, which another process may still be writing."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    end, parsed = time.monotonic() + 30, []
    while time.monotonic() < end and not any(record.WhichOneof("record_type") == "exit" for record in parsed):
        time.sleep(0.05)
        parsed = [wandb_internal_pb2.Record.FromString(data) for data in records(file.read_bytes())]
    history = [record.history for record in parsed if record.WhichOneof("record_type") == "history"]
    return [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in h.item} for h in history]


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_gets_the_rows_without_a_network_and_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recorder = Recorder(tmp_path, wandb="spikedream-test", settings={"preset": "p", "seed": 3, "agent": {"horizon": 5}})
    recorder.write(ROW)
    kept = recorder.size()
    recorder.close()
    name = (tmp_path / "wandb/id").read_text()
    time.sleep(1.1)  # W&B names a session's folder by the second, and would write over the first
    recorder = Recorder(tmp_path, kept, wandb="spikedream-test", settings={"preset": "p", "seed": 3})
    recorder.write(ROW | {"real_steps": 20, "eval_return_mean": 2.5})
    recorder.close()
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    first, second = map(logged, files)
    assert [row["evaluation/eval_return_mean"] for row in (*first, *second)] == [1.5, 2.5]
    assert [row["_step"] for row in (*first, *second)] == [10, 20] and first[0]["firing_rate/actor"] == 0.25
    assert {file.name for file in files} == {f"run-{name}.wandb"}
