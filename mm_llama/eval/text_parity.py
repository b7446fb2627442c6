"""The proof that text is unchanged: a model with adapters against the plain core, bit for bit.

The plain core is loaded again, apart from the model under test. Both get the same tokens in batches of the
same shape, and every float32 logit must be equal: alone, in batches, through the cache, in chunks, and beside
rows with pictures. The rows with pictures are the control: they must differ, or the adapter was not at work
at all.

Shapes: B rows, S positions, V vocabulary, M pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mm_llama.batch import Media
from mm_llama.core.cache import KVCache
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.model import MultimodalLlama

TEXTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because the air pressure there is",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return",
    "Once upon a time there was a lighthouse keeper who counted the ships that passed. Every evening he "
    "wrote their number into a book, and every morning he read it aloud to the gulls, who did not care. One "
    "winter no ship came for forty days, and on the forty-first",
)


@dataclass
class Case:
    """One comparison: how many logits, the largest difference, and whether all bits are equal."""

    name: str
    num_values: int = 0
    max_delta: float = 0.0
    equal: bool = True

    def add(self, plain: Tensor, attached: Tensor) -> None:
        """Compare the bits of two float32 tensors of one shape: 0.0 and -0.0 differ, a NaN equals itself."""
        assert plain.shape == attached.shape and plain.dtype == attached.dtype == torch.float32
        self.num_values += plain.numel()
        if not torch.equal(plain.contiguous().view(torch.int32), attached.contiguous().view(torch.int32)):
            self.equal = False
            delta = (plain - attached).abs().max().item()
            self.max_delta = max(self.max_delta, delta if delta == delta else float("inf"))


@dataclass
class Parity:
    """What was compared and what came out; `identical` needs every case and every digest."""

    cases: list[Case]
    plain: str  # digest of the plain core's tensors, in the dtype of this run
    attached: str  # of the core inside the model
    dtype: str
    checkpoint: str = ""  # identity of the plain core's checkpoint
    recorded: str = ""  # the checkpoint that the adapter says it was trained on
    num_before: int = 0  # core tensors whose digest before training is known in this dtype
    changed: list[str] = field(default_factory=list)  # those of them that differ now
    control: float | None = None  # largest difference where pictures are seen; None without pictures

    @property
    def identical(self) -> bool:
        """Whether the text model is the same, to the bit, in everything that was compared."""
        same_checkpoint = not self.recorded or self.recorded == self.checkpoint
        weights = self.plain == self.attached and not self.changed and same_checkpoint
        return weights and all(case.equal for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """Plain data for proof.json."""
        return {
            "identical": self.identical,
            "dtype": self.dtype,
            "core": {
                "recorded": self.recorded,
                "checkpoint": self.checkpoint,
                "plain": self.plain,
                "attached": self.attached,
                "num_tensors_known_before_training": self.num_before,
                "changed_since_training": self.changed,
            },
            "cases": [vars(case) for case in self.cases],
            "control": None if self.control is None else {"max_delta": self.control},
        }


def text_parity(
    model: MultimodalLlama,
    plain: Llama,
    tokenizer: Tokenizer,
    *,
    pictures: Sequence[Tensor] = (),
    texts: Sequence[str] = TEXTS,
    recorded: str = "",
    before: Mapping[str, str] | None = None,
    num_decoded: int = 8,
) -> Parity:
    """Compare `model` on text with `plain`, a core of the same checkpoint that never met an adapter.

    `pictures` are preprocessed for the image encoder, float[3, h, w]; with them, text rows are also compared
    beside picture rows. `recorded` is the checkpoint digest that the adapter carries, `before` the digests of
    single tensors ("core.<name>") from before its training; those of another dtype tell nothing and are left
    out. ValueError when there is no text, or when the two cores were loaded in different dtypes.
    """
    if not texts:
        raise ValueError("the proof needs at least one text")
    if plain.embedding.weight.dtype != model.dtype:
        raise ValueError(
            f"the plain core is {plain.embedding.weight.dtype}, the model {model.dtype}: load both alike"
        )
    rows = [torch.tensor(tokenizer.encode(text), device=model.device) for text in texts]
    with torch.inference_mode():
        cases = [_alone(model, plain, row) for row in rows]
        batch = _stack(rows)
        cases += [_batched(model, plain, batch), _cached(model, plain, batch, num_decoded)]
        cases.append(_chunked(model, plain, batch))
        control = None
        if pictures:
            mixed, decoded, control = _beside_pictures(model, plain, batch, pictures, num_decoded)
            cases += [mixed, decoded]
    result = Parity(
        cases,
        digest_tensors(plain.state_dict()),
        digest_tensors(model.core.state_dict()),
        str(model.dtype).removeprefix("torch."),
        plain.digest,
        recorded,
        control=control,
    )
    for name, tensor in model.core.named_parameters():
        known = (before or {}).get(f"core.{name}")
        if known is None:
            continue
        # A digest holds the dtype: one taken in another dtype differs from the plain core's as well.
        if known == digest_tensors({f"core.{name}": plain.get_parameter(name)}):
            result.num_before += 1
            if known != digest_tensors({f"core.{name}": tensor}):
                result.changed.append(name)
    return result


def _alone(model: MultimodalLlama, plain: Llama, row_S: Tensor) -> Case:
    case = Case(f"one text of {len(row_S)} tokens")
    case.add(plain(row_S[None]), model(row_S[None]))
    return case


def _batched(model: MultimodalLlama, plain: Llama, tokens_BS: Tensor) -> Case:
    case = Case(f"{len(tokens_BS)} texts in a batch")
    case.add(plain(tokens_BS), model(tokens_BS, lengths_B=_full(tokens_BS)))
    return case


def _cached(model: MultimodalLlama, plain: Llama, tokens_BS: Tensor, num_decoded: int) -> Case:
    """Prefill, then decode both greedily; each side follows its own tokens, so a difference would grow."""
    case = Case(f"the batch cached, then {num_decoded} tokens decoded")
    B, S = tokens_BS.shape
    caches = [_cache(plain, B, S + num_decoded) for _ in range(2)]
    positions = torch.arange(S, device=tokens_BS.device).expand(B, S)
    ours = model(tokens_BS, positions_BS=positions, cache=caches[1])
    theirs = plain(tokens_BS, positions_BS=positions, cache=caches[0])
    case.add(theirs, ours)
    for step in range(num_decoded):
        position = torch.full((B, 1), S + step, device=tokens_BS.device)
        theirs = plain(theirs[:, -1:].argmax(-1), positions_BS=position, cache=caches[0])
        ours = model(ours[:, -1:].argmax(-1), positions_BS=position, cache=caches[1])
        case.add(theirs, ours)
    return case


def _chunked(model: MultimodalLlama, plain: Llama, tokens_BS: Tensor) -> Case:
    case = Case("the batch cached, in two chunks")
    B, S = tokens_BS.shape
    caches = [_cache(plain, B, S) for _ in range(2)]
    for start, end in ((0, S // 2), (S // 2, S)):
        positions = torch.arange(start, end, device=tokens_BS.device).expand(B, -1)
        chunk = tokens_BS[:, start:end]
        theirs = plain(chunk, positions_BS=positions, cache=caches[0])
        case.add(theirs, model(chunk, positions_BS=positions, cache=caches[1]))
    return case


def _beside_pictures(
    model: MultimodalLlama, plain: Llama, tokens_BS: Tensor, pictures: Sequence[Tensor], num_decoded: int
) -> tuple[Case, Case, float]:
    """Put a picture row beside each text row: (whole rows, cached decoding, how far picture rows moved)."""
    B, S = tokens_BS.shape
    texts = torch.arange(0, 2 * B, 2, device=tokens_BS.device)
    mixed_BS = tokens_BS.repeat_interleave(2, dim=0)
    place = S // 3
    # The placeholder's own embedding must not reach text rows either, nor positions before it in its own row.
    mixed_BS[texts + 1, place] = 0
    items = [pictures[index % len(pictures)] for index in range(min(B, len(pictures)))]
    media = {
        "image": Media(
            items=items,
            rows_M=(texts + 1).cpu(),
            positions_M=torch.full((B,), place),
            items_M=torch.arange(B) % len(items),
        ).to(model.device)
    }
    state = model.attach(media)
    whole = Case("text beside picture rows, or before a picture")
    theirs, ours = plain(mixed_BS), model(mixed_BS, lengths_B=_full(mixed_BS), media=state)
    whole.add(theirs[texts], ours[texts])
    whole.add(theirs[texts + 1, :place], ours[texts + 1, :place])
    control = (theirs - ours)[texts + 1, place:].abs().max().item()
    decoded = Case(f"text beside picture rows, cached, {num_decoded} decoded")
    caches = [_cache(plain, 2 * B, S + num_decoded) for _ in range(2)]
    positions = torch.arange(S, device=tokens_BS.device).expand(2 * B, S)
    theirs = plain(mixed_BS, positions_BS=positions, cache=caches[0])
    ours = model(mixed_BS, positions_BS=positions, cache=caches[1], media=state)
    decoded.add(theirs[texts], ours[texts])
    for step in range(num_decoded):
        # One stream of tokens for both, the plain core's: the picture rows' own answers would differ.
        tokens = theirs[:, -1:].argmax(-1)
        position = torch.full((2 * B, 1), S + step, device=tokens_BS.device)
        theirs = plain(tokens, positions_BS=position, cache=caches[0])
        ours = model(tokens, positions_BS=position, cache=caches[1], media=state)
        decoded.add(theirs[texts], ours[texts])
    return whole, decoded, control


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Repeat each row to the longest one's length: equal lengths without padding."""
    longest = max(len(row) for row in rows)
    return torch.stack([row.repeat(-(-longest // len(row)))[:longest] for row in rows])


def _full(tokens_BS: Tensor) -> Tensor:
    return torch.full((len(tokens_BS),), tokens_BS.shape[1], device=tokens_BS.device)


def _cache(core: Llama, batch: int, length: int) -> KVCache:
    weight = core.embedding.weight
    return KVCache(core.config, batch, length, weight.dtype, weight.device)
