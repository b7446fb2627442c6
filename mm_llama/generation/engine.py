"""Generation: one engine for single prompts and ragged batches, with and without media, streamed or whole.

The prompt runs through the model once (in chunks if asked) and fills a preallocated cache in which a slot is
a position; media are encoded once, and their keys and values serve every step. A finished row is no longer
extended; when half of the rows have finished, those leave the batch. The engine knows token ids only; text is
made of them by `generation.text`.

Shapes: `B` rows, `S` prompt positions, `V` vocabulary.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Batch
from mm_llama.core.cache import KVCache
from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.generation.compiled import FixedShapeCache, compiled, rounded_length
from mm_llama.generation.prompts import Prompt, make_batch
from mm_llama.generation.sampling import Sampler, Sampling
from mm_llama.generation.text import TextPieces, text_of
from mm_llama.modality import MediaState
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Watch, Written


@dataclass(frozen=True)
class Seconds:
    """Wall time since the call: until the prompt was read (media included), the first token, the last one."""

    prefill: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Generated:
    """One row's continuation. `tokens` and `text` leave out the stop token, which is `stop_token`."""

    tokens: list[int]
    text: str  # "" when no tokenizer was given
    stop_reason: (
        str  # "stop": a stop token came; "length": max_new_tokens were made; "": closed before either
    )
    stop_token: int | None
    num_prompt_tokens: int
    seconds: Seconds


def generate(
    model: MultimodalLlama | Llama,
    prompts: Sequence[Prompt] | Batch,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[int, int], None] | None = None,
    prefill_chunk: int = 0,
    compile: bool = False,
    embeddings: Mapping[str, list[Tensor]] | None = None,
) -> list[Generated]:
    """Continue every prompt by up to `max_new_tokens`, or to the first token of `stop`.

    Greedy unless `sampling` says otherwise. A prompt is a rendered chat, a list of token ids, or (ids, media
    placeholders); a ready `Batch` may hold encoded features too. `on_token(row, token)` is called as tokens
    are made. `prefill_chunk` bounds how many prompt positions run at once (0: all). `compile` compiles the
    repeated step. `embeddings` stand for spliced media, as in `MultimodalLlama.prepare`. Raises ValueError when a
    prompt and its new tokens do not fit the core's context.
    """
    batch = make_batch(model, prompts)
    if not len(batch.tokens_BS):
        return []
    run = _Run(model, batch, max_new_tokens, sampling or Sampling(), stop, prefill_chunk, compile, embeddings)
    with closing(run.events()) as events:
        for row, token in events:
            if on_token is not None:
                on_token(row, token)
    return [run.result(row, tokenizer) for row in range(len(batch.tokens_BS))]


def stream(
    model: MultimodalLlama | Llama,
    prompt: Prompt,
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    prefill_chunk: int = 0,
    compile: bool = False,
    watch: Collection[int] = (),
) -> "TextStream":
    """Continue one prompt; its text comes in pieces as it is made. Arguments and errors as in `generate`.

    `watch` names layers of the core whose states `TextStream.written` tells beside the text; it does not go together
    with `compile`, whose steps nobody looks into.
    """
    if watch and compile:
        raise ValueError("a compiled step tells no states: leave out compile, or what watches the core")
    batch = make_batch(model, [prompt])
    run = _Run(model, batch, max_new_tokens, sampling or Sampling(), stop, prefill_chunk, compile)
    run.watch = Watch(run.core, watch)
    return TextStream(run, tokenizer)


class TextStream(Iterator[str]):
    """The pieces of one answer; joined they are `result.text`."""

    def __init__(self, run: "_Run", tokenizer: Tokenizer) -> None:
        self._run = run
        self._tokenizer = tokenizer
        self._pieces = self._read()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Generated:
        """The whole answer; what is still to be made is made first."""
        for _ in self:
            pass
        return self._run.result(0, self._tokenizer)

    def written(self) -> Generator[Written, None, None]:
        """Yield the answer's tokens with the states of the watched layers behind them, each as soon as it is known.

        That is when the next token is made. To be used instead of the pieces of text, not beside them.
        """
        waiting: int | None = None
        with closing(self._run.events()) as events:
            for _, token in events:
                if waiting is not None:
                    yield self._told(waiting)
                waiting = token
        if waiting is not None:
            yield self._told(waiting)

    def _told(self, token: int) -> Written:
        return Written(self._tokenizer.token_bytes(token), self._run.watch.at(-1))

    def close(self) -> None:
        """Make no more; `result` is then what there is so far."""
        self._pieces.close()

    def _read(self) -> Generator[str, None, None]:
        pieces = TextPieces(self._tokenizer)
        with closing(self._run.events()) as events:
            for _, token in events:
                if piece := pieces.push(token):
                    yield piece
        if piece := pieces.finish():
            yield piece


