"""Right picture against wrong picture: is a held-out caption likelier beside its own picture than beside
others?

For each caption, log p(caption | right picture) is compared with log p(caption | wrong picture) for a few
wrong pictures of other captions, drawn by a seed. All rows of a caption have the same tokens, so only the
picture can make the difference. Pairs of one caption share its difficulty: the bootstrap interval resamples
captions.

Shapes: B rows, S positions, T target tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat, MediaPart, Text
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.collate import LoadMedia, collate
from mm_llama.data.samples import MediaRef, Sample, make_sample
from mm_llama.data.sources import Row
from mm_llama.eval.greedy import answer_greedily
from mm_llama.eval.journal import clock, recall
from mm_llama.eval.statistics import Accuracy, bootstrap_95
from mm_llama.model import MultimodalLlama


@dataclass(frozen=True)
class Caption:
    """One captioned picture; pictures of one `group` are never each other's wrong picture."""

    text: str
    group: str
    row: Row
    sample: Sample

    @property
    def picture(self) -> MediaRef:
        """The one picture of the row."""
        return self.sample.media[0]


@dataclass
class PairsResult:
    """Log-likelihoods: of each caption beside its own picture, and beside each of its wrong ones."""

    captions: list[Caption]
    right: list[float]
    wrong: list[list[float]]
    wrong_captions: list[list[str]]
    generated: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def accuracy(self) -> Accuracy:
        """Share of pairs in which the right picture makes the caption likelier; a tie is not."""
        return Accuracy(sum(map(sum, self._wins())), sum(map(len, self.wrong)))

    def interval(self, *, num_resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap 95 % interval of the accuracy that resamples whole captions."""
        wins = np.array([sum(row) for row in self._wins()])
        sizes = np.array([len(row) for row in self.wrong])
        return bootstrap_95(wins, sizes, num_resamples, seed)

    def to_json(self) -> dict[str, Any]:
        """Accuracy with intervals, the share of captions likeliest beside their own picture, all captions."""
        wins = self._wins()
        return {
            "pairs": self.accuracy.to_json() | {"bootstrap_95_by_caption": list(self.interval())},
            "beats_all": Accuracy(sum(map(all, wins)), len(wins)).to_json(),
            "num_captions": len(self.captions),
            "seconds": self.seconds,
            "captions": [
                {
                    "caption": caption.text,
                    "group": caption.group,
                    "image": caption.picture.source if isinstance(caption.picture.source, str) else None,
                    "log_p_right": right,
                    "log_p_wrong": wrong,
                    "wrong_captions": others,
                    **({"generated": self.generated[index]} if self.generated else {}),
                }
                for index, (caption, right, wrong, others) in enumerate(
                    zip(self.captions, self.right, self.wrong, self.wrong_captions, strict=True)
                )
            ],
        }

    def _wins(self) -> list[list[bool]]:
        return [
            [right > other for other in others] for right, others in zip(self.right, self.wrong, strict=True)
        ]


def read_captions(rows: Sequence[Row], chat: ChatFormat) -> list[Caption]:
    """Render rows of one picture and one caption (the last assistant message).

    `extra` may name the `group`; else pictures of equal captions form one. ValueError naming the row for one
    with no picture or several.
    """
    captions = []
    for row in rows:
        sample = make_sample(row, chat)
        if len(sample.media) != 1:
            raise ValueError(f"{row.source}: a captioned row shows one picture, this one {len(sample.media)}")
        last = [message for message in row.messages if message.role == "assistant"][-1]
        text = "".join(part.text for part in last.parts if isinstance(part, Text)).strip()
        captions.append(Caption(text, str(row.extra.get("group", text.casefold())), row, sample))
    return captions


def draw_wrong(captions: Sequence[Caption], *, num_wrong: int = 4, seed: int = 0) -> list[list[int]]:
    """Draw, for each caption, `num_wrong` others with another group and another caption, without repeats.

    ValueError when there are not so many.
    """
    generator = random.Random(seed)
    drawn = []
    for caption in captions:
        others = [
            index
            for index, other in enumerate(captions)
            if other.group != caption.group
            and other.text.casefold() != caption.text.casefold()
            and other.picture.key != caption.picture.key
        ]
        if len(others) < num_wrong:
            raise ValueError(
                f"{caption.sample.source}: only {len(others)} pictures of other captions for {num_wrong} "
                "wrong ones; give more rows, or ask for fewer wrong pictures"
            )
        drawn.append(generator.sample(others, num_wrong))
    return drawn


def evaluate_pairs(
    model: MultimodalLlama,
    captions: Sequence[Caption],
    *,
    load_media: LoadMedia,
    encoded: Collection[str] = (),
    num_wrong: int = 4,
    seed: int = 0,
    batch_size: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> PairsResult:
    """Score every caption beside its own picture and `num_wrong` others; `batch_size` counts captions.

    `load_media` and `encoded` are as in `collate`.
    """
    start = clock()
    drawn = draw_wrong(captions, num_wrong=num_wrong, seed=seed)
    scores: dict[int, list[float]] = {}
    order = sorted(range(len(captions)), key=lambda index: (captions[index].sample.num_tokens, index))

    def score(chunk: Sequence[int]) -> list[list[float]]:
        samples = []
        for index in chunk:
            own = captions[index]
            for shown in (index, *drawn[index]):
                ref = replace(
                    own.picture, source=captions[shown].picture.source, key=captions[shown].picture.key
                )
                samples.append(replace(own.sample, media=[ref]))
        batch = collate(samples, load_media, encoded=encoded).to(model.device)
        found: list[list[float]] = (
            target_log_likelihoods(model, batch).view(len(chunk), 1 + num_wrong).tolist()
        )
        return found

    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        key = [
            (captions[index].sample.tokens, [captions[shown].picture.key for shown in (index, *drawn[index])])
            for index in chunk
        ]
        scores.update(zip(chunk, recall(("pairs", key), partial(score, chunk)), strict=True))
        if progress is not None:
            progress(len(scores), len(order))
    return PairsResult(
        list(captions),
        [scores[index][0] for index in range(len(captions))],
        [scores[index][1:] for index in range(len(captions))],
        [[captions[other].text for other in drawn[index]] for index in range(len(captions))],
        seconds=clock() - start,
    )


def target_log_likelihoods(model: MultimodalLlama, batch: Batch) -> Tensor:
    """Return float32[B]: the summed log-probability of each row's target tokens."""
    with torch.inference_mode():
        batch, media = model.prepare(batch)
    assert batch.targets_BS is not None
    at_BS = F.pad(batch.targets_BS[:, 1:], (0, 1))
    with torch.inference_mode():
        logits_TV = model(batch.tokens_BS, lengths_B=batch.lengths_B, media=media, at=at_BS)
        labels_T = batch.tokens_BS[batch.targets_BS]
        log_p_T = -F.cross_entropy(logits_TV, labels_T, reduction="none")
        rows_T = at_BS.nonzero()[:, 0]
        return torch.zeros(len(at_BS), device=log_p_T.device).index_add(0, rows_T, log_p_T)


def generate_captions(
    model: MultimodalLlama,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    captions: Sequence[Caption],
    *,
    load_media: LoadMedia,
    encoded: Collection[str] = (),
    max_new_tokens: int = 24,
    batch_size: int = 16,
) -> list[str]:
    """Return a greedy caption for each picture, asked as its row asks."""
    samples = []
    for caption in captions:
        prompt = caption.row.messages[:-1]
        assert any(isinstance(part, MediaPart) for message in prompt for part in message.parts)
        rendered = chat.render(prompt, open_assistant=True)
        media = [replace(caption.picture, position=rendered.media[0].position)]
        samples.append(Sample(rendered.tokens, [False] * len(rendered.tokens), media, caption.sample.source))
    groups: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.num_tokens, []).append(index)
    found: dict[int, str] = {}
    with torch.inference_mode():
        for indices in groups.values():
            for first in range(0, len(indices), batch_size):
                chunk = indices[first : first + batch_size]
                batch = collate([samples[i] for i in chunk], load_media, encoded=encoded).to(model.device)
                rows = answer_greedily(model, batch, stop=chat.stop, max_new_tokens=max_new_tokens)
                found.update((i, tokenizer.decode(row).strip()) for i, row in zip(chunk, rows, strict=True))
    return [found[index] for index in range(len(samples))]
