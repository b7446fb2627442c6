"""Recordings changed: speeds, noise at a ratio, hidden bands; the same from the same generator."""

from __future__ import annotations

import math

import pytest
import torch

from mm_llama.data.augment import change_speed, mix, spec_augment

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.337])
def test_another_speed_is_another_length_and_pitch(factor: float) -> None:
    pytest.importorskip("soxr")
    samples = tone(400)
    made = change_speed(samples, factor)
    assert abs(len(made) - len(samples) / factor) <= 1 and made.dtype == torch.float32
    middle = made[1000:-1000] * torch.hann_window(len(made) - 2000)
    peak = torch.fft.rfft(middle, 2**18).abs().argmax() * RATE / 2**18
    assert float(peak) == pytest.approx(400 * factor, rel=2e-3)
    assert change_speed(samples, 1.0) is samples
    with pytest.raises(ValueError, match="a speed of 9 times"):
        change_speed(samples, 9)


@pytest.mark.parametrize("length", [300, 16_000, 50_000])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_lies_beneath_at_the_ratio_asked_for(length: int, snr_db: float) -> None:
    samples, noise = tone(400), torch.randn(length, generator=generator(1))
    mixed = mix(samples, noise, snr_db, generator=generator())
    added = mixed - samples
    ratio = 10 * torch.log10(samples.square().mean() / added.square().mean())
    assert float(ratio) == pytest.approx(snr_db, abs=0.01)
    assert torch.equal(mixed, mix(samples, noise, snr_db, generator=generator()))
    if length != 16_000:
        assert not torch.equal(mixed, mix(samples, noise, snr_db, generator=generator(5)))
    assert torch.equal(mix(samples, torch.zeros(length), snr_db, generator=generator()), samples)
    with pytest.raises(ValueError, match="it has no samples"):
        mix(samples, noise[:0], snr_db, generator=generator())


def test_bands_of_times_and_mels_are_hidden() -> None:
    mels = torch.randn(300, 80, generator=generator(2)) + 4
    made = spec_augment(mels, generator=generator(3))
    hidden = made != mels
    times, bands = hidden.all(1), hidden.all(0)
    assert 0 < times.sum() <= 80 and 0 < bands.sum() <= 54
    assert torch.equal(hidden, times[:, None] | bands)  # nothing but whole bands
    torch.testing.assert_close(made[hidden], mels.mean().expand(int(hidden.sum())))
    assert torch.equal(made, spec_augment(mels, generator=generator(3)))
    assert not torch.equal(made, spec_augment(mels, generator=generator(4)))


def test_a_short_recording_is_not_hidden_whole() -> None:
    mels = torch.randn(10, 80, generator=generator(2))
    for seed in range(20):
        made = spec_augment(mels, generator=generator(seed), time_masks=2, mel_masks=0)
        assert (made != mels).all(1).sum() <= 4
    assert torch.equal(spec_augment(mels, generator=generator(), time_masks=0, mel_masks=0), mels)