@dataclass
class _Row:
    """What has become of one prompt so far."""

    num_prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    stop_reason: str = ""
    stop_token: int | None = None
    first_token: float = 0.0
    total: float = 0.0


class _Run:
    """One call: its rows and how they are extended."""

    def __init__(
        self,
        model: MultimodalLlama | Llama,
        batch: Batch,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        prefill_chunk: int,
        compile: bool,
        embeddings: Mapping[str, list[Tensor]] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        core = model if isinstance(model, Llama) else model.core
        if compile and core.held:
            raise ValueError(
                'weights that are held for inference are not compiled: load the model with weights="plain"'
            )
        if prefill_chunk < 0:
            raise ValueError(
                f"prefill_chunk is {prefill_chunk}, expected 0 (the whole prompt at once) or more"
            )
        self.model = model
        self.core = model if isinstance(model, Llama) else model.core
        self.batch = batch
        self.rows = [_Row(length) for length in batch.lengths_B.tolist()]
        self.max_new_tokens = max_new_tokens
        self.stop = frozenset(stop)
        self.sampler = Sampler(sampling, len(self.rows))
        self.prefill_chunk = prefill_chunk
        self.compile = compile
        self.embeddings = embeddings
        self.prefill_seconds = 0.0
        self.watch = Watch(self.core, ())
        self._check_prompts()

    @torch.inference_mode()
    def events(self) -> Generator[tuple[int, int], None, None]:
        """Extend every row to its end; yields (row, token) as tokens are made, without stop tokens."""
        self._start = time.perf_counter()
        with _evaluating(self.model), self.watch:
            batch, media = self.batch.to(self.core.embedding.weight.device), None
            if not isinstance(self.model, Llama):
                batch, media = self.model.prepare(batch, self.embeddings)
                # What is spliced in takes as many positions as it has embeddings, which is known only now.
                for row, length in zip(self.rows, batch.lengths_B.tolist(), strict=True):
                    row.num_prompt_tokens = length
                self._check_prompts()
            weight = self.core.embedding.weight
            # The last token is run only where its states are wanted.
            length = max(row.num_prompt_tokens for row in self.rows) + self.max_new_tokens
            length -= not self.watch.layers
            config, step, cache_class = self.core.config, _forward, KVCache
            if self.compile:
                step, cache_class = compiled(_forward), FixedShapeCache
                length = rounded_length(length, config.max_context)
            cache = cache_class(config, len(self.rows), length, weight.dtype, weight.device)
            logits_BV = self._prefill(batch, media, cache)
            self.prefill_seconds = self._elapsed()
            here = list(range(len(self.rows)))  # the prompt that each row of the batch continues
            while True:
                for index, token in zip(here, self.sampler(logits_BV, here).tolist(), strict=True):
                    if self._take(self.rows[index], token):
                        yield index, token
                alive = [place for place, index in enumerate(here) if not self.rows[index].stop_reason]
                if not alive and not (self.watch.layers and self.rows[0].stop_reason == "length"):
                    return
                # A smaller batch would have to be compiled again.
                if alive and 2 * len(alive) <= len(here) and not self.compile:
                    here = [here[place] for place in alive]
                    cache = cache.select(torch.tensor(alive, device=weight.device))
                    media = _select_rows(media, alive)
                rows = [self.rows[index] for index in here]
                # A finished row that is still there writes its last slot again, which nobody reads.
                tokens_B1 = torch.tensor([row.tokens[-1:] or [0] for row in rows], device=weight.device)
                positions_B1 = torch.tensor(
                    [[row.num_prompt_tokens + len(row.tokens) - 1] for row in rows], device=weight.device
                )
                logits_BV = step(self.model, tokens_B1, positions_B1, cache, media)[:, 0]
                if not alive:
                    return  # the last token was run for the sake of its state

    def result(self, index: int, tokenizer: Tokenizer | None) -> Generated:
        """What has become of one row."""
        row = self.rows[index]
        return Generated(
            tokens=list(row.tokens),
            text="" if tokenizer is None else text_of(tokenizer, row.tokens),
            stop_reason=row.stop_reason,
            stop_token=row.stop_token,
            num_prompt_tokens=row.num_prompt_tokens,
            seconds=Seconds(self.prefill_seconds, row.first_token, row.total),
        )

    def _prefill(self, batch: Batch, media: MediaState | None, cache: KVCache) -> Tensor:
        """Fill the cache with the prompts and return the logits behind each one's last token, float[B, V]."""
        B, S = batch.tokens_BS.shape
        chunk = self.prefill_chunk or S
        last_B1 = batch.lengths_B[:, None] - 1
        found: list[Tensor] = []
        order: list[Tensor] = []
        for start in range(0, S, chunk):
            positions_BS = torch.arange(start, min(start + chunk, S), device=last_B1.device).expand(B, -1)
            at = positions_BS == last_B1
            tokens_BS = batch.tokens_BS[:, start : start + chunk]
            found.append(
                _forward(self.model, tokens_BS, positions_BS, cache, media, lengths_B=batch.lengths_B, at=at)
            )
            order.append(at.any(1).nonzero()[:, 0])
        return torch.cat(found)[torch.cat(order).argsort()]

    def _take(self, row: _Row, token: int) -> bool:
        """Give a row its next token; False when it was finished already or is now by a stop token."""
        if row.stop_reason:
            return False
        row.total = self._elapsed()
        row.first_token = row.first_token or row.total
        if token in self.stop:
            row.stop_reason, row.stop_token = "stop", token
            return False
        row.tokens.append(token)
        if len(row.tokens) == self.max_new_tokens:
            row.stop_reason = "length"
        return True

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _check_prompts(self) -> None:
        room, vocab_size = self.core.config.max_context, self.core.config.vocab_size
        for index, row in enumerate(self.rows):
            which = f"prompt {index}" if len(self.rows) > 1 else "the prompt"
            if not row.num_prompt_tokens:
                raise ValueError(f"{which} has no tokens; generation needs at least one to start from")
            if row.num_prompt_tokens + self.max_new_tokens > room:
                raise ValueError(
                    f"{which} has {row.num_prompt_tokens} tokens; with max_new_tokens={self.max_new_tokens} "
                    f"that is more than the core's context of {room} tokens (core.max_context): shorten the "
                    "prompt or lower max_new_tokens"
                )
            highest = int(self.batch.tokens_BS[index].max())
            if highest >= vocab_size:
                raise ValueError(
                    f"{which} holds the token id {highest}, but the core has {vocab_size} "
                    f"(0 to {vocab_size - 1}): it was made with the tokenizer of another model"
                )


def _forward(
    model: MultimodalLlama | Llama,
    tokens_BS: Tensor,
    positions_BS: Tensor,
    cache: KVCache,
    media: MediaState | None,
    **extra: Any,
) -> Tensor:
    """One pass over new positions: float32 logits, of a plain core or of a model with media."""
    if isinstance(model, Llama):
        extra.pop("lengths_B", None)
        return model(tokens_BS, positions_BS=positions_BS, cache=cache, **extra)
    return model(tokens_BS, positions_BS=positions_BS, cache=cache, media=media, **extra)


def _select_rows(media: MediaState | None, places: list[int]) -> MediaState | None:
    """The media state of a batch that keeps only the rows at `places`, in that order."""
    if media is None:
        return None
    new = {place: row for row, place in enumerate(places)}
    return MediaState(
        {
            kind: replace(
                attached,
                spans=[replace(span, row=new[span.row]) for span in attached.spans if span.row in new],
                placeholders=[(new[row], slot) for row, slot in attached.placeholders if row in new],
            )
            for kind, attached in media.attached.items()
        },
        {kind: inserted.rows(new) for kind, inserted in media.inserted.items()},
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Generate in evaluation mode, and leave every module in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
