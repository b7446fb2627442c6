"""What was said, chosen by two that know different things: the readout heard it, the core knows the language.

A readout takes each piece for itself, so it writes what sounds alike and is no sentence. Here the likeliest readings
are kept side by side (prefix beam search, Graves and Jaitly 2014, Hannun et al. 2014), and after each second the frozen
core says how likely it finds each as text (shallow fusion, Gulcehre et al. 2015). The best one enters the core as text
embeddings and is repeated, greedily as ever.

Shapes: F frames of the adapter, P pieces, R readings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.core.llama import Llama
from mm_llama.core.pieces import respelled
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama

KIND = "speech"
NEVER = -1e30
# Tokens that begin a document, the first that there is; none of them: the core is asked behind a line's end.
BEGINNINGS = ("<|begin_of_text|>", "<|endoftext|>", "<s>")

Pieces = tuple[int, ...]


@dataclass(frozen=True)
class BeamSearch:
    """How to search: a reading's score is log P(sound) + `weight` log P(text) + `reward` for each of its tokens.

    `beam` readings are kept from frame to frame, half of them after the core was asked, which is every `every` frames.
    Of a frame the `top` likeliest pieces within `margin` (a difference of log-probabilities) of the best are followed.
    The core reads at least `context` tokens before those it judges.
    """

    beam: int = 32
    weight: float = 0.5
    reward: float = 2.0
    every: int = 12
    top: int = 12
    margin: float = 12.0
    context: int = 24

    def __post_init__(self) -> None:
        if min(self.beam, self.every, self.top, self.context) < 1:
            raise ValueError(
                f"beam={self.beam}, every={self.every}, top={self.top} and context={self.context} are at least 1"
            )

    def embeddings(
        self, model: MultimodalLlama, batch: Batch, tokenizer: Tokenizer
    ) -> dict[str, list[Tensor]]:
        """Return what `MultimodalLlama.prepare` takes: for each recording of a batch the text found in it.

        Empty without recordings. Raises ValueError for an adapter that has no readout.
        """
        if KIND not in batch.media or not len(batch.media[KIND].items):
            return {}
        modality, table_VD = model.modality[KIND], model.core.embedding.weight
        with torch.inference_mode():
            heard = modality.adapter.hear(modality.encode(batch.media[KIND], table_VD.dtype), table_VD)
            tokens = self.read(heard.log_probabilities(), model.core, tokenizer)
            return {KIND: modality.adapter.spelled(tokens, table_VD)}

    def read(self, logs: Sequence[Tensor], core: Llama, tokenizer: Tokenizer) -> list[list[int]]:
        """Return what is found in each recording, in the core's own tokens; `logs` are float[F, 1 + P] each."""
        fluency = Fluency(core, tokenizer, self.context)
        return [respelled(self.best(logs_FP, fluency), tokenizer) for logs_FP in logs]

    def best(self, logs_FP: Tensor, fluency: Fluency) -> Pieces:
        """Return the best reading of one recording; float[F, 1 + P] are log-probabilities, the blank's first."""
        values, places = logs_FP.float().topk(min(self.top + 1, logs_FP.shape[1]), dim=-1)
        # Of each reading: that of all ways to read it that end in a blank, that of those that end in its last piece.
        kept: dict[Pieces, tuple[float, float]] = {(): (0.0, NEVER)}
        bonus: dict[Pieces, float] = {(): 0.0}

        def score(reading: Pieces) -> float:
            return _add(*kept[reading]) + bonus[reading]

        rows = list(zip(values.tolist(), places.tolist(), strict=True))
        for number, (logs, pieces) in enumerate(rows, start=1):
            followed = [
                (log, piece - 1)
                for log, piece in zip(logs, pieces, strict=True)
                if log >= logs[0] - self.margin
            ]
            kept = self._extended(kept, bonus, followed)
            best = sorted(kept, key=score, reverse=True)[: self.beam]
            kept = {reading: kept[reading] for reading in best}
            last = number == len(rows)
            if last or number % self.every == 0:
                judged = fluency(list(kept), whole=last)
                bonus = {
                    reading: self.weight * log + self.reward * count
                    for reading, (log, count) in zip(kept, judged, strict=True)
                }
                best = sorted(kept, key=score, reverse=True)[: max(1, self.beam // 2)]
                kept = {reading: kept[reading] for reading in best}
            bonus = {reading: bonus[reading] for reading in kept}
        return max(kept, key=score)

    def _extended(
        self,
        kept: dict[Pieces, tuple[float, float]],
        bonus: dict[Pieces, float],
        followed: Sequence[tuple[float, int]],
    ) -> dict[Pieces, tuple[float, float]]:
        """Return all readings after one more frame; a new one has the bonus of what it goes on from."""
        found: dict[Pieces, tuple[float, float]] = {}

        def add(reading: Pieces, blank: float, piece: float, origin: Pieces) -> None:
            before = found.get(reading, (NEVER, NEVER))
            found[reading] = (_add(before[0], blank), _add(before[1], piece))
            bonus.setdefault(reading, bonus[origin])

        for reading, (blank, piece) in kept.items():
            total = _add(blank, piece)
            for log, one in followed:
                if one < 0:
                    add(reading, total + log, NEVER, reading)
                elif reading and reading[-1] == one:
                    # The same piece held on, or said again after a blank.
                    add(reading, NEVER, piece + log, reading)
                    add((*reading, one), NEVER, blank + log, reading)
                else:
                    add((*reading, one), NEVER, total + log, reading)
        return found


def listen_by(search: BeamSearch, model: MultimodalLlama, tokenizer: Tokenizer) -> None:
    """Let a loaded model hear by `search` from now on, whatever is asked of it: recordings enter as what that finds.

    Raises ValueError when there is no speech adapter, or one without a readout.
    """
    if KIND not in model.modality or not model.modality[KIND].adapter.num_pieces:
        raise ValueError("only a speech adapter with a readout can be searched, and there is none here")
    model.modality[KIND].adapter.read = lambda heard: search.read(
        heard.log_probabilities(), model.core, tokenizer
    )


class Fluency:
    """How likely the core finds readings as the beginning of a document; what was asked once is remembered."""

    def __init__(self, core: Llama, tokenizer: Tokenizer, context: int = 24) -> None:
        self.core, self.tokenizer, self.context = core, tokenizer, context
        begin = [tokenizer.specials[text] for text in BEGINNINGS if text in tokenizer.specials]
        self.begin = begin[0] if begin else tokenizer.encode("\n")[0]
        self._known: dict[Pieces, float] = {(): 0.0}

    def __call__(self, readings: Sequence[Pieces], whole: bool = True) -> list[tuple[float, int]]:
        """Return (log-probability of its text, number of its tokens) of each reading.

        Unless they are `whole`, their last words are left out: these may not be at their end.
        """
        asked = [self._tokens(reading, whole) for reading in readings]
        self._ask([tokens for tokens in dict.fromkeys(asked) if tokens not in self._known])
        return [(self._known[tokens], len(tokens)) for tokens in asked]

    def _tokens(self, reading: Pieces, whole: bool) -> Pieces:
        text = self.tokenizer.decode(list(reading)).strip()
        if not whole:
            text = text.rpartition(" ")[0]
        # Pieces may be smaller than the core's own tokens, of which alone it can say how likely they are.
        return tuple(self.tokenizer.encode(text)) if text else ()

    @torch.inference_mode()
    def _ask(self, asked: Sequence[Pieces]) -> None:
        """Run what is not known of the readings; beginnings that they share are run once, as a tree."""
        rows: list[tuple[Pieces, int]] = []  # (reading, how many of its tokens are known)
        for tokens in asked:
            known = len(tokens) - 1
            while tokens[:known] not in self._known:
                known -= 1
            rows.append((tokens, known))
        if not rows:
            return
        # One window for all of them, so that they share what stands in it.
        start = max(0, min(known for _, known in rows) - self.context)
        tree = Tree([(self.begin, *tokens)[start:-1] for tokens, _ in rows])
        device = self.core.embedding.weight.device
        tokens_1S, depths_1S, sees_1SS = (part[None].to(device) for part in tree.tensors())
        hidden_SD = self.core.hidden(tokens_1S, positions_BS=depths_1S, sees_BSS=sees_1SS)[0]
        # The state at a token says how likely the next one is.
        judged = [
            (path[known - start :], tokens[known:])
            for path, (tokens, known) in zip(tree.paths, rows, strict=True)
        ]
        needed = sorted({place for places, _ in judged for place in places})
        logits_NV = self.core.logits(hidden_SD[needed])
        logs_NV = (logits_NV - logits_NV.logsumexp(-1, keepdim=True)).cpu()
        at = {place: number for number, place in enumerate(needed)}
        for (tokens, known), (places, said) in zip(rows, judged, strict=True):
            total = self._known[tokens[:known]]
            parts = logs_NV[[at[place] for place in places], list(said)].tolist()
            for count, log in enumerate(parts, start=known + 1):
                total += log
                self._known[tokens[:count]] = total


class Tree:
    """Sequences as one row in which a beginning that several share stands once; `paths` are their places in it."""

    def __init__(self, sequences: Sequence[Pieces]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []  # -1 at a beginning
        self.paths: list[list[int]] = []
        places: dict[tuple[int, int], int] = {}  # (parent, token): place
        for sequence in sequences:
            path, parent = [], -1
            for token in sequence:
                place = places.setdefault((parent, token), len(self.tokens))
                if place == len(self.tokens):
                    self.tokens.append(token)
                    self.parents.append(parent)
                path.append(place)
                parent = place
            self.paths.append(path)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return int64[S] tokens, int64[S] depths and bool[S, S]: each place sees itself and what it follows."""
        S = len(self.tokens)
        depths, sees_SS = [0] * S, torch.eye(S, dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                depths[place] = depths[parent] + 1
                sees_SS[place] |= sees_SS[parent]
        return torch.tensor(self.tokens), torch.tensor(depths), sees_SS


def _add(first: float, second: float) -> float:
    """Return log(exp(first) + exp(second))."""
    high, low = (first, second) if first >= second else (second, first)
    return high if low <= NEVER else high + math.log1p(math.exp(low - high))
