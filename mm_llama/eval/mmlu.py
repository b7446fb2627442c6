"""MMLU by log-likelihood, zero-shot, with a digest of every score: two runs are equal to the last bit or not.

Each item is one prompt; its score is the log-probability of " A", " B", " C" and " D" after "Answer:". Items
are sorted by length and cut into batches, so two runs over the same items compute the same shapes: whatever
bits a shape costs, both pay.

Shapes: B items of a batch, S positions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.eval.journal import clock, recall
from mm_llama.eval.statistics import Accuracy
from mm_llama.model import MultimodalLlama

LETTERS = ("A", "B", "C", "D")
HEADER = "The following are multiple choice questions (with answers).\n\n"
_OPTIONS = re.compile(r"A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)", re.DOTALL)


@dataclass(frozen=True)
class Item:
    """One question with four options; `answer` is the index of the right one."""

    question: str
    options: tuple[str, str, str, str]
    answer: int

    @property
    def prompt(self) -> str:
        """The text up to the answer's letter."""
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.options, strict=True))
        return f"{HEADER}{self.question}\n{listed}\nAnswer:"


@dataclass
class MMLUResult:
    """Option log-likelihoods float32[items, 4] in the order of the items, and what they come to."""

    scores: Tensor
    answers: list[int]
    seconds: float
    num_tokens: int

    @property
    def accuracy(self) -> Accuracy:
        """Share of items whose right option is the likeliest."""
        chosen = self.scores.argmax(-1).tolist()
        return Accuracy(sum(a == b for a, b in zip(chosen, self.answers, strict=True)), len(chosen))

    @property
    def digest(self) -> str:
        """SHA-256 of the little-endian float32 log-likelihoods, in the order of the items."""
        data = self.scores.contiguous().numpy().astype("<f4").tobytes()
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        """Accuracy with its intervals, digest, seconds and tokens."""
        found = self.accuracy.to_json() | {"digest": self.digest, "seconds": self.seconds}
        return found | {"num_tokens": self.num_tokens}


def read_items(path: str | Path, *, limit: int = 0) -> list[Item]:
    """Read JSONL items of `question`, `options` ("A. ...\\nB. ..." up to D) and `answer` ("B. ...").

    `limit` > 0 takes that many at even strides. The published file is shuffled over its 57 subjects (2,850
    items, 50 each) and does not name them, so a stride is a draw over all of them. ValueError names file,
    line.
    """
    path = Path(path)
    items = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.strip():
            items.append(_item(line, f"{path}:{number}"))
    if not items:
        raise ValueError(f"{path}: the file holds no items")
    if not limit or limit >= len(items):
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def score_mmlu(
    model: MultimodalLlama | Llama,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> MMLUResult:
    """Score every item's options at the answer position, float32.

    `batch_tokens` bounds the padded positions of a batch. ValueError when a letter is not one token, when an
    item does not fit the core's context, or when a score is not finite.
    """
    core = model.core if isinstance(model, MultimodalLlama) else model
    device = core.embedding.weight.device
    letters = torch.tensor(_letter_ids(tokenizer), device=device)
    bos = [tokenizer.specials[tokenizer.bos_token]] if tokenizer.adds_bos and tokenizer.bos_token else []
    prompts = [[*bos, *tokenizer.encode(item.prompt)] for item in items]
    longest = max(len(prompt) for prompt in prompts)
    if longest > core.config.max_context:
        raise ValueError(f"an item has {longest} tokens, but the core's context is {core.config.max_context}")
    scores = torch.zeros(len(items), len(LETTERS))
    done, start = 0, clock()

    def score(rows: Sequence[int]) -> list[list[float]]:
        width = max(len(prompts[row]) for row in rows)
        tokens_BS = torch.zeros(len(rows), width, dtype=torch.long)
        at_BS = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            tokens_BS[place, : len(prompts[row])] = torch.tensor(prompts[row])
            at_BS[place, len(prompts[row]) - 1] = True
        with torch.inference_mode():
            logits_BV = model(tokens_BS.to(device), at=at_BS.to(device))
            found: list[list[float]] = logits_BV.log_softmax(-1)[:, letters].tolist()
        return found

    for rows in plan_batches([len(prompt) for prompt in prompts], batch_tokens):
        asked = [prompts[row] for row in rows]
        scores[rows] = torch.tensor(recall(("mmlu", core.digest, asked), partial(score, rows)))
        done += len(rows)
        if progress is not None:
            progress(done, len(items))
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).any(-1).nonzero()[0])
        raise ValueError(f"item {bad} has a log-likelihood that is not finite: {scores[bad].tolist()}")
    seconds = clock() - start
    return MMLUResult(scores, [item.answer for item in items], seconds, sum(map(len, prompts)))


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut items, sorted by length, into batches of one item or up to `batch_tokens` padded positions."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _letter_ids(tokenizer: Tokenizer) -> list[int]:
    ids = []
    for letter in LETTERS:
        tokens = tokenizer.encode(f" {letter}")
        if len(tokens) != 1:
            raise ValueError(
                f"this tokenizer splits ' {letter}' into {len(tokens)} tokens; options are scored as one"
            )
        ids.append(tokens[0])
    return ids


def _item(line: str, source: str) -> Item:
    try:
        row = json.loads(line)
        question, listed, answer = row["question"], row["options"], row["answer"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source}: expected an object with question, options and answer ({error})"
        ) from None
    options = _OPTIONS.fullmatch(listed)
    if options is None:
        raise ValueError(f"{source}: options must be four lines from 'A. ' to 'D. ', got {listed[:80]!r}")
    letter = answer[:1]
    if letter not in LETTERS or answer != f"{letter}. {options[LETTERS.index(letter) + 1]}":
        raise ValueError(f"{source}: the answer {answer[:60]!r} is not one of the options")
    a, b, c, d = options.groups()
    return Item(question, (a, b, c, d), LETTERS.index(letter))
