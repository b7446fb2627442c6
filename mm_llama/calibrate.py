"""Fixed whitenings of a fresh adapter, from the frozen core's own states on the text that it will be trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mm_llama.core.chat import ChatFormat
from mm_llama.data.sources import Source
from mm_llama.model import MultimodalLlama


@torch.no_grad()
def calibrate(
    model: MultimodalLlama,
    sources: Iterable[Source],
    chat: ChatFormat,
    *,
    num_rows: int = 512,
    look_at: int = 4096,
) -> int:
    """Whiten the blocks of every adapter that asks for it; return the number of distinct texts used.

    Texts come at even strides from the sources, media left out but for their placeholders' embedding. States are
    those of positions past a row's first placeholder, the ones that blocks work on.
    """
    adapters = {
        kind: modality.adapter
        for kind, modality in model.modality.items()
        if getattr(modality.adapter, "whiten", False)
    }
    if not adapters:
        return 0
    rows: dict[tuple[int, ...], tuple[int, str]] = {}
    sources = list(sources)
    total = sum(map(len, sources))
    for source in sources:
        share = max(1, look_at * len(source) // total)
        for number in range(min(share, len(source))):
            if len(rows) == num_rows:
                break
            rendered = chat.render(source.row(number * len(source) // min(share, len(source))).messages)
            first = min(rendered.media, key=lambda one: one.position, default=None)
            if first is not None and first.kind in adapters:
                rows.setdefault(tuple(rendered.tokens), (first.position, first.kind))
    if not rows:
        raise ValueError(
            "no row of the training data shows a medium, so there is nothing to calibrate an adapter on"
        )
    layers = sorted({layer for adapter in adapters.values() for layer in adapter.layers})
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for tokens, (position, kind) in rows.items():
        hidden = model.core.embedding(torch.tensor([tokens], device=model.device))
        hidden[0, position] = adapters[kind].placeholder.to(hidden.dtype)
        done = 0
        for layer in layers:
            hidden = model.core.run(hidden, start=done, stop=layer)
            done = layer
            states[layer].append(hidden[0, position + 1 :].float())
    for adapter in adapters.values():
        adapter.calibrate({layer: torch.cat(states[layer]) for layer in adapter.layers})
    return len(rows)
