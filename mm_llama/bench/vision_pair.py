"""One vision model of the released layout twice, ours and transformers', with the same random weights.

The peer is measured, not used: it is imported here alone, and reads the folder that our own export wrote. Gates stand
well open and norms away from 1, so that no part can be left out unnoticed.

Shapes: B rows, S positions, M pictures, r c rows and columns of tiles, s tile side, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.batch import Batch, Media
from mm_llama.bench.sizes import SCALED
from mm_llama.core.cache import KVCache
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import LlamaConfig, RopeScaling
from mm_llama.model import MultimodalLlama
from mm_llama.released.checkpoint import Sizes, blank_model, released_tower
from mm_llama.released.export import export_vision
from mm_llama.released.huggingface import tilings

GET_TRANSFORMERS = 'pip install "mm_llama[oracles]"'


def scaled_sizes(name: str) -> Sizes:
    """Return the numbers of a scaled-down vision model."""
    parts = SCALED[name]
    numbers = {"num_kv_heads": 1} | parts["core"]
    core = LlamaConfig(**numbers, rope_scaling=RopeScaling(), max_context=131_072, norm_eps=1e-5)
    tower = released_tower() | {"tile_size": 448, "num_global_layers": 2} | parts["tower"]
    return Sizes(core, parts["layers"], tower)


def random_model(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> MultimodalLlama:
    """Return our model of these numbers with random weights, none of them trivial."""
    model = blank_model(sizes).to_empty(device="cpu")
    randomise(model, seed)
    model.core.digest = digest_tensors(model.core.state_dict())
    return model.to(dtype).requires_grad_(False).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw every tensor: gates around 0.7, norms around 1, matrices 1/sqrt(fan-in), tables 0.3."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gate"):
            tensor.copy_(0.7 + 0.1 * noise)
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        elif tensor.ndim > 1 and not any(
            table in name for table in ("positions", "embedding", "_tile.weight")
        ):
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.3 * noise)


def transformers_version() -> str:
    """Return the version of transformers that is installed; ValueError, saying how to get it, when none is."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"this compares with transformers, which is not installed: {GET_TRANSFORMERS}")
    import transformers

    return str(transformers.__version__)


def same_in_transformers(model: MultimodalLlama) -> Any:
    """Return transformers' model with our weights, through the folder that our export writes."""
    transformers_version()
    with tempfile.TemporaryDirectory() as home, _quiet():
        from transformers import MllamaForConditionalGeneration

        export_vision(model, None, Path(home) / "model")
        peer = MllamaForConditionalGeneration.from_pretrained(
            Path(home) / "model", dtype=model.dtype, low_cpu_mem_usage=False
        )
        # From memory rather than from the file, which goes away.
        peer.load_state_dict(
            {name: tensor.clone() for name, tensor in peer.state_dict().items()}, assign=True
        )
    peer.requires_grad_(False).eval()
    return peer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and notes about missing generation settings off the screen."""
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(before)


class Ours:
    """Our model behind the few calls that are compared."""

    def __init__(self, model: MultimodalLlama) -> None:
        self.model = model

    def batch(self, tokens_BS: Tensor, tiles_rc3ss: Tensor) -> Batch:
        """Return one row whose first position is the picture's placeholder."""
        zero = torch.zeros(1, dtype=torch.long)
        media = {"image": Media([tiles_rc3ss.to(self.model.dtype)], zero, zero, zero)}
        return Batch(tokens_BS, torch.tensor([tokens_BS.shape[1]]), media=media)

    def prefill(self, batch: Batch, room: int = 1, *, every: bool = False) -> tuple[Tensor, Any]:
        """Return the logits at the last position (at all with `every`), float[B, S, V], and the state behind them."""
        media = self.model.attach(batch.media)
        B, S = batch.tokens_BS.shape
        core = self.model.core
        cache = KVCache(core.config, B, S + room, self.model.dtype)
        at = torch.zeros(B, S, dtype=torch.bool)
        at[:, 0 if every else -1 :] = True
        logits = self.model(batch.tokens_BS, cache=cache, media=media, at=at)
        return logits.view(B, -1, logits.shape[-1]), (cache, media, S)

    def decode(self, state: Any, tokens_N: Tensor) -> Tensor:
        """Feed tokens one by one, float[N, V] logits behind each; the state stays as it was for the next call."""
        cache, media, S = state
        found = [
            self.model(token.view(1, 1), positions_BS=torch.tensor([[S + n]]), cache=cache, media=media)[0]
            for n, token in enumerate(tokens_N)
        ]
        return torch.cat(found)

    def cache_bytes(self, state: Any) -> int:
        """Return the bytes of the keys and values of the pictures."""
        attached = state[1].attached["image"]
        return sum(part.nbytes for pair in attached.keys_values.values() for part in pair)


