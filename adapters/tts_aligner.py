"""The aligner: of each frame of a recording, which phone is said. It tells when each phone of a known text is.

Learned from a teacher that tells how long its phones are, it finds the phones of other recordings, from which a voice
can be learned then (paper section 8.3 takes its alignments from the production system's own data).

Shapes: B recordings, T samples, F frames of 12.5 ms, n mels, W width, N phones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adapters.convolutions import Block, init_weights, real_steps

SMALLEST = 1e-3  # of the deviation that log-mels are divided by: of silence it is nothing


class PhoneAligner(nn.Module):
    """Log-mels float[F, n] of recordings, as `features` gives them, to log-probabilities float[F, N] of phones.

    `mel` makes the log-mels, as `encoders.log_mel.LogMel` does; it is the aligner's own, for recordings of any voice.
    """

    def __init__(
        self,
        mel: nn.Module,
        num_phones: int,
        width: int = 192,
        hidden: int = 512,
        num_blocks: int = 6,
        kernel: int = 9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mel: Any
        self.mel = mel
        self.num_phones, self.rate, self.hop = num_phones, self.mel.rate, self.mel.hop
        self.input = nn.Linear(self.mel.num_mels, width)
        self.blocks: Any = nn.ModuleList(Block(width, hidden, kernel, kernel // 2) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_phones)
        if not self.output.weight.is_meta:
            init_weights(self, seed)

    def features(self, samples_T: Tensor) -> Tensor:
        """Return float32[F, n] of a recording at `rate`, each mel about zero: what a microphone adds to all is gone."""
        mel_Fn: Tensor = self.mel(samples_T)
        return (mel_Fn - mel_Fn.mean(0)) / (mel_Fn.std() + SMALLEST)

    def forward(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Return float32[F, N] of each; what one gives does not depend on the others."""
        counts = [len(item) for item in mels]
        x_BFW = self.input(pad_sequence(list(mels), batch_first=True))
        real_BF1 = real_steps(counts, x_BFW.device)
        for block in self.blocks:
            x_BFW = block(x_BFW, real_BF1)
        logs_BFN = torch.log_softmax(self.output(self.norm(x_BFW)).float(), dim=-1)
        return [logs_FN[:count] for logs_FN, count in zip(logs_BFN, counts, strict=True)]
