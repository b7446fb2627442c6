"""A speech encoder read in letters: the plainest test of what it hears, without a core's vocabulary.

One linear map to the blank and the letters (connectionist temporal classification, Graves et al. 2006), as encoders
that were pre-trained on recordings alone are finetuned (arXiv 2006.11477, section 3.3). Nothing of it enters a core.

Shapes: M recordings, T encoder frames, E encoder width, P letters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.encoder_head import EncoderHead
from adapters.speech import Heard, log_sum_exp

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"


class LetterReadout(EncoderHead):
    """Features float[T, E] of recordings to scores of the blank and of each of `letters`, one set a frame.

    `stage.step=mm_llama.stages.speech.Readout` trains it: `piece_errors` are then errors of letters. The map is held
    divided by `gain`, so that under Adam it learns that many times faster than the encoder beneath: one that was
    pre-trained is else moved from what it knows before anything reads it.
    """

    def __init__(self, encoder_dim: int, letters: str = LETTERS, gain: float = 10.0, seed: int = 0) -> None:
        super().__init__()
        if not letters or len(set(letters)) != len(letters) or letters != letters.lower():
            raise ValueError(f"letters={letters!r}: each lower-case letter once, at least one")
        if gain <= 0:
            raise ValueError(f"gain is {gain}, expected a factor above 0")
        self.encoder_dim, self.letters, self.gain = encoder_dim, letters, gain
        self.output = nn.Linear(encoder_dim, 1 + len(letters))
        if not self.output.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                drawn = torch.randn(self.output.weight.shape, generator=generator)
                self.output.weight.copy_(drawn / (gain * math.sqrt(3 * encoder_dim)))
                self.output.bias.zero_()

    def hear(self, features: Sequence[Tensor], table_VD: Tensor | None = None) -> Heard:
        """Score recordings, each float[T, E], in float32; the core's table plays no part."""
        del table_VD
        lengths_M = torch.tensor([len(item) for item in features], device=features[0].device)
        padded_MTE = nn.utils.rnn.pad_sequence(list(features), batch_first=True).float()
        scores_MFP = self.gain * self.output(padded_MTE)
        blank_MF, letters_MFP = scores_MFP[..., 0], scores_MFP[..., 1:]
        return Heard(
            letters_MFP, lengths_M, blank_MF, letters_MFP, torch.logaddexp(log_sum_exp(letters_MFP), blank_MF)
        )
