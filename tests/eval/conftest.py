"""A tiny real model that looks at pictures, with open gates and norms away from one, and its questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adapters.image import ImageAdapter
from mm_llama.core.chat import ChatFormat, chat_format
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.data.decode import open_image
from mm_llama.data.samples import MediaRef
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

CONFIG = LlamaConfig(
    dim=64, num_layers=6, num_heads=4, num_kv_heads=2, ffn_dim=160, vocab_size=265, max_context=2048
)


class PatchEncoder(nn.Module):
    """Splits a 32 x 32 picture into 16 patches and projects each."""

    dim = 24

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(self.dim, 3 * 8 * 8, generator=generator) / 14)

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return digest_tensors(self.state_dict())

    def preprocess(self, image: Image.Image) -> Tensor:
        """float32[3, 32, 32] in -1..1."""
        resized = image.convert("RGB").resize((32, 32))
        pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(32, 32, 3)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1

    def forward(self, pixels_M3HW: Tensor) -> Tensor:
        """float[M, 16, 24]."""
        patches = pixels_M3HW.unfold(2, 8, 8).unfold(3, 8, 8)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ self.weight.T


def build_core(seed: int = 0) -> Llama:
    """A seeded core whose likeliest tokens are letters, so that its answers are words to compare."""
    core = Llama(CONFIG)
    core.init_weights(seed)
    with torch.no_grad():
        core.head.weight[ord("a") : ord("z") + 1] *= 8
        core.head.weight[257:265] *= 9
        # As drawn, the layers add little to the embedding and every answer repeats one letter.
        for layer in core.layers:
            for weight in (*layer.attention.parameters(), *layer.feed_forward.parameters()):
                weight *= 5
    core.digest = digest_tensors(core.state_dict())
    return core.requires_grad_(False).eval()


def build_model(core: Llama) -> MultimodalLlama:
    """The core with an image adapter before layers 2 and 4, its gates half open."""
    adapter = ImageAdapter(
        encoder_dim=PatchEncoder.dim,
        dim=CONFIG.dim,
        num_layers=CONFIG.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        ffn_dim=96,
        layers=[2, 4],
        num_positions=16,
        gate_init=0.7,
        seed=5,
    )
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "norm" in name:
                weight.uniform_(0.7, 1.4, generator=torch.Generator().manual_seed(len(name)))
            elif name.endswith(("o.weight", "down.weight")):
                weight *= 5
    model = MultimodalLlama(core, {"image": CrossAttended(PatchEncoder(), adapter)})
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def core() -> Llama:
    """The plain core; tests must not change it."""
    return build_core()


@pytest.fixture(scope="session")
def model() -> MultimodalLlama:
    """The same core built again, with the adapter attached; tests must not change it."""
    return build_model(build_core())


@pytest.fixture(scope="session")
def tokenizer() -> BytesTokenizer:
    """One token a byte."""
    return BytesTokenizer()


@pytest.fixture(scope="session")
def chat(tokenizer: BytesTokenizer) -> ChatFormat:
    """ChatML over bytes."""
    return chat_format("chatml", tokenizer)


@pytest.fixture(scope="session")
def load_media(model: MultimodalLlama) -> dict[str, Callable[[MediaRef], Tensor]]:
    """Pixels of a picture file for the tiny encoder."""
    encoder = model.modality["image"].encoder
    return {"image": lambda ref: encoder.preprocess(open_image(ref.source))}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five different noise pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(5):
        noise = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(number))
        path = folder / f"{number}.png"
        Image.frombytes("RGB", (40, 40), noise.to(torch.uint8).numpy().tobytes()).save(path)
        paths.append(path)
    return paths
