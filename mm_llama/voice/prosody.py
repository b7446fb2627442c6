"""The prosody of phones: how long, how high and how loud each is, as the models of the voice are given it.

Shapes: P phones, F frames, n mels, S core positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mm_llama.core.tokenizer import Tokenizer
from mm_llama.voice import check_factor
from mm_llama.voice.recorded import Recorded

Utterance = tuple[
    Tensor, Tensor, Tensor
]  # phones int64[P], frames of each int64[P], prosody of each float32[P, 3]

# What is added and multiplied so that each is about zero and about one wide.
F0_CENTER, F0_SCALE = 5.3, 4.0  # of the natural logarithm of Hz
POWER_CENTER, POWER_SCALE = -0.4, 2.5  # of the mean of a log-mel over its mels
LENGTH_CENTER, LENGTH_SCALE = 1.3, 1.5  # of the natural logarithm of frames
VOICED = 0.5  # the least share of a phone's frames that have a voice


def measured(one: Recorded, mel_Fn: Tensor) -> Utterance:
    """Return a recording's phones with the prosody that they were said with."""
    return one.phones_P, one.frames_P, prosody_of(one.frames_P, one.f0_F, mel_Fn)


def prosody_of(frames_P: Tensor, f0_F: Tensor, mel_Fn: Tensor) -> Tensor:
    """Return float32[P, 3] of each phone."""
    owner_F = torch.repeat_interleave(torch.arange(len(frames_P), device=frames_P.device), frames_P)
    voiced_F = (f0_F > 0).float()
    log_F = torch.where(f0_F > 0, f0_F.clamp_min(1).log(), 0.0)
    sums_P3 = torch.zeros(len(frames_P), 3, device=frames_P.device)
    sums_P3.index_add_(0, owner_F, torch.stack((log_F, voiced_F, mel_Fn.mean(-1).float()), dim=1))
    share_P = sums_P3[:, 1] / frames_P
    has_voice_P = share_P >= VOICED
    f0_P = torch.where(has_voice_P, (sums_P3[:, 0] / sums_P3[:, 1].clamp_min(1) - F0_CENTER) * F0_SCALE, 0.0)
    power_P = (sums_P3[:, 2] / frames_P - POWER_CENTER) * POWER_SCALE
    return torch.stack((f0_P, has_voice_P.float(), power_P), dim=1)


def features_of(utterance: Utterance) -> Tensor:
    """Return float32[P, 4] as the prosody model has them: log length, log F0, whether there is a voice, log power."""
    _, frames_P, prosody_P3 = utterance
    length_P = (frames_P.float().log() - LENGTH_CENTER) * LENGTH_SCALE
    return torch.cat((length_P[:, None], prosody_P3), dim=1)


def utterance_of(phones_P: Tensor, features_P4: Tensor, rate: float = 1.0, pitch: float = 1.0) -> Utterance:
    """Return phones with predicted features as the acoustic model takes them; each phone takes a frame at least.

    `rate` makes it faster, `pitch` higher, as factors. Raises ValueError for factors outside 0.5 to 2.
    """
    check_factor("rate", rate)
    check_factor("pitch", pitch)
    frames_P = (features_P4[:, 0] / LENGTH_SCALE + LENGTH_CENTER).exp() / rate
    voiced_P = (features_P4[:, 2] > 0).float()
    higher = float(torch.tensor(pitch).log()) * F0_SCALE
    prosody_P3 = torch.stack(((features_P4[:, 1] + higher) * voiced_P, voiced_P, features_P4[:, 3]), dim=1)
    return phones_P, frames_P.round().clamp_min(1).long(), prosody_P3


def owners_of_phones(phones: str, text: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return for each phone of `phones`, with silence before and behind, the core's token in which its word begins.

    Words are what white space divides, in both. Where they are not equally many, they are shared out evenly.
    """
    words, said = text.split(), max(1, len(phones.split(" ")))
    if not words or not ids:
        raise ValueError(f"there is no word in {text!r} for the phones {phones!r}")
    place, starts = 0, []
    for word in words:
        place = text.index(word, place)
        starts.append(len(text[:place].encode()))
        place += len(word)
    ends = list(accumulate(len(tokenizer.token_bytes(id)) for id in ids))
    # A token that begins with the space before a word is the word's first.
    first = [min(bisect_right(ends, start), len(ids) - 1) for start in starts]
    number, found = 0, [first[0]]
    for phone in phones:
        found.append(first[min(number * len(words) // said, len(words) - 1)])
        number += phone == " "
    return [*found, first[-1]]
