"""What the prosody model is given of texts: their phones, and the states of the core where their words begin.

Shapes: B texts, P phones, S core positions, D core width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Spoken
from mm_llama.voice.phones import NUM_PHONES, numbers
from mm_llama.voice.prosody import owners_of_phones

KIND = "tts_prosody"


@dataclass(frozen=True)
class Given:
    """Of each text its phones int64[P], states float[S, D], where each phone's word begins int64[P], and its style."""

    phones: list[Tensor]
    states: list[Tensor] | None = None
    owners: list[Tensor] | None = None
    styles: list[int] | None = None


def prosody_model_of(model: MultimodalLlama) -> Spoken:
    """Return the prosody model. Raises ValueError when there is none, or one of other phones."""
    modality = model.spoken(KIND)
    if modality.adapter.num_phones != NUM_PHONES:
        raise ValueError(
            f"modality.{KIND}.adapter.num_phones is {modality.adapter.num_phones}, but there are {NUM_PHONES} phones"
        )
    return modality


def given(
    model: MultimodalLlama,
    tokens_BS: Tensor,
    rows: Sequence[tuple[str, list[int]]],
    spoken: Sequence[str],
    tokenizer: Tokenizer,
    styles: Sequence[int | str] = (),
) -> Given:
    """Return what the prosody model is given; `rows` are (text, positions of its tokens), `spoken` their phones.

    `styles` are names or numbers of the model's, the first where none are given. Raises ValueError for another one.
    """
    modality, device = prosody_model_of(model), tokens_BS.device
    numbers_of_styles = [modality.adapter.style_of(style) for style in styles or [0] * len(rows)]
    phones = [torch.tensor(numbers(one), device=device) for one in spoken]
    if not modality.adapter.uses_core:
        return Given(phones, styles=numbers_of_styles)
    states_BSD = modality.states(model.core, tokens_BS)
    states = [states_BSD[row, places] for row, (_, places) in enumerate(rows)]
    owners = [
        owners_of_phones(one, text, tokens_BS[row, places].tolist(), tokenizer)
        for row, ((text, places), one) in enumerate(zip(rows, spoken, strict=True))
    ]
    return Given(phones, states, [torch.tensor(one, device=device) for one in owners], numbers_of_styles)
