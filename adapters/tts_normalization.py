"""Text normalisation as tagging: each token of written text gets a rule (paper section 8.3).

A streaming LSTM over the tokens, which looks a few of them ahead, with cross-attention to the states of the core for
the text that has been written so far. Which state belongs to which token is known by counting characters; how far
apart the two are is learned as a bias.

Shapes: B texts, N tokens, S core positions, k features of a token, C context, D core width, W width, H heads, R rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from adapters.relative import RelativeAttention
from mm_llama.core.layers import RMSNorm


@dataclass
class Reading:
    """What the normaliser keeps of a text that comes in pieces."""

    embedded: list[Tensor] = field(
        default_factory=list
    )  # float[W] of tokens that are still read as those ahead
    done: int = 0  # tokens
    lstm: tuple[Tensor, Tensor] | None = None
    keys: tuple[Tensor, Tensor] | None = None  # of states, float[1, H, S, W / H]
    owners: list[int] = field(default_factory=list)  # of each state the token in which it ends


class Normalizer(nn.Module):
    """Hashed features int64[N, k] of tokens, and the core's states, to scores of rules float32[N, R].

    `context` is how many tokens ahead a rule may depend on. Without `uses_core` no state is looked at; with `whole` the
    LSTM reads the text backwards as well: it cannot stream, and stands as a measure beside the one that can.
    """

    def __init__(
        self,
        dim: int,
        num_rules: int,
        width: int = 192,
        num_heads: int = 4,
        num_features: int = 8192,
        context: int = 3,
        uses_core: bool = True,
        whole: bool = False,
        reach: int = 8,
        memory: int = 64,
        dropout: float = 0.1,
        num_spelling: int = 5,
        hide: float = 0.3,
        norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        """`reach`: from so many tokens away on, a state is far; from more than `memory` tokens behind, none is seen.

        In training the first `num_spelling` features of a token, which say which word it is, are hidden with the
        probability `hide`: else words are learned by heart, and what the core knows of others is never asked for.
        """
        super().__init__()
        if width % num_heads or width % 2:
            raise ValueError(f"a width of {width} does not give {num_heads} heads, or no two directions")
        if (
            min(num_rules, num_features, reach, memory) < 1
            or context < 0
            or not 0 <= dropout < 1
            or not 0 <= hide < 1
        ):
            raise ValueError(
                f"num_rules={num_rules}, num_features={num_features}, reach={reach}, memory={memory} are at least 1, "
                f"context={context} is not below 0, dropout={dropout} and hide={hide} are shares below 1"
            )
        self.dim, self.num_rules, self.num_features = dim, num_rules, num_features
        self.context, self.uses_core, self.whole, self.memory = context, uses_core, whole, memory
        self.dropout, self.num_spelling, self.hide = dropout, num_spelling, hide
        self.embedding = nn.Parameter(torch.empty(num_features, width))
        self.ahead = nn.Linear((context + 1) * width, width)
        self.lstm = nn.LSTM(width, width // 2 if whole else width, batch_first=True, bidirectional=whole)
        self.look = RelativeAttention(width, dim, num_heads, reach, norm_eps) if uses_core else None
        self.output_norm = RMSNorm(width, norm_eps)
        self.up = nn.Linear(width, 2 * width)
        self.output = nn.Linear(2 * width, num_rules)
        if not self.embedding.is_meta:
            self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Draw matrices with 1/sqrt(fan-in), embeddings with 0.1; norms are one, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in ("embedding", "look.distance"):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
                elif weight.ndim > 1:
                    weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1]))
                else:
                    weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)

    def forward(
        self,
        features: Sequence[Tensor],
        states: Sequence[Tensor] | None = None,
        owners: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return float32[N, R] of each text.

        `states` are float[S, D] of each and `owners` int64[S] the token in which each of them ends; both are needed
        with `uses_core` alone. What one text gives does not depend on the others.
        """
        for item in features:
            if item.ndim != 2 or not len(item):
                raise ValueError(
                    f"a text's features are int64[tokens, features], but these are {list(item.shape)}"
                )
        lengths = [len(item) for item in features]
        parts = [self._embedded(item) for item in features]
        x_BNW = pad_sequence(parts, batch_first=True)
        # Token n is read together with those up to n + context: zeros behind the end.
        ahead_BNW = F.pad(x_BNW, (0, 0, 0, self.context))
        window_BNCW = ahead_BNW.unfold(1, self.context + 1, 1).transpose(2, 3)
        x_BNW = F.dropout(F.gelu(self.ahead(window_BNCW.flatten(2))), self.dropout, self.training)
        packed = pack_padded_sequence(x_BNW, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        h_BNW, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        h_BNW = F.dropout(h_BNW, self.dropout, self.training)
        if self.uses_core:
            h_BNW = h_BNW + self._looked(h_BNW, lengths, states, owners)
        logits_BNR = self._scores(h_BNW)
        return [logits[:count] for logits, count in zip(logits_BNR, lengths, strict=True)]

    def start(self) -> Reading:
        """Return what is kept of a text of which nothing has come yet."""
        return Reading()

    def more(
        self,
        kept: Reading,
        features_Nk: Tensor,
        states_SD: Tensor | None = None,
        owners: Sequence[int] = (),
        last: bool = False,
    ) -> Tensor:
        """Return scores float32[n, R] of the tokens that can be read when the next tokens of a text have come.

        With tokens come the states that end in them, and `owners`, the number of each one's token in the text. Tokens
        are read one by one, so that it does not matter in which pieces they come; `last`: all that are left. All parts
        together are what `forward` gives of the whole. Raises ValueError for a model that reads the whole text, or one
        that looks at the core when no states are given.
        """
        if self.whole:
            raise ValueError(
                "this normaliser reads a text from both its ends: it cannot read one that is being written"
            )
        if self.uses_core and (states_SD is None or len(states_SD) != len(owners)):
            raise ValueError(
                "this normaliser looks at the core: give the states that end in the tokens, and their owners"
            )
        kept.embedded += list(self._embedded(features_Nk)) if len(features_Nk) else []
        if self.uses_core and self.look is not None and states_SD is not None:
            for state_D, owner in zip(states_SD, owners, strict=True):
                keys = self.look.keys(state_D[None, None].to(self.embedding.dtype))
                if kept.keys is not None:
                    keys = (
                        torch.cat((kept.keys[0], keys[0]), dim=2),
                        torch.cat((kept.keys[1], keys[1]), dim=2),
                    )
                kept.keys = keys
                kept.owners.append(owner)
        scores = []
        while len(kept.embedded) > (0 if last else self.context):
            scores.append(self._next(kept))
        return torch.cat(scores) if scores else self.embedding.new_zeros(0, self.num_rules)

    def _next(self, kept: Reading) -> Tensor:
        """Return scores float32[1, R] of the next token."""
        window_CW = torch.stack(kept.embedded[: self.context + 1])
        window_CW = F.pad(window_CW, (0, 0, 0, self.context + 1 - len(window_CW)))
        x_11W = F.gelu(self.ahead(window_CW.flatten()))[None, None]
        h_11W, kept.lstm = self.lstm(x_11W, kept.lstm)
        if kept.keys is not None and self.look is not None:
            gone = sum(owner < kept.done - self.memory for owner in kept.owners)
            kept.owners, kept.keys = (
                kept.owners[gone:],
                (kept.keys[0][:, :, gone:], kept.keys[1][:, :, gone:]),
            )
            apart_11S = torch.tensor(kept.owners, device=h_11W.device)[None, None] - kept.done
            h_11W = h_11W + self.look.look(h_11W, kept.keys, apart_11S, apart_11S > self.context)
        kept.embedded.pop(0)
        kept.done += 1
        return self._scores(h_11W)[0]

    def _scores(self, h_BNW: Tensor) -> Tensor:
        y = F.dropout(F.gelu(self.up(self.output_norm(h_BNW))), self.dropout, self.training)
        return cast(Tensor, self.output(y).float())

    def _embedded(self, features_Nk: Tensor) -> Tensor:
        embedded_NkW = self.embedding[features_Nk]
        if self.training and self.hide:
            spelled = embedded_NkW[:, : self.num_spelling]
            kept_N11 = (torch.rand(len(spelled), 1, 1, device=spelled.device) >= self.hide).to(spelled.dtype)
            return (spelled * kept_N11).sum(1) + embedded_NkW[:, self.num_spelling :].sum(1)
        return embedded_NkW.sum(1)

    def _looked(
        self,
        h_BNW: Tensor,
        lengths: Sequence[int],
        states: Sequence[Tensor] | None,
        owners: Sequence[Tensor] | None,
    ) -> Tensor:
        """Attend from each token to the states that end in a token up to `context` ahead of it."""
        if states is None or owners is None or len(states) != len(lengths) or len(owners) != len(lengths):
            raise ValueError(
                "this normaliser looks at the core: give the states of each text, and their owners"
            )
        N = h_BNW.shape[1]
        states_BSD = pad_sequence(list(states), batch_first=True)
        # Padding stands behind every token, so nothing sees it.
        owners_BS = pad_sequence(list(owners), batch_first=True, padding_value=N + self.context + 1)
        apart_BNS = owners_BS[:, None] - torch.arange(N, device=h_BNW.device)[None, :, None]
        assert self.look is not None
        unseen_BNS = (apart_BNS > self.context) | (apart_BNS < -self.memory)
        return cast(Tensor, self.look(h_BNW, states_BSD, apart_BNS, unseen_BNS))
