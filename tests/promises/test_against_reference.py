"""The cross-attended decoder against Meta's reference on copied weights: text-only, image-first, text-first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.image import ImageAdapter
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from tests.promises.material import pictures

# A deprecation inside the oracle's own collectives is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")

TOLERANCE = 2e-6  # of the logits' scale
DIM, HEADS, KV_HEADS, LAYERS, BLOCKS, LENGTH, TOKENS = 128, 4, 2, 4, 2, 24, 10
PARAMS: dict[str, Any] = {
    "dim": DIM,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "vocab_size": 304,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": False,
    "vision_chunk_size": 448,
    "vision_max_num_chunks": 1,
    "vision_num_cross_attention_layers": BLOCKS,
    "max_batch_size": 3,
    "max_seq_len": LENGTH,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Meta's text trunk with cross-attention, random weights with gates and norms away from trivial."""
    from torch import distributed

    with warnings.catch_warnings():
        # Deprecations inside the oracle's own dependencies are not ours to fix.
        warnings.simplefilter("ignore")
        from fairscale.nn.model_parallel import initialize
        from llama_models.llama3.args import ModelArgs
        from llama_models.llama3.multimodal.model import CrossAttentionTransformerText

        store = distributed.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        initialize.initialize_model_parallel(1)
        model = CrossAttentionTransformerText(ModelArgs(**PARAMS)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "gate" in name:
                weight.copy_(0.7 + 0.1 * noise)
            else:
                weight.copy_(1 + 0.3 * noise if weight.ndim == 1 else 0.1 * noise)
    model.setup_cache(3, torch.device("cpu"), torch.float32)
    yield model
    initialize.destroy_model_parallel()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ours(reference: Any) -> MultimodalLlama:
    """The same weights in our core and adapter."""
    state = {name: weight.detach() for name, weight in reference.named_parameters()}
    ffn_dim = state["layers.0.feed_forward.w1.weight"].shape[0]
    core = Llama(
        LlamaConfig(
            dim=DIM,
            num_layers=LAYERS,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            ffn_dim=ffn_dim,
            vocab_size=304,
        )
    )
    adapter = ImageAdapter(
        DIM, DIM, LAYERS, HEADS, KV_HEADS, DIM // HEADS, ffn_dim, every=2, feature_norm=False
    )
    assert adapter.layers == reference.fusion_schedule == [1, 3]
    parts = {"wq": "q", "wk": "k", "wv": "v", "wo": "o"}
    feed = {"w1": "gate", "w2": "down", "w3": "up"}

    def block(theirs: str, mine: str, rotary: bool) -> dict[str, torch.Tensor]:
        weights = {}
        for name, part in parts.items():
            weight = state[f"{theirs}.attention.{name}.weight"]
            if rotary and name in ("wq", "wk"):
                heads = HEADS if name == "wq" else KV_HEADS
                weight = weight.view(heads, -1, 2, DIM).transpose(1, 2).reshape(weight.shape)
            weights[f"{mine}.attention.{part}.weight"] = weight
        for name, part in feed.items():
            weights[f"{mine}.feed_forward.{part}.weight"] = state[f"{theirs}.feed_forward.{name}.weight"]
        weights[f"{mine}.attention_norm.weight"] = state[f"{theirs}.attention_norm.weight"]
        weights[f"{mine}.feed_forward_norm.weight"] = state[f"{theirs}.ffn_norm.weight"]
        return weights

    weights = {
        "embedding.weight": state["tok_embeddings.weight"],
        "norm.weight": state["norm.weight"],
        "head.weight": state["output.weight"],
    }
    for index in range(LAYERS):
        weights |= block(f"layers.{index}", f"layers.{index}", rotary=True)
    core.load_state_dict(weights)
    blocks = {
        "projection.weight": torch.eye(DIM),
        "projection.bias": torch.zeros(DIM),
        "placeholder": state["learnable_embedding.weight"][0],
    }
    for index in range(BLOCKS):
        theirs, mine = f"cross_attention_layers.{index}", f"blocks.{index}"
        blocks |= block(theirs, mine, rotary=False)
        blocks[f"{mine}.attention.q_norm.weight"] = state[f"{theirs}.attention.q_norm.weight"]
        blocks[f"{mine}.attention.k_norm.weight"] = state[f"{theirs}.attention.k_norm.weight"]
        blocks[f"{mine}.attention_gate"] = state[f"{theirs}.gate_attn"]
        blocks[f"{mine}.feed_forward_gate"] = state[f"{theirs}.gate_ffwd"]
    adapter.load_state_dict(blocks)
    return MultimodalLlama(core, {"image": CrossAttended(torch.nn.Identity(), adapter)})


CASES = {
    "image-first": [[0], [0], [0]],
    "text-first": [[5], [9], [23]],
    "mixed": [[], [3], [0, 11]],
    "consecutive": [[2, 3], [4, 5], [7, 8]],
}


@pytest.mark.parametrize("placed", CASES.values(), ids=list(CASES))
@torch.no_grad()
def test_logits_equal_metas_reference_with_pictures(
    placed: list[list[int]], reference: Any, ours: MultimodalLlama
) -> None:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 304, (3, LENGTH), generator=generator)
    most = max(map(len, placed))
    vision = torch.randn(3, most, 1, TOKENS, DIM, generator=generator)
    ids, triples, items = text.clone(), [], []
    closed = torch.finfo(torch.float32).min
    masks = torch.full((3, LENGTH, most, 1), closed)
    for row, positions in enumerate(placed):
        for number, position in enumerate(positions):
            ids[row, position] = 304
            triples.append((row, position, len(items)))
            items.append(vision[row, number, 0])
            following = [p for p in positions if p > position and p - 1 not in positions]
            masks[row, position : following[0] if following else LENGTH, number] = 0
    xattn_mask, full_row_mask = reference._get_xattn_mask(LENGTH, "cpu", torch.float32, vision, masks)
    caches = torch.stack(
        [layer.compute_xattn_kv_cache(vision.flatten(1, 3)) for layer in reference.cross_attention_layers]
    )
    expected = reference(
        torch.arange(LENGTH),
        reference.get_partially_trainable_embedding(ids),
        xattn_mask,
        full_row_mask,
        caches,
    )
    got = ours(text, media=ours.attach(pictures(triples, items)))
    assert float((got - expected).abs().max() / expected.abs().max()) <= TOLERANCE


@torch.no_grad()
def test_text_only_logits_equal_metas_reference(reference: Any, ours: MultimodalLlama) -> None:
    text = torch.randint(0, 304, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    expected = reference(
        torch.arange(LENGTH),
        reference.get_partially_trainable_embedding(text),
        None,
        None,
        None,
        text_only_inference=True,
    )
    assert float((ours(text) - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def test_reference_is_not_the_one_we_built(reference: Any) -> None:
    assert Path(type(reference).__module__.replace(".", "/")).parts[0] == "llama_models"
