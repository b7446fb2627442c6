"""Records of a run: one object a step, plain JSON, whole files."""

import json
import math
import sys

import pytest
import torch

from mm_llama.batch import Batch
from mm_llama.stages.metrics import (
    MetricsLog,
    config_hash,
    environment,
    peak_memory_mb,
    read_metrics,
    throughput,
    totals,
    write_summary,
)


def log_of(folder, restored_step=0, **settings):
    return MetricsLog(folder, restored_step, **({"tensorboard": False} | settings))


def test_records_are_lines_that_reach_the_file_at_once(tmp_path):
    log = log_of(tmp_path / "run")
    log.write({"step": 1, "loss": 2.5})
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"step": 1, "loss": 2.5}\n'
    log.close()


def test_a_continued_log_keeps_what_came_before_the_restored_step(tmp_path):
    log = log_of(tmp_path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    log = log_of(tmp_path, restored_step=2)
    assert log.last == {"step": 2, "loss": 0.5}
    log.write({"step": 3, "loss": 9.0})
    log.close()
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 9.0]
    log_of(tmp_path, restored_step=0).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_torn_last_line_is_dropped_and_a_torn_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(path)


def test_values_that_are_not_finite_become_null(tmp_path):
    log = log_of(tmp_path)
    log.write({"step": 1, "eval.score": math.nan, "deep": {"list": [math.inf, 1]}})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "eval.score": None,
        "deep": {"list": [None, 1]},
    }


def test_tensorboard_gets_every_number(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = log_of(tmp_path, tensorboard=True)
    log.write({"step": 1, "loss": 2.0, "eval.score": 0.5, "note": "text"})
    log.write({"step": 2, "loss": 1.0})
    log.close()
    log = log_of(tmp_path, restored_step=1, tensorboard=True)  # step 2 is done again
    log.write({"step": 2, "loss": 1.5})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "eval/score"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.5)]


def test_without_tensorboard_the_log_says_so_once_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # Python's own way to make an import fail
    said = []
    log = MetricsLog(tmp_path, 0, say=said.append)
    log.write({"step": 1})
    log.write({"step": 2})
    log.close()
    assert len(said) == 1 and "TensorBoard is not installed" in said[0]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_throughput_counts_real_tokens_and_not_padding(tiny_batch):
    batches = [tiny_batch(1), tiny_batch(2)]
    counted = throughput(batches, seconds=2.0, waited=0.5)
    tokens = sum(int(batch.lengths_B.sum()) for batch in batches)
    assert tokens < sum(batch.tokens_BS.numel() for batch in batches)
    assert counted["tokens"] == tokens and counted["tokens_per_s"] == tokens / 2
    assert (counted["samples"], counted["samples_per_s"], counted["data_wait"]) == (8, 4.0, 0.25)
    positions = sum(batch.tokens_BS.numel() for batch in batches)
    assert counted["padding"] == 1 - tokens / positions > 0


def test_packed_rows_count_as_the_documents_that_they_hold():
    documents = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, -1, -1]])
    batch = Batch(torch.ones(2, 5, dtype=torch.long), torch.tensor([5, 3]), documents_BS=documents)
    counted = throughput([batch], seconds=1.0, waited=0.0)
    assert (counted["tokens"], counted["samples"], counted["samples_per_s"]) == (8, 3, 3.0)
    assert counted["padding"] == pytest.approx(0.2)


def test_totals_weigh_steps_by_what_they_hold():
    records = [
        {"tokens": 90, "samples": 3, "seconds": 2.0, "padding": 0.1},
        {"tokens": 100, "samples": 1, "seconds": 3.0, "padding": 0.5},
    ]
    assert totals(records) == pytest.approx(
        {"tokens": 190, "samples": 4, "padding": 1 - 190 / 300, "tokens_per_s": 38.0, "samples_per_s": 0.8}
    )
    assert totals([{"step": 1}]) == {}


def test_the_summary_is_plain_json_and_replaces_the_old_one(tmp_path):
    write_summary(tmp_path, {"final": {"loss": math.nan}, "folder": tmp_path})
    path = write_summary(tmp_path, {"final": {"loss": 1.5}} | environment())
    summary = json.loads(path.read_text())
    assert summary["final"] == {"loss": 1.5}
    assert summary["versions"].keys() >= {"python", "torch", "mm_llama"} and summary["machine"]["cpus"] >= 1
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_config_hash_ignores_the_order_of_keys_and_nothing_else():
    one = config_hash({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert one == config_hash({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one != config_hash({"a": 1, "b": {"c": [2, 1], "d": None}})


def test_peak_memory_is_that_of_this_process():
    assert 50 < peak_memory_mb() < 1_000_000
