"""What the tagger of text normalisation learns from: the rule of every token of a text as the core might write it.

Shapes: N tokens of written text, R rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat
from mm_llama.model import MultimodalLlama
from mm_llama.stages.steps import StepOutput
from mm_llama.voice.rules import NAMES
from mm_llama.voice.tagging import answer_places, normalizer_of, tagged
from mm_llama.voice.written import split

_NUMBER = {name: number for number, name in enumerate(NAMES)}


class Tag:
    """Cross-entropy of the rules that the rows' labels name, over the tokens of their texts."""

    def __init__(self) -> None:
        self.chat: ChatFormat | None = None

    def meet(self, model: MultimodalLlama, chat: ChatFormat) -> None:
        """Be told, before anything else, with whom and in which words."""
        normalizer_of(model)
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
        rows = answered_rows(batch, self.chat)
        rules = []
        for (text, _), labels, source in zip(rows, _labels(batch), batch.sources, strict=True):
            names = labels["rules"].split()
            if unknown := sorted(set(names) - set(NAMES)):
                raise ValueError(f"{source}: there is no rule {unknown[0]!r}; rules are {', '.join(NAMES)}")
            if len(names) != len(split(text)):
                raise ValueError(
                    f"{source}: {len(names)} rules do not fit the {len(split(text))} tokens of {text!r}"
                )
            rules.append(torch.tensor([_NUMBER[name] for name in names], device=batch.tokens_BS.device))
        return tagged(model, batch.tokens_BS, rows, self.chat.tokenizer), rules


def answered_rows(batch: Batch, chat: ChatFormat) -> list[tuple[str, list[int]]]:
    """Return the text that each row has as its answer, and the positions of the core's tokens of it.

    Raises ValueError, naming the row, for one without an answer, and for packed rows.
    """
    if batch.documents_BS is not None or batch.targets_BS is None:
        raise ValueError("text normalisation learns from rows of one answer each: leave loader.pack=false")
    found = []
    for row, (ids, targets) in enumerate(
        zip(batch.tokens_BS.tolist(), batch.targets_BS.tolist(), strict=True)
    ):
        places = answer_places(ids, targets, chat)
        text = chat.tokenizer.decode([ids[place] for place in places])
        if not split(text):
            raise ValueError(f"{batch.source_of(row, 0)}: there is no answer with a word in it")
        found.append((text, places))
    return found


def _labels(batch: Batch) -> list[Mapping[str, Any]]:
    for labels, source in zip(batch.labels, batch.sources, strict=True):
        if not isinstance(labels.get("rules"), str):
            raise ValueError(
                f'{source}: the row has no rules; give {{"extra": {{"labels": {{"rules": "PLAIN CARDINAL ..."}}}}}}'
            )
    return batch.labels
