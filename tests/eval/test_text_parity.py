"""The proof passes for an untouched core, and one changed bit anywhere in it makes the proof fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mm_llama.core.llama import Llama
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.data.decode import open_image
from mm_llama.eval.text_parity import Parity, text_parity
from mm_llama.model import MultimodalLlama
from mm_llama.stages.freeze import digests, stored_tensors

TEXTS = ("short", "a text of some more letters than the first one", "x = [1, 2, 3]")


def prove(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer, pictures: list[Path], **more: object
) -> Parity:
    encoder = model.modality["image"].encoder
    pixels = [encoder.preprocess(open_image(path)) for path in pictures[:2]]
    return text_parity(model, core, tokenizer, pictures=pixels, texts=TEXTS, num_decoded=4, **more)  # type: ignore[arg-type]


def test_untouched_core_is_proven_unchanged(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer, pictures: list[Path]
) -> None:
    before = digests(stored_tensors(model))
    result = prove(model, core, tokenizer, pictures, recorded=core.digest, before=before)
    assert result.identical
    assert [case.max_delta for case in result.cases] == [0.0] * len(result.cases)
    assert result.control is not None and result.control > 0.01, "the adapter must be at work beside the text"
    assert result.num_before == len(core.state_dict())
    longest = max(len(text) for text in TEXTS)
    values = {case.name: case.num_values for case in result.cases}
    assert values["3 texts in a batch"] == 3 * longest * 265
    assert values["the batch cached, then 4 tokens decoded"] == 3 * (longest + 4) * 265
    found = result.to_json()
    assert found["identical"] is True
    assert found["core"]["plain"] == found["core"]["attached"]


@pytest.mark.parametrize("name", ["embedding.weight", "layers.5.attention.v.weight", "norm.weight"])
def test_one_flipped_bit_is_caught_by_logits_and_digests(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer, pictures: list[Path], name: str
) -> None:
    before = digests(stored_tensors(model))
    bits = model.core.get_parameter(name).detach().view(torch.int32).view(-1)
    # A token that the texts use, so that the embedding's change reaches the logits.
    place = ord("a") * 64 + 5 if name.startswith("embedding") else 5
    kept = int(bits[place])
    try:
        bits[place] ^= 1 << 22
        result = prove(model, core, tokenizer, pictures, before=before)
    finally:
        bits[place] = kept
    assert not result.identical
    assert result.plain != result.attached
    assert result.changed == [name]
    assert not all(case.equal for case in result.cases)
    assert max(case.max_delta for case in result.cases) > 0
    assert prove(model, core, tokenizer, pictures, before=before).identical


def test_the_lowest_bit_of_an_unused_weight_is_caught_by_its_digest(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer, pictures: list[Path]
) -> None:
    """Token 200 occurs in no text: no logit moves, and the proof must fail all the same."""
    bits = model.core.get_parameter("embedding.weight").detach().view(torch.int32)
    kept = int(bits[200, 0])
    try:
        bits[200, 0] ^= 1
        result = prove(model, core, tokenizer, pictures)
    finally:
        bits[200, 0] = kept
    assert all(case.equal for case in result.cases)
    assert not result.identical


def test_an_adapter_that_leaks_into_text_rows_is_caught(
    model: MultimodalLlama,
    core: Llama,
    tokenizer: Tokenizer,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block that touches the rows beside its own must fail exactly the cases with pictures."""
    modality = model.modality["image"]
    true_between = type(modality).between

    def leaky(self: object, layer: int, hidden: torch.Tensor, attached: object, plan: object) -> torch.Tensor:
        new = true_between(self, layer, hidden, attached, plan)  # type: ignore[arg-type]
        return new + 1e-6 * new.mean()

    monkeypatch.setattr(type(modality), "between", leaky)
    result = prove(model, core, tokenizer, pictures)
    assert [case.equal for case in result.cases] == [True] * 6 + [False, False]
    assert not result.identical


def test_another_checkpoint_than_the_adapters_is_not_identical(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer, pictures: list[Path]
) -> None:
    assert not prove(model, core, tokenizer, pictures, recorded="sha256:" + 64 * "0").identical


def test_without_pictures_there_is_no_control(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer
) -> None:
    result = text_parity(model, core, tokenizer, texts=TEXTS)
    assert result.identical and result.control is None
    assert result.to_json()["control"] is None


def test_cores_of_two_dtypes_and_no_text_are_refused(
    model: MultimodalLlama, core: Llama, tokenizer: Tokenizer
) -> None:
    from copy import deepcopy

    with pytest.raises(ValueError, match="load both alike"):
        text_parity(model, deepcopy(core).to(torch.bfloat16), tokenizer)
    with pytest.raises(ValueError, match="at least one text"):
        text_parity(model, core, tokenizer, texts=())
