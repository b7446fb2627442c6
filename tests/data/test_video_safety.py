"""Clips from anywhere: what is none is named, what costs too much is refused, damage is an error, never a crash."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_llama.core.messages import messages_from_dicts
from mm_llama.data.decode import open_image
from mm_llama.data.video import open_clip, probe_clip
from mm_llama.testing.clips import box, encode_clip, encode_sound, moving_pictures, replace_box

pytest.importorskip("av")

SIZE = (96, 72)
PICTURES = moving_pictures(20, SIZE)
STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
EXPECTED = "expected an MP4, MOV, WebM, MKV or AVI clip, or an animated GIF or WebP"


@pytest.fixture(scope="session")
def mp4() -> bytes:
    return encode_clip(PICTURES)


def animation(format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    PICTURES[0].save(data, format, save_all=True, append_images=PICTURES[1:6], duration=100, **options)
    return data.getvalue()


def still(format: str) -> bytes:
    data = io.BytesIO()
    PICTURES[0].save(data, format)
    return data.getvalue()


def edited(data: bytes, path: tuple[bytes, ...], offset: int, value: bytes) -> bytes:
    """The file with bytes of a box (counted from its start) replaced."""
    start, _ = box(data, *path)
    changed = bytearray(data)
    changed[start + offset : start + offset + len(value)] = value
    return bytes(changed)


# --- what is no clip


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_still_picture_is_no_clip(tmp_path: Path, format: str) -> None:
    path = tmp_path / "photo.mp4"
    path.write_bytes(still(format))
    for read in (lambda: open_clip(path, num_frames=2), lambda: probe_clip(path)):
        with pytest.raises(
            ValueError, match=rf"photo\.mp4 is a still picture \({format}\); give it as a picture, not"
        ):
            read()


def test_a_clip_is_no_picture(mp4: bytes) -> None:
    with pytest.raises(
        ValueError, match="holds MP4 or QuickTime video; expected a JPEG.*, or give it as a clip"
    ):
        open_image(mp4)


@pytest.mark.parametrize(
    ("container", "codec", "found"),
    [
        ("ipod", "aac", "holds sound and no moving pictures; expected a clip"),
        ("matroska", "libopus", "holds sound and no moving pictures; expected a clip"),
        ("wav", "pcm_s16le", rf"is sound \(WAV\); {EXPECTED}"),
        ("mp3", "libmp3lame", rf"is sound \(MP3\); {EXPECTED}"),
        ("ogg", "libopus", rf"is sound \(Ogg\); {EXPECTED}"),
        ("flac", "flac", rf"is sound \(FLAC\); {EXPECTED}"),
        ("adts", "aac", rf"is sound \(AAC\); {EXPECTED}"),
    ],
)
def test_a_recording_is_said_to_be_sound(container: str, codec: str, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        open_clip(encode_sound(container, codec), num_frames=2)


def test_a_cover_picture_makes_no_clip_of_a_song() -> None:
    """FFmpeg shows the cover as a stream of one frame."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as writer:
        tone: Any = writer.add_stream("aac", rate=48_000, layout="mono")
        cover: Any = writer.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_image(PICTURES[0].resize((64, 64)))
        picture.pts = 0
        for packet in cover.encode(picture) + cover.encode():
            writer.mux(packet)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 48_000
        for packet in tone.encode(sound) + tone.encode():
            writer.mux(packet)
    with pytest.raises(ValueError, match="holds sound and no moving pictures"):
        open_clip(data.getvalue(), num_frames=2)


