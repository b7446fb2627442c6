"""What the tagger of text normalisation learns from: the rule of every token of a text as the core might write it.

Shapes: B texts, N tokens of written text, S core positions, D core width, R rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Spoken
from mm_llama.stages.steps import StepOutput
from mm_llama.voice.features import features
from mm_llama.voice.rules import NAMES
from mm_llama.voice.written import Token, split

KIND = "tts_normalization"
_NUMBER = {name: number for number, name in enumerate(NAMES)}


class Tag:
    """Cross-entropy of the rules that the rows' labels name, over the tokens of their texts."""

    def __init__(self) -> None:
        self.chat: ChatFormat | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        if KIND not in model.modality:
            raise ValueError(f"this step needs a normaliser: choose modality/{KIND}=NAME")
        known = model.modality[KIND].adapter.num_rules
        if known != len(NAMES):
            raise ValueError(
                f"modality.{KIND}.adapter.num_rules is {known}, but there are {len(NAMES)} rules"
            )
        self.chat = chat

    def __call__(self, model: MultimodalLlama, batch: Batch) -> StepOutput:
        """Return the loss of all rules of the batch."""
        found, rules = self._tagged(model, batch)
        logits_NR, rules_N = torch.cat(found), torch.cat(rules)
        right = int((logits_NR.detach().argmax(-1) == rules_N).sum())
        loss = F.cross_entropy(logits_NR, rules_N, reduction="sum")
        return StepOutput(loss, len(rules_N), {"accuracy": right / max(1, len(rules_N))})

    def count(self, batch: Batch) -> int:
        """Return the number of tokens that have a rule."""
        return sum(len(labels["rules"].split()) for labels in _labels(batch))

    def evaluate(self, model: MultimodalLlama, batches: Iterable[Batch]) -> dict[str, float]:
        """Return {"answers": share of texts with every rule right, "rules": share of rules}."""
        texts, right_texts, total, right = 0, 0, 0, 0
        for batch in batches:
            with torch.inference_mode():
                for logits_NR, rules_N in zip(*self._tagged(model, batch), strict=True):
                    hits = int((logits_NR.argmax(-1) == rules_N).sum())
                    texts, right_texts = texts + 1, right_texts + (hits == len(rules_N))
                    total, right = total + len(rules_N), right + hits
        return {"answers": right_texts / max(1, texts), "rules": right / max(1, total)}

    def _tagged(self, model: MultimodalLlama, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        if self.chat is None:
            raise ValueError("the step was not told of its model and tokenizer: call `meet` first")
        rows = written_rows(batch, self.chat)
        rules = []
        for (text, _), labels, source in zip(rows, _labels(batch), batch.sources, strict=True):
            names = labels["rules"].split()
            unknown = sorted(set(names) - set(NAMES))
            if unknown or len(names) != len(split(text)):
                raise ValueError(
                    f"{source}: "
                    + (
                        f"there is no rule {unknown[0]!r}"
                        if unknown
                        else f"{len(names)} rules do not fit {text!r}"
                    )
                )
            rules.append(torch.tensor([_NUMBER[name] for name in names], device=batch.tokens_BS.device))
        return tagged(model, batch.tokens_BS, rows, self.chat.tokenizer), rules


def tagged(
    model: MultimodalLlama,
    tokens_BS: Tensor,
    rows: Sequence[tuple[str, list[int]]],
    tokenizer: Tokenizer,
) -> list[Tensor]:
    """Return scores float32[N, R] of the rules of each row's text; `rows` are (text, positions of its tokens)."""
    modality: Spoken = model.modality[KIND]
    adapter, device = modality.adapter, tokens_BS.device
    split_rows = [split(text) for text, _ in rows]
    given = [features(tokens, adapter.num_features).to(device) for tokens in split_rows]
    if not adapter.uses_core:
        return list(adapter(given))
    states_BSD = modality.states(model.core, tokens_BS)
    states, owners = [], []
    for row, ((text, places), tokens) in enumerate(zip(rows, split_rows, strict=True)):
        states.append(states_BSD[row, places])
        owners.append(
            torch.tensor(owners_of(text, tokens, tokens_BS[row, places].tolist(), tokenizer), device=device)
        )
    return list(adapter(given, states, owners))


def owners_of(text: str, tokens: Sequence[Token], ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return for each of the core's tokens of a text the written token in which it ends."""
    starts = [len(text[: token.end].encode()) for token in tokens]
    found, end = [], 0
    for id in ids:
        end += len(tokenizer.token_bytes(id))
        found.append(min(bisect_left(starts, end), len(tokens) - 1))
    return found


def written_rows(batch: Batch, chat: ChatFormat) -> list[tuple[str, list[int]]]:
    """Return the text that each row has as its answer, and the positions of the core's tokens of it.

    Raises ValueError, naming the row, for one without an answer, and for packed rows.
    """
    if batch.documents_BS is not None or batch.targets_BS is None:
        raise ValueError("text normalisation learns from rows of one answer each: leave loader.pack=false")
    found = []
    for row, (ids, targets) in enumerate(
        zip(batch.tokens_BS.tolist(), batch.targets_BS.tolist(), strict=True)
    ):
        places = [place for place, wanted in enumerate(targets) if wanted]
        end = next((number for number, place in enumerate(places) if ids[place] in chat.stop), len(places))
        text = chat.tokenizer.decode([ids[place] for place in places[:end]])
        if not split(text):
            raise ValueError(f"{batch.source_of(row, 0)}: there is no answer with a word in it")
        found.append((text, places[:end]))
    return found


def _labels(batch: Batch) -> list[dict[str, Any]]:
    if len(batch.labels) != len(batch.sources) or not all("rules" in labels for labels in batch.labels):
        raise ValueError(
            f'a row of this batch (near {batch.source_of(0, 0)}) has no rules: give {{"extra": {{"labels": '
            '{"rules": "PLAIN CARDINAL ..."}}}'
        )
    return [dict(labels) for labels in batch.labels]
