"""The multimodal model: a frozen text core and the modalities attached to it, one forward for all.

With no media in a batch the operations are the core's own; with media, rows and positions that see none get
exactly the operations that the plain core gives them (design section 1, "text is unchanged").

Shapes: B batch, S positions, T positions selected by `at`, D core width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Batch, Media, restarting
from mm_llama.core.cache import KVCache
from mm_llama.core.kernels import blocks_pay
from mm_llama.core.layers import hold_products
from mm_llama.core.llama import Between, Llama
from mm_llama.modality import CrossAttended, MediaState, Plan, plan
from mm_llama.prefixes import Prefixes
from mm_llama.splice import Spliced, spliced
from mm_llama.spoken import Spoken

Modality = CrossAttended | Spliced | Spoken
WEIGHTS = ("auto", "plain", "int8")  # how they are held for inference (`MultimodalLlama.hold`)


class MultimodalLlama(nn.Module):
    """A core with modalities by name; parameters are `core.*` and `modality.<name>.{encoder,adapter}.*`."""

    def __init__(self, core: Llama, modalities: Mapping[str, Modality] | None = None) -> None:
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

    def hold(self, weights: str = "auto") -> None:
        """Hold weights in the form that inference is fastest with; they can then be neither trained nor moved.

        `plain` leaves all as it is. `auto` has the same numbers in another layout, where a CPU computes in bfloat16.
        `int8` rounds the core's weights, and no adapter's: half the bytes, other logits. Raises ValueError for
        another word, and for `int8` in another dtype than bfloat16.
        """
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
        blocked = blocks_pay(self.dtype, self.device)
        if weights == "int8":
            if self.dtype != torch.bfloat16:
                raise ValueError(
                    f"weights='int8' computes in bfloat16, and the model is {self.dtype}: "
                    "leave out dtype, or say bfloat16"
                )
            self.core.hold("int8")
        elif weights == "auto" and blocked:
            self.core.hold("blocked")
        if weights != "plain" and blocked:
            for modality in self.modality.values():
                if isinstance(modality, CrossAttended):
                    hold_products(modality.adapter, "blocked")

    def prepare(
        self, batch: Batch, embeddings: Mapping[str, list[Tensor]] | None = None
    ) -> tuple[Batch, MediaState | None]:
        """Encode the media of a batch once: the batch to compute with, and what a forward pass needs of its media.

        Rows with spliced media come back longer: all that is asked of a batch afterwards (tokens, lengths, targets)
        is asked of that one. `embeddings` float[n, D] by kind and item replace what the adapter would give. Raises
        ValueError when a kind has no adapter here.
        """
        self._check_kinds(batch.media)
        found = {
            kind: (embeddings or {}).get(kind) or self.modality[kind].embed(media, self.core.embedding.weight)
            for kind, media in batch.media.items()
            if isinstance(self.modality[kind], Spliced) and len(media.items)
        }
        if not found:
            return batch, self.attach(batch.media, batch.documents_BS)
        longer, inserted = spliced(batch, found)
        state = self.attach(longer.media, longer.documents_BS) or MediaState()
        state.inserted = inserted
        return longer, state

    def attach(self, media: Mapping[str, Media], documents_BS: Tensor | None = None) -> MediaState | None:
        """Encode the cross-attended media of a batch once; None when there are none.

        Raises ValueError when a kind has no adapter here, or is spliced into rows (`prepare` does both).
        """
        self._check_kinds(media)
        state = MediaState()
        for kind in media:
            if isinstance(self.modality[kind], Spliced):
                raise ValueError(
                    f"{kind} is spliced into rows, which are longer then: call `prepare` instead"
                )
        # Those that read another's encoder first: their blocks stand before the other's (paper section 7.2).
        for kind in sorted(media, key=lambda kind: not self.modality[kind].reads):
            if len(media[kind].items):
                encoder = None if media[kind].encoded else self.encoder_of(kind)
                state.attached[kind] = self.modality[kind].attach(
                    media[kind], self.dtype, documents_BS, encoder
                )
        return state if state.attached else None

    def _check_kinds(self, media: Mapping[str, Media]) -> None:
        for kind in media:
            if kind not in self.modality or isinstance(self.modality[kind], Spoken):
                raise ValueError(no_adapter(kind, list(self.modality)))

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

    def spoken(self, kind: str) -> Spoken:
        """Return a part of the voice by name. Raises ValueError, saying how to get one, when there is none."""
        if kind not in self.modality:
            raise ValueError(
                f"there is no {kind} here: train one with `mm-llama train stage={kind}` and attach its run (in a stage "
                f"of your own: modality/{kind}=NAME)"
            )
        found: Spoken = self.modality[kind]
        return found

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

        `media` comes from `prepare`; `lengths_B` int64 lets padding skip the media blocks. The rest as in
        `Llama.forward`; with a cache, `positions_BS` are row slots, else slots are 0..S-1. Packed rows have
        `documents_BS` and positions that begin anew with each document.
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
        # Below the lowest block no cross-attended medium changes a state, but a spliced one does.
        alike = not media.inserted and _counted_anew(positions_BS, documents_BS)
        if self.prefixes is not None and cache is None and alike:
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
        """Embed the tokens, with what each adapter owns in them: a placeholder's own embedding, spliced spans."""
        hidden = self.core.embedding(tokens_BS)
        first = slots_BS[:, 0].tolist()
        S = tokens_BS.shape[1]
        for inserted in media.inserted.values():
            hidden = inserted.put(hidden, first)
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


def no_adapter(kind: str, attached: Sequence[str]) -> str:
    """Say that a kind of media has no adapter, and what to do."""
    stage = "speech_sft" if kind == "speech" else f"{kind}_pretrain"
    held = "speech" if kind == "speech" else f"{kind}s"
    return (
        f"the input holds {held}, but no {kind} adapter is attached (attached: {', '.join(attached) or 'none'}): "
        f"train one with `make demo` or `mm-llama train stage={stage} ...`, then attach its run with --adapter, or "
        f"load(adapters=['runs/demo/{kind}'])"
    )


def _counted_anew(positions_BS: Tensor | None, documents_BS: Tensor | None) -> bool:
    """Say whether every row, or every document of packed rows, stands at positions 0, 1, 2, ..."""
    if documents_BS is None:
        return positions_BS is None
    return positions_BS is not None and torch.equal(positions_BS, restarting(documents_BS))