class Theirs:
    """The same calls on transformers' model, as lean as it allows: its forward in a loop, the cache it makes."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        vision = peer.config.vision_config
        self.max_tiles = int(vision.max_num_tiles)
        self.tilings = tilings(self.max_tiles)
        self.placeholder = int(peer.config.image_token_index)

    def tap_before(self) -> None:
        """Take tower states before the layers of the given numbers, as released checkpoints mean them.

        Versions of the library from 5 on take those behind them.
        """
        vision = self.peer.model.vision_model
        vision.intermediate_layers_indices = [tap - 1 for tap in vision.intermediate_layers_indices]

    def inputs(self, tokens_BS: Tensor, tiles_rc3ss: Tensor) -> dict[str, Tensor]:
        """Return what its forward takes for one row whose first position is the picture's placeholder."""
        rows, columns = tiles_rc3ss.shape[:2]
        padded = tiles_rc3ss.new_zeros(1, 1, self.max_tiles, *tiles_rc3ss.shape[2:], dtype=self.peer.dtype)
        padded[0, 0, : rows * columns] = tiles_rc3ss.flatten(0, 1)
        present = torch.zeros(1, 1, self.max_tiles, dtype=torch.long)
        present[..., : rows * columns] = 1
        ids = tokens_BS.clone()
        ids[:, 0] = self.placeholder
        return {
            "input_ids": ids,
            "pixel_values": padded,
            "aspect_ratio_ids": torch.tensor([[self.tilings.index([rows, columns]) + 1]]),
            "aspect_ratio_mask": present,
            "cross_attention_mask": present[:, None].expand(1, tokens_BS.shape[1], 1, self.max_tiles),
        }

    def prefill(self, inputs: dict[str, Tensor], *, every: bool = False) -> tuple[Tensor, Any]:
        """Return float[B, S, V] logits, of the last position or of all, and the state behind them."""
        out = self.peer(**inputs, use_cache=True, logits_to_keep=0 if every else 1)
        return out.logits, (out.past_key_values, inputs["cross_attention_mask"][:, -1:])

    def copied(self, state: Any) -> Any:
        """Return a copy of a state: its cache grows with every token that is fed."""
        return copy.deepcopy(state[0]), state[1]

    def decode(self, state: Any, tokens_N: Tensor) -> Tensor:
        """Feed tokens one by one, float[N, V] logits behind each; uses the state up."""
        cache, mask = state
        found = []
        for token in tokens_N:
            out = self.peer(
                input_ids=token.view(1, 1), past_key_values=cache, cross_attention_mask=mask, use_cache=True
            )
            found.append(out.logits[0])
        return torch.cat(found)

    def tower(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run its image tower alone."""
        keys = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        states: Tensor = self.peer.model.vision_model(**{key: inputs[key] for key in keys}).last_hidden_state
        return states

    def cache_bytes(self, state: Any) -> int:
        """Return the bytes of the keys and values of the pictures."""
        layers = self.peer.config.text_config.cross_attention_layers
        return sum(
            part.nbytes
            for layer in layers
            for part in (state[0].layers[layer].keys, state[0].layers[layer].values)
        )