LISTS = {
    "list of files": "ffconcat version 1.0\nfile {secret}\n",
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "text": "<?xml version='1.0'?><MPD><BaseURL>file://{secret}</BaseURL></MPD>",
    "text ": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("found", LISTS)
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_lists_of_other_files_are_not_followed(tmp_path: Path, mp4: bytes, found: str, backend: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(mp4)
    path = tmp_path / "clip.mp4"
    path.write_text(LISTS[found].format(secret=tmp_path / "secret.mp4"))
    with pytest.raises(ValueError, match=rf"clip\.mp4 holds {found.strip()}; {EXPECTED}"):
        open_clip(path, num_frames=2, backend=backend)


@pytest.mark.parametrize(
    "name", ["concat:{0}|{0}", "subfile,,start,0,end,0,,:{0}", "file:{0}", "async:{0}", "cache:file:{0}"]
)
def test_protocols_of_decoders_are_names_of_no_file(tmp_path: Path, mp4: bytes, name: str) -> None:
    import av

    (tmp_path / "a.mp4").write_bytes(mp4)
    address = name.format(tmp_path / "a.mp4")
    av.open(address).close()  # PyAV itself would open it
    with pytest.raises(FileNotFoundError, match="there is no clip at"):
        open_clip(address, num_frames=1)


def alias_to(path: str) -> bytes:
    """A data reference as QuickTime writes it: the frames are in another file."""
    volume = b"Disk"
    body = bytes(10) + bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(4 + 2 + 2 + 4)
    body += bytes([4]) + b"file".ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 0, 1) + bytes(16)
    for kind, text in ((2, b"Disk:" + path.replace("/", ":").encode()), (18, path.encode()), (19, b"/")):
        body += struct.pack(">HH", kind, len(text)) + text + b"\0" * (len(text) % 2)
    body += struct.pack(">HH", 0xFFFF, 0)
    return struct.pack(">II", 0, 1) + struct.pack(">I4sI", 12 + len(body), b"alis", 0) + body


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_clip_whose_frames_are_in_another_file_is_refused(tmp_path: Path, mp4: bytes, backend: str) -> None:
    import av

    other = tmp_path / "other.mp4"
    other.write_bytes(mp4)
    path = (*STBL[:-1], b"dinf", b"dref")
    data = replace_box(mp4, path, alias_to(str(other).lstrip("/")))
    asked = []

    def refuse(url: str, flags: int, options: object) -> object:
        asked.append(url)
        raise PermissionError

    with pytest.raises(PermissionError):  # FFmpeg would follow it, if it were told to follow references
        av.open(
            io.BytesIO(data),
            format="mov",
            options={"enable_drefs": "1", "use_absolute_path": "1"},
            io_open=refuse,
        )
    assert asked == [str(other)]
    with pytest.raises(ValueError, match="is cut short or damaged"):
        open_clip(data, num_frames=2, backend=backend)


def test_what_lies_at_a_path_is_told_apart(tmp_path: Path, mp4: bytes) -> None:
    def opening(source: Any) -> pytest.RaisesExc[Exception]:
        with pytest.raises((ValueError, OSError)) as error:
            open_clip(source, num_frames=2)
        return error

    (tmp_path / "empty.mp4").touch()
    assert opening(tmp_path / "empty.mp4").match(rf"empty\.mp4 is empty; {EXPECTED}")
    assert opening(tmp_path / "gone.mp4").match(r"there is no clip at .*gone\.mp4")
    (tmp_path / "clips").mkdir()
    assert opening(tmp_path / "clips").match("clips is a folder; give one clip$")
    (tmp_path / "clips" / "B.MOV").touch()
    assert opening(str(tmp_path / "clips")).match(r"clips is a folder; give one clip, for example .*B\.MOV$")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert opening(tmp_path / "pipe.mp4").match(r"pipe\.mp4 is not a regular file")
    assert opening("https://example.org/a.mp4").match(
        "https://example.org/a.mp4 is an address; download the clip"
    )
    assert opening(b"\x1aE\xdf\xa3" + bytes(60)).match("holds Matroska or WebM video; expected")
    assert opening(7).match("a clip is a path, bytes or a list of PIL pictures, not int")
    assert opening([]).match("a clip given as pictures needs at least one")
    assert opening([PICTURES[0], "b.png"]).match(
        "picture 1 of a clip given as pictures is str, not a PIL pic"
    )


@pytest.mark.parametrize("num_frames", [0, -1, 2.0, True, "3"])
def test_the_number_of_frames_is_a_positive_whole_number(mp4: bytes, num_frames: Any) -> None:
    with pytest.raises(ValueError, match="num_frames is .*, expected a whole number of at least 1"):
        open_clip(mp4, num_frames=num_frames)
    with pytest.raises(ValueError, match="backend is 'ffmpeg', expected one of auto, pyav, decord"):
        open_clip(mp4, num_frames=1, backend="ffmpeg")


def test_a_rare_codec_is_not_decoded() -> None:
    data = encode_clip(PICTURES[:3], container="avi", codec="cinepak", pix_fmt="rgb24")
    with pytest.raises(ValueError, match="has a codec that is not read here; write it again as H.264, HEVC"):
        open_clip(data, num_frames=2)


# --- limits


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_limits_hold(mp4: bytes, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)

    def opening(message: str, **limits: Any) -> None:
        with pytest.raises(ValueError, match=rf"a\.mp4 {message}"):
            open_clip(path, num_frames=4, backend=backend, **limits)

    opening(rf"has {len(mp4):,} bytes, more than the limit of 99 \(max_bytes\)", max_bytes=99)
    opening(r"has frames of 96x72 pixels, more than the limit of 6,911 \(max_pixels\)", max_pixels=6911)
    opening(r"lasts 2 s, more than the limit of 2 s \(max_seconds\); cut it", max_seconds=1.9)
    opening(
        r"needs more than 9 frames decoded .* the limit \(max_decoded\): it has few keyframes", max_decoded=9
    )
    opening(r"takes more than 0 s to read, the limit \(max_wall_seconds\)", max_wall_seconds=0)
    fits = {"max_bytes": len(mp4), "max_pixels": 6912, "max_seconds": 2.01, "max_decoded": 20}
    assert len(open_clip(path, num_frames=4, backend=backend, **fits).frames) == 4


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_limits_hold_for_animations(format: str) -> None:
    data = animation(format)
    for limits, message in (
        ({"max_pixels": 6911}, "has frames of 96x72 pixels, more than the limit of 6,911"),
        ({"max_seconds": 0.55}, "lasts 1 s, more than the limit of 1 s"),
        ({"max_decoded": 5}, r"needs more than 5 frames decoded"),
        ({"max_wall_seconds": 0}, "takes more than 0 s to read"),
        ({"max_bytes": 99}, "bytes, more than the limit of 99"),
    ):
        with pytest.raises(ValueError, match=message):
            open_clip(data, num_frames=4, **limits)
    assert open_clip(data, num_frames=4, max_pixels=6912, max_seconds=0.61, max_decoded=12).num_distinct == 4


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_clip_that_takes_too_long_is_left(backend: str) -> None:
    data = encode_clip([PICTURES[i % 20] for i in range(3000)], gop=3000, options={"preset": "ultrafast"})
    started = time.monotonic()
    with pytest.raises(ValueError, match="takes more than 0.05 s to read"):
        open_clip(data, num_frames=64, backend=backend, max_wall_seconds=0.05)
    assert time.monotonic() - started < 5


def test_an_animation_of_a_giant_canvas_is_refused_before_it_is_made() -> None:
    gif = bytearray(animation("GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    webp = bytearray(animation("WEBP"))
    webp[24:30] = (16_382).to_bytes(3, "little") * 2
    for data, side in ((gif, 60_000), (webp, 16_383)):
        with pytest.raises(ValueError, match=f"has frames of {side}x{side} pixels"):
            open_clip(bytes(data), num_frames=2)


# --- headers that lie


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_forged_number_of_frames_costs_nothing(mp4: bytes, backend: str) -> None:
    many = struct.pack(">I", 10**9)
    data = edited(mp4, (*STBL, b"stsz"), 12, struct.pack(">I", 1) + many)
    data = edited(data, (*STBL, b"stts"), 12, struct.pack(">I", 1) + many)
    data = edited(data, (*STBL, b"stsc"), 12, struct.pack(">III", 1, 1, 10**9))
    started = time.monotonic()
    with pytest.raises(ValueError, match="is cut short or damaged"):
        open_clip(data, num_frames=4, backend=backend)
    assert time.monotonic() - started < 10


def test_a_forged_duration_is_not_believed(mp4: bytes) -> None:
    long = struct.pack(">I", 0x7FFFFFFF)
    for path, offset in (
        ((b"moov", b"mvhd"), 24),
        ((b"moov", b"trak", b"tkhd"), 28),
        ((*STBL[:3], b"mdhd"), 24),
    ):
        assert open_clip(edited(mp4, path, offset, long), num_frames=4).duration == pytest.approx(2.0)
    edit = (b"moov", b"trak", b"edts", b"elst")
    assert open_clip(edited(mp4, edit, 16, long), num_frames=4).duration == pytest.approx(2.0)
    assert open_clip(edited(mp4, edit, 16, struct.pack(">I", 1)), num_frames=4).duration <= 0.1
    with pytest.raises(ValueError, match="is cut short or damaged: it holds no picture"):
        open_clip(edited(mp4, edit, 16, bytes(4)), num_frames=4)
    for step, message in (
        (2**30, "lasts 104,858 s, more than the limit of 43,200 s"),
        (0, "cut short or damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            open_clip(edited(mp4, (*STBL, b"stts"), 20, struct.pack(">I", step)), num_frames=4)


def test_a_matroska_header_that_promises_more_is_an_error() -> None:
    """Its duration is a floating-point number of milliseconds: 2,000 becomes 2e9."""
    data = encode_clip(PICTURES, container="matroska")
    element = b"\x44\x89\x88" + struct.pack(">d", 2000.0)
    assert data.count(element) == 1
    forged = data.replace(element, b"\x44\x89\x88" + struct.pack(">d", 2e9))
    with pytest.raises(ValueError, match=r"header says that it ends at 2,000,000.0 s, but it ends at 2.0 s"):
        open_clip(forged, num_frames=4)


def test_a_forged_size_meets_the_limit_in_the_decoder_too() -> None:
    """Matroska says 16x16 pixels, the frames are larger than the limit."""
    large = moving_pictures(3, (320, 336))
    data = bytearray(encode_clip(large, container="webm", codec="libvpx-vp9"))
    for element, value in (
        (b"\xb0\x82\x01\x40", b"\xb0\x82\x00\x10"),
        (b"\xba\x82\x01\x50", b"\xba\x82\x00\x10"),
    ):
        assert data.count(element) == 1
        data[data.index(element) : data.index(element) + 4] = value
    with pytest.raises(
        ValueError, match="more than the limit of 10,000|frames have 0x0 pixels|does not decode"
    ):
        open_clip(bytes(data), num_frames=2, max_pixels=10_000)
    assert open_clip(bytes(data), num_frames=2).num_distinct == 2


# --- damage

KINDS: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: encode_clip(PICTURES),
    "mp4 with sound": lambda: encode_clip(PICTURES, sound="aac"),
    "webm": lambda: encode_clip(PICTURES, container="webm", codec="libvpx-vp9"),
    "mkv": lambda: encode_clip(PICTURES, container="matroska"),
    "avi": lambda: encode_clip(PICTURES, container="avi", codec="mpeg4"),
    "gif": lambda: animation("GIF"),
    "webp": lambda: animation("WEBP"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path: Path, kind: str, keep: float) -> None:
    data = KINDS[kind]()
    path = tmp_path / "cut.clip"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"cut\.clip is cut short or damaged"):
        open_clip(path, num_frames=20)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("keep", [0.55, 0.9])
def test_a_half_loaded_clip_is_an_error_and_not_a_crash(tmp_path: Path, backend: str, keep: float) -> None:
    """Its index comes first and promises more than there is: reading that in this process, decord ends it."""
    data = encode_clip(PICTURES, muxer={"movflags": "faststart"}, path=tmp_path / "whole.mp4")
    assert data.index(b"moov") < data.index(b"mdat")
    with pytest.raises(ValueError, match="is cut short or damaged"):
        open_clip(data[: int(len(data) * keep)], num_frames=20, backend=backend)


MUTATE = """
import io, sys, warnings
import numpy as np
from mm_llama.data.video import open_clip

warnings.simplefilter("error")
data = sys.stdin.buffer.read()
seed, backend = int(sys.argv[1]), sys.argv[2]
for number in range(int(sys.argv[3])):
    random = np.random.default_rng([seed, number])
    changed = bytearray(data)
    kind = random.integers(5)
    if kind == 0:  # cut
        del changed[random.integers(8, len(data)) :]
    elif kind == 1:  # anywhere
        for _ in range(random.integers(1, 9)):
            changed[random.integers(len(data))] = random.integers(256)
    elif kind == 2:  # where headers are: at either end
        for _ in range(random.integers(1, 9)):
            place = random.integers(min(1500, len(data)))
            changed[place if random.integers(2) else -1 - place] = random.choice([0, 1, 127, 128, 255])
    elif kind == 3:  # a stretch of it gone or doubled
        start = random.integers(8, len(data) - 8)
        changed[start : start + random.integers(1, 300)] = data[start : start + random.integers(300)]
    else:  # numbers in the headers
        place = random.integers(min(1500, len(data)) - 4)
        place = place if random.integers(2) else len(data) - 4 - place
        changed[place : place + 4] = bytes(random.choice([0, 127, 255], 4).tolist())
    print(number, flush=True)
    try:
        clip = open_clip(bytes(changed), num_frames=8, backend=backend, max_wall_seconds=30)
        assert len(clip.frames) == len(clip.times) == 8 and clip.frames[0].mode == "RGB"
        print("clip", flush=True)
    except ValueError as error:
        print("error", error, flush=True)
"""


def mutations(kind: str, seed: int, count: int, backend: str = "auto") -> None:
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(seed), backend, str(count)],
        input=KINDS[kind](),
        capture_output=True,
        timeout=300,
    )
    said = done.stdout.decode().splitlines()
    assert done.returncode == 0, (said[-1:], done.stderr.decode()[-2000:])
    assert said.count("clip") + sum(line.startswith("error ") for line in said) == count
    assert 0 < said.count("clip") < count
    assert not [line for line in said if re.search(r"0x[0-9a-f]{6}|object at|\[mov|Errno|av\.", line)]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_give_a_clip_or_an_error(kind: str) -> None:
    mutations(kind, seed=1, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_changed_bytes_give_a_clip_or_an_error_from_decord_too(kind: str) -> None:
    pytest.importorskip("decord")
    mutations(kind, seed=2, count=16, backend="decord")


# --- messages


def parts(*content: dict[str, Any]) -> tuple[Any, ...]:
    return messages_from_dicts([{"role": "user", "content": list(content)}])[0].parts


def test_messages_take_clips_as_they_take_pictures(mp4: bytes) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    for part, source in (
        ({"type": "video", "path": "a.mp4"}, "a.mp4"),
        ({"type": "video", "video": Path("a.mp4")}, "a.mp4"),
        ({"type": "video", "url": uri}, mp4),
        ({"type": "video", "base64": base64.b64encode(mp4).decode()}, mp4),
        ({"type": "video_url", "video_url": {"url": uri}}, mp4),
        ({"type": "video", "video": PICTURES[:3]}, tuple(PICTURES[:3])),
    ):
        (found,) = parts(part)
        assert (found.kind, found.source) == ("video", source)
    assert open_clip(parts({"type": "video_url", "video_url": uri})[0].source, num_frames=2).num_distinct == 2


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video", "url": "data:image/png;base64,AA=="}, r"type 'image/png'; expected video/\.\.\."),
        (
            {"type": "video_url", "video_url": {"url": "https://a.org/b.mp4"}},
            "https address, which is not fetched",
        ),
        ({"type": "video", "path": ["a.png"]}, r"content\[0\]\.path must be a string, not list"),
        ({"type": "video", "video": []}, r"content\[0\]\.video is an empty list"),
        ({"type": "video", "video": [PICTURES[0], "a.png"]}, r"video\[1\] must be a picture, not str"),
        (
            {"type": "image", "image": [PICTURES[0]]},
            "must be a path, a data URI, bytes, a picture or a tensor, not",
        ),
        ({"type": "video", "video": 3}, "bytes, a list of pictures or a tensor, not int"),
        ({"type": "vidoe", "path": "a.mp4"}, "did you mean 'video'"),
    ],
)
def test_what_is_wrong_with_a_clip_in_a_message_is_named(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(part)
