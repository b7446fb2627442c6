"""A tiny random core with a real image adapter on it: gates and norms well away from their trivial values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from tests.promises.material import CONFIG, make_adapter


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both dtypes that a core computes in on a CPU."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture
def make_model() -> Callable[..., MultimodalLlama]:
    """`make_model(dtype)`: the core with an image adapter."""

    def make(dtype: torch.dtype = torch.float32) -> MultimodalLlama:
        core = Llama(CONFIG)
        core.init_weights(0)
        core.digest = digest_tensors(core.state_dict())
        adapter = make_adapter(dtype)
        model = MultimodalLlama(core.to(dtype), {"image": CrossAttended(torch.nn.Identity(), adapter)})
        return model.requires_grad_(False).eval()

    return make
