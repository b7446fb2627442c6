"""What is done to recordings so that a model hears more than there are: other speeds, noise beneath, parts hidden.

Everything is drawn from a generator that is given, or from torch's own, so that a step can be repeated.

Shapes: B recordings, T samples, A mel frames, n mels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def change_speed(samples_T: Tensor, factor: float) -> Tensor:
    """Return the recording played `factor` times as fast, float32[T / factor]; pitch moves along.

    Speed perturbation as in Ko et al., "Audio Augmentation for Speech Recognition", 2015.
    """
    import soxr

    if not 0.25 <= factor <= 4:
        raise ValueError(f"a speed of {factor} times is not one that speech has; expected 0.25 to 4")
    if factor == 1:
        return samples_T
    # As if it had been recorded at another rate: soxr takes any two rates, also fractional ones.
    made = soxr.resample(samples_T.float().numpy(), factor * 16_000, 16_000, quality="HQ")
    return torch.from_numpy(made)


def mix(samples_T: Tensor, noise_T: Tensor, snr_db: float, *, generator: torch.Generator | None) -> Tensor:
    """Return the recording with noise beneath it, `snr_db` decibels softer by mean power, float32[T].

    A noise that is longer is cut at a place that is drawn (from `generator`, or torch's own where it is None), a
    shorter one repeated. Where either is silent there is
    no such ratio, and the recording comes back as it was.
    """
    T, N = len(samples_T), len(noise_T)
    if not N:
        raise ValueError("there is no noise to mix in: it has no samples")
    start = (
        int(torch.randint(0, N, (), generator=generator))
        if N < T
        else int(torch.randint(0, N - T + 1, (), generator=generator))
    )
    noise = noise_T.float().repeat(-(-(start + T) // N))[start : start + T]
    loud, soft = samples_T.float().square().mean(), noise.square().mean()
    if not loud or not soft:
        return samples_T
    return samples_T + noise * (loud / soft / 10 ** (snr_db / 10)).sqrt()


def spec_augment(
    mels_An: Tensor,
    *,
    generator: torch.Generator | None,
    time_masks: int = 2,
    time_width: int = 40,
    time_share: float = 0.2,
    mel_masks: int = 2,
    mel_width: int = 27,
) -> Tensor:
    """Return log-mels with bands of times and of mels at the recording's mean (SpecAugment, arXiv 1904.08779).

    Drawn from `generator`, or torch's own where it is None. Each band's width is drawn from 0 to the width given; a
    band of times is at most `time_share` of the recording.
    """
    A, n = mels_An.shape
    hidden = torch.zeros(A, n, dtype=torch.bool)
    for count, width, size, axis in (
        (time_masks, min(time_width, int(time_share * A)), A, 0),
        (mel_masks, min(mel_width, n), n, 1),
    ):
        for _ in range(count):
            drawn = int(torch.randint(0, width + 1, (), generator=generator))
            start = int(torch.randint(0, size - drawn + 1, (), generator=generator))
            hidden.narrow(axis, start, drawn).fill_(True)
    return torch.where(hidden.to(mels_An.device), mels_An.mean(), mels_An)


def span_mask(
    lengths_B: Tensor,
    num_frames: int,
    *,
    probability: float = 0.025,
    span: int = 32,
    generator: torch.Generator,
) -> Tensor:
    """Draw which mel frames are hidden, bool[B, A]: each real frame begins a span with this probability.

    Spans overlap, and end with the recording: about `1 - (1 - probability) ** span` of its frames are hidden. A
    recording in which none would begin gets one, at a place drawn evenly: it would teach nothing else.
    """
    B = len(lengths_B)
    draws_BA = torch.rand(B, num_frames, generator=generator)
    lengths = lengths_B.cpu()
    real_BA = torch.arange(num_frames) < lengths[:, None]
    begins_BA = (draws_BA < probability) & real_BA
    least_B = draws_BA.masked_fill(~real_BA, 2.0).argmin(1)
    none_B = ~begins_BA.any(1) & (lengths > 0)
    begins_BA[none_B, least_B[none_B]] = True
    # A frame is hidden where a span began at most span - 1 frames before it.
    begun_BA = begins_BA.long().cumsum(1)
    before_BA = F.pad(begun_BA, (span, 0))[:, :num_frames]
    return ((begun_BA > before_BA) & real_BA).to(lengths_B.device)


def hide(mels_BAn: Tensor, hidden_BA: Tensor, *, std: float = 0.1, generator: torch.Generator) -> Tensor:
    """Return the mels with noise of this deviation in place of hidden frames (arXiv 2202.01855, section 3.2)."""
    noise = torch.randn(mels_BAn.shape, generator=generator).to(mels_BAn) * std
    return torch.where(hidden_BA[..., None], noise, mels_BAn)


def wholly_hidden(hidden_BA: Tensor, stack: int) -> Tensor:
    """Return bool[B, T]: stacked frames of which no mel frame is seen. Only there is a code to be predicted."""
    T = hidden_BA.shape[1] // stack
    return hidden_BA[:, : T * stack].unflatten(1, (T, stack)).all(-1)
