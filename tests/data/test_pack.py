"""Packing: the same rows and the same bytes every time, each shard whole, on from any stop; and what looks at them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.cli import main
from mm_llama.core.chat import MediaPart
from mm_llama.data.checking import media_of
from mm_llama.data.loader import Loader
from mm_llama.data.media import KEYS
from mm_llama.data.mix import Mixture
from mm_llama.data.opening import open_data
from mm_llama.data.pack import pack
from mm_llama.data.shards import MANIFEST, PARTIAL, Shards
from mm_llama.data.sources import ChatRows, JsonlChat, Row

pytest.importorskip("av")


def quiet(text: str) -> None:
    """What packing says is not asked here."""


@pytest.fixture
def rows(chat_file, tmp_path, real_media) -> JsonlChat:
    """Fourteen rows of every kind: several media and turns, flags, a transcript, data inside of the row."""
    for kind in ("image", "audio", "video"):
        ending, data = real_media.of(kind)
        (tmp_path / f"a.{ending}").write_bytes(data)
    lines: list[Any] = []
    for number in range(12):
        parts = [
            {"type": "image", "path": "a.jpg"},
            {"type": "audio", "path": "a.wav", "transcript": "one tone"},
            {"type": "video", "path": "a.mp4"},
        ][: number % 4]
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [*parts, {"type": "text", "text": f"n° {number}?"}]},
            {"role": "assistant", "content": "first", "train": False},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
        lines.append({"messages": turns, "id": f"r{number}", "extra": {"n": [number, None]}})
    import base64

    for data in (real_media.jpeg, real_media.wav):
        kind = "image" if data is real_media.jpeg else "audio"
        part = {"type": kind, "base64": base64.b64encode(data).decode()}
        lines.append(
            {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": kind}]}
        )
    return JsonlChat(chat_file(lines))


def said(row: Row) -> Any:
    """A row with its media as their kinds and contents."""
    messages = [
        [
            (part.kind, KEYS[part.kind](part.source), part.transcript)
            if isinstance(part, MediaPart)
            else part
            for part in message.parts
        ]
        for message in row.messages
    ]
    flags = [(m.role, m.train, m.end_of_message, m.python_tag) for m in row.messages]
    return messages, flags, dict(row.extra)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_packed_rows_are_the_rows_and_the_same_bytes_every_time(rows, tmp_path):
    made = pack(rows, tmp_path / "one", shard_rows=5, origin="rows.jsonl", say=quiet)
    pack(rows, tmp_path / "two", shard_rows=5, origin="rows.jsonl", say=quiet)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert [entry["rows"] for entry in made["shards"]] == [5, 5, 4] and made["rows"] == 14
    assert sorted(os.listdir(tmp_path / "one")) == [*(f"rows-{i:06d}.tar" for i in range(3)), MANIFEST]
    source = Shards(tmp_path / "one")
    assert source.blocks == [5, 10, 14]
    assert [said(source.row(index)) for index in range(14)] == [said(rows.row(index)) for index in range(14)]
    # Packed again from the shards, they are themselves.
    pack(source, tmp_path / "three", shard_rows=5, origin="rows.jsonl", say=quiet)
    names = [name for name in digests(tmp_path / "one") if name != MANIFEST]
    assert all(digests(tmp_path / "one")[name] == digests(tmp_path / "three")[name] for name in names)
    with tarfile.open(tmp_path / "one" / "rows-000000.tar") as tar:
        assert {(info.mtime, info.uid, info.mode, info.isreg()) for info in tar} == {(0, 0, 0o644, True)}


def test_a_seed_writes_another_order_and_bytes_limit_a_shard(rows, tmp_path):
    pack(rows, tmp_path / "a", shuffle=1, shard_bytes=60_000, say=quiet)
    source = Shards(tmp_path / "a")
    order = [source.row(index).extra.get("id") for index in range(14)]
    assert order != [rows.row(index).extra.get("id") for index in range(14)]
    assert sorted(map(str, order)) == sorted(str(rows.row(index).extra.get("id")) for index in range(14))
    assert len(source.files) > 2
    largest = max(len(rows.text(index)) for index in range(14)) + 200_000
    assert all(path.stat().st_size < 60_000 + largest for path in (tmp_path / "a").glob("*.tar"))


def test_a_folder_that_is_not_finished_is_read_by_nobody_and_gone_on_with(rows, tmp_path, monkeypatch):
    pack(rows, tmp_path / "whole", shard_rows=3, say=quiet)
    out, written = tmp_path / "cut", []

    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        written.append(text)
        if len(written) == 2:
            raise Stop

    with pytest.raises(Stop):
        pack(rows, out, shard_rows=3, say=stop)
    assert sorted(path.name for path in out.iterdir()) == ["rows-000000.tar", "rows-000001.tar", PARTIAL]
    with pytest.raises(ValueError, match="is not packed to its end; the same `mm-llama data pack` goes on"):
        Shards(out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    told: list[str] = []
    pack(rows, out, shard_rows=3, say=told.append)
    assert told[0] == "going on behind 2 shards, at row 7 of 14"
    assert digests(out) == digests(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    # A third time there is nothing to do.
    told.clear()
    pack(rows, out, shard_rows=3, say=told.append)
    assert told == [f"{out} is packed already"]


KILLED = """
import sys
from mm_llama.data.opening import open_data
from mm_llama.data.pack import pack
pack(open_data(sys.argv[1]), sys.argv[2], shard_rows=20, say=lambda text: print(text, flush=True))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(chat_file, tmp_path, row, real_media):
    (tmp_path / "a.jpg").write_bytes(real_media.jpeg)
    path = chat_file([row(f"answer {number}", "a.jpg") for number in range(400)])
    pack(open_data(path), tmp_path / "whole", shard_rows=20, say=quiet)
    out = tmp_path / "killed"
    for stop_at in (1, 3, 2):  # lines said before the kill, then a little into the next shard
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(out)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(stop_at):
            child.stdout.readline()
        time.sleep(0.003 * stop_at)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert not (out / MANIFEST).exists() and (out / PARTIAL).exists()
    pack(open_data(path), out, shard_rows=20, say=quiet)
    assert digests(out) == digests(tmp_path / "whole")


