"""The acoustic model: phones with their prosody to log-mels, causal but for a stated look-ahead (paper section 8.3).

The paper leaves this part to a synthesiser of its own. Each phone comes with the three numbers that the prosody model
gives: log duration, mean log F0, mean log power. Blocks of convolutions read the phones, each is held for as many
frames as it lasts, and blocks read the frames.

Shapes: B utterances, P phones, F frames, W width, n mels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adapters.convolutions import Block, Tail, aheads, init_weights, real_steps

Utterance = tuple[
    Tensor, Tensor, Tensor
]  # phones int64[P], frames of each int64[P], prosody of each float[P, 3]


@dataclass
class Sounding:
    """What the acoustic model keeps of an utterance whose phones come in pieces."""

    phones: list[Tail]  # of each block
    frames: list[Tail]
    frames_P: Tensor  # of the phones that have still to be held
    prosody_P3: Tensor


class AcousticModel(nn.Module):
    """Utterances to log-mels float[F, n], scaled as `encoders.log_mel` has them.

    The prosody of a phone is its mean log F0, whether it has a voice (0 or 1) and its mean log power, each about zero
    and about one wide.
    """

    def __init__(
        self,
        num_phones: int,
        num_mels: int = 80,
        width: int = 256,
        hidden: int = 768,
        phone_blocks: int = 4,
        frame_blocks: int = 6,
        kernel: int = 9,
        phones_ahead: int = 6,
        frames_ahead: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_phones, self.num_mels = num_phones, num_mels
        self.phones_ahead, self.frames_ahead = phones_ahead, frames_ahead
        self.embedding = nn.Embedding(num_phones, width)
        self.prosody = nn.Linear(4, width)
        self.phone_blocks: Any = nn.ModuleList(
            Block(width, hidden, kernel, ahead) for ahead in aheads(phone_blocks, kernel, phones_ahead)
        )
        self.place = nn.Linear(6, width)
        self.frame_blocks: Any = nn.ModuleList(
            Block(width, hidden, kernel, ahead) for ahead in aheads(frame_blocks, kernel, frames_ahead)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_mels)
        if not self.output.weight.is_meta:
            init_weights(self, seed)

    def forward(self, utterances: Sequence[Utterance]) -> list[Tensor]:
        """Return float[F, n] of each; what one gives does not depend on the others.

        Raises ValueError for a phone that takes no frame, and for none.
        """
        for phones_P, frames_P, _ in utterances:
            if not len(phones_P) or int(frames_P.min()) < 1:
                raise ValueError("an utterance has at least one phone, and each takes at least one frame")
        device = self.output.weight.device
        lengths = [len(phones_P) for phones_P, _, _ in utterances]
        phones_BP, frames_BP, prosody_BP3 = (
            pad_sequence(list(parts), batch_first=True) for parts in zip(*utterances, strict=True)
        )
        x_BPW = self._embedded(phones_BP, frames_BP, prosody_BP3)
        real_BP1 = real_steps(lengths, device)
        for block in self.phone_blocks:
            x_BPW = block(x_BPW, real_BP1)
        held = [
            torch.repeat_interleave(x_PW[:count], frames_P, dim=0) + self.place(places(frames_P, prosody_P3))
            for x_PW, count, (_, frames_P, prosody_P3) in zip(x_BPW, lengths, utterances, strict=True)
        ]
        counts = [len(part) for part in held]
        y_BFW, real_BF1 = pad_sequence(held, batch_first=True), real_steps(counts, device)
        for block in self.frame_blocks:
            y_BFW = block(y_BFW, real_BF1)
        mels_BFn = self.output(self.norm(y_BFW))
        return [mels[:count] for mels, count in zip(mels_BFn, counts, strict=True)]

    def start(self) -> Sounding:
        """Return what is kept of an utterance of which nothing has come yet."""
        none = self.output.weight.new_zeros(0, 3)
        phones, frames = ([Tail() for _ in blocks] for blocks in (self.phone_blocks, self.frame_blocks))
        return Sounding(phones, frames, none[:, 0].long(), none)

    def more(self, kept: Sounding, part: Utterance, last: bool = False) -> Tensor:
        """Return float[f, n], the frames that the next phones of an utterance complete; `last`: all that are left.

        All parts together are what `forward` gives of the whole.
        """
        phones_P, frames_P, prosody_P3 = part
        kept.frames_P = torch.cat((kept.frames_P, frames_P))
        kept.prosody_P3 = torch.cat((kept.prosody_P3, prosody_P3))
        x_1PW = self._embedded(phones_P[None], frames_P[None], prosody_P3[None])
        for block, tail in zip(self.phone_blocks, kept.phones, strict=True):
            x_1PW = block.more(x_1PW, tail, last)
        done = x_1PW.shape[1]
        frames_P, prosody_P3 = kept.frames_P[:done], kept.prosody_P3[:done]
        kept.frames_P, kept.prosody_P3 = kept.frames_P[done:], kept.prosody_P3[done:]
        y_1FW = (
            torch.repeat_interleave(x_1PW[0], frames_P, dim=0) + self.place(places(frames_P, prosody_P3))
        )[None]
        for block, tail in zip(self.frame_blocks, kept.frames, strict=True):
            y_1FW = block.more(y_1FW, tail, last)
        mels_Fn: Tensor = self.output(self.norm(y_1FW))[0]
        return mels_Fn

    def _embedded(self, phones_BP: Tensor, frames_BP: Tensor, prosody_BP3: Tensor) -> Tensor:
        given_BP4 = torch.cat((frames_BP.clamp_min(1).log()[..., None] - 1.5, prosody_BP3), dim=-1)
        embedded_BPW: Tensor = self.embedding(phones_BP) + self.prosody(given_BP4)
        return embedded_BPW


def places(frames_P: Tensor, prosody_P3: Tensor) -> Tensor:
    """Return float[F, 6]: how far a frame is from its phone's ends, in part and in all, and its prosody."""
    starts_P = frames_P.cumsum(0) - frames_P
    starts_F, lengths_F = torch.repeat_interleave(torch.stack((starts_P, frames_P)), frames_P, dim=1)
    since_F = torch.arange(len(starts_F), device=starts_F.device) - starts_F
    share_F = (since_F + 0.5) / lengths_F
    where_F3 = torch.stack(
        (share_F, (since_F + 1.0).log() - 1.0, (lengths_F - since_F).float().log() - 1.0), dim=1
    )
    return torch.cat((where_F3, torch.repeat_interleave(prosody_P3, frames_P, dim=0)), dim=1)
