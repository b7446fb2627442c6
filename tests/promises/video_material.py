"""What the promise tests of clips share: a model that sees pictures and clips, every branch with its say."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapters.video import VideoAdapter
from mm_llama.batch import Media
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from tests.promises.material import CONFIG, TOKENS, WIDTH, make_adapter

Placed = Sequence[tuple[int, int, int]]


def make_video_adapter(dtype: torch.dtype = torch.float32) -> VideoAdapter:
    """Blocks before the second of the three image blocks, two groups of three frames, gates and norms apart."""
    adapter = VideoAdapter(
        encoder_dim=WIDTH,
        dim=CONFIG.dim,
        num_layers=CONFIG.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        ffn_dim=160,
        image_layers=[1, 3, 4],
        every=2,
        num_latents=5,
        aggregator_dim=32,
        aggregator_layers=2,
        aggregator_heads=4,
        frames_per_group=3,
        num_positions=TOKENS,
        motion_latents=2,
        motion_dim=16,
        gate_init=0.7,
        seed=1,
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return adapter.to(dtype)


def make_video_model(dtype: torch.dtype = torch.float32, *, video: bool = True) -> MultimodalLlama:
    """The core with an image adapter, and with a video adapter unless told otherwise."""
    core = Llama(CONFIG)
    core.init_weights(0)
    core.digest = digest_tensors(core.state_dict())
    modalities = {"image": CrossAttended(torch.nn.Identity(), make_adapter(dtype))}
    if video:
        modalities["video"] = CrossAttended(None, make_video_adapter(dtype), reads="image", num_frames=6)
    return MultimodalLlama(core.to(dtype), modalities).requires_grad_(False).eval()


def clip_features(count: int, seed: int = 0, frames: int = 6) -> list[torch.Tensor]:
    """Random frame features float[F, N, E]."""
    generator = torch.Generator().manual_seed(100 + seed)
    return [torch.randn(frames, TOKENS, WIDTH, generator=generator) for _ in range(count)]


def media_of(**kinds: tuple[Placed, list[torch.Tensor]]) -> dict[str, Media]:
    """Media of a batch from (row, position, item) triples and items, by kind."""
    found = {}
    for kind, (placed, items) in kinds.items():
        rows, positions, shown = (torch.tensor(column) for column in zip(*placed, strict=True))
        found[kind] = Media(items, rows, positions, shown, encoded=True)
    return found
