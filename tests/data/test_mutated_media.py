"""A thousand changed files of each format: a picture, a recording, a clip or an error of ours, and nothing else.

They are read in processes of their own, with limits on memory and time, so that a crash or a hang is seen.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_llama.testing.clips import encode_clip, moving_pictures

pytest.importorskip("av")
ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("MM_LLAMA_FUZZ_SEED", "1"))
TIMES = int(os.environ.get("MM_LLAMA_FUZZ_TIMES", "1"))  # as many as the usual number


def changed(kind: str, folder: Path, files: Mapping[str, tuple[bytes, int]]) -> dict[str, dict[str, Any]]:
    """What became of each of some files, changed so many times."""
    for name, (data, count) in files.items():
        (folder / f"{name}.{count * TIMES}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.mutate_media", kind, str(SEED), str(folder)],
        capture_output=True,
        timeout=400 * TIMES,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-1500:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert found.keys() == files.keys()
    for name, (data, count) in files.items():
        one = found[name]
        print(f"{name:<18} {len(data):>7,} bytes {one}")
        assert one["read"] + one["refused"] == count * TIMES and one["refused"] > 0 < one["read"], name
        assert one["seconds"] < 30 and one["grown"] < 40_000_000, (name, one)
    return found


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


def frames(photo: Image.Image, mode: str = "RGB") -> dict[str, Any]:
    turned = [photo.rotate(angle).convert(mode) for angle in (90, 180)]
    return {"save_all": True, "append_images": turned, "duration": 100}


def sixteen_bits(photo: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16)) * 257)


def camera_notes() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    return exif


# Every format, in the forms that take other ways through its decoder.
PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda photo: saved(photo, "JPEG", exif=camera_notes()),
    "JPEG progressive": lambda photo: saved(photo, "JPEG", progressive=True, subsampling=0),
    "JPEG CMYK": lambda photo: saved(photo.convert("CMYK"), "JPEG"),
    "PNG": lambda photo: saved(photo, "PNG", exif=camera_notes()),
    "PNG palette": lambda photo: saved(photo.quantize(16), "PNG", transparency=3),
    "PNG 16 bits": lambda photo: saved(sixteen_bits(photo), "PNG"),
    "PNG animated": lambda photo: saved(photo.convert("RGBA"), "PNG", **frames(photo, "RGBA")),
    "WEBP": lambda photo: saved(photo, "WEBP", exif=camera_notes()),
    "WEBP lossless": lambda photo: saved(photo.convert("RGBA"), "WEBP", lossless=True),
    "WEBP animated": lambda photo: saved(photo, "WEBP", **frames(photo)),
    "GIF": lambda photo: saved(photo.quantize(32), "GIF"),
    "GIF animated": lambda photo: saved(photo.quantize(32), "GIF", **frames(photo, "P")),
}
# These a thousand times, the other forms of each some hundreds.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "WAV", "FLAC", "MP3", "OGG")


def test_a_changed_picture_is_a_picture_or_an_error(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    (path,) = asset_dir("gradio_photos").rglob("cheetah1.jpg")
    with Image.open(path, formats=("JPEG",)) as photo:
        small = photo.convert("RGB").resize((48, 40))
    counts = {form: 1000 if form in FORMATS else 500 for form in PICTURES}
    changed("picture", tmp_path, {form: (PICTURES[form](small), counts[form]) for form in PICTURES})


def as_sound(container: str, codec: str, path: Path, layout: str = "mono") -> bytes:
    """A second of a recording in another format."""
    import av

    from mm_llama.data.sound import open_sound

    rate = 48_000 if codec == "libopus" else 16_000
    samples = open_sound(path, rate=rate).samples[: rate // 2].numpy()[None]
    data = io.BytesIO()
    with av.open(data, "w", format=container) as writer:
        stream: Any = writer.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, samples.shape[1], 960):
            block = np.ascontiguousarray(samples[:, start : start + 960])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return data.getvalue()


SOUNDS = {
    "WAV": ("wav", "pcm_s16le"),
    "FLAC": ("flac", "flac"),
    "MP3": ("mp3", "libmp3lame"),
    "OGG": ("ogg", "libopus"),
    "WAV float": ("wav", "pcm_f32le"),
    "WAV ADPCM": ("wav", "adpcm_ms"),
    "AAC": ("adts", "aac"),
    "M4A": ("mp4", "aac"),
    "WEBM": ("webm", "libopus"),
}


def test_a_changed_recording_is_sound_or_an_error(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    path = next(path for path in asset_dir("asterisk_prompts").rglob("activated.wav"))
    files = {form: (as_sound(*SOUNDS[form], path), 1000 if form in FORMATS else 300) for form in SOUNDS}
    ogg = next(path for path in sorted(asset_dir("fillets_nl").rglob("*.ogg")) if path.stat().st_size > 7_000)
    changed("sound", tmp_path, files | {"OGG Vorbis": (ogg.read_bytes(), 300)})


# Three hundred of each kind of clip: tests/data/test_video_safety.py. These are the sizes that pictures of a film have.
CLIPS: dict[str, dict[str, Any]] = {
    "MP4": {},
    "MP4 with sound": {"sound": "aac"},
    "WEBM": {"container": "webm", "codec": "libvpx-vp9"},
}


@pytest.mark.slow
def test_a_changed_clip_is_a_clip_or_an_error(tmp_path: Path) -> None:
    pictures = moving_pictures(8, (320, 240))
    changed(
        "clip",
        tmp_path,
        {form: (encode_clip(pictures, **options), 150) for form, options in CLIPS.items()},
    )
