"""The multimodal model: a frozen text core and the modalities attached to it, one forward for all.

With no media in a batch the operations are the core's own; with media, rows and positions that see none get
exactly the operations that the plain core gives them (design section 1, "text is unchanged").

Shapes: B batch, S positions, T positions selected by `at`, D core width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Media, restarting
from mm_llama.core.cache import KVCache
from mm_llama.core.llama import Between, Llama
from mm_llama.modality import CrossAttended, MediaState, Plan, plan
from mm_llama.prefixes import Prefixes


class MultimodalLlama(nn.Module):
    """A core with modalities by name; parameters are `core.*` and `modality.<name>.{encoder,adapter}.*`."""

    def __init__(self, core: Llama, modalities: Mapping[str, CrossAttended] | None = None) -> None:
        super().__init__()
        self.core = core
        self.modality: Any = nn.ModuleDict(dict(modalities or {}))
        # Set by a stage whose rows repeat: states below the lowest block, remembered (see `mm_llama.prefixes`).
        self.prefixes: Prefixes | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: that of the core's weights."""
        return self.core.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the core's weights."""
        return self.core.embedding.weight.device

    def attach(self, media: Mapping[str, Media], documents_BS: Tensor | None = None) -> MediaState | None:
        """Encode the media of a batch once; None when there are none.

        Raises ValueError when a kind has no adapter here.
        """
        state = MediaState()
        for kind in media:
            if kind not in self.modality:
                attached = ", ".join(self.modality) or "none"
                raise ValueError(
                    f"the input holds {kind}s, but no {kind} adapter is attached (attached: {attached}); "
                    f"train one with `make demo` or `mm-llama train stage={kind}_pretrain`, then pass its run "
                    "with --adapter"
                )
        # Those that read another's encoder first: their blocks stand before the other's (paper section 7.2).
        for kind in sorted(media, key=lambda kind: not self.modality[kind].reads):
            if len(media[kind].items):
                encoder = None if media[kind].encoded else self.encoder_of(kind)
                state.attached[kind] = self.modality[kind].attach(
                    media[kind], self.dtype, documents_BS, encoder
                )
        return state if state.attached else None

    def encoder_of(self, kind: str) -> Any:
        """Return the encoder whose features a modality uses: its own, or that of the modality it reads.

        Raises ValueError when that modality is not attached.
        """
        modality = self.modality[kind]
        if not modality.reads:
            return modality.encoder
        if modality.reads not in self.modality:
            raise ValueError(
                f"the {kind} adapter reads the {modality.reads} encoder, but no {modality.reads} adapter is "
                f"attached: attach the {modality.reads} run that it was trained on as well"
            )
        return self.modality[modality.reads].encoder

    def forward(
        self,
        tokens_BS: Tensor,
        *,
        lengths_B: Tensor | None = None,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
        media: MediaState | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return float32 logits [B, S, V], or [T, V] at the True positions of bool[B, S] `at`.

        `media` comes from `attach`; `lengths_B` int64 lets padding skip the media blocks. The rest as in
        `Llama.forward`; with a cache, `positions_BS` are row slots, else slots are 0..S-1. Packed rows have
        `documents_BS`, also given to `attach`, and positions that begin anew with each document.
        """
        hidden = self.hidden(
            tokens_BS,
            lengths_B=lengths_B,
            positions_BS=positions_BS,
            documents_BS=documents_BS,
            cache=cache,
            media=media,
        )
        return self.core.logits(hidden if at is None else hidden[at])

    def hidden(
        self,
        tokens_BS: Tensor,
        *,
        lengths_B: Tensor | None = None,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KVCache | None = None,
        media: MediaState | None = None,
    ) -> Tensor:
        """Return the states after the core's final norm, float[B, S, D]; arguments as in `forward`."""
        if media is None:
            return self.core.hidden(
                tokens_BS, positions_BS=positions_BS, documents_BS=documents_BS, cache=cache
            )
        slots_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
        if cache is not None and positions_BS is not None:
            slots_BS = positions_BS
        start = 0
        if self.prefixes is not None and cache is None and _counted_anew(positions_BS, documents_BS):
            start, states = self.prefixes(self, tokens_BS, lengths_B, media, documents_BS)
        else:
            states = self.embed(tokens_BS, slots_BS, media)
        return self.core.hidden(
            tokens_BS,
            positions_BS=positions_BS,
            documents_BS=documents_BS,
            cache=cache,
            between=self._between(media, slots_BS, lengths_B),
            embeddings_BSD=states,
            start=start,
        )

    def _between(self, media: MediaState, slots_BS: Tensor, lengths_B: Tensor | None) -> Between | None:
        plans: dict[str, list[Plan]] = {}
        for kind, attached in media.attached.items():
            found = plan(attached.spans, slots_BS, lengths_B)
            if found:
                plans[kind] = found
        if not plans:
            return None

        def between(layer: int, hidden_BSD: Tensor) -> Tensor:
            for kind, found in plans.items():
                attached = media.attached[kind]
                hidden_BSD = attached.modality.between(layer, hidden_BSD, attached, found)
            return hidden_BSD

        return between

    def embed(self, tokens_BS: Tensor, slots_BS: Tensor, media: MediaState) -> Tensor:
        """Embed the tokens, with each placeholder's own embedding, which belongs to its adapter."""
        hidden = self.core.embedding(tokens_BS)
        first = slots_BS[:, 0].tolist()
        S = tokens_BS.shape[1]
        for attached in media.attached.values():
            here = [
                row * S + slot - first[row]
                for row, slot in attached.placeholders
                if 0 <= slot - first[row] < S
            ]
            if here:
                index = torch.tensor(here, device=hidden.device)
                embedding = attached.modality.adapter.placeholder.to(hidden.dtype)
                flat = hidden.flatten(0, 1).index_copy(0, index, embedding.expand(len(here), -1))
                hidden = flat.view_as(hidden)
        return hidden


def _counted_anew(positions_BS: Tensor | None, documents_BS: Tensor | None) -> bool:
    """Say whether every row, or every document of packed rows, stands at positions 0, 1, 2, ..."""
    if documents_BS is None:
        return positions_BS is None
    return positions_BS is not None and torch.equal(positions_BS, restarting(documents_BS))
