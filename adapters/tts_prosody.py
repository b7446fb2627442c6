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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adapters.relative import RelativeAttention
from mm_llama.core.layers import RMSNorm

NUM = 4  # log duration; log F0 and whether there is a voice; log power
DELAYS = (0, 1, 1, 2)  # in steps
Keys = tuple[Tensor, Tensor]  # keys and values float[B, H, S, W / H]
Sight = tuple[Keys, Tensor, Tensor]  # what is looked at, how far away it is int64[B, N, S], bool: unseen


class ProsodyModel(nn.Module):
    """Phones int64[P], and the core's states, to float32[P, 4]: see `NUM`, each about zero and about one wide.

    Whether there is a voice is a logit. A style, a speaker's or one's own, is a number below `num_styles`; styles may
    have names, in that order.
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
        style_names: Sequence[str] = (),
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
        if style_names and len(set(style_names)) != num_styles:
            raise ValueError(
                f"style_names={list(style_names)} are not num_styles={num_styles} names: name each style, or none"
            )
        self.num_phones, self.dim, self.phones_ahead = num_phones, dim, phones_ahead
        self.style_names = tuple(style_names)
        self.chunk, self.uses_core, self.dropout = chunk, uses_core, dropout
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

    def style_of(self, style: int | str) -> int:
        """Return the number of a style that is told by its number or its name. Raises ValueError for another one."""
        num_styles = self.style.num_embeddings
        if style in self.style_names:
            return self.style_names.index(str(style))
        if not str(style).isdecimal() or not int(style) < num_styles:
            names = f": {', '.join(self.style_names)}" if self.style_names else ""
            raise ValueError(f"style is {style}, but this voice has {num_styles}, numbered from 0{names}")
        return int(style)

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Return a table of fewer styles with more of them, each as the first: of a voice that learns another style."""
        more = self.style.num_embeddings - len(tensor)
        if name != "style.weight" or more <= 0:
            return tensor
        return torch.cat((tensor, tensor[:1].expand(more, -1)))

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
        text = self._read(phones, states, owners, styles)
        T = text.embedded_BTW.shape[1]
        before_BTK = torch.zeros(len(phones), T, NUM, device=text.embedded_BTW.device)
        for row, item in enumerate(known):
            # Each step is told what the one before it gave.
            before_BTK[row, 1 : len(item) + max(DELAYS)] = delayed(item)[:-1]
        outputs_BTK = self._steps(text, before_BTK)
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
        """Return float32[P, 4] of each, every feature told what was predicted before it. As `forward`.

        Whether there is a voice is 0 or 1 here. A step costs what one step costs: what was run before it is kept.
        """
        text = self._read(phones, states, owners, styles)
        B, T, _ = text.embedded_BTW.shape
        counts_B = torch.tensor([len(item) for item in phones], device=text.embedded_BTW.device)
        text.found = [torch.zeros(B, NUM, device=text.embedded_BTW.device)]  # before there is any
        for _ in range(T):
            self._next(text, counts_B)
        found_BTK = torch.stack(text.found[1:], dim=1)
        return [
            undelayed(found_TK[: len(item) + max(DELAYS)])
            for found_TK, item in zip(found_BTK, phones, strict=True)
        ]

    def start(self, style: int = 0) -> Timing:
        """Return what is kept of a text of which nothing has come yet."""
        device = self.output.weight.device
        none_11W = self.phone.weight.new_zeros(1, 0, self.phone.weight.shape[1])
        text = Timing(
            none_11W, self.style(torch.tensor([style], device=device))[:, None], none_11W[..., 0] > 0
        )
        text.absent_B1T = text.absent_B1T[:, None]
        text.found = [torch.zeros(1, NUM, device=device)]
        text.phone_keys = [layer.phones.keys(none_11W) for layer in self.layers]
        if self.uses_core:
            none = torch.zeros(1, 0, dtype=torch.long, device=device)
            text.core = none, none[0], none[:, None] > 0
        return text

    def more(
        self,
        text: Timing,
        phones_P: Tensor,
        states_SD: Tensor | None = None,
        owners_P: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Return float32[p, 4] of the phones that are settled when the next phones and states of a text have come.

        All parts together are what `predict` gives of the whole; `last`: all that are left.
        """
        if self.uses_core and (states_SD is None or owners_P is None or len(owners_P) != len(phones_P)):
            raise ValueError("this prosody model looks at the core: give the states, and the phones' owners")
        before = max(0, text.done - max(DELAYS))
        text.num_phones += len(phones_P)
        self._append(text, phones_P)
        if self.uses_core:
            assert text.core is not None and states_SD is not None and owners_P is not None
            owners_1T = torch.cat((text.core[0], owners_P[None]), dim=1)
            if last:
                owners_1T = F.pad(owners_1T, (0, max(DELAYS)), value=int(owners_1T[0, -1]))
            if len(states_SD) or not text.core_keys:
                states_1SD = states_SD[None].to(text.embedded_BTW.dtype)
                keys = [layer.core.keys(states_1SD) for layer in self.layers]
                text.core_keys = _longer(text.core_keys, keys)
            S = len(text.core[1]) + len(states_SD)
            places_S = torch.arange(S, device=owners_1T.device)
            text.core = owners_1T, places_S, (places_S < 0)[None, None]
        if last:
            self._append(text, phones_P.new_full((max(DELAYS),), self.num_phones))
        counts_1 = torch.tensor([text.num_phones], device=text.embedded_BTW.device)
        while self._ready(text, last):
            self._next(text, counts_1)
        # A phone is settled when its last feature has been told.
        done = max(0, text.done - max(DELAYS))
        if done == before:
            return self.output.weight.new_zeros(0, NUM)
        recent_TK = torch.cat(text.found[before + 1 : done + max(DELAYS) + 1])
        return undelayed(recent_TK)

    def _append(self, text: Timing, phones_P: Tensor) -> None:
        if not len(phones_P):
            return
        embedded_1PW = self.phone(phones_P[None])
        text.embedded_BTW = torch.cat((text.embedded_BTW, embedded_1PW), dim=1)
        text.absent_B1T = F.pad(text.absent_B1T, (0, len(phones_P)))
        text.phone_keys = _longer(text.phone_keys, [layer.phones.keys(embedded_1PW) for layer in self.layers])

    def _ready(self, text: Timing, last: bool) -> bool:
        known = text.embedded_BTW.shape[1]
        if last or text.done + self.phones_ahead >= known:
            return text.done < known and last
        if text.core is None:
            return True
        owners_BT, places_S, _ = text.core
        return bool((int(owners_BT[0, text.done]) // self.chunk + 1) * self.chunk <= len(places_S))

    def _next(self, text: Timing, counts_B: Tensor) -> None:
        """Run one step, told what was predicted before."""
        step = text.done
        values_BK = self._steps(text, text.found[-1][:, None])[:, 0]
        values_BK[:, 2] = (values_BK[:, 2] > 0).float()
        # Of a phone that there is: steps before the first and behind the last say nothing.
        real = [(step >= delay) & (step - delay < counts_B) for delay in DELAYS]
        text.found.append(torch.where(torch.stack(real, dim=1), values_BK, 0.0))

    def _read(
        self,
        phones: Sequence[Tensor],
        states: Sequence[Tensor] | None,
        owners: Sequence[Tensor] | None,
        styles: Sequence[int] | None,
    ) -> Timing:
        """Return what does not change from step to step: phones and states as each layer looks at them."""
        device = self.output.weight.device
        counts_B = torch.tensor([len(item) + max(DELAYS) for item in phones], device=device)
        phones_BP = pad_sequence(list(phones), batch_first=True, padding_value=self.num_phones)
        phones_BT = F.pad(phones_BP, (0, max(DELAYS)), value=self.num_phones)
        embedded_BTW = self.phone(phones_BT)
        style_B = torch.tensor([0] * len(phones) if styles is None else list(styles), device=device)
        absent_B1T = (torch.arange(phones_BT.shape[1], device=device) >= counts_B[:, None])[:, None]
        text = Timing(embedded_BTW, self.style(style_B)[:, None], absent_B1T)
        text.phone_keys = [layer.phones.keys(embedded_BTW) for layer in self.layers]
        if self.uses_core:
            if states is None or owners is None or len(states) != len(phones) or len(owners) != len(phones):
                raise ValueError(
                    "this prosody model looks at the core: give the states of each utterance, and their owners"
                )
            T = phones_BT.shape[1]
            # Behind the last phone the last word stays current.
            padded = [F.pad(item, (0, T - len(item)), value=int(item[-1])) for item in owners]
            states_BSD = pad_sequence(list(states), batch_first=True).to(embedded_BTW.dtype)
            lengths_B = torch.tensor([len(item) for item in states], device=device)
            places_S = torch.arange(states_BSD.shape[1], device=device)
            text.core = torch.stack(padded), places_S, (places_S >= lengths_B[:, None])[:, None]
            text.core_keys = [layer.core.keys(states_BSD) for layer in self.layers]
        return text

    def _steps(self, text: Timing, before_BNK: Tensor) -> Tensor:
        """Return float32[B, N, 4] of the next N steps of a text, which is told of them from then on."""
        first, N = text.done, before_BNK.shape[1]
        text.done = first + N
        embedded_BNW = text.embedded_BTW[:, first : text.done]
        x_BNW = embedded_BNW + self.before(before_BNK) + text.style_B1W
        x_BNW = F.dropout(x_BNW, self.dropout, self.training)
        steps_N1 = torch.arange(first, text.done, device=x_BNW.device)[:, None]
        behind_1NT = (torch.arange(text.done, device=x_BNW.device) - steps_N1)[None]
        apart_1NT = (torch.arange(text.embedded_BTW.shape[1], device=x_BNW.device) - steps_N1)[None]
        ahead_BNT = (apart_1NT > self.phones_ahead) | text.absent_B1T
        for number, layer in enumerate(self.layers):
            own = layer.self_attention.keys(x_BNW)
            if number < len(text.own_keys):
                (own,) = _longer([text.own_keys[number]], [own])
                text.own_keys[number] = own
            else:
                text.own_keys.append(own)
            core = None
            if text.core is not None:
                owners_BT, places_S, missing_B1S = text.core
                owners_BN1 = owners_BT[:, first : text.done, None]
                opened_BN1 = (owners_BN1 // self.chunk + 1) * self.chunk
                core = (text.core_keys[number], places_S - owners_BN1, (places_S >= opened_BN1) | missing_B1S)
            looked = (own, behind_1NT, behind_1NT > 0), (text.phone_keys[number], apart_1NT, ahead_BNT), core
            x_BNW = layer(x_BNW, *looked, self.dropout)
        out: Tensor = self.output(self.norm(x_BNW)).float()
        return out


@dataclass
class Timing:
    """A text that is being spoken: what its steps look at, and of those that were run what later ones look at."""

    embedded_BTW: Tensor
    style_B1W: Tensor
    absent_B1T: Tensor  # bool: behind the end of an utterance
    phone_keys: list[Keys] = field(default_factory=list)  # of each layer
    core_keys: list[Keys] = field(default_factory=list)
    # Of the core: the position of each phone's word int64[B, T], all positions int64[S], bool: behind the end.
    core: tuple[Tensor, Tensor, Tensor] | None = None
    own_keys: list[Keys] = field(default_factory=list)
    done: int = 0  # steps
    found: list[Tensor] = field(
        default_factory=list
    )  # delayed features float[B, 4] of steps, before the first as well
    num_phones: int = 0  # of a text that comes in pieces


def _longer(keys: list[Keys], more: list[Keys]) -> list[Keys]:
    """Return the keys and values of each layer with more of them behind."""
    if not keys:
        return more
    return [
        (torch.cat((k, k_more), dim=2), torch.cat((v, v_more), dim=2))
        for (k, v), (k_more, v_more) in zip(keys, more, strict=True)
    ]


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
        self, x_BNW: Tensor, own: Sight, linguistic: Sight, core: Sight | None, dropout: float
    ) -> Tensor:
        """Map float[B, N, W]; each of the others is keys and values, how far away they are, which are unseen."""

        def added(part_BNW: Tensor) -> Tensor:
            return F.dropout(part_BNW, dropout, self.training)

        x_BNW = x_BNW + added(self.self_attention.look(x_BNW, *own))
        x_BNW = x_BNW + added(self.phones.look(x_BNW, *linguistic))
        if self.core is not None and core is not None:
            x_BNW = x_BNW + added(self.core.look(x_BNW, *core))
        for part in self.forwards:
            x_BNW = x_BNW + added(part(x_BNW))
        return x_BNW


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
