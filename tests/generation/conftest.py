"""Tiny random models to generate with: exact to compare, away from every trivial value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.image import ImageAdapter
from encoders.timm_image import TimmImage
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from mm_llama.testing.bytes_tokenizer import BytesTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> BytesTokenizer:
    return BytesTokenizer()


def make_core(seed: int = 0) -> Llama:
    config = LlamaConfig(
        dim=48, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=96, vocab_size=265, max_context=128
    )
    core = Llama(config)
    core.init_weights(seed)
    with torch.no_grad():
        for weight in core.parameters():
            if weight.ndim > 1:
                weight.mul_(
                    8
                )  # attention that points somewhere, continuations that do not settle on one token
    return core.eval()


def make_model(seed: int = 0) -> MultimodalLlama:
    """A core with the real image adapter over a real (random) encoder, gates wide open."""
    core = make_core(seed)
    config = core.config
    encoder = TimmImage("vit_tiny_patch16_224", layers=[1], image_size=32, weights=None, seed=seed)
    adapter = ImageAdapter(
        encoder_dim=encoder.dim,
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        every=2,
        num_positions=4,
        gate_init=0.7,
        seed=seed,
    )
    return MultimodalLlama(core, {"image": CrossAttended(encoder, adapter)}).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def core() -> Llama:
    return make_core()


@pytest.fixture(scope="session")
def model() -> MultimodalLlama:
    return make_model()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Four pictures that differ everywhere."""
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture
def other_model() -> MultimodalLlama:
    """A model of its own for tests that change it."""
    return make_model(seed=1)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These models are too small for a second thread to pay."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
