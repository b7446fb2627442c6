"""A speech encoder read in letters: the plainest test of what it hears, without a core's vocabulary.

One linear map to the blank and the letters (connectionist temporal classification, Graves et al. 2006), as encoders
that were pre-trained on recordings alone are finetuned (arXiv 2006.11477, section 3.3). Nothing of it enters a core.

Shapes: M recordings, T encoder frames, E encoder width, P letters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.speech import Heard, log_sum_exp

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"


class LetterReadout(nn.Module):
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
        self.gain = gain
        self.encoder_dim, self.letters, self.num_pieces = encoder_dim, letters, len(letters)
        self.output = nn.Linear(encoder_dim, 1 + len(letters))
        if not self.output.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                drawn = torch.randn(self.output.weight.shape, generator=generator)
                self.output.weight.copy_(drawn / (gain * math.sqrt(3 * encoder_dim)))
                self.output.bias.zero_()

    def num_positions(self, num_frames: int) -> int:
        """Return the number of encoder frames: nothing enters a core here, but batches are cut by it."""
        return int(num_frames)

    def split(self, tokens: Iterable[int], tokenizer: Any) -> list[int]:
        """Return the letters of tokens as places in `letters`, lower-cased; other characters are left out."""
        said = tokenizer.decode(list(tokens)).lower().strip()
        return [place for place in map(self.letters.find, said) if place >= 0]

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

    def best_pieces(self, heard: Heard) -> list[list[tuple[int, int, int]]]:
        """Return (letter, first frame, end frame) of each run of frames that hears one, by recording."""
        return heard.best_pieces()
