"""Texts to the rules of their tokens, by a normaliser that may look at the states of the core.

A text is given to the core as what it would have written itself, with an empty question before it (paper section 8.3).

Shapes: B texts, N tokens of written text, S core positions, D core width, R rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from mm_llama.core.chat import ChatFormat, Message, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Spoken
from mm_llama.voice.features import features
from mm_llama.voice.fitting import fitting
from mm_llama.voice.rules import NAMES, Reading
from mm_llama.voice.written import Token, split

KIND = "tts_normalization"


def normalizer_of(model: MultimodalLlama) -> Spoken:
    """Return the normaliser of a model. Raises ValueError when it has none, or one for other rules than there are."""
    modality = model.spoken(KIND)
    if modality.adapter.num_rules != len(NAMES):
        raise ValueError(
            f"modality.{KIND}.adapter.num_rules is {modality.adapter.num_rules}, but there are {len(NAMES)} rules"
        )
    return modality


def tagged(
    model: MultimodalLlama, tokens_BS: Tensor, rows: Sequence[tuple[str, list[int]]], tokenizer: Tokenizer
) -> list[Tensor]:
    """Return scores float32[N, R] of the rules of each row's text; `rows` are (text, positions of its tokens)."""
    modality = normalizer_of(model)
    adapter, device = modality.adapter, tokens_BS.device
    written = [split(text) for text, _ in rows]
    given = [features(tokens, adapter.num_features).to(device) for tokens in written]
    if not adapter.uses_core:
        return list(adapter(given))
    states_BSD = modality.states(model.core, tokens_BS)
    states, owners = [], []
    for row, ((text, places), tokens) in enumerate(zip(rows, written, strict=True)):
        ids = tokens_BS[row, places].tolist()
        states.append(states_BSD[row, places])
        owners.append(torch.tensor(owners_of(text, tokens, ids, tokenizer), device=device))
    return list(adapter(given, states, owners))


def owners_of(text: str, tokens: Sequence[Token], ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return for each of the core's tokens of a text the written token in which it ends."""
    ends = [len(text[: token.end].encode()) for token in tokens]
    found, end = [], 0
    for id in ids:
        end += len(tokenizer.token_bytes(id))
        found.append(min(bisect_left(ends, end), len(tokens) - 1))
    return found


def read(
    model: MultimodalLlama, tokenizer: Tokenizer, chat: ChatFormat, texts: Sequence[str], batch_size: int = 32
) -> list[Reading]:
    """Return how each text is read: its tokens and their rules; `.text()` is what is said.

    A text without a word gives an empty reading. Raises ValueError without a normaliser.
    """
    normalizer_of(model)
    found: dict[int, Reading] = {
        place: Reading([], []) for place, text in enumerate(texts) if not split(text)
    }
    order = sorted(
        (place for place in range(len(texts)) if place not in found), key=lambda one: len(texts[one])
    )
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        tokens_BS, rows = written_rows([texts[place] for place in chosen], chat)
        with torch.inference_mode():
            scores = tagged(model, tokens_BS.to(model.device), rows, tokenizer)
        for place, scores_NR in zip(chosen, scores, strict=True):
            tokens = split(texts[place])
            found[place] = Reading(tokens, fitting(tokens, scores_NR, normalizer_of(model).adapter.context))
    return [found[place] for place in range(len(texts))]


def written_rows(texts: Sequence[str], chat: ChatFormat) -> tuple[Tensor, list[tuple[str, list[int]]]]:
    """Return int64[B, S] of texts, each as the answer to an empty question, and (text, positions of its tokens)."""
    rendered = [
        chat.render([Message("user", (Text(""),)), Message("assistant", (Text(text),))]) for text in texts
    ]
    tokens_BS = torch.zeros(len(texts), max(len(row.tokens) for row in rendered), dtype=torch.long)
    for place, row in enumerate(rendered):
        tokens_BS[place, : len(row.tokens)] = torch.tensor(row.tokens)
    return tokens_BS, [
        (text, answer_places(row.tokens, row.targets, chat))
        for text, row in zip(texts, rendered, strict=True)
    ]


def answer_places(tokens: Sequence[int], targets: Sequence[bool], chat: ChatFormat) -> list[int]:
    """Return the positions of a row's answer: its targets, without what ends the turn."""
    places = [place for place, wanted in enumerate(targets) if wanted]
    end = next((number for number, place in enumerate(places) if tokens[place] in chat.stop), len(places))
    return places[:end]
