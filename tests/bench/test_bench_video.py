"""`mm-llama bench video`: the frames of the plain loop, fewer decoded, and memory that does not follow the length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("av")

from mm_llama.bench import video
from mm_llama.cli import main as cli
from mm_llama.data.video import open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video.written_clip(tmp_path_factory.mktemp("clip") / "written.mp4", 16, (96, 64), rate=10)


def test_decoding_encoding_and_memory_are_measured(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "video.json"
    options = ["--clip", str(clip), "--frames", "2,4", "--repeats", "1", "--image", "tiny"]
    assert cli(["bench", "video", *options, "--folder", str(tmp_path / "cuts"), "--json", str(path)]) == 0
    facts = json.loads(path.read_text("utf-8"))
    assert facts["seconds"] == pytest.approx(16) and facts["size"] == [96, 64]
    assert [entry["frames"] for entry in facts["decode"]] == [2, 4]
    for entry in facts["decode"]:
        # A key frame every 100 frames: at most the way from one to each wanted frame.
        assert entry["frames"] <= entry["decoded"] < 160
        assert entry["ours"]["wall_s"] > 0 and entry["faster"]["wall"] > 0
    assert facts["encode"]["frames"] == 4
    assert facts["encode"]["frames_per_s"] == pytest.approx(4 / facts["encode"]["seconds"])
    assert [entry["seconds"] for entry in facts["memory"]] == pytest.approx([2, 4, 8, 16])
    assert all(entry["peak_bytes"] > 0 and entry["decoded"] >= 2 for entry in facts["memory"])
    printed = capsys.readouterr().out
    assert "the same frames, bit for bit" in printed and "frames/s encoded" in printed


def test_cuts_are_the_beginning_of_the_clip(clip: Path, tmp_path: Path) -> None:
    whole = open_clip(clip, num_frames=160)
    for seconds, path in video._lengths(str(clip), 16.0, tmp_path):
        assert open_clip(path, num_frames=1).duration == pytest.approx(seconds, abs=0.5)
        # The last second may lack frames that later ones are needed for.
        number = round(10 * (seconds - 1))
        frames = video._plain_loop(str(path), [float(time) for time in whole.times[:number]])
        assert len(frames) == number
        assert [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in whole.frames[:number]]


def test_frames_that_differ_are_not_timed(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = video._plain_loop
    times = [float(time) for time in open_clip(clip, num_frames=3).times]
    assert len(plain(str(clip), times)) == 3
    # A loop that is one frame late.
    monkeypatch.setattr(video, "_plain_loop", lambda clip, times: plain(clip, [time + 0.1 for time in times]))
    with pytest.raises(ValueError, match="the 3 frames of .* are not those of the plain loop"):
        video.main(["--clip", str(clip), "--frames", "3", "--image", "tiny", "--repeats", "1"])


def test_a_clip_is_written_once(tmp_path: Path) -> None:
    path = video.written_clip(tmp_path / "new" / "clip.mp4", 1, (32, 32), rate=5)
    first = path.stat().st_mtime_ns
    assert video.written_clip(path, 1, (32, 32), rate=5).stat().st_mtime_ns == first
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]
