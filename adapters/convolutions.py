"""Convolutions that look a stated number of steps ahead: what streams is what the whole gives.

Shapes: B sequences, C channels, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Tail:
    """What a layer keeps of a sequence that comes in pieces."""

    seen_BCT: Tensor | None = None  # the inputs that its kernel has still to see
    waiting_BTC: Tensor | None = None  # of a block: inputs whose outputs are not there yet


class Convolution(nn.Conv1d):
    """A convolution over float[B, C, T]: of its kernel `ahead` steps come after the present one, the rest before."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, ahead: int = 0, groups: int = 1
    ) -> None:
        if not 0 <= ahead < kernel:
            raise ValueError(f"a kernel of {kernel} cannot look {ahead} steps ahead")
        super().__init__(channels_in, channels_out, kernel, groups=groups)
        self.ahead, self.behind = ahead, kernel - 1 - ahead

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return float[B, C, T]; outside of the sequence there is nothing."""
        return super().forward(F.pad(x_BCT, (self.behind, self.ahead)))

    def more(self, x_BCT: Tensor, tail: Tail, last: bool = False) -> Tensor:
        """Return float[B, C, t], the outputs that the next steps of a sequence complete; `last`: all that are left."""
        if tail.seen_BCT is None:
            seen_BCT = F.pad(x_BCT, (self.behind, 0))
        else:
            seen_BCT = torch.cat((tail.seen_BCT, x_BCT), dim=2)
        if last:
            seen_BCT = F.pad(seen_BCT, (0, self.ahead))
        (kernel,) = self.kernel_size
        tail.seen_BCT = seen_BCT[..., max(0, seen_BCT.shape[2] - kernel + 1) :]
        if seen_BCT.shape[2] < kernel:
            return x_BCT.new_zeros(len(x_BCT), self.out_channels, 0)
        return super().forward(seen_BCT)


class Block(nn.Module):
    """ConvNeXt's block in one dimension: a convolution of each channel, then a feed-forward, and a residual."""

    def __init__(self, width: int, hidden: int, kernel: int, ahead: int) -> None:
        super().__init__()
        self.convolution = Convolution(width, width, kernel, ahead, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTC: Tensor, real_BT1: Tensor | None) -> Tensor:
        """Map float[B, T, C]; steps that are not `real` (bool[B, T, 1]) count as nothing."""
        if real_BT1 is not None:
            x_BTC = x_BTC * real_BT1
        return self._added(x_BTC, self.convolution(x_BTC.transpose(1, 2)))

    def more(self, x_BTC: Tensor, tail: Tail, last: bool = False) -> Tensor:
        """Return float[B, t, C], the outputs that the next steps of a sequence complete; `last`: all that are left."""
        if tail.waiting_BTC is not None:
            waiting_BTC = torch.cat((tail.waiting_BTC, x_BTC), dim=1)
        else:
            waiting_BTC = x_BTC
        seen_BCT = self.convolution.more(x_BTC.transpose(1, 2), tail, last)
        done = seen_BCT.shape[2]
        tail.waiting_BTC = waiting_BTC[:, done:]
        return self._added(waiting_BTC[:, :done], seen_BCT)

    def _added(self, x_BTC: Tensor, seen_BCT: Tensor) -> Tensor:
        out: Tensor = x_BTC + self.down(F.gelu(self.up(self.norm(seen_BCT.transpose(1, 2)))))
        return out


def aheads(num_blocks: int, kernel: int, total: int) -> list[int]:
    """Return how far each block looks ahead so that together they look `total` steps: the first ones most.

    Raises ValueError when so many blocks cannot look as far.
    """
    most = kernel // 2
    found = []
    for _ in range(num_blocks):
        found.append(min(most, total))
        total -= found[-1]
    if total:
        raise ValueError(
            f"{num_blocks} blocks of kernel {kernel} look at most {num_blocks * most} steps ahead"
        )
    return found


def real_steps(lengths: list[int], device: torch.device) -> Tensor | None:
    """Return bool[B, T, 1] of which steps are real, None where all are."""
    if len(set(lengths)) == 1:
        return None
    steps_T = torch.arange(max(lengths), device=device)
    return (steps_T < torch.tensor(lengths, device=device)[:, None])[..., None]


def init_weights(module: nn.Module, seed: int) -> None:
    """Draw matrices and kernels with 1/sqrt(fan-in), tables with 0.5; norms are one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                if isinstance(part, nn.Embedding):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
                elif weight.ndim > 1:
                    weight.copy_(
                        torch.randn(weight.shape, generator=generator) / math.sqrt(weight[0].numel())
                    )
                else:
                    weight.fill_(1.0 if isinstance(part, nn.LayerNorm) and name == "weight" else 0.0)
