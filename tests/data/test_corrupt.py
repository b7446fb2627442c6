"""Rows that cannot be used, with a real file of each kind: counted by cause, named, capped, never replaced."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.data.causes import CAUSES
from mm_llama.data.decode import open_image
from mm_llama.data.held_out import held_out_samples
from mm_llama.data.media import KEYS, num_mel_frames
from mm_llama.data.opening import open_data
from mm_llama.data.video import open_clip
from mm_llama.stage_run import run_stage
from mm_llama.stages.metrics import read_metrics
from mm_llama.stages.resume import differences

pytest.importorskip("av")

KINDS = ("image", "audio", "video")
LONG = 700  # characters: the tiny core counts bytes


@dataclass(frozen=True)
class Set:
    """Good rows of every kind, and one bad row for each cause, by the name that messages give it."""

    path: Path
    good: int
    bad: dict[str, str]  # name -> cause


def chat(kind: str, name: str, answer: Any = "yes") -> dict[str, Any]:
    content = [{"type": kind, "path": name}, {"type": "text", "text": "?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def make_set(folder: Path, form: str, media: Any) -> Set:
    """Rows as lines of a JSONL file beside their media, or as members of a tar shard."""
    rows: list[tuple[bytes, str, bytes, str]] = []  # text, name of the medium, its bytes, cause
    for number in range(9):
        kind = KINDS[number % 3]
        ending, data = media.of(kind)
        name = f"{number:02d}.0.{ending}"
        rows.append((json.dumps(chat(kind, name)).encode(), name, data, ""))
    for kind, cause in (("image", "bad_image"), ("audio", "bad_audio"), ("video", "bad_video")):
        ending, data = media.of(kind)
        name = f"{len(rows):02d}.0.{ending}"
        rows.append((json.dumps(chat(kind, name)).encode(), name, data[: len(data) * 3 // 5], cause))
    jpeg = media.jpeg

    def add(row: dict[str, Any] | None, cause: str, name: str = "", data: bytes = jpeg) -> None:
        name = name or f"{len(rows):02d}.0.jpg"
        text = b'{"messages": [' if row is None else json.dumps(row).encode()
        rows.append((text, name, data, cause))

    add(chat("image", f"{len(rows):02d}.9.jpg"), "missing_file")
    add(None, "bad_json")
    add(chat("imge", f"{len(rows):02d}.0.jpg"), "bad_type")
    add(chat("image", f"{len(rows):02d}.0.jpg", 7), "bad_type")
    add(chat("image", f"{len(rows):02d}.0.jpg", "  "), "empty_answer")
    add(chat("image", f"{len(rows):02d}.0.jpg", "x" * LONG), "too_long")
    add(chat("image", f"{len(rows):02d}.0.jpg"), "bad_image", data=b"no picture at all")
    bad = {}
    folder.mkdir(parents=True, exist_ok=True)
    if form == "jsonl":
        path = folder / "rows.jsonl"
        path.write_bytes(b"".join(text + b"\n" for text, *_ in rows))
        for line, (_, name, data, cause) in enumerate(rows, start=1):
            (folder / name).write_bytes(data)
            if cause:
                bad[f"{path}:{line}"] = cause
    else:
        path = folder / "rows.tar"
        with tarfile.open(path, "w") as tar:
            for number, (text, name, data, cause) in enumerate(rows):
                for member, content in ((f"{number:02d}.json", text), (name, data)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                if cause:
                    bad[f"{path}/{number:02d}"] = cause
    return Set(path, len(rows) - len(bad), bad)


@dataclass(frozen=True)
class Run:
    """A finished run, and what it said."""

    folder: Path
    said: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text("utf-8"))
        return summary


def train(data: Set, folder: Path, *overrides: str) -> Run:
    """Eight steps of three rows on the tiny core that sees, watches and hears."""
    source = ["data=jsonl", f"data.train.0.source.path={data.path}"]
    if data.path.suffix == ".tar":
        source = ["data=shards", f"data.train.0.source.files={data.path}"]
    options = [
        "stage=image_sft", "core=tiny", "modality/image=tiny", "modality/video=tiny", "modality/speech=tiny",
        "dtype=float32", "stage.num_steps=8", "stage.save_every=3", "stage.keep_last=3", "stage.log_every=1",
        "loader.batch_size=3", "loader.bucket_batches=2", "loader.max_tokens=400", f"runs={data.path.parent}", *source,
    ]  # fmt: skip
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setenv("MM_LLAMA_CACHE", str(data.path.parent / "cache"))
        run_stage(compose_config("train", [*options, *overrides]), run_dir=folder)
    return Run(folder, said.getvalue())


SKIP = ("loader.on_error=skip", "loader.on_too_long=skip")


@pytest.fixture(scope="module", params=["jsonl", "tar"])
def corrupt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_media: Any) -> Set:
    return make_set(tmp_path_factory.mktemp("corrupt") / "data", request.param, real_media)


@pytest.fixture(scope="module")
def finished(corrupt: Set) -> Run:
    """A run over each form of the data; one of them decodes anew in every epoch."""
    cached = corrupt.path.suffix == ".jsonl"
    folder = corrupt.path.parent / "run"
    return train(corrupt, folder, *SKIP, "loader.max_skipped=10", f"loader.cache_features={cached}")


def test_training_skips_bad_rows_counts_them_by_cause_and_says_so(corrupt, finished):
    expected = Counter(corrupt.bad.values())
    counted = {"skipped": expected.total()} | {f"skipped.{cause}": n for cause, n in expected.items()}
    records = finished.records
    assert finished.summary["skipped"] == counted
    assert {key: value for key, value in records[-1].items() if key.startswith("skipped")} == counted
    # Nine good rows an epoch in eight steps: no bad one stands in for another.
    assert records[-1]["epoch"] >= 1
    assert all(record["samples"] <= 3 for record in records)
    report = finished.said[finished.said.index("skipped 10 rows (") :]
    assert "none of them replaced" in report
    for name, cause in corrupt.bad.items():
        assert f"  {cause}: {name}" in report
    line = json.loads(next(line for line in finished.said.splitlines()[::-1] if line.startswith("{")))
    assert line["skipped"] == 10 and line["skipped.bad_video"] == 1


@pytest.mark.parametrize("corrupt", ["tar"], indirect=True)
def test_skips_are_counted_on_where_a_run_goes_on(corrupt, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    _, *later = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert len(later) == 2
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    (tmp_path / "run" / "summary.json").unlink()
    parts = train(corrupt, tmp_path / "run", *SKIP, "loader.max_skipped=10", "loader.cache_features=False")
    assert "continuing after step 3" in parts.said
    keys = ("step", "loss", "samples", *(key for key in finished.records[-1] if key.startswith("skipped")))
    assert [[record.get(key) for key in keys] for record in parts.records] == [
        [record.get(key) for key in keys] for record in finished.records
    ]
    # Also those that were met before.
    assert (
        all(name in parts.said for name in corrupt.bad)
        and parts.summary["skipped"] == finished.summary["skipped"]
    )


@pytest.mark.parametrize("corrupt", ["jsonl"], indirect=True)
def test_one_bad_row_too_many_ends_the_run_and_names_it(corrupt, tmp_path):
    with pytest.raises(
        ValueError, match=r"10 rows skipped \(.*2 bad_image.*\), more than loader.max_skipped=9; the last"
    ):
        train(corrupt, tmp_path / "run", *SKIP, "loader.max_skipped=9")


def test_a_run_that_a_bad_row_ended_may_go_on_with_skipping() -> None:
    before = {"loader": {"on_error": "error", "on_too_long": "error", "max_skipped": 0, "batch_size": 4}}
    after = {"loader": {"on_error": "skip", "on_too_long": "skip", "max_skipped": 9, "batch_size": 4}}
    # Without a buffer of its own a run is one from before there were any.
    assert (
        differences(before, after)
        == differences(before, {"loader": after["loader"] | {"shuffle_buffer": None}})
        == []
    )
    assert differences(before, {"loader": after["loader"] | {"shuffle_buffer": 64}})


@pytest.mark.parametrize("corrupt", ["tar"], indirect=True)
def test_the_first_bad_row_ends_a_run_that_may_not_skip(corrupt, tmp_path):
    with pytest.raises(ValueError) as error:
        train(corrupt, tmp_path / "run")
    assert any(name in str(error.value) for name in corrupt.bad)


def test_held_out_rows_are_skipped_and_counted_too(corrupt, chat, capsys):
    source, media = open_data(corrupt.path), {kind: lambda ref: read(ref.kind, ref.source) for kind in KEYS}
    samples, skipped = held_out_samples([source], chat, media, on_error="skip", max_skipped=9)
    # A row that is too long to train on can be measured on.
    assert (len(samples), skipped) == (corrupt.good + 1, 9)
    said = capsys.readouterr().err
    assert "skipped 9 held-out rows, none of them replaced" in said
    assert all(name in said for name, cause in corrupt.bad.items() if cause != "too_long")
    with pytest.raises(ValueError, match="9 held-out rows cannot be used, and loader.max_skipped=8 of 19"):
        held_out_samples([source], chat, media, on_error="skip", max_skipped=8)
    with pytest.raises(ValueError, match=r"rows\."):
        held_out_samples([source], chat, media)


def read(kind: str, source: Any) -> torch.Tensor:
    if kind == "image":
        return torch.zeros(open_image(source).size)
    return torch.zeros(
        len(open_clip(source, num_frames=4).frames) if kind == "video" else num_mel_frames(source)
    )


def test_validate_names_each_bad_row_with_its_cause(corrupt, capsys):
    command = ["data", "validate", str(corrupt.path), "--core", "tiny", "--max-tokens", "400", "--json"]
    assert main(command) == 1
    report = json.loads(capsys.readouterr().out)
    found = {problem["source"]: problem["cause"] for problem in report["problems"]}
    assert found == corrupt.bad
    assert report["causes"] == dict(sorted(Counter(corrupt.bad.values()).items()))


def test_every_cause_is_one_of_the_documented(corrupt):
    assert set(corrupt.bad.values()) <= set(CAUSES)
