"""The feature cache among processes, over time, and against changes: never half a shard, never a stale feature."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama.build import build, compose_config, resolve
from mm_llama.cli import main
from mm_llama.data import files as files_module
from mm_llama.data.cached import entries, prune
from mm_llama.data.decode import open_image
from mm_llama.data.features import FeatureCache
from mm_llama.data.samples import MediaRef, distinct_media
from mm_llama.data.sources import JsonlChat

FORK = multiprocessing.get_context("fork")
DAY = 86_400


def refs(first: int, last: int) -> list[MediaRef]:
    return [MediaRef("image", 0, str(i), f"key {i}") for i in range(first, last)]


def load(ref: MediaRef) -> torch.Tensor:
    return torch.full((3, 2, 2), float(ref.source))


def encode(pixels: torch.Tensor, width: int = 8) -> torch.Tensor:
    return pixels.mean((1, 2, 3))[:, None, None].expand(-1, 4, width)


def start(work: Callable[..., None], *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        child = FORK.Process(target=work, args=arguments)
        child.start()
    return child


def write(folder: Path, first: int, last: int, backwards: bool) -> None:
    torch.set_num_threads(1)
    wanted = refs(first, last)
    FeatureCache(folder, "e", "p").build(
        wanted[::-1] if backwards else wanted, load, encode, batch_size=4, shard_bytes=200
    )


def read(folder: Path, seconds: float) -> None:
    """Open the cache again and again while it grows; end with 1 at the first wrong value."""
    torch.set_num_threads(1)
    end, most = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        cache = FeatureCache(folder, "e", "p")
        if len(cache) < most or not all_right(cache):
            os._exit(1)
        most = len(cache)


def all_right(cache: FeatureCache) -> bool:
    return all(
        torch.equal(cache(ref), encode(load(ref)[None])[0].bfloat16())
        for ref in refs(0, 400)
        if ref.key in cache
    )


def test_two_writers_and_three_readers_share_a_cache(tmp_path):
    writers = [start(write, tmp_path, 0, 260, False), start(write, tmp_path, 140, 400, True)]
    readers = [start(read, tmp_path, 1.5) for _ in range(3)]
    for child in (*writers, *readers):
        child.join(120)
        assert child.exitcode == 0
    cache = FeatureCache(tmp_path, "e", "p")
    assert len(cache) == 400 and all_right(cache)
    assert all(path.suffix == ".safetensors" for path in cache.folder.iterdir())


def test_a_cache_takes_in_what_another_process_built_after_it_was_opened(tmp_path):
    early = FeatureCache(tmp_path, "e", "p")
    FeatureCache(tmp_path, "e", "p").build(refs(0, 5), load, encode)
    assert len(early) == 0

    def never(pixels: torch.Tensor) -> torch.Tensor:
        raise AssertionError("encoded again")

    assert early.build(refs(0, 5), load, never) == 0 and len(early) == 5


def build_large(folder: Path) -> None:
    torch.set_num_threads(1)
    FeatureCache(folder, "e", "p").build(
        refs(0, 400), load, lambda pixels: encode(pixels, 4096), batch_size=8, shard_bytes=200_000
    )


def test_a_writer_that_is_killed_leaves_whole_shards_and_the_next_one_goes_on(tmp_path):
    drawn = random.Random(0)
    killed = 0
    for _ in range(8):
        child = start(build_large, tmp_path)
        time.sleep(drawn.uniform(0.02, 0.15))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join(60)
        cache = FeatureCache(tmp_path, "e", "p")
        for ref in refs(0, 400):
            if ref.key in cache:
                assert torch.equal(cache(ref), encode(load(ref)[None], 4096)[0].bfloat16())
    assert killed
    build_large(tmp_path)
    assert len(FeatureCache(tmp_path, "e", "p")) == 400


def test_a_half_written_shard_is_not_read_and_goes_when_it_is_a_day_old(tmp_path):
    root = tmp_path / "features"
    cache = FeatureCache(root, "e", "p")
    cache.build(refs(0, 3), load, encode)
    (shard,) = cache.folder.iterdir()
    partial = cache.folder / ".0123.99999.partial"
    partial.write_bytes(shard.read_bytes()[:100])
    assert len(FeatureCache(root, "e", "p")) == 3
    assert prune(tmp_path, days=1) == [] and partial.exists()
    os.utime(partial, (time.time() - 2 * DAY,) * 2)
    assert [entry.path for entry in prune(tmp_path, days=1)] == [partial]
    assert not partial.exists() and shard.exists()


# --- stale features


@pytest.fixture
def shown(chat_file, row, tmp_path, monkeypatch) -> tuple[Path, JsonlChat]:
    """A row that shows a picture, of a kind whose files have one size whatever is on them."""
    monkeypatch.setattr(files_module, "FRESH_SECONDS", 0)
    Image.new("P", (40, 40), 3).save(tmp_path / "a.gif")
    path = tmp_path / "a.gif"
    return path, JsonlChat(chat_file([row("yes", "a.gif")]))


@cache
def encoder_config() -> dict[str, Any]:
    config = resolve(compose_config("train", ["stage=none", "core=tiny", "modality/image=tiny"]))
    return dict(config["modality"]["image"]["encoder"])


def encoder_of(**changed: Any) -> Any:
    torch.manual_seed(0)
    return build(encoder_config() | changed).eval()


def features_of(encoder: Any, source: JsonlChat, folder: Path) -> tuple[FeatureCache, torch.Tensor, int]:
    """(cache, the features of the one picture, how many were encoded), as a stage does it."""
    cache = FeatureCache(folder, encoder.digest, encoder.identity, dtype="float32")
    (ref,) = distinct_media([source])
    made = cache.build([ref], lambda ref: encoder.preprocess(open_image(ref.source)), encoder)
    return cache, cache(ref), made


def recoloured(path: Path) -> None:
    """Other pixels under the same name, size and times of access and modification."""
    before = os.stat(path)
    data = bytearray(path.read_bytes())
    for index in range(13, 19):  # the two colours of the palette
        data[index] ^= 0xF0
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def test_other_contents_under_the_same_name_size_and_time_are_encoded_anew(shown, tmp_path):
    path, source = shown
    encoder = encoder_of()
    _, before, made = features_of(encoder, source, tmp_path / "f")
    assert made == 1 and features_of(encoder, source, tmp_path / "f")[2] == 0
    recoloured(path)
    _, after, made = features_of(encoder, source, tmp_path / "f")
    assert made == 1 and not torch.equal(after, before)
    with torch.no_grad():
        assert torch.equal(after, encoder(encoder.preprocess(open_image(path))[None])[0])


def test_contents_within_a_shard_are_known_apart_in_the_same_way(tar_file, tmp_path, monkeypatch):
    from mm_llama.data.shards import Shards

    monkeypatch.setattr(files_module, "FRESH_SECONDS", 0)
    Image.new("P", (40, 40), 3).save(tmp_path / "a.gif")
    data = (tmp_path / "a.gif").read_bytes()
    path = tar_file([("0.gif", data), ("0.txt", b"x")])
    first = distinct_media([Shards(path)])[0].key
    before = os.stat(path)
    path.write_bytes(path.read_bytes().replace(data, data[:20] + bytes([data[20] ^ 0xF0]) + data[21:]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert distinct_media([Shards(path)])[0].key != first


def test_another_preprocessing_or_another_weight_is_another_cache(shown, tmp_path):
    _, source = shown
    encoder = encoder_of()
    first, before, _ = features_of(encoder, source, tmp_path / "f")
    for other in (encoder_of(image_size=96), encoder_of()):
        if other.identity == encoder.identity:
            with torch.no_grad():
                next(other.parameters()).view(-1)[0] += 1.0
        found, after, made = features_of(other, source, tmp_path / "f")
        assert made == 1 and found.folder != first.folder
        assert after.shape != before.shape or not torch.equal(after, before)
    # And the first is still found by what it was made with.
    assert features_of(encoder_of(), source, tmp_path / "f")[2] == 0


# --- pruning


def folder_of(root: Path, encoder: str) -> Path:
    """The folder of an encoder's features, without opening them: that would be a use."""
    name = f'"sha256:{encoder}"'.encode()
    return next(
        path.parent for path in (root / "features").glob("*/*.safetensors") if name in path.read_bytes()
    )


