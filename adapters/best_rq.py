"""BEST-RQ: what a speech encoder learns from before there are words (paper section 8.2.1; arXiv 2202.01855).

Targets are codes of random, frozen codebooks; spans of the input are hidden (`mm_llama.data.augment`), and the encoder
predicts the codes there.

Shapes: B recordings, A mel frames, T stacked frames, n mels, m = stack * n, C codebooks, V codes, d code width,
E encoder width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.encoder_head import EncoderHead


class RandomQuantizer(nn.Module):
    """Stacked mels to the nearest code by cosine, in each of C random codebooks; projections and codebooks never train.

    Both are buffers, so no optimizer meets them, and a checkpoint's digest of them stays what it was. Mels are
    normalised by their mean and deviation over the recording first: else their common offset decides, and few codes are
    used.
    """

    def __init__(
        self,
        in_dim: int = 320,
        num_codebooks: int = 16,
        num_codes: int = 8192,
        code_dim: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        projections = torch.randn(num_codebooks, in_dim, code_dim, generator=generator)
        codebooks = torch.randn(num_codebooks, num_codes, code_dim, generator=generator)
        self.projections: Any
        self.codebooks: Any
        self.register_buffer("projections", projections / math.sqrt(in_dim))
        self.register_buffer("codebooks", F.normalize(codebooks, dim=-1))

    @torch.no_grad()
    def forward(self, stacked_BTm: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return int64[B, T, C] codes; int64 `lengths_B` stacked frames are real, codes past them mean nothing."""
        x = standardised(stacked_BTm.float(), lengths_B)
        codes = []
        for projection_md, codebook_Vd in zip(self.projections, self.codebooks, strict=True):
            # The length of a vector plays no part in which of unit vectors is nearest by angle.
            codes.append((x @ projection_md.float() @ codebook_Vd.float().T).argmax(-1))
        return torch.stack(codes, dim=-1)


class CodePredictor(nn.Module):
    """One softmax over V codes for each codebook (multi-softmax)."""

    def __init__(
        self, dim: int = 1536, num_codebooks: int = 16, num_codes: int = 8192, seed: int = 0
    ) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.heads: Any = nn.ModuleList(nn.Linear(dim, num_codes) for _ in range(num_codebooks))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim > 1 and not weight.is_meta:
                    weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(dim))
                else:
                    weight.zero_()

    def forward(self, frames_XE: Tensor, codes_XC: Tensor) -> tuple[Tensor, Tensor]:
        """Map float[X, E] frames and their int64[X, C] codes to the loss and how many codes were found, int64[C].

        The loss is float32: cross-entropies summed over frames, averaged over codebooks.
        """
        losses, right = [], []
        for head, codes_X in zip(self.heads, codes_XC.unbind(-1), strict=True):
            logits_XV = head(frames_XE).float()
            losses.append(F.cross_entropy(logits_XV, codes_X, reduction="sum"))
            right.append((logits_XV.detach().argmax(-1) == codes_X).sum())
        return torch.stack(losses).sum() / self.num_codebooks, torch.stack(right)


def standardised(stacked_BTm: Tensor, lengths_B: Tensor | None = None) -> Tensor:
    """Take from each recording its mean, and divide by its deviation, for each of the m values over real frames."""
    T = stacked_BTm.shape[1]
    if lengths_B is None:
        real_BT1 = torch.ones_like(stacked_BTm[..., :1])
    else:
        real_BT1 = (torch.arange(T, device=stacked_BTm.device) < lengths_B[:, None])[..., None].to(
            stacked_BTm
        )
    count_B11 = real_BT1.sum(1, keepdim=True).clamp_min(1)
    mean_B1m = (stacked_BTm * real_BT1).sum(1, keepdim=True) / count_B11
    centred = (stacked_BTm - mean_B1m) * real_BT1
    deviation = (centred.square().sum(1, keepdim=True) / count_B11).sqrt()
    return centred / deviation.clamp_min(1e-5)


class BestRQ(EncoderHead):
    """What stands beside the encoder while it is pre-trained: the frozen quantizer and what predicts its codes."""

    def __init__(
        self,
        encoder_dim: int,
        in_dim: int = 320,
        num_codebooks: int = 16,
        num_codes: int = 8192,
        code_dim: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.quantizer = RandomQuantizer(in_dim, num_codebooks, num_codes, code_dim, seed)
        self.predictor = CodePredictor(encoder_dim, num_codebooks, num_codes, seed)
