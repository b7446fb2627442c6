"""Loading a vision checkpoint holds nothing twice: Linux's own account of memory, about a gigabyte of weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mm_llama.released.checkpoint import shapes_of
from mm_llama.released.huggingface import published_shapes, sizes_from_json
from mm_llama.released.meta import _meta_shape
from mm_llama.released.names import meta_name
from tests.released.material import transformers_config, write_meta

MEASURE = """
import sys, torch
torch.set_num_threads(1)
from mm_llama.released.load import load_vision, open_vision
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
open_vision(sys.argv[1])
before = peak()
core, image = load_vision(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
size = sum(tensor.nbytes for module in (core.core, image) for tensor in module.state_dict().values())
print((peak() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
@pytest.mark.parametrize("form", ["Hugging Face", "Meta"])
def test_peak_memory_stays_near_the_models_own_size(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    config = transformers_config(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=22, cross_attention_layers=[9, 20]
    )
    config.save_pretrained(folder)
    sizes = sizes_from_json(json.loads((folder / "config.json").read_text()), where="config.json")
    if form == "Hugging Face":
        shapes = published_shapes(shapes_of(sizes), sizes)
        save_file(
            {name: torch.full(shape, 0.5) for name, shape in shapes.items()}, folder / "model.safetensors"
        )
    else:
        state = {
            meta_name(name, sizes.layers): torch.full(_meta_shape(name, shape, sizes), 0.5)
            for name, shape in shapes_of(sizes).items()
        }
        (folder / "config.json").unlink()
        write_meta(
            tmp_path / "meta", state, 2, dim=1024, n_layers=20, multiple_of=256, ffn_dim_multiplier=1.0
        )
        folder = tmp_path / "meta"
        del state
    for dtype, most in (("float32", 1.35), ("bfloat16", 1.45)):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(folder), dtype], capture_output=True, text=True, check=True
        )
        assert 1.0 <= float(done.stdout) < most, f"{form} as {dtype}"
