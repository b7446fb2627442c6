"""Acoustic model and vocoder: what one utterance gives depends on no other, and on what comes only as far as stated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.convolutions import Convolution, aheads
from adapters.tts_acoustic import AcousticModel, places
from adapters.tts_vocoder import Vocoder, overlap
from encoders.log_mel import LogMel

HOP, WINDOW, MELS = 20, 80, 8


def shaken(module: Any) -> Any:
    """A module whose norms and biases are away from their first values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return module.eval()


def acoustic(**options: Any) -> AcousticModel:
    sizes = {"width": 16, "hidden": 24, "phone_blocks": 2, "frame_blocks": 2, "kernel": 5} | options
    return shaken(AcousticModel(20, MELS, phones_ahead=3, frames_ahead=2, **sizes))


def vocoder(**options: Any) -> Vocoder:
    sizes = {"width": 16, "hidden": 24, "num_blocks": 2, "kernel": 5, "frames_ahead": 3} | options
    return shaken(Vocoder(MELS, 8000, WINDOW, HOP, **sizes))


def utterance(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 20, (count,), generator=generator),
        torch.randint(1, 5, (count,), generator=generator),
        torch.randn(count, 3, generator=generator),
    )


def test_an_utterance_alone_is_the_utterance_among_others() -> None:
    model, given = acoustic(), [utterance(7), utterance(1, 1), utterance(4, 2)]
    with torch.inference_mode():
        for one, together in zip(given, model(given), strict=True):
            (alone,) = model([one])
            assert together.shape == (int(one[1].sum()), MELS)
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_frame_depends_on_phones_and_frames_as_far_ahead_as_stated() -> None:
    model, (phones, frames, prosody) = acoustic(), utterance(12)
    changed = prosody.clone()
    changed[8] += 1
    with torch.inference_mode():
        (before,), (after,) = model([(phones, frames, prosody)]), model([(phones, frames, changed)])
    differs = (before != after).any(-1)
    # Of phone 8 the frames of phone 5 know, and of those the two frames before them.
    first = int(frames[:5].sum()) - 2
    assert not differs[:first].any() and differs[first:].all()


def test_frames_know_their_place_in_their_phone() -> None:
    found = places(torch.tensor([1, 3]), torch.tensor([[1.0, 0.0, 5.0], [2.0, 1.0, 6.0]]))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.5, 1 / 6, 0.5, 5 / 6]))
    torch.testing.assert_close((found[:, 1] + 1).exp(), torch.tensor([1.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close((found[:, 2] + 1).exp(), torch.tensor([1.0, 3.0, 2.0, 1.0]))
    assert found[:, 3:].tolist() == [[1, 0, 5], *[[2, 1, 6]] * 3]


def test_a_log_mel_alone_is_the_log_mel_among_others() -> None:
    model, generator = vocoder(), torch.Generator().manual_seed(0)
    given = [torch.randn(count, MELS, generator=generator) for count in (9, 2, 30)]
    with torch.inference_mode():
        for one, together in zip(given, model(given), strict=True):
            (alone,) = model([one])
            assert together.shape == (len(one) * HOP,) and together.dtype == torch.float32
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_sample_depends_on_frames_as_far_ahead_as_stated() -> None:
    model, mel = vocoder(), torch.randn(30, MELS, generator=torch.Generator().manual_seed(0))
    changed = mel.clone()
    changed[20] += 1
    with torch.inference_mode():
        (before,), (after,) = model([mel]), model([changed])
    differs = (before - after).abs() > 1e-7
    # Three frames ahead in the network, two by which the windows overlap.
    first = (20 - 3 - WINDOW // (2 * HOP)) * HOP
    assert not differs[:first].any() and differs[first + 2 : first + HOP].all()


def test_samples_are_torchs_inverse_transform() -> None:
    model, generator = vocoder(), torch.Generator().manual_seed(0)
    samples = torch.randn(25 * HOP, generator=generator)
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    # The last frame, whose middle is the end, is nothing to the vocoder: of a length it has a frame a hop.
    found = model.samples(spectrum[:, :-1].T, 25)
    assert torch.allclose(found[: -WINDOW // 2], samples[: -WINDOW // 2], atol=1e-5)
    assert torch.equal(overlap(torch.ones(3, 4), 2), torch.tensor([1.0, 1, 2, 2, 2, 2, 1, 1]))


def test_mels_and_samples_are_of_one_length() -> None:
    mel = LogMel(MELS, 8000, WINDOW, HOP, dynamic_range=None)(torch.randn(33 * HOP))
    (samples,) = vocoder()([mel])
    assert len(mel) == 33 and len(samples) == 33 * HOP


@pytest.mark.parametrize(("kernel", "ahead"), [(5, 0), (5, 2), (5, 4), (1, 0)])
def test_a_convolution_looks_as_far_ahead_as_it_says(kernel: int, ahead: int) -> None:
    layer = Convolution(3, 3, kernel, ahead)
    x = torch.randn(1, 3, 20, requires_grad=True)
    layer(x)[0, :, 10].sum().backward()
    assert x.grad is not None
    seen = (x.grad[0] != 0).any(0).nonzero().flatten().tolist()
    assert seen == list(range(10 - (kernel - 1 - ahead), 10 + ahead + 1))


def test_look_ahead_is_shared_out_or_refused() -> None:
    assert aheads(4, 9, 6) == [4, 2, 0, 0] and aheads(2, 5, 0) == [0, 0]
    with pytest.raises(ValueError, match="2 blocks of kernel 5 look at most 4 steps ahead"):
        aheads(2, 5, 5)
    with pytest.raises(ValueError, match="a kernel of 3 cannot look 3 steps ahead"):
        Convolution(1, 1, 3, 3)


def test_every_parameter_learns() -> None:
    for model, given in ((acoustic(), [utterance(5)]), (vocoder(), [torch.randn(9, MELS)])):
        model.train()
        model(given)[0].square().sum().backward()
        assert isinstance(model, nn.Module)
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_what_cannot_be_is_refused() -> None:
    phones, frames, prosody = utterance(3)
    with pytest.raises(ValueError, match="each takes at least one frame"):
        acoustic()([(phones, frames * 0, prosody)])
    with pytest.raises(ValueError, match=r"reads log-mels \[frames, 8\], but these are \[4, 5\]"):
        vocoder()([torch.zeros(4, 5)])
    with pytest.raises(ValueError, match="not an even number of hops"):
        Vocoder(MELS, 8000, 80, 30)


@pytest.mark.parametrize("count", [1, 2, 7, 23])
@pytest.mark.parametrize("step", [1, 4, 30])
def test_phones_in_pieces_sound_as_the_whole(count: int, step: int) -> None:
    acoustic_model, sounder, whole = acoustic(), vocoder(), utterance(count)
    with torch.inference_mode():
        (mels,) = acoustic_model([whole])
        (samples,) = sounder([mels])
        speaking, waving = acoustic_model.start(), sounder.start()
        frames, waves = [], []
        for first in range(0, count, step):
            phones, lengths, prosody = (part[first : first + step] for part in whole)
            last = first + step >= count
            frames.append(acoustic_model.more(speaking, (phones, lengths, prosody), last))
            waves.append(sounder.more(waving, frames[-1], last))
    torch.testing.assert_close(torch.cat(frames), mels, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(waves), samples, rtol=1e-4, atol=1e-4)
    if count == 23 and step < 30:
        # Sound comes long before the end; behind the last piece there is what was looked ahead at.
        assert len(waves[len(waves) // 2]) and len(waves[-1]) < len(samples) / 2