def test_other_data_options_or_files_are_not_mixed_with_what_is_there(rows, tmp_path, chat_file, row):
    out = tmp_path / "out"
    pack(rows, out, shard_rows=5, say=quiet)
    for options in ({"shard_rows": 4}, {"shard_rows": 5, "shuffle": 2}, {"shard_rows": 5, "decode": True}):
        with pytest.raises(
            FileExistsError, match=r"holds shards of other data or options \((shard_rows|shuffle|decode)\)"
        ):
            pack(rows, out, say=quiet, **options)
    other = JsonlChat(chat_file([row("else")], "other.jsonl"))
    with pytest.raises(FileExistsError, match=r"other data or options \(digest, rows_in\)"):
        pack(other, out, shard_rows=5, say=quiet)
    data = (out / "rows-000001.tar").read_bytes()
    (out / "rows-000001.tar").write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match=r"rows-000001\.tar is not as it was packed; delete"):
        pack(rows, out, shard_rows=5, say=quiet)
    (out / "rows-000001.tar").write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"rows-000001\.tar is missing or not as it was packed"):
        Shards(out)
    (out / "rows-000001.tar").write_bytes(data)
    (out / "rows-9.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"rows-9\.tar is not listed"):
        Shards(out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"full holds mine\.txt; choose an empty folder"):
        pack(rows, tmp_path / "full", say=quiet)
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


def test_two_processes_do_not_pack_into_one_folder(rows, tmp_path):
    def meanwhile(text: str) -> None:
        with pytest.raises(ValueError, match="another process packs into"):
            pack(rows, tmp_path / "out", say=quiet)

    pack(rows, tmp_path / "out", say=meanwhile)


def test_bad_rows_end_it_or_are_left_out_counted_and_listed(chat_file, row, tmp_path, real_media, capsys):
    (tmp_path / "cut.jpg").write_bytes(real_media.jpeg[:300])
    lines = [row("yes"), "nonsense", row("yes", "gone.jpg"), row("yes", "cut.jpg"), row("no")]
    path, out = chat_file(lines), tmp_path / "out"
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        pack(JsonlChat(path), out, say=quiet)
    assert [one.name for one in out.iterdir()] == [PARTIAL]
    (out / PARTIAL).unlink()
    command = ["data", "pack", str(path), "--out", str(out), "--decode", "--max-skipped"]
    assert main([*command, "2"]) == 2
    assert "3 rows skipped (1 bad_image, 1 bad_json, 1 missing_file), more than 2" in capsys.readouterr().err
    assert main([*command, "3"]) == 0
    told = capsys.readouterr().out
    assert "2 rows in 1 shards" in told and "skipped 3 rows, 1 bad_image, 1 bad_json, 1 missing_file" in told
    assert f"missing_file: {path}:3: messages[0]: image file" in told
    assert len(Shards(out)) == 2


def test_media_made_in_memory_and_extras_that_are_no_json_are_refused(tmp_path, real_media):
    from mm_llama.core.messages import Message, Text

    class One:
        digest = "x"

        def __init__(self, part: MediaPart, extra: dict[str, Any]) -> None:
            self.held = Row((Message("user", (part,)), Message("assistant", (Text("a"),))), "one:1", extra)

        def __len__(self) -> int:
            return 1

        def row(self, index: int) -> Row:
            return self.held

        def name_of(self, index: int) -> str:
            return "one:1"

    with pytest.raises(ValueError, match=r"one:1: media made in memory \(tuple\) cannot be packed"):
        pack(One(MediaPart("speech", ((0.0,), 16_000)), {}), tmp_path / "a", say=quiet)
    with pytest.raises(ValueError, match="one:1: 'extra' cannot be written as JSON"):
        pack(One(MediaPart("image", real_media.jpeg), {"x": {1}}), tmp_path / "b", say=quiet)
    with pytest.raises(ValueError, match="one:1: a medium begins like text"):
        pack(One(MediaPart("image", b"no picture"), {}), tmp_path / "c", say=quiet)
    assert not list(tmp_path.rglob("*.partial"))


def test_numbers_below_their_least_are_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="shard_bytes=0 is at least 1"):
        pack(rows, tmp_path / "out", shard_bytes=0, say=quiet)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def packed(rows, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    pack(rows, tmp_path / "shards", shard_rows=5, origin="rows.jsonl", say=quiet)
    return tmp_path / "shards"


def test_validate_names_shard_and_member_of_what_does_not_decode(packed, capsys):
    assert main(["data", "validate", str(packed)]) == 0
    assert capsys.readouterr().err == f"{packed}: 14 rows, all good\n"
    path = packed / "rows-000000.tar"
    file = next(
        part.source for part in media_of(Shards(path).row(3)) if isinstance(part, MediaPart) and part.kind == "speech"
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[file.offset : file.offset + 4] = b"NONE"
    path.write_bytes(data)
    assert main(["data", "validate", str(packed)]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{path}/000000003: speech: {path}/000000003.1.wav holds ")
    assert err.splitlines() == [f"{packed}: 14 rows, 1 bad", "1 bad_audio"]
    path.write_bytes(data[: len(data) // 2])
    assert main(["data", "validate", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["causes"]["bad_shard"] == 1
    assert f"{path}/" in report["problems"][-1]["source"] and "is cut short" in report["problems"][-1]["what"]


def test_stats_measure_media_of_every_kind(packed, capsys):
    assert main(["data", "stats", str(packed), "--core", "tiny", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "tar shards" and report["shards"] == 3 and report["packed"] == "rows.jsonl"
    assert report["media"] == {"image": 10, "speech": 7, "video": 3} and report["bad"] == {}
    # In shards every row has its own copy.
    assert report["distinct_media"] == 20 and report["image_bytes"]["min"] == report["image_bytes"]["max"] > 0
    assert report["speech_seconds"] == {"min": 1.0, "median": 1.0, "p95": 1.0, "max": 1.0, "sum": 7.0}
    assert report["video_seconds"]["sum"] == pytest.approx(3.6, abs=0.01)
    assert (report["image_width"]["max"], report["video_height"]["min"]) == (64, 48)
    assert report["length_unit"] == "tokens" and report["length"]["sum"] > 14 * 20


def test_inspect_prints_members_as_media(packed, capsys):
    assert main(["data", "inspect", str(packed), "--line", "4", "--n", "1"]) == 0
    out = capsys.readouterr().out
    assert "format     tar shards" in out and "rows       14" in out
    assert f"{packed}/rows-000000.tar/000000003\n" in out
    assert f"[image {packed}/rows-000000.tar/000000003.0.jpg]" in out


def test_a_run_over_shards_gets_the_batches_of_the_file_they_were_packed_from(rows, packed, chat):
    def batches(source: Any) -> list[Any]:
        media = {kind: lambda ref: torch.tensor(list(ref.key.encode())) for kind in KEYS}
        loader = Loader(Mixture([source], seed=5), chat, media, batch_size=3, media_keys=KEYS)
        return list(loader.epoch())

    for ours, theirs in zip(batches(Shards(packed)), batches(rows), strict=True):
        assert torch.equal(ours.tokens_BS, theirs.tokens_BS) and torch.equal(
            ours.targets_BS, theirs.targets_BS
        )
        assert ours.media.keys() == theirs.media.keys()
        for kind in ours.media:
            assert all(map(torch.equal, ours.media[kind].items, theirs.media[kind].items))
            assert ours.media[kind].transcripts == theirs.media[kind].transcripts


def test_a_source_in_memory_is_packed_too(tmp_path):
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    pack(ChatRows([chat] * 3), tmp_path / "out", say=quiet)
    assert len(Shards(tmp_path / "out")) == 3