@pytest.fixture
def filled(tmp_path, monkeypatch) -> Path:
    """A cache with features of three encoders, used now, 5 and 20 days ago; an old index, a made set."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path))
    for days, name in ((0, "new"), (5, "older"), (20, "oldest")):
        cache = FeatureCache(tmp_path / "features", f"sha256:{name}", "p")
        cache.build(refs(0, 40), load, encode, batch_size=10, shard_bytes=100)
        for path in cache.folder.iterdir():
            os.utime(path, (time.time() - days * DAY,) * 2)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.json").write_text("{}")
    os.utime(tmp_path / "shards" / "0.json", (time.time() - 9 * DAY,) * 2)
    (tmp_path / "data" / "motion").mkdir(parents=True)
    (tmp_path / "data" / "motion" / "rows.jsonl").write_text("x" * 1000)
    os.utime(tmp_path / "data" / "motion" / "rows.jsonl", (time.time() - 99 * DAY,) * 2)
    return tmp_path


def test_the_cache_is_listed_by_what_it_is_of(filled, capsys):
    assert main(["data", "cache", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    features = [entry for entry in report["entries"] if entry["what"].startswith("features")]
    assert [entry["encoder"] for entry in features] == ["sha256:oldest", "sha256:older", "sha256:new"]
    assert all((entry["media"], entry["dtype"], entry["files"]) == (40, "bfloat16", 4) for entry in features)
    assert report["entries"][-1] == {"what": "data/motion", "bytes": 1000, "files": 1, "removable": False} | {
        "used": report["entries"][-1]["used"]
    }
    assert report["bytes"] == sum(path.stat().st_size for path in filled.rglob("*") if path.is_file())
    assert main(["data", "cache"]) == 0
    out = capsys.readouterr().out
    assert "40 media, bfloat16, encoder sha256:oldest" in out and "kept" in out


def test_pruning_by_days_removes_what_no_run_has_opened_since(filled, capsys):
    new, old = (folder_of(filled, name) for name in ("new", "older"))
    opened = FeatureCache(filled / "features", "sha256:oldest", "p")  # opening is using
    assert main(["data", "cache", "--prune", "3", "--dry-run"]) == 0
    assert "would remove 5 files" in capsys.readouterr().out
    assert main(["data", "cache", "--prune", "3"]) == 0
    assert "removed 5 files" in capsys.readouterr().out
    left = {entry.what for entry in entries(filled) if entry.removable}
    assert left == {f"features/{opened.folder.name}", f"features/{new.name}"}
    assert (filled / "data" / "motion" / "rows.jsonl").exists()
    assert not list(old.iterdir()) and not list((filled / "shards").iterdir())


def test_pruning_by_size_keeps_what_was_used_last(filled):
    files = [*(filled / "features").rglob("*.safetensors"), filled / "shards" / "0.json"]
    about = {path: (path.stat().st_size, path.stat().st_mtime) for path in files}
    limit = sum(size for size, _ in about.values()) // 2
    gone = {entry.path for entry in prune(filled, max_bytes=limit)}
    left = about.keys() - gone
    assert gone and left and not any(path.exists() for path in gone) and all(path.exists() for path in left)
    assert max(about[path][1] for path in gone) <= min(about[path][1] for path in left)
    kept = sum(about[path][0] for path in left)
    assert kept <= limit < kept + max(size for size, _ in about.values())  # and no more than needed
    assert main(["data", "cache", "--max-gb", "0"]) == 0
    assert not [entry for entry in entries(filled) if entry.removable]


def test_who_has_a_cache_open_reads_on_and_what_is_gone_is_built_again(filled):
    cache = FeatureCache(filled / "features", "sha256:new", "p")
    prune(filled, max_bytes=0)
    assert len(cache) == 40 and all_right(cache)
    again = FeatureCache(filled / "features", "sha256:new", "p")
    assert len(again) == 0 and again.build(refs(0, 40), load, encode) == 40 and all_right(again)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--dry-run"], "--dry-run needs --prune DAYS or --max-gb N"),
        (["--prune", "-1"], "must not be negative"),
    ],
)
def test_wrong_use_of_the_cache_is_one_error_line(filled, arguments, what, capsys):
    assert main(["data", "cache", *arguments]) == 2
    assert what in capsys.readouterr().err
