"""Tiny vision models in the released layout: Meta's own reference, cut into shards, and transformers' own."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mm_llama.testing.bytes_tokenizer import BytesTokenizer

DIM, HEADS, KV_HEADS, LAYERS, BLOCKS, VOCAB, WIDTH, TILE = 128, 4, 2, 6, 2, 304, 64, 56
PARAMS: dict[str, Any] = {
    "dim": DIM,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vision_chunk_size": TILE,
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": BLOCKS,
}
# How model-parallel ranks cut Meta's tensors (llama3.2 vision, as its conversion joins them): by the end of a name.
BY_ROWS = (
    *("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "c_fc.weight", "c_fc.bias"),
    *("conv1._linear.weight", "tok_embeddings.weight", "learnable_embedding.weight", "output.weight"),
    *("vision_projection.weight", "vision_projection.bias"),
)
BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight", "attn.wo.weight", "mlp.c_proj.weight")

# Pictures and the tilings (rows, columns) that they are cut into at tile size 56.
PICTURES = {(1, 1): (40, 50), (1, 2): (100, 50), (2, 1): (50, 110), (2, 2): (100, 90), (1, 3): (160, 40)}
PICTURES |= {(3, 1): (30, 150), (1, 4): (300, 50), (4, 1): (40, 240)}


def picture(tiling: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise that is cut into that many rows and columns of tiles."""
    width, height = PICTURES[tiling]
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy(), "RGB")


@torch.no_grad()
def randomise(model: Any, seed: int = 0) -> None:
    """Draw weights that leave every part its say: gates well open, norms away from 1, nothing tiny."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "gate" in name and weight.numel() == 1:
            weight.copy_(0.7 + 0.1 * noise)
        elif weight.ndim == 1 and name.endswith("weight"):
            weight.copy_(1 + 0.3 * noise)
        elif weight.ndim == 1 or "embed" in name:
            weight.copy_(0.3 * noise)
        else:
            weight.copy_(noise / weight[0].numel() ** 0.5)


def meta_reference(max_batch_size: int = 3, max_seq_len: int = 32) -> Any:
    """Meta's whole vision model with a tower of width 64, randomised; needs model-parallel groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fairscale.nn.model_parallel.layers import ColumnParallelLinear
        from llama_models.llama3.args import ModelArgs
        from llama_models.llama3.multimodal import model as theirs

    args = ModelArgs(**PARAMS, max_batch_size=max_batch_size, max_seq_len=max_seq_len)
    # Its sizes are constants there: 1280 wide would be 600M parameters.
    whole = theirs.VisionEncoder
    theirs.VisionEncoder = partial(whole, width=WIDTH)
    projection = theirs.ColumnParallelLinear
    theirs.ColumnParallelLinear = partial(_narrow, projection)
    try:
        model = theirs.CrossAttentionTransformer(args).eval()
    finally:
        theirs.VisionEncoder = whole
        theirs.ColumnParallelLinear = projection
    assert isinstance(model.vision_model.vision_projection, ColumnParallelLinear)
    randomise(model)
    return model


def _narrow(kind: Any, in_features: int, *rest: Any, **options: Any) -> Any:
    return kind(6 * WIDTH if in_features == 6 * 1280 else in_features, *rest, **options)


def write_meta(folder: Path, state: dict[str, Tensor], num_shards: int = 1, **changes: Any) -> Path:
    """Write a state of Meta's model as so many ranks hold it, with params.json and a byte tokenizer."""
    folder.mkdir(parents=True)
    for rank in range(num_shards):
        part = {}
        for name, tensor in state.items():
            axis = 0 if name.endswith(BY_ROWS) else 1 if name.endswith(BY_COLUMNS) else None
            cut = tensor if axis is None else tensor.chunk(num_shards, dim=axis)[rank]
            part[name] = cut.detach().clone()
        part["text_model.rope.freqs"] = torch.ones(16)
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    params = {key: value for key, value in (PARAMS | changes).items() if value is not None}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def transformers_config(**text: Any) -> Any:
    """The config of the same sizes in transformers' terms."""
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    numbers: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "intermediate_size": 448,
        "num_hidden_layers": LAYERS + BLOCKS,
        "cross_attention_layers": [2, 6],
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rope_parameters": rope,
        "max_position_embeddings": 131_072,
        "pad_token_id": None,
        "bos_token_id": BytesTokenizer().specials["<|begin_of_text|>"],
        "eos_token_id": BytesTokenizer().specials["<|eot_id|>"],
    }
    vision = MllamaVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, image_size=TILE, vision_output_dim=6 * WIDTH
    )
    numbers |= text
    return MllamaConfig(
        vision_config=vision,
        text_config=MllamaTextConfig(**numbers),
        image_token_index=numbers["vocab_size"],
    )


def transformers_model(seed: int = 0, **text: Any) -> Any:
    """A random model of transformers' own; tables of tile positions drawn freely, as training there leaves them."""
    from transformers import MllamaForConditionalGeneration

    model = MllamaForConditionalGeneration(transformers_config(**text)).eval()
    model.set_attn_implementation("eager")
    randomise(model, seed)
    return model


def states_before(model: Any) -> Any:
    """Make a transformers model tap the states before a block, as the released models do and its numbers mean.

    This version of the library taps the states behind it.
    """
    vision = model.model.vision_model
    vision.intermediate_layers_indices = [
        tap - 1 for tap in model.config.vision_config.intermediate_layers_indices
    ]
    return model
