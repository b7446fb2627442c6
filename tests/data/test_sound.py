"""Sound in: each format gives the same tone, blocks are the whole, what is damaged or forged is refused by name."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm_llama.data.sound import PCM, Sound, open_sound, pcm_blocks, sound_blocks, sound_key
from mm_llama.testing.clips import encode_clip

pytest.importorskip("av")

TONE = 440.0


def tone(seconds: float, rate: int, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """float64[T, C]: one sine for all channels, but for their levels."""
    wave_T = level * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave_T * (1 - 0.5 * c / max(1, channels)) for c in range(channels)], axis=1)


def wav(samples_TC: np.ndarray, rate: int) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(samples_TC.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples_TC * 32767).astype("<i2").tobytes())
    return data.getvalue()


def float_wav(samples: np.ndarray, rate: int) -> bytes:
    body = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate, rate * 4, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def encoded(container: str, codec: str, seconds: float = 2.0, rate: int = 48_000, channels: int = 2) -> bytes:
    import av

    data = io.BytesIO()
    samples = tone(seconds, rate, channels).astype(np.float32)
    with av.open(data, "w", format=container) as writer:
        stream: Any = writer.add_stream(codec, rate=rate, layout="stereo" if channels == 2 else "mono")
        for start in range(0, len(samples), 960):
            block = np.ascontiguousarray(samples[start : start + 960].T)
            frame = av.AudioFrame.from_ndarray(
                block, format="fltp", layout="stereo" if channels == 2 else "mono"
            )
            frame.sample_rate, frame.pts = rate, start
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return data.getvalue()


def level_of_tone(sound: Sound) -> float:
    """How loud the tone is in a recording, by projection on it; the first and last tenth are left out."""
    cut = len(sound.samples) // 10
    x = sound.samples[cut:-cut].double()
    t = torch.arange(len(x)).double() / sound.rate
    parts = [(x * f(2 * math.pi * TONE * t)).mean() for f in (torch.sin, torch.cos)]
    return 2 * float(torch.stack(parts).norm())


FORMATS = [
    ("wav", "pcm_s16le", "WAV"), ("wav", "pcm_f32le", "WAV"), ("flac", "flac", "FLAC"), ("ogg", "libopus", "Ogg"),
    ("mp3", "libmp3lame", "MP3"), ("mp4", "aac", "mp4"), ("adts", "aac", "AAC"),
    ("webm", "libopus", "matroska"), ("matroska", "flac", "matroska"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "codec", "found"), FORMATS)
def test_every_format_gives_the_same_tone(container: str, codec: str, found: str) -> None:
    sound = open_sound(encoded(container, codec))
    assert (sound.container, sound.channels, sound.source_rate, sound.rate) == (found, 2, 48_000, 16_000)
    assert sound.samples.dtype == torch.float32 and sound.samples.ndim == 1
    assert sound.seconds == pytest.approx(2.0, abs=0.06)  # lossy codecs work in frames of up to 50 ms
    assert level_of_tone(sound) == pytest.approx(0.4375, rel=0.06)  # the mean of 0.5 and 0.375
    assert not sound.silent


def test_a_recording_without_a_header_is_known_by_its_name(tmp_path: Path) -> None:
    """G.722 has none: its bytes alone are of no known format."""
    data = encoded("g722", "g722", rate=16_000, channels=1)
    (tmp_path / "prompt.g722").write_bytes(data)
    sound = open_sound(tmp_path / "prompt.g722")
    assert (sound.container, sound.channels, sound.source_rate) == ("G.722", 1, 16_000)
    assert sound.seconds == pytest.approx(2.0, abs=0.06)
    assert level_of_tone(sound) == pytest.approx(0.5, rel=0.1)
    (tmp_path / "prompt.wav").write_bytes(data)
    for source in (data, tmp_path / "prompt.wav"):
        with pytest.raises(ValueError, match="holds no known format"):
            open_sound(source)


def test_samples_of_a_wav_are_what_was_written() -> None:
    values = np.random.default_rng(0).integers(-32768, 32768, (5000, 2)).astype("<i2")
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    sound = open_sound(data.getvalue())
    expected = (values.astype(np.float32) / 32768).mean(1, dtype=np.float32)
    assert torch.equal(sound.samples, torch.from_numpy(expected))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 96_000])
def test_any_rate_becomes_the_one_asked_for(rate: int) -> None:
    sound = open_sound(wav(tone(1.0, rate), rate))
    assert abs(len(sound.samples) - 16_000) <= 1
    assert level_of_tone(sound) == pytest.approx(0.5, rel=1e-3)
    other = open_sound(wav(tone(1.0, rate), rate), rate=24_000)
    assert abs(len(other.samples) - 24_000) <= 2 and other.rate == 24_000


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_blocks_side_by_side_are_the_whole(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav(tone(1.7, rate, 2), rate))
    blocks = list(sound_blocks(path))
    assert len(blocks) > 3
    assert torch.equal(torch.cat(blocks), open_sound(path).samples)


@pytest.mark.parametrize("form", list(PCM))
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_raw_samples_from_a_pipe_are_those_of_a_file(form: str, rate: int) -> None:
    samples = tone(0.6, rate, 2)
    scale = {"s16le": 32767, "s32le": 2**31 - 1, "f32le": 1.0, "u8": 127}[form]
    values = samples * scale + (128 if form == "u8" else 0)
    values = values if form == "f32le" else np.round(values)
    raw = values.astype(PCM[form][0]).tobytes()

    class Pipe(io.RawIOBase):
        """Gives what it likes: never more than 997 bytes, so samples are cut anywhere."""

        def __init__(self) -> None:
            self.at = 0

        def read(self, size: int = -1) -> bytes:
            part = raw[self.at : self.at + min(size, 997)]
            self.at += len(part)
            return part

    blocks = list(pcm_blocks(Pipe(), rate=rate, channels=2, form=form))  # type: ignore[arg-type]
    given = torch.from_numpy(samples.T.astype(np.float32))
    expected = open_sound((given, rate)).samples
    assert len(blocks) > 3
    assert (torch.cat(blocks) - expected).abs().max() < (0.01 if form == "u8" else 1e-4)


def test_raw_samples_that_end_within_one_say_so() -> None:
    with pytest.raises(ValueError, match=r"ends within a sample: 3 bytes are left of 4"):
        list(pcm_blocks(io.BytesIO(b"\0" * 4003), rate=16_000, channels=2))
    with pytest.raises(ValueError, match="stream of raw samples holds no samples"):
        list(pcm_blocks(io.BytesIO(b""), rate=16_000))
    with pytest.raises(ValueError, match="raw samples are s16le, .* not 's24le'"):
        list(pcm_blocks(io.BytesIO(b""), rate=16_000, form="s24le"))


def test_given_samples_and_sounds_are_taken_as_they_are() -> None:
    samples = torch.linspace(-1, 1, 1000)
    sound = open_sound((samples, 16_000))
    assert torch.equal(sound.samples, samples) and open_sound(sound) is sound
    assert len(open_sound(sound, rate=8_000).samples) == 500
    stereo = torch.stack((samples, -samples))
    assert open_sound((stereo, 16_000)).silent
    for wrong in ((samples.int(), 16_000), (samples[:0], 16_000), (samples[None, None], 16_000)):
        with pytest.raises(ValueError, match=r"float\[T\] or float\[C, T\]"):
            open_sound(wrong)


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    data = wav(tone(0.2, 16_000), 16_000)
    (tmp_path / "a.wav").write_bytes(data)
    assert sound_key(tmp_path / "a.wav") == sound_key(data) != sound_key(wav(tone(0.3, 16_000), 16_000))
    samples = torch.zeros(10)
    assert sound_key((samples, 16_000)) == sound_key(Sound(samples, 16_000)) != sound_key((samples, 8_000))


def test_the_sound_of_a_clip_is_heard_and_a_mute_one_refused() -> None:
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "blue", "white")] * 4
    sound = open_sound(encode_clip(frames, rate=8, sound="aac"))
    assert sound.container == "mp4" and sound.seconds == pytest.approx(2, abs=0.1) and not sound.silent
    with pytest.raises(ValueError, match="holds no sound; expected WAV"):
        open_sound(encode_clip(frames, rate=8))


def forged(at: int, form: str, value: int) -> bytes:
    data = bytearray(wav(tone(0.5, 16_000), 16_000))
    struct.pack_into(form, data, at, value)
    return bytes(data)


def flac_of_silence(seconds: float) -> bytes:
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="flac") as writer:
        stream: Any = writer.add_stream("flac", rate=16_000, layout="mono")
        silence = np.zeros((1, 16_000), np.int16)
        for second in range(int(seconds)):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, second * 16_000
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return data.getvalue()


WHOLE = wav(tone(2.0, 16_000), 16_000)
BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty", lambda: b"", "is empty; expected WAV"),
    ("text", lambda: b"hello " * 50, "holds text; expected WAV"),
    ("a picture", lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "holds PNG; expected WAV"),
    ("a playlist", lambda: b"#EXTM3U\nhttp://a/b.mp3\n", "holds playlist; expected WAV"),
    ("no samples", lambda: wav(np.zeros((0, 1)), 16_000), "holds no samples"),
    ("a rate of 0", lambda: forged(24, "<I", 0), "samples a second|does not parse"),
    ("a rate of 1", lambda: forged(24, "<I", 1), "1 samples a second, expected 2,000 to 768,000"),
    ("a rate of billions", lambda: forged(24, "<I", 2_000_000_000), "2,000,000,000 samples a second"),
    (
        "many channels",
        lambda: forged(22, "<H", 60_000),
        "channels, expected 1 to 16|holds no sound|does not parse",
    ),
    ("half a WAV", lambda: WHOLE[: len(WHOLE) // 2], r"says that it lasts 2.0 s, but it ends at 1.0 s"),
    (
        "half a WAV of floats",
        lambda: float_wav(np.zeros(16_000), 16_000)[:30_000],
        "lasts 1.0 s, but it ends at 0.5",
    ),
    ("half a FLAC", lambda: (d := encoded("flac", "flac"))[: len(d) // 2], "is cut short or damaged"),
    ("half an M4A", lambda: (d := encoded("mp4", "aac"))[: len(d) // 2], "is cut short or damaged"),
    ("not a number", lambda: float_wav(np.r_[np.zeros(8000), np.nan], 16_000), "not a number, at 0.500 s"),
    ("infinity", lambda: float_wav(np.r_[np.zeros(800), -np.inf], 16_000), "not a number, at 0.050 s"),
]


@pytest.mark.parametrize(("make", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_no_whole_recording_is_refused_by_name(
    make: Callable[[], bytes], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "recording.wav"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=says) as refused:
        open_sound(path)
    assert str(refused.value).startswith(str(path))
    with pytest.raises(ValueError, match=says):
        list(sound_blocks(path))


def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end() -> None:
    for size in (0, 0xFFFFFFFF):
        assert len(open_sound(forged(40, "<I", size)).samples) == 8000


def test_small_files_that_unfold_to_much_are_stopped_on_the_way() -> None:
    data = flac_of_silence(120)
    assert len(data) < 40_000
    assert open_sound(data).silent
    with pytest.raises(ValueError, match=r"lasts more than 60 s, the limit \(max_seconds\)"):
        open_sound(data, max_seconds=60)
    with pytest.raises(ValueError, match=r"more than the limit of 100 \(max_bytes\)"):
        open_sound(data, max_bytes=100)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no recording at"):
        open_sound(tmp_path / "none.wav")
    (tmp_path / "a.flac").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a folder; give one recording, for example .*a\.flac"):
        open_sound(tmp_path)
    with pytest.raises(ValueError, match="is an address; download the recording"):
        open_sound("https://example.org/a.wav")
    with pytest.raises(ValueError, match=r"a recording is a path, bytes or \(samples, rate\), not int"):
        open_sound(3)
    with pytest.raises(ValueError, match="rate is 0, expected a whole number"):
        open_sound(WHOLE, rate=0)
