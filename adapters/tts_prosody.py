"""The prosody model: how long, how high and how loud each phone is, phone by phone (paper section 8.3).

A uni-directional transformer over phones with two cross-attentions in each block: to the phones, a fixed number of them
ahead, and to the states of the core, chunk by chunk: a chunk enters when its first phone becomes current. The features
of a phone are predicted one after the other by a delayed pattern (Kharitonov et al. 2021, arXiv 2109.03264): at step t
the log duration of phone t, the log F0 of phone t - 1 and the log power of phone t - 2, each knowing those before it.

Shapes: B utterances, P phones, T steps (P + 2), S core positions, D core width, W width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adapters.relative import RelativeAttention
from mm_llama.core.layers import RMSNorm

NUM = 4  # log duration; log F0 and whether there is a voice; log power
DELAYS = (0, 1, 1, 2)  # in steps


class ProsodyModel(nn.Module):
    """Phones int64[P], and the core's states, to float32[P, 4]: see `NUM`, each about zero and about one wide.

    Whether there is a voice is a logit. `style` int64 may choose among `num_styles` speakers or styles.
    """

    def __init__(
        self,
        num_phones: int,
        dim: int,
        width: int = 192,
        num_heads: int = 6,
        hidden: int = 432,
        num_layers: int = 3,
        phones_ahead: int = 6,
        chunk: int = 4,
        uses_core: bool = True,
        num_styles: int = 1,
        reach: int = 16,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        """`chunk` is how many of the core's tokens enter together; the paper's full size has `hidden` 864."""
        super().__init__()
        if min(num_phones, num_layers, chunk, num_styles) < 1 or phones_ahead < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"num_phones={num_phones}, num_layers={num_layers}, chunk={chunk} and num_styles={num_styles} are at "
                f"least 1, phones_ahead={phones_ahead} is not below 0, dropout={dropout} is a share below 1"
            )
        self.num_phones, self.phones_ahead, self.chunk, self.uses_core = (
            num_phones,
            phones_ahead,
            chunk,
            uses_core,
        )
        self.dropout = dropout
        self.phone = nn.Embedding(num_phones + 1, width)  # the last: behind the end
        self.style = nn.Embedding(num_styles, width)
        self.before = nn.Linear(NUM, width)
        self.layers: Any = nn.ModuleList(
            ProsodyLayer(width, dim if uses_core else 0, num_heads, hidden, reach, norm_eps)
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(width, norm_eps)
        self.output = nn.Linear(width, NUM)
        if not self.output.weight.is_meta:
            self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Draw matrices with 1/sqrt(fan-in), ends of branches smaller, tables with 0.3; norms one, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in ("phone.weight", "style.weight") or name.endswith("distance"):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
                elif weight.ndim > 1:
                    std = 1 / math.sqrt(weight.shape[1])
                    if name.endswith((".o.weight", ".down.weight")):
                        std /= math.sqrt(4 * len(self.layers))
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
                else:
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)

    def forward(
        self,
        phones: Sequence[Tensor],
        known: Sequence[Tensor],
        states: Sequence[Tensor] | None = None,
        owners: Sequence[Tensor] | None = None,
        styles: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return float32[P, 4] of each, every feature told the true ones before it: `known` float[P, 4].

        `states` are float[S, D] and `owners` int64[P] the core position at which each phone's word begins; both are
        needed with `uses_core` alone. What one gives does not depend on the others.
        """
        outputs_BTK = self.steps(phones, [delayed(item) for item in known], states, owners, styles)
        return [
            undelayed(outputs_TK[: len(item) + max(DELAYS)])
            for outputs_TK, item in zip(outputs_BTK, phones, strict=True)
        ]

    @torch.no_grad()
    def predict(
        self,
        phones: Sequence[Tensor],
        states: Sequence[Tensor] | None = None,
        owners: Sequence[Tensor] | None = None,
        styles: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return float32[P, 4] of each, every feature told what was predicted before it. As `forward`."""
        device = self.output.weight.device
        T = max(map(len, phones)) + max(DELAYS)
        found = torch.zeros(len(phones), T, NUM, device=device)
        counts = torch.tensor([len(item) for item in phones], device=device)
        for step in range(T):
            given = [row[:step] for row in found]
            values_BK = self.steps(phones, given, states, owners, styles, until=step + 1)[:, step]
            values_BK[:, 2] = (values_BK[:, 2] > 0).float()
            for place, delay in enumerate(DELAYS):
                # Of a phone that there is: steps before the first and behind the last say nothing.
                real_B = (step >= delay) & (step - delay < counts)
                found[:, step, place] = torch.where(real_B, values_BK[:, place], 0.0)
        return [undelayed(row[: len(item) + max(DELAYS)]) for row, item in zip(found, phones, strict=True)]

    def steps(
        self,
        phones: Sequence[Tensor],
        given: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        owners: Sequence[Tensor] | None,
        styles: Sequence[int] | None,
        until: int = 0,
    ) -> Tensor:
        """Return float32[B, T, 4] of steps 0..T-1, delayed; `given` float[<T, 4] are the delayed features known."""
        device = self.output.weight.device
        T = until or max(map(len, phones)) + max(DELAYS)
        phones_BP = pad_sequence(list(phones), batch_first=True, padding_value=self.num_phones)
        ends = phones_BP.new_full((len(phones), max(DELAYS)), self.num_phones)
        phones_BT = torch.cat((phones_BP, ends), dim=1)
        before_BTK = torch.zeros(len(phones), T, NUM, device=device)
        for row, item in enumerate(given):
            count = min(len(item), T - 1)
            before_BTK[row, 1 : count + 1] = item[:count]
        embedded_BTW = self.phone(phones_BT)
        style_B = torch.tensor([0] * len(phones) if styles is None else list(styles), device=device)
        x_BTW = embedded_BTW[:, :T] + self.before(before_BTK) + self.style(style_B)[:, None]
        x_BTW = F.dropout(x_BTW, self.dropout, self.training)
        steps_T = torch.arange(T, device=device)
        places_S = torch.arange(phones_BT.shape[1], device=device)
        apart_1TS = (places_S - steps_T[:, None])[None]
        behind_1TT = (steps_T - steps_T[:, None])[None]
        counts_B = torch.tensor([len(item) + max(DELAYS) for item in phones], device=device)
        absent_B1S = (places_S >= counts_B[:, None])[:, None]
        linguistic = (embedded_BTW, apart_1TS, (apart_1TS > self.phones_ahead) | absent_B1S)
        core = self._core(T, phones, states, owners)
        for layer in self.layers:
            x_BTW = layer(x_BTW, (behind_1TT, behind_1TT > 0), linguistic, core, self.dropout)
        out: Tensor = self.output(self.norm(x_BTW)).float()
        return out

    def _core(
        self,
        T: int,
        phones: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        owners: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the states, how far each is from a step's own, and which are not there yet."""
        if not self.uses_core:
            return None
        if states is None or owners is None or len(states) != len(phones) or len(owners) != len(phones):
            raise ValueError(
                "this prosody model looks at the core: give the states of each utterance, and their owners"
            )
        device = self.output.weight.device
        S = max(map(len, states))
        states_BSD = pad_sequence(list(states), batch_first=True)
        # Behind the last phone the last word stays current.
        padded = [F.pad(item, (0, max(0, T - len(item))), value=int(item[-1]))[:T] for item in owners]
        owners_BT1 = torch.stack(padded)[..., None]
        places_S = torch.arange(S, device=device)
        there_B11 = torch.tensor([len(item) for item in states], device=device)[:, None, None]
        opened_BT1 = (owners_BT1 // self.chunk + 1) * self.chunk
        return states_BSD, places_S - owners_BT1, (places_S >= opened_BT1) | (places_S >= there_B11)


class ProsodyLayer(nn.Module):
    """Self-attention, attention to phones, attention to the core, two feed-forwards; each behind a norm."""

    def __init__(
        self, width: int, dim: int, num_heads: int, hidden: int, reach: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.self_attention = RelativeAttention(width, width, num_heads, reach, norm_eps)
        self.phones = RelativeAttention(width, width, num_heads, reach, norm_eps)
        self.core = RelativeAttention(width, dim, num_heads, reach, norm_eps) if dim else None
        self.forwards = nn.ModuleList(FeedForward(width, hidden, norm_eps) for _ in range(2))

    def forward(
        self,
        x_BTW: Tensor,
        before: tuple[Tensor, Tensor],
        linguistic: tuple[Tensor, Tensor, Tensor],
        core: tuple[Tensor, Tensor, Tensor] | None,
        dropout: float,
    ) -> Tensor:
        """Map float[B, T, W]; each of the others is what is looked at, how far away it is, and what is unseen."""

        def added(part_BTW: Tensor) -> Tensor:
            return F.dropout(part_BTW, dropout, self.training)

        x_BTW = x_BTW + added(self.self_attention(x_BTW, x_BTW, *before))
        x_BTW = x_BTW + added(self.phones(x_BTW, *linguistic))
        if self.core is not None and core is not None:
            x_BTW = x_BTW + added(self.core(x_BTW, *core))
        for part in self.forwards:
            x_BTW = x_BTW + added(part(x_BTW))
        return x_BTW


class FeedForward(nn.Module):
    """Two fully connected layers behind a norm."""

    def __init__(self, width: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, norm_eps)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Map float[B, T, W]."""
        out: Tensor = self.down(F.gelu(self.up(self.norm(x_BTW))))
        return out


def delayed(values_PK: Tensor) -> Tensor:
    """Return float[P + 2, 4]: each feature as many steps later as its delay, zeros around it."""
    parts = [F.pad(values_PK[:, place], (delay, max(DELAYS) - delay)) for place, delay in enumerate(DELAYS)]
    return torch.stack(parts, dim=-1)


def undelayed(steps_TK: Tensor) -> Tensor:
    """Return float[T - 2, 4]: what `delayed` was given."""
    count = len(steps_TK) - max(DELAYS)
    return torch.stack([steps_TK[delay : delay + count, place] for place, delay in enumerate(DELAYS)], dim=-1)
