"""Prompts -> Batch: right-padded ids, and each medium read once however many places show it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.core.chat import Placeholder, Rendered
from mm_llama.core.llama import Llama
from mm_llama.data.collate import collate
from mm_llama.data.media import KEYS, medium_reader
from mm_llama.data.samples import MediaRef, Sample
from mm_llama.model import MultimodalLlama, no_adapter

Prompt = Rendered | Sequence[int] | tuple[Sequence[int], Sequence[Placeholder]]


def make_batch(model: MultimodalLlama | Llama, prompts: Sequence[Prompt] | Batch) -> Batch:
    """Collate prompts for `model`; a ready Batch is returned as it is.

    A medium's source is what its kind opens (for pictures a path, bytes or a PIL picture), or pixels that
    went through the encoder's `preprocess` already, as a tensor. Raises ValueError naming the prompt whose
    medium cannot be read, and for a kind that has no adapter.
    """
    if isinstance(prompts, Batch):
        return prompts
    if isinstance(prompts, str | Rendered) or any(isinstance(prompt, str | int) for prompt in prompts):
        raise ValueError("prompts must be a list of rendered chats or of token ids: write [prompt] for one")
    if not prompts:
        nothing = torch.zeros(0, 0, dtype=torch.long)
        return Batch(nothing, torch.zeros(0, dtype=torch.long))
    samples = [_sample(prompt, f"prompt {index}") for index, prompt in enumerate(prompts)]
    kinds = {ref.kind for sample in samples for ref in sample.media}
    attached = {} if isinstance(model, Llama) else dict(model.modality.items())
    if missing := sorted(kinds - attached.keys()):
        raise ValueError(no_adapter(missing[0], list(attached)))
    return collate(samples, {kind: _reader(model, kind) for kind in kinds})


def _sample(prompt: Prompt, name: str) -> Sample:
    if isinstance(prompt, Rendered):
        tokens, media = prompt.tokens, prompt.media
    elif isinstance(prompt, tuple) and len(prompt) == 2 and not isinstance(prompt[0], int):
        tokens, media = prompt  # type: ignore[assignment]
    else:
        tokens, media = prompt, []  # type: ignore[assignment]
    refs = [MediaRef(item.kind, item.position, item.source, _key(item, name)) for item in media]
    return Sample(list(tokens), [False] * len(tokens), refs, name)


def _key(item: Placeholder, name: str) -> str:
    if isinstance(item.source, Tensor) or item.kind not in KEYS:
        return f"object {id(item.source)}"
    try:
        return KEYS[item.kind](item.source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _reader(model: Any, kind: str) -> Callable[[MediaRef], Tensor]:
    read_source = medium_reader(model, kind)

    def read(ref: MediaRef) -> Tensor:
        return ref.source if isinstance(ref.source, Tensor) else read_source(ref.source)

    return read
