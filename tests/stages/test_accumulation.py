"""Gradients of bfloat16 compute over micro-batches: float32 masters hold their sum in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.freeze import freeze
from mm_llama.stages.loop import forward_backward
from mm_llama.stages.steps import count_targets, next_token


def gradients(model: MultimodalLlama) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_micro_batches_of_bfloat16_compute_add_up_in_float32(
    tiny_model: Callable[..., MultimodalLlama], tiny_batch: Callable[..., Batch]
) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    freeze(model, ["modality.image.adapter"])
    batches = [tiny_batch(seed) for seed in range(1, 9)]
    forward_backward(model, next_token, batches)
    whole = gradients(model)
    assert whole and {gradient.dtype for gradient in whole.values()} == {torch.float32}

    # The same micro-batches one at a time, summed by hand.
    num_targets = sum(count_targets(batch) for batch in batches)
    single = []
    for batch in batches:
        (next_token(model, batch).loss_sum / num_targets).backward()
        single.append(gradients(model))
    in_bfloat16 = 0
    for name, gradient in whole.items():
        total, rounded = torch.zeros_like(gradient), torch.zeros_like(gradient, dtype=torch.bfloat16)
        for part in single:
            if name in part:
                total += part[name]
                rounded += part[name]
        assert torch.equal(gradient, total), name
        in_bfloat16 += int(torch.equal(gradient, rounded.float()))
    assert in_bfloat16 < len(whole) // 4  # sums in bfloat16 would be others
