"""A text core beside transformers' Llama with the same numbers: the few calls that are compared, and what they cost.

The peer is measured, not used: it is imported here alone.

Shapes: B rows, S positions, N new tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_llama.bench.vision_pair import transformers_version
from mm_llama.core.cache import KVCache
from mm_llama.core.huggingface import HF_NAMES, config_to_json
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.generation.engine import generate
from mm_llama.generation.sampling import greedy
from mm_llama.model import MultimodalLlama


def same_in_transformers(core: Llama, attention: str = "sdpa") -> Any:
    """Return transformers' Llama with the weights of a core, in its dtype and on its device."""
    transformers_version()
    import transformers

    weight = core.embedding.weight
    config: Any = transformers.LlamaConfig(**config_to_json(core.config))
    config._attn_implementation = attention
    with torch.device(weight.device):
        peer: Any = transformers.LlamaForCausalLM(config)
    peer.to(weight.dtype)
    state = {HF_NAMES.of(name): tensor for name, tensor in core.state_dict().items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if not (core.config.tied and name == "lm_head.weight")]:
        raise ValueError(f"transformers' Llama has other tensors: lacks {unexpected}, has {missing} besides")
    peer.generation_config.pad_token_id, peer.generation_config.eos_token_id = 0, None
    return peer.requires_grad_(False).eval()


class Ours:
    """A core, alone or with modalities attached, behind the calls that are compared."""

    def __init__(self, model: Llama | MultimodalLlama) -> None:
        self.model = model
        self.core = model if isinstance(model, Llama) else model.core

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Return logits at every position, float32[B, S, V]."""
        found: Tensor = self.model(tokens_BS)
        return found

    def prefill(self, tokens_BS: Tensor, room: int = 1) -> tuple[Tensor, Any]:
        """Return the first new token of every row, int64[B, 1], and the state to go on from."""
        B, S = tokens_BS.shape
        weight = self.core.embedding.weight
        cache = KVCache(self.core.config, B, S + room, weight.dtype, weight.device)
        at = torch.zeros(B, S, dtype=torch.bool, device=weight.device)
        at[:, -1] = True
        return greedy(self.model(tokens_BS, cache=cache, at=at))[:, None], (cache, S)

    def decode(self, first_B1: Tensor, state: Any, count: int) -> Tensor:
        """Return `count` tokens of every row behind the first, greedily: int64[B, N]; the state can be used again."""
        cache, S = state
        B, token_B1, found = len(first_B1), first_B1, []
        for n in range(count):
            positions_B1 = torch.full((B, 1), S + n, device=token_B1.device)
            token_B1 = greedy(self.model(token_B1, positions_BS=positions_B1, cache=cache))
            found.append(token_B1)
        return torch.cat(found, dim=1)

    def answer(self, tokens_BS: Tensor, count: int, compile: bool = False) -> Tensor:
        """Return `count` new tokens of every row by the library's own call."""
        made = generate(self.model, tokens_BS.tolist(), max_new_tokens=count, compile=compile)
        return torch.tensor([row.tokens for row in made])


class Theirs:
    """The same calls on transformers' model, as lean as it allows: its forward in a loop, the cache it makes."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Return logits at every position, float32[B, S, V]."""
        found: Tensor = self.peer(input_ids=tokens_BS, use_cache=False).logits.float()
        return found

    def prefill(self, tokens_BS: Tensor) -> tuple[Tensor, Any]:
        """Return the first new token of every row, int64[B, 1], and the state to go on from."""
        out = self.peer(input_ids=tokens_BS, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1)[:, None], out.past_key_values

    def decode(self, first_B1: Tensor, state: Any, count: int) -> Tensor:
        """Return `count` tokens of every row behind the first, greedily: int64[B, N]; uses the state up."""
        token_B1, found = first_B1, []
        for _ in range(count):
            out = self.peer(input_ids=token_B1, past_key_values=state, use_cache=True)
            token_B1 = out.logits[:, -1].argmax(-1)[:, None]
            found.append(token_B1)
        return torch.cat(found, dim=1)

    def copied(self, state: Any) -> Any:
        """Return a copy of a state: its cache grows with every token that is fed."""
        return copy.deepcopy(state)

    def answer(self, tokens_BS: Tensor, count: int) -> Tensor:
        """Return `count` new tokens of every row by the library's own call."""
        made: Tensor = self.peer.generate(
            input_ids=tokens_BS,
            attention_mask=torch.ones_like(tokens_BS),
            do_sample=False,
            max_new_tokens=count,
        )
        return made[:, tokens_BS.shape[1] :].cpu()


@torch.inference_mode()
def perplexity(core: Llama, documents: Sequence[Sequence[int]]) -> float:
    """Return e to the mean loss of every token but the first of each document, given those before it."""
    loss, count = 0.0, 0
    for ids in documents:
        tokens_S = torch.tensor(ids, device=core.embedding.weight.device)
        logits_SV = core(tokens_S[None, :-1])[0]
        loss += float(F.cross_entropy(logits_SV, tokens_S[1:], reduction="sum"))
        count += len(ids) - 1
    return math.exp(loss / count)


def text_flops(config: LlamaConfig, batch: int, length: int, num_logits: int) -> int:
    """Return the operations of the matrix products of a forward pass over B rows of S positions, no cache before it.

    Attention is counted whole, as it is computed: half of it is masked. `num_logits` positions go through the head.
    """
    d, H, K = config.head_dim, config.num_heads, config.num_kv_heads
    projections = config.dim * d * (2 * H + 2 * K) + 3 * config.dim * config.ffn_dim
    layer = 2 * batch * length * projections + 4 * batch * H * length * length * d
    return config.num_layers * layer + 2 * num_logits * config.dim * config.vocab_size


def bytes_per_step(core: Llama, batch: int, length: int, form: str = "") -> int:
    """Return the bytes that one step of decoding has to read: every weight once, the keys and values of every row.

    `length` positions are in use; the weights are in the core's dtype or, with `form` int8, of one byte and a scale
    of two for each row.
    """
    config, size = core.config, core.embedding.weight.element_size()
    rows = (
        config.head_dim * (config.num_heads + 2 * config.num_kv_heads) + 2 * config.dim + 2 * config.ffn_dim
    )
    matrices = config.dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    matrices += 3 * config.dim * config.ffn_dim
    head = config.dim * config.vocab_size
    if form == "int8":
        weights = config.num_layers * (matrices + 2 * rows) + head + 2 * config.vocab_size
    else:
        weights = size * (config.num_layers * matrices + head)
    norms = size * config.dim * (2 * config.num_layers + 1)
    cached = 2 * size * config.num_layers * batch * config.num_kv_heads * length * config.head_dim
    return weights + norms + cached
