"""What rounding the default core to int8 costs, on a sample of real text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mm_llama.bench.text import documents
from mm_llama.bench.text_pair import Ours, perplexity


def test_int8_keeps_perplexity_and_the_likeliest_tokens(
    smollm2: Any, asset_dir: Callable[[str], Path]
) -> None:
    asset_dir("llamafactory_data")
    plain = copy.deepcopy(smollm2.core).to(torch.bfloat16)
    rounded = copy.deepcopy(plain)
    rounded.hold("int8")
    rows = [row[:96] for row in documents(smollm2.tokenizer, 8)]
    before, after = perplexity(plain, rows), perplexity(rounded, rows)
    # Measured: 7.82 and 7.88 on these rows.
    assert before < 8 and abs(after / before - 1) < 0.02
    # The likeliest token after real text, through the kernel that decodes a single row.
    prompts = torch.tensor([row[:24] for row in rows])
    with torch.inference_mode():
        same = [
            torch.equal(Ours(plain).prefill(prompt[None])[0], Ours(rounded).prefill(prompt[None])[0])
            for prompt in prompts
        ]
    assert sum(same) >= 7
