"""Cutting at pauses: nothing is lost, pieces are short enough, cuts fall where nobody speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_llama.data.pauses import Cutter, cut
from mm_llama.data.sound import RATE, open_sound
from mm_llama.data.voice_activity import CONTEXT, WINDOW, VoiceActivity


def speech(seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise as loud as speech."""
    return 0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def hush(seconds: float) -> torch.Tensor:
    """A quiet room."""
    return 1e-4 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(9))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.02, 7)), min_size=1, max_size=8),
    st.integers(37, 40_000),
)
def test_every_sample_is_in_one_piece(parts: list[tuple[bool, float]], block: int) -> None:
    samples = torch.cat([speech(length) if loud else hush(length) for loud, length in parts])
    pieces = list(cut(samples.split(block), max_seconds=5))
    assert torch.equal(torch.cat([piece.samples for piece in pieces]), samples)
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert after.start == pytest.approx(before.end)
    assert max(len(piece.samples) for piece in pieces) <= 5 * RATE + RATE // 100


def test_the_blocks_do_not_matter() -> None:
    samples = torch.cat((hush(1.3), speech(3), hush(0.9), speech(8), hush(2)))
    expected = [(piece.start, piece.end, piece.silent) for piece in cut([samples])]
    for block in (160, 1000, 4097):
        assert [(piece.start, piece.end, piece.silent) for piece in cut(samples.split(block))] == expected


def test_cuts_fall_into_pauses() -> None:
    samples = torch.cat((hush(1), speech(3), hush(1), speech(4, 1), hush(1)))
    spoken = [piece for piece in cut([samples]) if not piece.silent]
    assert len(spoken) == 2
    assert spoken[0].start <= 1.0 and 4.0 <= spoken[0].end <= 5.0 <= spoken[1].end
    assert spoken[1].start <= 5.0 and spoken[1].end >= 9.0


def test_silence_is_said_to_be_silence() -> None:
    pieces = list(cut([torch.zeros(10 * RATE)]))
    assert all(piece.silent for piece in pieces)
    assert sum(len(piece.samples) for piece in pieces) == 10 * RATE


def test_who_never_pauses_is_cut_at_the_quietest_place() -> None:
    samples = torch.cat((speech(3.5), 0.2 * speech(0.15, 3), speech(6, 1)))
    first = next(iter(cut([samples], max_seconds=5)))
    assert 3.5 <= first.end <= 3.65


def test_memory_is_that_of_a_piece() -> None:
    cutter = Cutter(max_seconds=5)
    most = 0
    for number in range(60):
        cutter.push(speech(1, number))
        most = max(most, len(cutter.open.samples))
    assert most <= 5 * RATE


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="expected 0.4 <= pause <= least < max_seconds"):
        Cutter(max_seconds=1, least=2)


@pytest.fixture
def in_noise(asset_dir: Callable[[str], Path]) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """Sentences of an audio book with 1.5 seconds between them, pink noise 5 dB beneath, and where each is."""
    files = sorted(asset_dir("librivox_clips").rglob("*.wav"))[:4]
    parts, where, at = [], [], 1.5
    for file in files:
        samples = open_sound(file).samples
        parts += [torch.zeros(RATE * 3 // 2), samples / samples.square().mean().sqrt()]
        where.append((at, at := at + len(samples) / RATE))
        at += 1.5
    sound = torch.cat([*parts, torch.zeros(RATE * 3 // 2)])
    spectrum = torch.fft.rfft(torch.randn(len(sound), generator=torch.Generator().manual_seed(0)))
    pink = torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1).sqrt(), len(sound))
    return 0.05 * (sound + pink / pink.square().mean().sqrt() * 10 ** (-5 / 20)), where


def test_a_network_finds_pauses_in_noise(
    asset_dir: Callable[[str], Path], in_noise: tuple[torch.Tensor, list[tuple[float, float]]]
) -> None:
    samples, where = in_noise
    network = asset_dir("silero_vad")

    def silent_in_pauses(voice: VoiceActivity | None) -> list[bool]:
        pieces = list(cut(samples.split(4000), voice=voice))
        assert torch.equal(torch.cat([piece.samples for piece in pieces]), samples)
        middles = [0.75, *(end + 0.75 for _, end in where)]
        return [piece.silent for at in middles for piece in pieces if piece.start <= at < piece.end]

    assert all(silent_in_pauses(VoiceActivity(network)))
    assert not any(silent_in_pauses(None))  # so loud a noise is no quiet


def test_the_blocks_do_not_matter_to_a_network(
    asset_dir: Callable[[str], Path], in_noise: tuple[torch.Tensor, list[tuple[float, float]]]
) -> None:
    samples, where = in_noise
    network = asset_dir("silero_vad")
    expected = [
        (piece.start, piece.end, piece.silent) for piece in cut([samples], voice=VoiceActivity(network))
    ]
    assert sum(not silent for _, _, silent in expected) >= len(where)
    for block in (37, 1000, 4097):
        pieces = cut(samples.split(block), voice=VoiceActivity(network))
        assert [(piece.start, piece.end, piece.silent) for piece in pieces] == expected


def test_a_network_in_parts_is_the_network_at_once(
    asset_dir: Callable[[str], Path], in_noise: tuple[torch.Tensor, list[tuple[float, float]]]
) -> None:
    samples = in_noise[0][: 100 * WINDOW]
    network = asset_dir("silero_vad")
    whole = VoiceActivity(network).push(samples)
    parts = VoiceActivity(network)
    assert torch.allclose(
        torch.cat([parts.push(part) for part in samples.split(7 * WINDOW)]), whole, atol=1e-5
    )
    assert 0.0 <= float(whole.min()) < 0.1 and 0.9 < float(whole.max()) <= 1.0
    with pytest.raises(ValueError, match=f"{CONTEXT} samples are no whole windows of {WINDOW}"):
        parts.push(samples[:CONTEXT])


def test_without_the_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mm-llama assets fetch silero_vad"):
        VoiceActivity(tmp_path)
